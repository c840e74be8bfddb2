"""Whether an ensemble gives every site the room it is due."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ddm_fed.evaluation.intervals import LEVEL

DRAWS = 10_000


class ShareError(NamedTuple):
    """Total variation between intended and obtained shares, and what chance alone would give."""

    error: float
    expected_by_chance: float


def site_share_error(intended: Sequence[float], obtained_counts: Sequence[int]) -> ShareError:
    """Returns how far the obtained shares are from the intended, in [0, 1].

    Args:
        intended: Wanted share of every site; sums to 1.
        obtained_counts: Number of samples of every site.

    Returns:
        Total variation, half the L1 distance, and its expectation under exact sampling (each share
        is off by sqrt(2 / pi) of its binomial deviation on average).

    Raises:
        ValueError: there are no samples.
    """
    total = sum(obtained_counts)
    if total == 0:
        raise ValueError("there are no samples to compare")
    pairs = list(zip(intended, obtained_counts, strict=True))
    error = 0.5 * sum(abs(share - count / total) for share, count in pairs)
    chance = 0.5 * sum(
        math.sqrt(2 / math.pi) * math.sqrt(share * (1 - share) / total) for share in intended
    )
    return ShareError(error, chance)


class ShareInterval(NamedTuple):
    """Total variation between intended and obtained shares, and what the count of samples allows.

    `low` to `high` holds the distance of the shares that the sampler really has, at the level of
    95 %. `chance_high` is what an exact sampler stays below 95 % of the time, and `p_value` how
    often it would be as far off as was found.
    """

    error: float
    low: float
    high: float
    chance_high: float
    p_value: float
    samples: int
    draws: int


def site_share_interval(
    intended: Sequence[float],
    obtained_counts: Sequence[int],
    *,
    generator: np.random.Generator,
    draws: int = DRAWS,
) -> ShareInterval:
    """Returns the share error with an interval, from simulated multinomial counts.

    Plainly resampled errors are all too large: they add the noise of the second draw to that of
    the first. So the interval is error -+ c, with c the 95 % quantile of the distance between
    resampled and obtained shares. By the triangle inequality the real distance is at most as far
    from the error as real from obtained shares: the level is kept, up to the resampling, and where
    the shares are right the interval holds zero.

    Args:
        intended: Wanted share of every site; sums to 1.
        obtained_counts: Number of samples of every site.
        generator: Simulates.
        draws: How often.

    Raises:
        ValueError: there are no samples.
    """
    error = site_share_error(intended, obtained_counts).error
    count = sum(obtained_counts)
    wanted = np.array(intended, dtype=np.float64)
    found = np.array(obtained_counts, dtype=np.float64) / count

    def simulated(shares: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> list[float]:
        drawn = generator.multinomial(count, shares / shares.sum(), size=draws)
        distances: list[float] = (0.5 * np.abs(drawn / count - shares).sum(1)).tolist()
        return distances

    reach = float(np.quantile(simulated(found), LEVEL))
    by_chance = np.array(simulated(wanted))
    return ShareInterval(
        error=error,
        low=max(0.0, error - reach),
        high=min(1.0, error + reach),
        chance_high=float(np.quantile(by_chance, LEVEL)),
        # one is counted for what was found, so that it is never zero; slack is for rounding
        p_value=(1 + int((by_chance >= error - 1e-12).sum())) / (1 + draws),
        samples=count,
        draws=draws,
    )

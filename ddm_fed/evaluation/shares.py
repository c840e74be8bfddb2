"""Whether an ensemble gives every site the room it is due."""

import math
from collections.abc import Sequence
from typing import NamedTuple


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

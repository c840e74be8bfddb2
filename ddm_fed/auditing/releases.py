"""Whether what left a site was noised as the ledger says: looked at where the exact value is known.

These checks read private statistics, so only the site itself can make them, and their findings stay
there. Each fails an honest release with a probability below `FALSE_ALARM`.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv  # scipy.stats takes a second to load

from ddm_fed.privacy import Finding

FALSE_ALARM = 1e-6
LEAST_SCALE = 1.0  # below it a discrete Gaussian is no longer like a rounded normal

Ints = NDArray[np.int64]


def examine_noise(released: Ints, exact: Ints, scale: float, *, what: str) -> Finding:
    """Returns whether a release differs from its statistic as discrete Gaussian noise would.

    The sum of squared differences over `scale` squared is chi-square of as many degrees of freedom
    as there are values. Both tails count: too little noise breaks the promise, too much means that
    something else than what the ledger says was done. A few values show only gross errors: half
    the noise is found for certain in 70 of them, a tenth in 10.

    Args:
        released: What left, `(n,)`.
        exact: What it was made of, `(n,)`.
        scale: Of the noise: sensitivity times noise multiplier.
        what: The release.

    Raises:
        ValueError: shapes differ, nothing was released, or `scale` is too small to judge.
    """
    if released.shape != exact.shape or released.ndim != 1 or not len(released):
        raise ValueError(f"expected vectors of one length, got {released.shape} and {exact.shape}")
    if not scale >= LEAST_SCALE:
        raise ValueError(f"noise of scale {scale} cannot be judged, at least {LEAST_SCALE} can")
    # Python's integers: noise that wrapped around must not look small
    differences = [abs(int(a) - int(b)) for a, b in zip(released, exact, strict=True)]
    sizes = np.array(differences, dtype=np.float64)
    # whole numbers stand for everything that rounds to them: half a step in favour of the release
    most = float(np.square((sizes + 0.5) / scale).sum())
    least = float(np.square(np.maximum(sizes - 0.5, 0) / scale).sum())
    # a chi-squared distribution
    low, high = 2 * gammaincinv(len(sizes) / 2, [FALSE_ALARM / 2, 1 - FALSE_ALARM / 2])
    deviation = math.sqrt(float(np.square(sizes / scale).mean()))
    return Finding(
        f"noise of the release: {what}",
        bool(most >= low and least <= high),
        f"{deviation:.4f} of the stated scale in {len(sizes)} values",
        f"{math.sqrt(low / len(sizes)):.4f} to {math.sqrt(high / len(sizes)):.4f}",
    )


def examine_expected_units(
    expected_units: float,
    *,
    sampling_rate: float,
    released_count: float,
    exact_count: int,
    tolerance: float = 1e-6,
) -> Finding:
    """Returns whether the divisor of noisy sums was computed from the noisy count.

    One that was computed from the exact count tells it to everybody who knows the sampling rate.

    Args:
        expected_units: As stated: what noisy sums were divided by.
        sampling_rate: Probability that a unit is in a step.
        released_count: Number of units as it was released, with noise.
        exact_count: Number of units. The finding does not show it.
        tolerance: Relative; for a number that was written down with few digits.
    """
    honest = math.isclose(expected_units, sampling_rate * released_count, rel_tol=tolerance)
    telling = math.isclose(expected_units, sampling_rate * exact_count, rel_tol=tolerance)
    expected = "the sampling rate times the released count"
    wrong = "the sampling rate times the EXACT count" if telling else "something else"
    name = "expected number of units"
    return Finding(name, honest, expected if honest else wrong, expected)

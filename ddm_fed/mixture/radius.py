"""The radius to which coefficients are clipped: the plan's, or read off a released histogram.

Post-processing: it reads released numbers alone, and costs no privacy.

The histogram of norms has some twenty bins and, at a small site, much noise: a count that stands
out may be noise, and most that are true do not stand out. So all bins are read together. Norms on
the scale of octaves are taken to be roughly one hump, of a middle m and a width s; how likely a
pair of a grid is, with the number of units that fits it best, follows from the noise, which is
known, and from how far norms are from a hump. Of the 97th percentiles m + 1.88 s the one is taken
that is large enough with probability CERTAINTY: a radius that is too small says that all images are
alike, and says it with much confidence; one that is too large costs noise.
"""

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray

from ddm_fed.mixture.messages import NORM_BINS, NORMS, message_named, router_events
from ddm_fed.mixture.noisy_vector import Ints
from ddm_fed.records import Plan, StatisticsSpec

BINS_PER_OCTAVE = 3
RADIUS_QUANTILE = 0.97
CERTAINTY = 0.9
WIDTHS = (0.5, 1.0, 1.5, 2.0)  # of the hump, in bins
NOT_A_HUMP = 0.02  # of the units, in every bin
PER_BIN = 4  # middles, and radii, per bin

Floats = NDArray[np.float64]


def longest_norm(plan: Plan) -> float:
    """Returns the largest norm that an image's coefficients about the plan's centre can have."""
    centre = float(plan.router.centre) if isinstance(plan.router, StatisticsSpec) else 0.0
    return (float(plan.data.bound) + abs(centre)) * math.sqrt(math.prod(plan.data.shape))


def norm_edges(plan: Plan) -> Floats:
    """Returns the upper edge of every bin of the `norms` message, `(NORM_BINS,)`, rising."""
    steps = np.arange(NORM_BINS - 1, -1, -1)
    edges: Floats = longest_norm(plan) * 2.0 ** (-steps / BINS_PER_OCTAVE)
    return edges


def radius_of(plan: Plan, norms: Ints | None) -> float:
    """Returns the radius to which coefficients are clipped: the plan's, or the one released.

    The released one costs a little of the site's own budget instead of a guess that is wrong for
    everybody. It lies between the first and the last of `norm_edges`.

    Args:
        plan: Has a mixture router.
        norms: The vector of the `norms` message, where the plan has no radius.

    Raises:
        TypeError: the plan's sites release counts alone.
        ValueError: neither the plan nor the release says it.
    """
    if not isinstance(plan.router, StatisticsSpec):
        raise TypeError("only a mixture router has a radius")
    if plan.router.radius is not None:
        return float(plan.router.radius)
    if norms is None:
        raise ValueError("the plan has no radius: it is in the release's `norms`")
    message, event = message_named(plan, NORMS), router_events(plan)[NORMS]
    counts = message.decode(norms)["norm_count"]
    noise = message.noise_std("norm_count", float(event.noise_multiplier))
    bin_of_it = upper_quantile(np.asarray(counts, dtype=np.float64), noise)
    below = min(NORM_BINS - 1 - bin_of_it, NORM_BINS - 1.0)  # bins below the longest norm
    return float(longest_norm(plan) * 2.0 ** (-max(0.0, below) / BINS_PER_OCTAVE))


def upper_quantile(counts: Floats, noise: float) -> float:
    """Returns where the 97th percentile of a noisy histogram lies, in bins.

    Args:
        counts: Of the bins, `(NORM_BINS,)`, with noise.
        noise: Its standard deviation in every bin.
    """
    shapes, quantiles = _humps()
    units = np.maximum(0.0, shapes @ counts / np.square(shapes).sum(1))
    variance = max(noise**2 + (NOT_A_HUMP * counts.sum()) ** 2, 1e-12)
    left = np.square(counts - units[:, None] * shapes).sum(1) / (2 * variance)
    chance = np.exp(left.min() - left)
    below = chance.cumsum() / chance.sum()
    return float(quantiles[np.searchsorted(below, CERTAINTY)])


def _normal_cdf(x: Floats) -> Floats:
    found: Floats = torch.special.ndtr(torch.from_numpy(x)).numpy()
    return found


@lru_cache(maxsize=1)
def _humps() -> tuple[Floats, Floats]:
    """Returns the share of each bin, `(H, NORM_BINS)`, and the percentile, `(H,)`, rising."""
    middles = np.arange(-1, NORM_BINS, 1 / PER_BIN)
    middle, width = (part.ravel() for part in np.meshgrid(middles, WIDTHS))
    up_to = _normal_cdf((np.arange(NORM_BINS) - middle[:, None]) / width[:, None])
    up_to[:, -1] = 1.0
    shapes = np.diff(up_to, prepend=0.0, axis=1)
    quantiles = middle + NormalDist().inv_cdf(RADIUS_QUANTILE) * width
    quantiles = np.ceil(PER_BIN * quantiles) / PER_BIN  # so that the last bit decides nothing
    order = np.argsort(quantiles, kind="stable")
    return shapes[order], quantiles[order]

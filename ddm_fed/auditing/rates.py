"""What the error rates of independent canaries say about a claim.

The estimators of `onerun` hold whatever a mechanism does, also if it betrays all canaries at once
with a small probability: this is why they cannot reject much at once. An honest step draws and
noises every canary by itself. Granted that, canaries are as many experiments, and two rates are
known to within a few of their standard errors: how often an event happens to canaries that are in,
and how often to those that are out. The claim's trade-off function bounds the one by the other.

So a small p-value means that the step breaks its claim, or that canaries depend on each other. An
honest step does neither.

Source: the bound of rates is the definition of f-DP, Dong, Roth and Su 2019, arXiv:1905.02383;
intervals of both rates as in Nasr et al. 2021, arXiv:2101.04535.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from ddm_fed.auditing.onerun import LEAST_P, P_PRECISION, Counterpart
from ddm_fed.evaluation import Proportion

SHARES = (0.003, 0.01, 0.03, 0.1, 0.3)
"""How many of all canaries an event shall happen to; each from above and from below."""


class Rate(NamedTuple):
    """`hits` of `total`."""

    hits: int
    total: int


def clopper_pearson(rate: Rate, *, level: float = 0.95) -> Proportion:
    """Returns a proportion and an interval that covers what it estimates at least at `level`.

    Raises:
        ValueError: nothing was counted, or more hits than things.

    Source: Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404.
    """
    hits, total = rate
    if not 0 <= hits <= total or total == 0:
        raise ValueError(f"{hits} of {total} is no proportion")
    side = (1 - level) / 2
    return Proportion(hits / total, at_least(rate, side), at_most(rate, side), hits, total)


def at_least(rate: Rate, error: float) -> float:
    """Returns what the probability behind `rate` is at least, but for a chance of `error`."""
    hits, total = rate
    return float(betaincinv(hits, total - hits + 1, error)) if hits else 0.0


def at_most(rate: Rate, error: float) -> float:
    """Returns what the probability behind `rate` is at most, but for a chance of `error`."""
    # of the misses, for 1 - error is 1 in floating point where error is small
    return 1 - at_least(Rate(rate.total - rate.hits, rate.total), error)


def rates_p_value(counterpart: Counterpart, inside: Rate, outside: Rate) -> float:
    """Returns a bound of the probability that rates lie so far apart under a claim.

    The largest error that, divided between both rates' intervals, leaves them together possible.

    Args:
        counterpart: The claim; see `ddm_fed.auditing.onerun`.
        inside: How often something happened to canaries that were in.
        outside: How often it happened to those that were out.

    Returns:
        At least `LEAST_P`, at most 1; rounded up.
    """

    def impossible(error: float) -> bool:
        return counterpart(at_least(inside, error / 2)) > at_most(outside, error / 2)

    low, high = math.log(LEAST_P), 0.0
    if impossible(LEAST_P):
        return LEAST_P
    while high - low > P_PRECISION:
        middle = (low + high) / 2
        low, high = (low, middle) if impossible(math.exp(middle)) else (middle, high)
    return math.exp(high)


def scores_p_value(
    counterpart: Counterpart,
    scores: NDArray[np.float64],
    members: NDArray[np.bool_],
    *,
    shares: Sequence[float] = SHARES,
) -> float:
    """Returns the p-value of a claim by scores of independent canaries.

    Every second canary chooses thresholds, the others are counted: none is looked at twice. The
    smallest p-value counts, times their number (Bonferroni).

    Args:
        counterpart: The claim; see `ddm_fed.auditing.onerun`.
        scores: Higher for canaries that seem to be in, `(m,)`.
        members: Which were in, `(m,)`.
        shares: How many of all canaries lie beyond a threshold, from above and from below.
    """
    chooses, counted = scores[::2], scores[1::2]
    are_in = members[1::2]
    tests = []
    for share in shares:
        high, low = np.quantile(chooses, [1 - share, share], method="nearest")
        # scores that are not members' are as rare among members as the claim says, and the reverse
        for event, those in ((counted >= high, are_in), (counted <= low, ~are_in)):
            inside = Rate(int((event & those).sum()), int(those.sum()))
            outside = Rate(int((event & ~those).sum()), int((~those).sum()))
            tests.append(rates_p_value(counterpart, inside, outside))
    return min(1.0, len(tests) * min(tests))

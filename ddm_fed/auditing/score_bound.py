"""What the scores of canaries say about epsilon, where `onerun` counts right guesses only.

A guess keeps one bit of a score. But where noise is Gaussian, or is added in many steps, a canary's
score is nearly normal: N(a, s^2) if it was in and N(b, r^2) if it was not. A test "the score
exceeds x" then has error rates Phi((b - x) / r) and Phi((x - a) / s). A promise by a Gaussian
trade-off of mu (mu-GDP) bounds what any test of one canary achieves:

    mu >= (x - b) / r - (x - a) / s    for every x.

Taken at the x that makes both errors equal, this is

    mu >= 2 (a - b) / (r + s).

Other x give more where r and s differ, but read the tails of two fitted normals, which nobody has
seen; at this one the central limit theorem is at its best. Of a Poisson-sampled step it promises
less than the truth; of Gaussian noise without sampling the truth itself.

a, b, r and s are those of many canaries, each in the run by a fair coin of its own and with noise
of its own, so all scores are independent: the limits of Student (as Welch has it) and of chi
squared hold. Three of them share the error equally: below for a - b, above for r and for s.

It takes more for granted than guesses do: independent canaries and normal scores. So the bound by
guesses remains, and no verdict rests on this one.

Source: the idea that scores of one run are normal and hold more than guesses: Agrawal et al. 2026,
arXiv:2606.12733. The bound at equal errors is derived above from Dong, Roth and Su 2019,
arXiv:1905.02383, definition 6.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import special  # scipy.stats takes a second to load, and every training would

from ddm_fed.auditing.onerun import MOST_MU, gaussian_epsilon

FEWEST = 2  # scores of a kind: fewer have no deviation
STATEMENTS = 3  # that share the error


def score_bound(
    scores: NDArray[np.float64],
    members: NDArray[np.bool_],
    delta: float,
    *,
    confidence: float = 0.95,
) -> float:
    """Returns an epsilon at `delta` that a run exceeds, if scores are normal; 0 if none is shown.

    Args:
        scores: Higher for canaries that seem to be in, `(m,)`.
        members: Which were in, `(m,)`.
        delta: At which epsilon is stated, in (0, 1).
        confidence: That the bound holds.

    Raises:
        ValueError: lengths differ, or a confidence that is none.
    """
    if scores.shape != members.shape:
        raise ValueError(f"{len(scores)} scores and {len(members)} members")
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies between 0 and 1, not at {confidence}")
    inside, outside = scores[members], scores[~members]
    if min(len(inside), len(outside)) < FEWEST:
        return 0.0
    error = (1 - confidence) / STATEMENTS
    gap = _least_gap(inside, outside, error)
    if gap <= 0:
        return 0.0
    deviations = _most_deviation(inside, error) + _most_deviation(outside, error)
    mu = min(MOST_MU, 2 * gap / deviations) if deviations > 0 else MOST_MU
    return gaussian_epsilon(mu, delta)


def _least_gap(inside: NDArray[np.float64], outside: NDArray[np.float64], error: float) -> float:
    """Returns what a - b exceeds, but for a chance of `error`: Welch's limit.

    `scipy.stats.ttest_ind` has it too, and warns of scores without noise.
    """
    gap = float(inside.mean() - outside.mean())
    squares = [
        (float(values.var(ddof=1)) / len(values), len(values)) for values in (inside, outside)
    ]
    square = sum(one for one, _ in squares)
    if square == 0:
        return gap
    freedom = square**2 / sum(one**2 / (count - 1) for one, count in squares)
    return gap - math.sqrt(square) * float(special.stdtrit(freedom, 1 - error))


def _most_deviation(values: NDArray[np.float64], error: float) -> float:
    """Returns what the standard deviation behind `values` stays below, but for `error`."""
    freedom = len(values) - 1
    least = 2 * float(special.gammaincinv(freedom / 2, error))  # of chi squared
    return float(values.std(ddof=1)) * math.sqrt(freedom / least)

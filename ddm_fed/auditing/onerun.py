"""What correct guesses about canaries of a single run say about its epsilon.

Of m canaries each was in the run or not by a fair coin. Somebody who sees the outcome guesses for
r of them on which side the coin fell, and is right about v. If the run keeps its promise, so many
right guesses are improbable; how improbable at most, these functions say:

* `steinke_p_value` for a promise (epsilon, delta);
* `guess_p_value` for a promise by a trade-off function, which knows the whole mechanism and not
  one point of it, and therefore rejects more. `GaussianTradeOff` is that of Gaussian noise,
  `ProfileTradeOff` that of any privacy profile, as an accountant states it.

A bound of epsilon from below is the largest epsilon that is still rejected. It is a statement
about the attack as well: a weak attack yields a small bound from a mechanism without noise.

Source: Steinke, Nasr and Jagielski 2023, arXiv:2305.08846, theorem 5.2; Mahloujifar, Melis and
Chaudhuri 2024, arXiv:2410.22235, algorithm 3.
"""

import bisect
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc, log_ndtr, ndtr, ndtri

Counterpart = Callable[[float], float]
"""`y -> x`: an event that has probability y with a canary has at least x without it, and the other
way round. For a symmetric trade-off function f that is f(1 - y)."""

LEAST_P = 1e-30  # smaller ones are not told apart
P_PRECISION = 1e-3  # relative, towards larger p-values
PRECISION = 1e-6  # of epsilon and mu
MOST_EPSILON = 1e3
MOST_MU = 40.0


class Guesses(NamedTuple):
    """`correct` of `made` guesses."""

    made: int
    correct: int


def steinke_p_value(
    canaries: int, guesses: int, correct: int, epsilon: float, delta: float
) -> float:
    """Returns a bound of the probability of so many right guesses under (epsilon, delta).

    With q = e^epsilon / (1 + e^epsilon) and B binomial of r and q, the bound is beta + 2 m delta
    alpha, where beta = P[B >= v] and alpha = max over i of P[v > B >= v - i] / i.

    Args:
        canaries: m, each in the run with probability 1/2.
        guesses: r, a number chosen before looking.
        correct: v of them.
        epsilon: Of the promise, under adding or removing one canary.
        delta: Of the promise.

    Raises:
        ValueError: numbers that nobody can have counted.

    Source: Steinke et al. 2023, arXiv:2305.08846, theorem 5.2.
    """
    _require_counts(canaries, guesses, correct)
    if correct == 0:
        return 1.0
    chance = 1 / (1 + math.exp(-epsilon))
    beta = _at_least(correct, guesses, chance)
    if delta == 0:
        return beta
    fewer = np.arange(1, correct + 1)
    nearly = _at_least_each(correct - fewer, guesses, chance) - beta
    alpha = float(np.max(nearly / fewer))
    return min(1.0, beta + 2 * canaries * delta * max(0.0, alpha))


def _at_least(correct: int, guesses: int, chance: float) -> float:
    return float(_at_least_each(np.array([correct]), guesses, chance)[0])


def _at_least_each(correct: NDArray[np.int64], guesses: int, chance: float) -> NDArray[np.float64]:
    """Returns P[B >= v] for each v >= 0 of `correct`."""
    tails = bdtrc(np.maximum(correct - 1, 0), guesses, chance)
    return np.where(correct == 0, 1.0, tails)


def steinke_bound(
    canaries: int, tried: Sequence[Guesses], delta: float, *, confidence: float = 0.95
) -> float:
    """Returns the largest epsilon that the guesses reject at `delta`; 0 if they reject none.

    Args:
        canaries: m.
        tried: Numbers of guesses, all of which were tried; they share 1 - confidence equally, so
            that the best of them may be used.
        delta: Of the promise.
        confidence: That the bound holds.

    Raises:
        ValueError: nothing was tried, or counts are impossible.
    """
    significance = _shared(tried, confidence)

    def rejected(one: Guesses, epsilon: float) -> bool:
        return steinke_p_value(canaries, one.made, one.correct, epsilon, delta) < significance

    return max(last_rejected(functools.partial(rejected, one), MOST_EPSILON) for one in tried)


class GaussianTradeOff:
    """The trade-off function of telling N(0, 1) from N(mu, 1).

    Source: Dong, Roth and Su 2019, arXiv:1905.02383, definition 6.
    """

    def __init__(self, mu: float) -> None:
        self.mu = mu

    def __call__(self, y: float) -> float:
        """Returns Phi(Phi^-1(y) - mu)."""
        return float(ndtr(ndtri(y) - self.mu))


class ProfileTradeOff:
    """The largest trade-off function that points (epsilon, delta) of a privacy profile imply.

    f(a) = max over points of max(0, 1 - delta - e^epsilon a, e^-epsilon (1 - delta - a)). A
    mechanism that keeps the points keeps f. Fewer points imply less, and never too much.

    Args:
        epsilons: At least 0.
        deltas: Of each of them.

    Raises:
        ValueError: lengths differ, or points that no promise has.

    Source: Dong, Roth and Su 2019, arXiv:1905.02383, proposition 6.
    """

    def __init__(self, epsilons: Sequence[float], deltas: Sequence[float]) -> None:
        if len(epsilons) != len(deltas):
            raise ValueError(f"{len(epsilons)} epsilons and {len(deltas)} deltas")
        if any(epsilon < 0 for epsilon in epsilons) or any(not 0 <= d <= 1 for d in deltas):
            raise ValueError("a point of a profile has an epsilon of at least 0, a delta in [0, 1]")
        lines = {(0.0, 0.0)}
        for epsilon, delta in zip(epsilons, deltas, strict=True):
            # as functions of y = 1 - a
            lines.add((math.exp(-epsilon), -math.exp(-epsilon) * delta))
            lines.add((math.exp(epsilon), 1 - delta - math.exp(epsilon)))
        self._slopes, self._heights, self._starts = _envelope(sorted(lines))

    def __call__(self, y: float) -> float:
        """Returns f(1 - y)."""
        line = bisect.bisect_right(self._starts, y)
        return self._slopes[line] * y + self._heights[line]


def _envelope(lines: Sequence[tuple[float, float]]) -> tuple[list[float], list[float], list[float]]:
    """Returns the lines (slope, height) that are the highest somewhere, and where each takes over.

    Args:
        lines: By slope, then by height.
    """
    kept: list[tuple[float, float]] = []
    starts: list[float] = []
    for line in lines:
        while kept:
            start = _meeting(kept[-1], line)
            if start > (starts[-1] if starts else -math.inf):
                starts.append(start)
                break
            kept.pop()
            if starts:
                starts.pop()
        kept.append(line)
    return [slope for slope, _ in kept], [height for _, height in kept], starts


def _meeting(flat: tuple[float, float], steep: tuple[float, float]) -> float:
    """Returns from where on the steep line is the higher one: from everywhere if it is parallel."""
    if flat[0] == steep[0]:  # sorted by height as well
        return -math.inf
    return (flat[1] - steep[1]) / (steep[0] - flat[0])


def refutes(
    counterpart: Counterpart, canaries: int, guesses: int, correct: int, probability: float
) -> bool:
    """Returns whether so many right guesses are less probable than `probability` under a promise.

    Let p_i be the probability of i right guesses, r_i = sum over l >= i of l p_l / m, and h_i the
    same of wrong ones, sum of (r - l) p_l / m. Turning one canary's coin turns a right guess into
    a wrong one and leaves the others, so the promise bounds h_{i-1} from below by the counterpart
    of r_i. Were the probability of v right guesses or more as large as `probability`, these bounds,
    from i = v down to 0, would add up to more than r_0 + h_0 = r / m, which cannot be.

    Args:
        counterpart: The promise.
        canaries: m.
        guesses: r.
        correct: v.
        probability: In (0, 1].

    Source: Mahloujifar et al. 2024, arXiv:2410.22235, algorithm 3.
    """
    right, wrong = probability * correct / canaries, probability * (guesses - correct) / canaries
    most = guesses / canaries * (1 + 1e-12)
    for i in range(correct - 1, -1, -1):
        least = counterpart(min(right, 1.0))
        if least <= wrong:  # nothing changes any more
            break
        right += i / (guesses - i) * (least - wrong)
        wrong = least
        if right + wrong > most:
            return True
    return False


def guess_p_value(counterpart: Counterpart, canaries: int, guesses: int, correct: int) -> float:
    """Returns a bound of the probability of so many right guesses under a promise.

    Args:
        counterpart: The promise; see `GaussianTradeOff` and `ProfileTradeOff`.
        canaries: m, each in the run with probability 1/2.
        guesses: r, a number chosen before looking.
        correct: v of them.

    Returns:
        At least `LEAST_P`, at most 1; rounded up.

    Raises:
        ValueError: numbers that nobody can have counted.
    """
    _require_counts(canaries, guesses, correct)
    low, high = math.log(LEAST_P), 0.0
    if refutes(counterpart, canaries, guesses, correct, LEAST_P):
        return LEAST_P
    while high - low > P_PRECISION:
        middle = (low + high) / 2
        if refutes(counterpart, canaries, guesses, correct, math.exp(middle)):
            high = middle
        else:
            low = middle
    return math.exp(high)


def claim_p_value(claim: Counterpart, canaries: int, tried: Sequence[Guesses]) -> float:
    """Returns the p-value of a claim, over all numbers of guesses tried.

    Whoever rejects the claim when it is below s is wrong about a mechanism that keeps it with a
    probability of at most s.

    Args:
        claim: The trade-off function of what was promised, such as a `ProfileTradeOff`.
        canaries: m.
        tried: Numbers of guesses; the smallest p-value counts, times their number (Bonferroni).

    Raises:
        ValueError: nothing was tried, or counts are impossible.
    """
    if not tried:
        raise ValueError("no number of guesses was tried")
    smallest = min(guess_p_value(claim, canaries, one.made, one.correct) for one in tried)
    return min(1.0, len(tried) * smallest)


def gaussian_bound(
    canaries: int, tried: Sequence[Guesses], delta: float, *, confidence: float = 0.95
) -> float:
    """Returns the largest epsilon that the guesses reject at `delta`, if noise is Gaussian.

    The smallest mu that is not rejected, as epsilon at `delta`. Poisson-sampled Gaussian noise of
    many steps is nearly Gaussian; of a mechanism that is not, `claim_p_value` tests the profile.

    Args:
        canaries: m.
        tried: Numbers of guesses, which share 1 - confidence equally.
        delta: At which epsilon is stated, in (0, 1).
        confidence: That the bound holds.

    Raises:
        ValueError: nothing was tried, or counts are impossible.
    """
    significance = _shared(tried, confidence)
    for one in tried:
        _require_counts(canaries, one.made, one.correct)

    def rejected(one: Guesses, mu: float) -> bool:
        return refutes(GaussianTradeOff(mu), canaries, one.made, one.correct, significance)

    mu = max(last_rejected(functools.partial(rejected, one), MOST_MU) for one in tried)
    return gaussian_epsilon(mu, delta)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Returns the epsilon at `delta` of a mechanism whose trade-off is Gaussian of `mu`.

    Solves delta = Phi(mu / 2 - epsilon / mu) - e^epsilon Phi(-mu / 2 - epsilon / mu).

    Source: Dong, Roth and Su 2019, arXiv:1905.02383, corollary 1; Balle and Wang 2018,
    arXiv:1805.06530, theorem 8.
    """
    if mu == 0:
        return 0.0

    def exceeds(epsilon: float) -> bool:
        far = float(log_ndtr(-mu / 2 - epsilon / mu)) + epsilon
        return float(ndtr(mu / 2 - epsilon / mu)) - math.exp(far) > delta

    return last_rejected(exceeds, MOST_EPSILON)


def ceiling(
    canaries: int, guesses: int, delta: float, *, confidence: float = 0.95, tried: int = 1
) -> float:
    """Returns what `gaussian_bound` says if all guesses are right: the most it can say.

    Args:
        canaries: m.
        guesses: r.
        delta: At which epsilon is stated.
        confidence: That the bound holds.
        tried: How many numbers of guesses share 1 - confidence.
    """
    shared = 1 - (1 - confidence) / tried
    return gaussian_bound(canaries, [Guesses(guesses, guesses)], delta, confidence=shared)


def _shared(tried: Sequence[Guesses], confidence: float) -> float:
    if not tried:
        raise ValueError("no number of guesses was tried")
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies between 0 and 1, not at {confidence}")
    return (1 - confidence) / len(tried)


def last_rejected(rejected: Callable[[float], bool], most: float) -> float:
    """Returns the largest value that is rejected, from below; 0 if not even a tiny one is."""
    low, high = 0.0, min(1.0, most)
    while high < most and rejected(high):
        low, high = high, min(2 * high, most)
    while high - low > PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low


def _require_counts(canaries: int, guesses: int, correct: int) -> None:
    if not 0 <= correct <= guesses <= canaries or guesses < 1:
        raise ValueError(f"{correct} of {guesses} guesses about {canaries} canaries is impossible")

"""What samples say about the epsilon of an expert: its training images lie nearer to them.

Images of one kind are put into pairs by chance, one that was trained on and one that was held back.
Whoever sees a pair and the samples, and not which is which, guesses that the one nearer to a sample
was trained on. Only the pairs in which distances differ most are guessed, as many as was fixed
beforehand.

Which images were held back was decided by chance, so in every pair a fair coin decided, and the
coins are independent given the pairs: these are the canaries of one run, and the estimators of
`onerun` apply. A coin does not add an image but exchanges one for another, which removes one and
adds one. So a promise counts twice:

* of (epsilon, delta) it leaves (2 epsilon, (1 + e^epsilon) delta), whatever the mechanism is;
* of a trade-off function with the counterpart g (an event of probability y keeps at least g(y)
  with one image more or less) it leaves g(g(y)).

The bound is the largest epsilon whose double `steinke_p_value` rejects. The claimed profile is
tested by `claim_p_value`, which knows the whole mechanism. Samples that know no more of one image
than of the other are right about half of the pairs, and neither rejects anything.

What it takes for granted is that held-back images were chosen by chance: of another source, they
may lie further from the samples for that reason. It is one attack on few samples: a small bound is
no evidence of privacy. Distances come from private images, so what is found stays at the site.

Source: the idea of a bound by nearest neighbours in one run: openreview.net/forum?id=H29DxWgRbb.
Pairs and the double promise are derived above; both are group privacy: Vadhan 2017,
doi:10.1007/978-3-319-57048-8_7, lemma 2.2; Dong, Roth and Su 2019, arXiv:1905.02383, theorem 2.14.
"""

import functools
import math
from typing import NamedTuple

import numpy as np

from ddm_fed.auditing.onerun import (
    MOST_EPSILON,
    Counterpart,
    Guesses,
    claim_p_value,
    last_rejected,
    steinke_p_value,
)
from ddm_fed.evaluation import Rows, nearest

SIGNIFICANCE = 1e-3  # below it a p-value rejects: how often an honest expert is accused
GUESSED_SHARES = (0.02, 0.1, 0.4, 1.0)  # of the pairs: fixed before looking
TINY = 1e-12  # of a distance: exact copies are infinitely nearer


class NearestSamples(NamedTuple):
    """What nearest samples found out.

    `bound`: epsilon at `delta` that the expert exceeds with `confidence`, over all of `tried`;
    `ceiling`: what it would be if all guesses were right. `p_value`: of the claimed profile; None
    where nothing is claimed.
    """

    bound: float
    ceiling: float
    confidence: float
    delta: float
    p_value: float | None
    pairs: int
    samples: int
    tried: tuple[Guesses, ...]

    @property
    def rejects(self) -> bool:
        """Whether the samples tell more than is promised."""
        return self.p_value is not None and self.p_value < SIGNIFICANCE


def measure_nearest_samples(
    samples: Rows,
    trained: Rows,
    held_back: Rows,
    *,
    delta: float,
    generator: np.random.Generator,
    claim: Counterpart | None = None,
    confidence: float = 0.95,
) -> NearestSamples:
    """Returns what the distances of images to their nearest samples say about an expert's epsilon.

    Args:
        samples: Of the expert, `(N, F)` pixels or features.
        trained: Images that it was trained on, one of each unit of privacy, `(T, F)`.
        held_back: Images that were held back by chance, one of each unit, `(H, F)`.
        delta: At which epsilon is stated.
        generator: Makes the pairs, and guesses where distances are equal.
        claim: What is promised of one unit more or less; see `ddm_fed.auditing.onerun`.
        confidence: That the bound holds.

    Raises:
        ValueError: a set is empty.
    """
    if not (len(samples) and len(trained) and len(held_back)):
        raise ValueError("needs samples, training images and images that were held back")
    pairs = min(len(trained), len(held_back))
    own = generator.permutation(len(trained))[:pairs]
    other = generator.permutation(len(held_back))[:pairs]
    nearer = np.log(nearest(held_back[other], samples).distance + TINY)
    nearer -= np.log(nearest(trained[own], samples).distance + TINY)
    right = np.where(nearer == 0, generator.random(pairs) < 0.5, nearer > 0)
    # the coin decides the sign of `nearer` and not its size
    order = np.argsort(-np.abs(nearer))
    numbers = sorted({max(1, round(share * pairs)) for share in GUESSED_SHARES})
    tried = tuple(Guesses(made, int(right[order[:made]].sum())) for made in numbers)
    all_right = tuple(Guesses(one.made, one.made) for one in tried)
    return NearestSamples(
        bound=_bound(pairs, tried, delta, confidence),
        ceiling=_bound(pairs, all_right, delta, confidence),
        confidence=confidence,
        delta=delta,
        p_value=None if claim is None else claim_p_value(_twice(claim), pairs, tried),
        pairs=pairs,
        samples=len(samples),
        tried=tried,
    )


def _bound(pairs: int, tried: tuple[Guesses, ...], delta: float, confidence: float) -> float:
    """Returns the largest epsilon whose double the guesses reject; they share the error equally."""
    error = (1 - confidence) / len(tried)

    def rejected(one: Guesses, epsilon: float) -> bool:
        exchanged = min(1.0, (1 + math.exp(epsilon)) * delta)
        return steinke_p_value(pairs, one.made, one.correct, 2 * epsilon, exchanged) < error

    return max(last_rejected(functools.partial(rejected, one), MOST_EPSILON / 2) for one in tried)


def _twice(claim: Counterpart) -> Counterpart:
    """Returns the promise about two units, one that goes and one that comes."""
    return lambda y: claim(claim(y))

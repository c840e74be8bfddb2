"""An attack on a private step's own sampler, clipping and noise: canaries in gradient space.

A Dirac canary is a unit whose gradient is one coordinate's axis, far longer than the clip norm.
Half of m canaries, by a coin each, are the data set; the step runs T times; and somebody who sees
every noisy gradient tells from coordinate i whether canary i was in. There is no network between
the canary and the noise, so nothing attacks better: what survives this survives weaker attacks.

It examines the step that training runs, not the data that training ran on, and reads no image: its
figures may be shared. A unit in a step contributes y = 1 and otherwise y = 0, in clip norms, with
noise of standard deviation z; it is in a step with probability q. The best score is the logarithm
of the likelihood ratio, sum over steps of log(1 - q + q exp((y - 1/2) / z^2)).

What it cannot see: noise that repeats between steps, batches that are shuffled instead of drawn, a
layer's gradient that is not clipped, one unit that is treated unlike the others.
`ddm_fed.privacy.examine` looks at these.

Source: Dirac canaries: Nasr et al. 2023, arXiv:2302.07956; guessing on both sides: Steinke et al.
2023, arXiv:2305.08846.
"""

import copy
import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddm_fed.auditing.onerun import (
    Guesses,
    ProfileTradeOff,
    ceiling,
    claim_p_value,
    gaussian_bound,
)
from ddm_fed.auditing.rates import scores_p_value
from ddm_fed.auditing.score_bound import score_bound
from ddm_fed.privacy import Clipped, PrivateStep, Randomness, Weights, clip_factors, deltas, epsilon
from ddm_fed.progress import Advance
from ddm_fed.records import Event, SampledGaussianEvent, Verdict, verdict

CANARIES = 200_000  # half of the promised noise is found at epsilon 8; 2000 would not be enough
GUESSED_SHARES = (0.001, 0.005, 0.02, 0.05, 0.2)  # of the canaries: r is fixed before looking
SIGNIFICANCE = 1e-3
LENGTH = 1000.0  # of a canary's gradient, in clip norms: clipping has something to do
AXES = "canaries"
# where the claim's profile is read: densely where canaries can tell epsilons apart
PROFILE_EPSILONS = tuple(
    np.concatenate([np.arange(0, 2, 0.05), np.arange(2, 12, 0.1), np.arange(12, 31, 1)]).tolist()
)

Floats = NDArray[np.float64]
Members = NDArray[np.bool_]


class CanaryGradients:
    """Clipped sums of Dirac canaries: unit i has `LENGTH` clip norms along axis i.

    Axes are those of all weights, one after the other; rows are the canaries' axes `(U, 1)`.
    """

    name = "canaries"

    def clipped_sum(self, weights: Weights, rows: Sequence[Tensor], clip_norm: float) -> Clipped:
        """Returns the sum over units of their clipped gradients; a unit given twice adds twice."""
        units = rows[0][:, 0]
        lengths = torch.full((len(units), 1), LENGTH * clip_norm, device=units.device)
        factors, _ = clip_factors([lengths], clip_norm)
        sizes = [value.numel() for value in weights.values()]
        flat = torch.zeros(sum(sizes), device=units.device)
        parts = torch.split(flat.index_add_(0, units, factors * lengths[:, 0]), sizes)
        total = {
            name: part.view(value.shape)
            for (name, value), part in zip(weights.items(), parts, strict=True)
        }
        return Clipped(total, 0.0, len(units))


class _CanaryRows:
    """Canaries as the units of a step; each is its axis."""

    def __init__(self, axes: Tensor) -> None:
        self._axes = axes

    def __len__(self) -> int:
        return len(self._axes)

    def blocks(self, _step: int, units: Tensor, /) -> list[list[Tensor]]:
        return [[self._axes[units][:, None]]]


@dataclass(frozen=True)
class CanaryAudit:
    """What canaries found out about a step.

    Attributes:
        event: What was run and what it claims: as many steps as were run.
        training_steps: Of the training whose step it is.
        canaries: m.
        tried: Guesses of every number r that was fixed beforehand, and how many were correct.
        delta: At which epsilons are stated.
        claimed_epsilon: What the accountant proves of `event`.
        bound: Epsilon that the guesses reject with `confidence`, if noise is Gaussian.
        score_bound: The same by the means of scores, if these are normal: nearer to the truth.
        ceiling: What `bound` would be if all guesses were right.
        confidence: Of `bound`, over all of `tried`, and of `score_bound`.
        p_guesses: Of the claimed profile by the guesses, over all of `tried`.
        p_rates: Of the claimed profile by error rates of independent canaries.
        significance: Below it a p-value rejects: how often an honest step is accused.
    """

    event: SampledGaussianEvent
    training_steps: int
    canaries: int
    tried: tuple[Guesses, ...]
    delta: float
    claimed_epsilon: float
    bound: float
    score_bound: float
    ceiling: float
    confidence: float
    p_guesses: float
    p_rates: float
    significance: float

    @property
    def p_value(self) -> float:
        """Of the claimed profile by both tests together."""
        return min(1.0, 2 * min(self.p_guesses, self.p_rates))

    @property
    def verdict(self) -> Verdict:
        """What follows for the claim; nothing if the attack could not have exceeded it."""
        return verdict(self.p_value, self.significance, self.ceiling, self.claimed_epsilon)


def audit_step(
    step: PrivateStep,
    event: SampledGaussianEvent,
    *,
    delta: float,
    canaries: int = CANARIES,
    most_steps: int | None = None,
    clip_norm: float = 1.0,
    confidence: float = 0.95,
    significance: float = SIGNIFICANCE,
    randomness: Randomness | None = None,
    advance: Advance = lambda _: None,
) -> CanaryAudit:
    """Returns what canaries find out about a step that claims to be `event`.

    Takes about 10 ms a step with the default number of canaries, and a second or so to price the
    claim.

    Args:
        step: As it trains. Its gradients and its secret are not used: noise that was added to a
            gradient must not be seen in an audit.
        event: The claim, as the ledger has it.
        delta: At which epsilons are stated.
        canaries: m.
        most_steps: Run no more; the claim is then that of as many steps.
        clip_norm: C.
        confidence: Of the bound from below.
        significance: How often an honest step is accused.
        randomness: Of the coins and of the step; by default new, from the operating system.
        advance: Told of every step.

    Raises:
        ValueError: fewer than two canaries.
    """
    if canaries < 2:
        raise ValueError(f"an audit guesses in and out, for which {canaries} canaries are too few")
    run = event
    if most_steps is not None and most_steps < event.steps:
        run = event.model_copy(update={"steps": most_steps})
    scores, members = canary_scores(
        step,
        run,
        canaries=canaries,
        clip_norm=clip_norm,
        randomness=randomness or Randomness.from_system(),
        advance=advance,
    )
    return judge(
        scores,
        members,
        run,
        training_steps=event.steps,
        delta=delta,
        confidence=confidence,
        significance=significance,
    )


def judge(
    scores: Floats,
    members: Members,
    run: SampledGaussianEvent,
    *,
    training_steps: int,
    delta: float,
    confidence: float = 0.95,
    significance: float = SIGNIFICANCE,
) -> CanaryAudit:
    """Returns what the scores of canaries say about a claim; see `audit_step`.

    Args:
        scores: `(m,)`, higher for canaries that seem to have been in.
        members: Which were in, `(m,)`.
        run: The claim, of as many steps as were run.
        training_steps: Of the training whose step it is.
        delta: At which epsilons are stated.
        confidence: Of the bound from below.
        significance: How often an honest step is accused.
    """
    canaries = len(scores)
    tried = guess_both_sides(scores, members, numbers_of_guesses(canaries))
    claimed_epsilon, claim = price((run,), delta)
    return CanaryAudit(
        event=run,
        training_steps=training_steps,
        canaries=canaries,
        tried=tried,
        delta=delta,
        claimed_epsilon=claimed_epsilon,
        bound=gaussian_bound(canaries, tried, delta, confidence=confidence),
        score_bound=score_bound(scores, members, delta, confidence=confidence),
        ceiling=max(
            ceiling(canaries, one.made, delta, confidence=confidence, tried=len(tried))
            for one in tried
        ),
        confidence=confidence,
        p_guesses=claim_p_value(claim, canaries, tried),
        p_rates=scores_p_value(claim, scores, members),
        significance=significance,
    )


@functools.lru_cache(maxsize=16)
def price(events: tuple[Event, ...], delta: float) -> tuple[float, ProfileTradeOff]:
    """Returns the epsilon at `delta` that is proved of `events` together, and their profile."""
    profile = ProfileTradeOff(PROFILE_EPSILONS, deltas(events, PROFILE_EPSILONS))
    return epsilon(events, delta), profile


def canary_scores(
    step: PrivateStep,
    event: SampledGaussianEvent,
    *,
    canaries: int,
    clip_norm: float,
    randomness: Randomness,
    advance: Advance = lambda _: None,
) -> tuple[Floats, Members]:
    """Returns the canaries' scores `(m,)`, and which of them were in, `(m,)`.

    Args:
        step: As for `audit_step`.
        event: How often it runs, and what the scores take for granted.
        canaries: m.
        clip_norm: C.
        randomness: Of the coins and of the step.
        advance: Told of every step.
    """
    trial = copy.copy(step)
    trial.gradients, trial.randomness = CanaryGradients(), randomness
    weights = {AXES: torch.zeros(canaries)}
    members = randomness.stream("canaries", 0).uniform(canaries) < 0.5
    data = _CanaryRows(torch.from_numpy(members.nonzero()[0]))
    rate, multiplier = float(event.sampling_rate), float(event.noise_multiplier)
    scores = np.zeros(canaries)
    with _one_thread():
        for moment in range(event.steps):
            mean, _ = trial.noisy_mean(weights, data, moment, clip_norm)
            noisy = mean[AXES].double().numpy()
            scores += log_ratio(noisy * (step.expected_units / clip_norm), rate, multiplier)
            advance(1)
    return scores, members


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keeps torch from dividing sums that take less time than to wake another thread.

    Measured on a busy machine: 9 ms a step instead of 90.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def log_ratio(y: Floats, rate: float, multiplier: float) -> Floats:
    """Returns log(1 - q + q exp((y - 1/2) / z^2)) of each y, `(n,)`.

    How much more probable y is for a canary that was in than for one that was out.

    Args:
        y: Noisy coordinates in clip norms, `(n,)`.
        rate: q.
        multiplier: z.
    """
    exponent = (y - 0.5) / multiplier**2
    if rate == 1:
        return exponent
    return np.logaddexp(math.log1p(-rate), math.log(rate) + exponent)


def numbers_of_guesses(canaries: int) -> tuple[int, ...]:
    """Returns the numbers of guesses that are tried, even ones."""
    halves = sorted({max(1, round(canaries * share / 2)) for share in GUESSED_SHARES})
    return tuple(2 * half for half in halves)


def guess_both_sides(
    scores: Floats, members: Members, numbers: Sequence[int]
) -> tuple[Guesses, ...]:
    """Returns how many guesses were right, for each number r of guesses.

    The r / 2 highest scores are guessed to be in, the r / 2 lowest to be out.

    Args:
        scores: `(m,)`.
        members: Which were in, `(m,)`.
        numbers: Even numbers, up to m.
    """
    order = members[np.argsort(scores)]
    return tuple(
        Guesses(r, int(order[len(order) - r // 2 :].sum() + (~order[: r // 2]).sum()))
        for r in numbers
    )

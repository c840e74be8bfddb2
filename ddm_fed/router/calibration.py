"""Posteriors that mean what they say: a temperature and biases per time, fitted on known images.

A router of released statistics is too sure of itself at low noise, more so the more noise the
statistics carry. Images drawn from the experts have known sites, so its confidence can be set
right without asking a site again. At every knot t the log posterior l becomes
log softmax(l / T(t) + b(t)); between knots log T and b are interpolated linearly in t.

Source: temperature scaling and expected calibration error: Guo et al. 2017, arXiv:1706.04599.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddm_fed.flows import ClassCondition, Condition
from ddm_fed.router.base import Router, log_posterior_of, reads_estimate, sees_until

CALIBRATION_TIMES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
BINS = 15
DECAY = 1e-3  # holds parameters that the images say nothing about at the identity
BESIDE = 0.99  # of the switch: close enough that the router below it is not asked any later
ROWS_AT_ONCE = 1024
Estimate = Callable[[Tensor, Tensor, ClassCondition | None], Tensor]
"""`x_t, t, condition -> x̂_0`, for routers that look at the image estimate."""


def knots_about(
    switch: float | None, times: Sequence[float] = CALIBRATION_TIMES
) -> tuple[float, ...]:
    """Returns `times`, and one just below and one at the `switch` of a hybrid, increasing."""
    beside = () if switch is None else (round(BESIDE * switch, 6), switch)
    return tuple(sorted({*times, *beside}))


class Calibration(NamedTuple):
    """Times `(M,)`, log temperatures `(M,)` and biases `(M, K)`; float64."""

    times: Tensor
    log_temperature: Tensor
    bias: Tensor

    def rows(self, rows: Tensor) -> "Calibration":
        """Returns the calibration of some of the knots."""
        return Calibration(self.times[rows], self.log_temperature[rows], self.bias[rows])


class TimeQuality(NamedTuple):
    """How good a posterior is at one time, over `images` images of known sites.

    `nll` is the mean of -log p(true site) in nats, `nll_error` its standard error, `ece` the
    expected calibration error of the most probable site in 15 bins, `accuracy` how often it is
    the true one.
    """

    t: float
    nll: float
    nll_error: float
    ece: float
    accuracy: float
    images: int


class CalibratedRouter:
    """`router` with its log posterior scaled and shifted. Shares stay as they are."""

    def __init__(self, router: Router, calibration: Calibration) -> None:
        self._router, self._calibration = router, calibration

    @property
    def reads_state(self) -> bool:
        """As of the router inside; see `Router`."""
        return self._router.reads_state

    @property
    def reads_estimate(self) -> bool:
        """As of the router inside; see `EstimateRouter`."""
        return reads_estimate(self._router)

    @property
    def sees_until(self) -> float:
        """As of the router inside; see `EstimateRouter`."""
        return sees_until(self._router)

    def log_prior(self, condition: Condition | None) -> Tensor:
        """Returns log pi_k(c), `(K,)` or `(B, K)`; see `Router`."""
        return self._router.log_prior(condition)

    def log_posterior(self, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """Returns log p(k | x_t, t, c), `(B, K)`; see `Router`."""
        return self._moved(self._router.log_posterior(x_t, t, condition), t)

    def log_posterior_given(
        self, x_t: Tensor, t: Tensor, condition: Condition | None, estimate: Tensor
    ) -> Tensor:
        """Returns log p(k | x_t, t, c), `(B, K)`; see `EstimateRouter`."""
        return self._moved(log_posterior_of(self._router, x_t, t, condition, estimate), t)

    def _moved(self, scores: Tensor, t: Tensor) -> Tensor:
        """Returns `scores (B, K)` as calibrated at the times `t (B,)`."""
        times, log_temperature, bias = self._calibration
        at = t.double().clamp(times[0], times[-1])
        left = torch.searchsorted(times, at, right=True) - 1  # (B,)
        right = (left + 1).clamp(max=len(times) - 1)
        gap = times[right] - times[left]
        share = torch.where(gap > 0, (at - times[left]) / gap, 0.0)[:, None]  # (B, 1)
        logs = torch.lerp(log_temperature[left, None], log_temperature[right, None], share)
        shifts = torch.lerp(bias[left], bias[right], share)  # (B, K)
        return (scores * (-logs).exp() + shifts).log_softmax(1)


def fit_calibration(
    router: Router,
    images: Tensor,
    sites: Tensor,
    labels: Tensor | None,
    generator: torch.Generator,
    *,
    times: Sequence[float] = CALIBRATION_TIMES,
    estimate: Estimate | None = None,
) -> Calibration:
    """Returns the calibration of `router` that makes images of known sites most probable.

    Sites must occur as often as their shares say. A knot at which nothing is gained on a half of
    the images that was not fitted keeps the posterior as it is.

    Args:
        router: To be calibrated.
        images: Clean, `(N, C, H, W)`.
        sites: Site of each, `(N,)`.
        labels: Class of each `(N,)`, or None; with classes the posterior is asked with them.
        generator: Decides noise and halves.
        times: The knots, increasing.
        estimate: Makes image estimates; without, routers that look at them see none.

    Raises:
        ValueError: fewer than two knots, or than two images.
    """
    if len(times) < 2 or len(images) < 2:
        raise ValueError("calibration takes at least two knots and two images")
    order = torch.randperm(len(images), generator=generator)
    fitted, judged = order[::2], order[1::2]
    log_temperatures, biases = [], []
    for time in times:
        scores = _finite(_scores_at(router, images, labels, time, generator, estimate))  # (N, K)
        log_temperature, bias = _fit(scores[fitted], sites[fitted])
        moved = scores[judged] * (-log_temperature).exp() + bias
        before, after = (_nll(each, sites[judged]).mean() for each in (scores[judged], moved))
        if not bool(after < before):  # so also where the fit ended in no number
            log_temperature, bias = torch.zeros_like(log_temperature), torch.zeros_like(bias)
        log_temperatures.append(log_temperature)
        biases.append(bias)
    knots = torch.tensor(times, dtype=torch.float64)
    return Calibration(knots, torch.stack(log_temperatures), torch.stack(biases))


def posterior_quality(
    router: Router,
    images: Tensor,
    sites: Tensor,
    labels: Tensor | None,
    times: Sequence[float],
    generator: torch.Generator,
    *,
    estimate: Estimate | None = None,
) -> list[TimeQuality]:
    """Returns how good the posterior of `router` is at each of `times`.

    Arguments as for `fit_calibration`; use images that neither trained nor calibrated it.
    """
    found = []
    for time in times:
        scores = _scores_at(router, images, labels, time, generator, estimate)
        nll = _nll(scores, sites)
        confidence, choice = scores.exp().max(1)
        right = (choice == sites).double()
        found.append(
            TimeQuality(
                t=time,
                nll=float(nll.mean()),
                nll_error=float(nll.std() / math.sqrt(len(nll))),
                ece=calibration_error(confidence, right),
                accuracy=float(right.mean()),
                images=len(nll),
            )
        )
    return found


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """Returns the expected calibration error in 15 bins of equal width.

    Args:
        confidence: Probability of the most probable site, `(N,)`.
        right: 1 where it is the true one, `(N,)`.
    """
    place = (confidence * BINS).ceil().long().clamp(1, BINS) - 1  # bins are open to the left
    gap = torch.zeros(BINS, dtype=torch.float64)
    gap.index_add_(0, place, right.double() - confidence.double())
    return float(gap.abs().sum() / len(confidence))


def _scores_at(
    router: Router,
    images: Tensor,
    labels: Tensor | None,
    time: float,
    generator: torch.Generator,
    estimate: Estimate | None,
) -> Tensor:
    scores = []
    for start in range(0, len(images), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        x_0 = images[rows]
        noise = torch.randn(x_0.shape, generator=generator)
        t = torch.full((len(x_0),), time)
        condition = None if labels is None else ClassCondition(labels[rows])
        x_t, seen = (1 - time) * x_0 + time * noise, None
        if estimate is not None and reads_estimate(router):
            seen = estimate(x_t, t, condition)
        scores.append(log_posterior_of(router, x_t, t, condition, seen))
    return torch.cat(scores)


def _fit(scores: Tensor, sites: Tensor) -> tuple[Tensor, Tensor]:
    """Returns log temperature `()` and bias `(K,)` of least NLL, biases of mean zero."""
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(scores.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [log_temperature, bias], max_iter=100, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        moved = scores * (-log_temperature).exp() + bias
        value = _nll(moved, sites).mean() + DECAY * (log_temperature**2 + bias.square().mean())
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    centred = bias.detach() - bias.detach().mean()
    return log_temperature.detach(), centred


def _finite(scores: Tensor) -> Tensor:
    """Returns log posteriors without the -inf of an impossible site, which no scale can mend."""
    return scores.clamp(min=-1e4)


def _nll(scores: Tensor, sites: Tensor) -> Tensor:
    return -scores.log_softmax(1)[torch.arange(len(sites)), sites]

"""From an ensemble to images. The same seed gives the same images, whatever the batch size.

All that is random about sample i in step j depends on (seed, i, j) alone.

Samples are worked on in chunks. Where a site stays (see `Strategy`), the loop over sites is outside
the one over steps, so that a chunk needs each expert once. Where sites are redrawn, every step asks
each expert once about all samples of the chunk that need it, in turn from the first site to the
last and back, so that the expert that is in memory is asked first. A pool that holds one expert at
a time thus loads as rarely as it can.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from ddm_fed.ensemble.strategy import Strategy, draw_sites, gumbel
from ddm_fed.ensemble.velocity import Ensemble, require_condition
from ddm_fed.flows import (
    LINEAR,
    Condition,
    Solver,
    State,
    advance,
    join,
    rows_of,
    time_grid,
)
from ddm_fed.progress import Advance

CPU = torch.device("cpu")
TimedVelocity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SamplingOptions:
    """How to sample.

    Attributes:
        strategy: Which experts are asked.
        steps: Steps of the solver to t = 0, from the largest time every expert may be asked at.
        solver: Which solver.
        seed: Decides noise and sites.
        guidance: See `ddm_fed.ensemble.velocity`.
        temperature: Of the router's posterior where it decides who answers; see there too.
        batch_size: The most rows an expert is given at once; changes speed and memory only.
        in_flight: Samples of a chunk; changes speed and memory only.
        attribution: Whether to say which sites the samples came from; asks the router in every
            step and changes no image.
    """

    strategy: Strategy
    steps: int
    solver: Solver
    seed: int
    guidance: float = 1.0
    temperature: float = 1.0
    batch_size: int = 256
    in_flight: int = 1024
    attribution: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "in_flight"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")

    def chunks(self, count: int) -> list[range]:
        """Returns the samples of every chunk."""
        size = self.in_flight
        return [range(start, min(start + size, count)) for start in range(0, count, size)]


@dataclass(frozen=True)
class Samples:
    """Images and how they came about.

    Attributes:
        images: `(N, C, H, W)`, clamped to the bound (1, of pixels), float32.
        sites: The site that finished each sample, `(N,)`, or None where several shared the work.
        attribution: The part of every site in each sample, `(N, K)` float32, rows of sum 1: the
            router's posterior along the sample's way from noise to image, averaged over time,
            whatever the strategy. None unless it was asked for.
    """

    images: Tensor
    sites: Tensor | None
    attribution: Tensor | None = None


def sample(
    ensemble: Ensemble,
    shape: tuple[int, int, int],
    count: int,
    options: SamplingOptions,
    *,
    condition: Condition | None = None,
    bound: float = 1.0,
    advance: Advance = lambda _: None,
) -> Samples:
    """Returns samples 0 to `count - 1` of the ensemble.

    Args:
        ensemble: Experts and router.
        shape: One image's `(C, H, W)`.
        count: Number of samples.
        options: How.
        condition: What every sample is asked to be, `count` rows, or None.
        bound: The largest value of an image; the plan's `data.bound`.
        advance: Told how many samples just went one step further.

    Raises:
        ValueError: a count is not positive, guidance has no condition, or the strategy needs
            another router.

    Example:
        With an ensemble of three sites:

        >>> options = SamplingOptions(Strategy("sticky"), steps=3, solver="heun", seed=0)
        >>> drawn = sample(ensemble, (1, 8, 8), 20, options)
        >>> tuple(drawn.images.shape), tuple(drawn.sites.shape)  # the site that drew each
        ((20, 1, 8, 8), (20,))
    """
    if count < 1:
        raise ValueError(f"count must be positive, got {count}")
    drawn = [
        sample_chunk(
            ensemble,
            shape,
            indices,
            options,
            condition=rows_of(condition, slice(indices.start, indices.stop)),
            bound=bound,
            advance=advance,
        )
        for indices in options.chunks(count)
    ]
    sites = [chunk.sites for chunk in drawn if chunk.sites is not None]
    parts = [chunk.attribution for chunk in drawn if chunk.attribution is not None]
    return Samples(
        torch.cat([chunk.images for chunk in drawn]),
        torch.cat(sites) if sites else None,
        torch.cat(parts) if parts else None,
    )


def apportioned(weights: Tensor, count: int) -> Tensor:
    """Returns a class for each of `count` samples, `(count,)` int64, in proportion to `weights`.

    Every sample gets the class that is furthest behind its share, the first of equals. So the
    first n samples hold each class as often as its share of n says, within about one, whatever n
    is; classes of equal weight come in turn; and a longer run begins with the shorter one's.

    Args:
        weights: `(G,)`, not negative; a class of weight 0 is never drawn.
        count: Number of samples.

    Raises:
        ValueError: a weight is negative or not finite, or none is positive.
    """
    shares = weights.double().numpy()
    if not np.isfinite(shares).all() or (shares < 0).any() or not shares.any():
        raise ValueError("weights of classes are finite, not negative, and not all zero")
    shares = shares / shares.sum()
    # a share of 1 / 3 summed up is a little off: equals shall stay equals
    behind, chosen = np.where(shares > 0, 0.0, -np.inf), np.empty(count, np.int64)
    for index in range(count):
        behind += shares
        chosen[index] = np.round(behind, 9).argmax()
        behind[chosen[index]] -= 1
    return torch.from_numpy(chosen)


@torch.inference_mode()
def sample_chunk(
    ensemble: Ensemble,
    shape: tuple[int, int, int],
    indices: range,
    options: SamplingOptions,
    *,
    condition: Condition | None = None,
    bound: float = 1.0,
    advance: Advance = lambda _: None,
) -> Samples:
    """Returns the samples `indices`, worked on together; `condition` has their rows only."""
    require_condition(options.guidance, condition)
    ensemble.require(options.strategy)
    if options.attribution and ensemble.sees_until <= 0:
        raise ValueError("this router looks at no image, so it cannot say which sites one is of")
    chunk = _Chunk(ensemble, shape, indices, options, condition, advance)
    x_0, sites = chunk.drawn() if options.strategy.draws_sites else (chunk.weighted(), None)
    return Samples(x_0.clamp(-bound, bound).float().to(CPU), sites, chunk.attribution)


class _Chunk:
    """Samples on their way from noise to images. Row r of every tensor is sample indices[r]."""

    def __init__(
        self,
        ensemble: Ensemble,
        shape: tuple[int, int, int],
        indices: range,
        options: SamplingOptions,
        condition: Condition | None,
        advance: Advance,
    ) -> None:
        self._ensemble, self._options, self._told = ensemble, options, advance
        self._device = ensemble.experts.device
        self._condition = None if condition is None else condition.to(self._device)
        self._shape, self._indices = shape, indices
        self._times = time_grid(options.steps, start=ensemble.experts.largest_time)
        # one generator for each sample and purpose, of which every step takes the next numbers
        self._step_noise = list(self._generators("step")) if options.solver == "sde" else []
        noise = torch.stack([torch.randn(shape, generator=g) for g in self._generators("noise")])
        self._start = State((LINEAR.sigma(self._times[0]) * noise).to(self._device))
        # x̂_0 of every row as last said, for a router that looks at it; at first all is grey
        self._estimates = torch.zeros_like(self._start.x) if ensemble.reads_estimate else None
        self._turn, self._telling = 0, Lock()
        size = (len(indices), len(ensemble.experts))
        self._parts = torch.zeros(size, dtype=torch.float64) if options.attribution else None

    @property
    def attribution(self) -> Tensor | None:
        """The part of every site so far, `(B, K)` float32, or None."""
        return None if self._parts is None else self._parts.float()

    def weighted(self) -> Tensor:
        """Returns images of a strategy that weights experts."""
        options, state = self._options, self._start
        everyone = torch.arange(len(self._indices))
        draws = self._site_draws() if options.strategy.draws_several else None
        noise: Tensor | None = None  # of the step: every stage of it draws by the same

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            v = self._ensemble.velocity(
                x,
                self._all_at(t, x),
                self._condition,
                strategy=options.strategy,
                estimate=self._estimates,
                noise=noise,
                temperature=options.temperature,
                guidance=options.guidance,
                batch_size=options.batch_size,
                descending=self._next_turn(),
            )
            return self._noted(v, x, t, everyone)

        for step in range(options.steps):
            noise = None if draws is None else gumbel(draws[:, step])
            state = self._advance(velocity, state, step, everyone)
        return state.x

    def _site_draws(self) -> Tensor:
        """Returns even draws for every sample, step and site, `(B, steps, K)` float64."""
        size = (self._options.steps, len(self._ensemble.experts))
        return torch.stack(
            [torch.rand(size, generator=g, dtype=torch.float64) for g in self._generators("sites")]
        )

    def drawn(self) -> tuple[Tensor, Tensor]:
        """Returns images of a strategy that draws a site for each, and the sites."""
        state, steps = self._start, self._options.steps
        uniform = torch.stack(
            [torch.rand(steps, generator=g, dtype=torch.float64) for g in self._generators("site")]
        )  # (B, steps)
        until = self._options.strategy.sticky_until
        routed = [step for step in range(steps) if self._times[step] <= until]
        kept = range(steps - len(routed))
        log_prior = self._ensemble.log_prior(len(self._indices), self._condition)
        sites = draw_sites(log_prior, uniform[:, 0])
        state = self._run(state, sites, kept)
        for step in routed:
            at = self._all_at(self._times[step], state.x)
            log_posterior = self._ensemble.log_posterior(
                state.x, at, self._condition, self._estimates
            )
            log_posterior = log_posterior / self._options.temperature
            before, sites = sites, draw_sites(log_posterior, uniform[:, step])
            state = self._run(state, sites, range(step, step + 1), changed=sites != before)
        return state.x, sites

    def _run(
        self, state: State, sites: Tensor, steps: range, changed: Tensor | None = None
    ) -> State:
        """Returns the state after `steps`, in which each sample follows the expert of its site."""
        if not steps:
            return state
        tasks, places = list[tuple[int, Callable[[], State]]](), list[Tensor]()
        for site in sorted(set(sites.tolist()), reverse=self._next_turn()):
            own = (sites == site).nonzero()[:, 0]
            for rows in torch.split(own, self._options.batch_size):
                tasks.append((site, partial(self._run_rows, state, site, rows, steps, changed)))
                places.append(rows.to(self._device))
        return join(list(self._ensemble.experts.gather(tasks)), places)

    def _run_rows(
        self, state: State, site: int, rows: Tensor, steps: range, changed: Tensor | None
    ) -> State:
        """Returns the state of some rows after `steps`. Several may run at once, of other rows."""
        here = rows.to(self._device)
        part, velocity = state.rows(here), self._velocity_of(site, here)
        if changed is not None:
            part, velocity = _without_past(
                part, velocity, self._times[steps.start], changed[rows].to(self._device)
            )
        for step in steps:
            part = self._advance(velocity, part, step, rows)
        return part

    def _advance(self, velocity: TimedVelocity, state: State, step: int, rows: Tensor) -> State:
        def noise(_: int) -> Tensor:
            drawn = [
                torch.randn(self._shape, generator=self._step_noise[row]) for row in rows.tolist()
            ]
            return torch.stack(drawn).to(self._device)

        if self._parts is not None:
            at, asked = self._all_at(self._times[step], state.x), rows_of(self._condition, rows)
            passed = (self._times[step] - self._times[step + 1]) / self._times[0]
            seen = None if self._estimates is None else self._estimates[rows.to(self._device)]
            log_posterior = self._ensemble.log_posterior(state.x, at, asked, seen)
            self._parts[rows] += float(passed) * log_posterior.exp()
        after = advance(velocity, state, self._times, step, self._options.solver, noise)
        with self._telling:
            self._told(len(rows))
        return after

    def _velocity_of(self, site: int, rows: Tensor) -> TimedVelocity:
        condition, guidance = rows_of(self._condition, rows), self._options.guidance

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            at = self._all_at(t, x)
            v = self._ensemble.site_velocity(site, x, at, condition, guidance=guidance)
            return self._noted(v, x, t, rows)

        return velocity

    def _noted(self, v: Tensor, x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        """Returns `v`, having kept the image estimate x - t v it makes for the router's next look.

        The router looks before the velocity of its own step is known, so it sees the one before.
        """
        if self._estimates is not None:
            self._estimates[rows.to(self._device)] = x - t * v
        return v

    def _all_at(self, t: Tensor, x: Tensor) -> Tensor:
        return t.to(x.device).expand(len(x))

    def _next_turn(self) -> bool:
        """Returns whether to go through the experts from the last to the first, every other time.

        It does not depend on what the pool holds: the order decides about rounding.
        """
        self._turn += 1
        return self._turn % 2 == 0

    def _generators(self, purpose: str) -> Iterator[torch.Generator]:
        for index in self._indices:
            text = f"{self._options.seed}/{purpose}/{index}"
            digest = hashlib.sha256(text.encode()).digest()
            yield torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _without_past(
    state: State, velocity: TimedVelocity, t: Tensor, changed: Tensor
) -> tuple[State, TimedVelocity]:
    """Returns state and velocity for a step in which some rows forget what they remember.

    A solver that remembers the image estimate of the step before extrapolates from it to this
    one's. Where another expert made that one, the difference is no trend: with exact parts the
    spread of samples was off by twice as much (a test shows it). There the past becomes what the
    new expert says now, which makes the step one of order 1.
    """
    if state.previous is None or not changed.any():
        return state, velocity
    v = velocity(state.x, t)
    rows = changed.reshape(-1, *(1,) * (state.x.ndim - 1))
    return State(state.x, torch.where(rows, state.x - t * v, state.previous)), lambda *_: v

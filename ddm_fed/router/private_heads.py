"""A site's head trained with noise: the same classifier, clipped unit by unit.

A unit brings its own images and, against each, a draw of the reference of the same class: the two
gradients all but cancel once the head is good, so that little has to be clipped.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ddm_fed.flows import NO_CLASS, ClassCondition
from ddm_fed.privacy import (
    FunctionalGradients,
    ImageSet,
    Private,
    PrivateStep,
    Randomness,
    examine,
    keep_freed_memory,
    require_passed,
)
from ddm_fed.records import Plan, SampledGaussianEvent
from ddm_fed.router.fitting import OnStep
from ddm_fed.router.heads import head_network, heads_spec, own_coefficients
from ddm_fed.router.network import CoefficientNetwork
from ddm_fed.router.reference import PooledReference

LABEL_DROPOUT = 0.1
TEST_UNITS = 8


@dataclass(frozen=True)
class HeadNoise:
    """How a head is made private.

    Attributes:
        event: Sampling rate, noise and steps.
        clip_norm: Most that a unit moves a sum.
        draws: Images of a unit in a step, each at a time and noise of its own.
        expected_units: What sums are divided by; from a release.
    """

    event: SampledGaussianEvent
    clip_norm: float
    draws: int
    expected_units: float


def fit_private_head(
    data: Private[ImageSet],
    plan: Plan,
    reference: PooledReference,
    noise: HeadNoise,
    randomness: Randomness,
    generator: torch.Generator,
    *,
    before: Callable[[], None] = lambda: None,
    on_step: OnStep = lambda *_: None,
) -> dict[str, Tensor]:
    """Returns the weights of a site's head, trained with noise.

    Args:
        data: The site's images.
        plan: Gives the network and its training.
        reference: The pool all sites train against.
        noise: How it is made private.
        randomness: The secret of inclusion and noise; with the same one, the same head comes back.
        generator: Decides all other draws.
        before: Called when the mechanism has passed its tests, before an image is looked at.
        on_step: Told step and loss. The loss is private.

    Raises:
        MechanismError: the mechanism does not keep its promise; nothing was looked at.

    Guarantees:
        As `noise.event` is priced, up to floating point.
    """
    keep_freed_memory()
    spec, images = heads_spec(plan).head, data.reveal()
    network = head_network(plan)
    network.reset_parameters(generator)
    network.train()
    weights = dict(network.named_parameters())
    step_of = PrivateStep(
        FunctionalGradients(network, _pair_loss, rows_at_once=1024),
        randomness,
        sampling_rate=float(noise.event.sampling_rate),
        noise_multiplier=float(noise.event.noise_multiplier),
        expected_units=noise.expected_units,
    )
    require_passed(examine(step_of, weights, _made_up(network, plan, noise), noise.clip_norm))
    before()
    units = _Units(images, plan, reference, generator, noise.draws)
    optimizer = torch.optim.AdamW(weights.values(), lr=float(spec.learning_rate), fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, noise.event.steps)
    for step in range(noise.event.steps):
        chosen = step_of.included(step, len(units))
        blocks = [units.rows(chosen)] if len(chosen) else []
        clipped = step_of.clipped_sum(weights, blocks, noise.clip_norm)
        gradient = step_of.release(clipped, step, noise.clip_norm)
        for name, value in weights.items():
            value.grad = gradient[name]
        optimizer.step()
        schedule.step()
        on_step(step + 1, clipped.loss / noise.expected_units)
    return network.eval().requires_grad_(False).state_dict()


def _pair_loss(
    network: CoefficientNetwork, own: Tensor, other: Tensor, t: Tensor, labels: Tensor | None = None
) -> Tensor:
    """Returns the loss of telling own images from the reference's, `(R,)`; both are noised."""
    condition = None if labels is None else ClassCondition(labels)
    mine, theirs = network(own, t, condition)[:, 0], network(other, t, condition)[:, 0]
    return (functional.softplus(-mine) + functional.softplus(theirs)) / 2


class _Units:
    """Rows of units: noised coefficients of their own, of the reference, times, and labels."""

    def __init__(
        self,
        images: ImageSet,
        plan: Plan,
        reference: PooledReference,
        generator: torch.Generator,
        draws: int,
    ) -> None:
        self._y, self._reference = own_coefficients(images, plan), reference
        self._labels = images.labels if plan.data.classes else None
        self._generator, self._draws = generator, draws
        units = images.units if images.units is not None else torch.arange(len(images))
        self._order, self._sizes = units.argsort(stable=True), units.bincount()
        self._starts = self._sizes.cumsum(0) - self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def rows(self, units: Tensor) -> tuple[Tensor, ...]:
        """Returns the rows of `units (U,)`, each `(U, K, ...)`."""
        generator, grid = self._generator, (len(units), self._draws)
        place = torch.rand(grid, generator=generator, dtype=torch.float64)
        within = (place * self._sizes[units][:, None]).long()
        rows = self._order[self._starts[units][:, None] + within].flatten()
        labels = None
        if self._labels is not None:
            dropped = torch.rand(len(rows), generator=generator) < LABEL_DROPOUT
            labels = torch.where(dropped, NO_CLASS, self._labels[rows])
        other = self._reference.sample(len(rows), generator, labels)
        t = torch.rand(len(rows), generator=generator)
        found = [self._noised(self._y[rows], t), self._noised(other, t), t]
        if labels is not None:
            found.append(labels)
        return tuple(value.view(*grid, *value.shape[1:]) for value in found)

    def _noised(self, y: Tensor, t: Tensor) -> Tensor:
        eps = torch.randn(y.shape, generator=self._generator)
        return (1 - t)[:, None] * y + t[:, None] * eps


def _made_up(network: CoefficientNetwork, plan: Plan, noise: HeadNoise) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    grid, width = (TEST_UNITS, noise.draws), network.embed.in_features
    rows = [torch.randn((*grid, width), generator=generator) for _ in range(2)]
    rows.append(torch.rand(grid, generator=generator))
    if plan.data.classes:
        rows.append(torch.randint(0, len(plan.data.classes), grid, generator=generator))
    return rows

"""A site's head trained with noise: the same classifier, clipped unit by unit.

A unit brings its own images and, against each, a draw of the reference of the same class: the two
gradients all but cancel once the head is good, so that little has to be clipped.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ddm_fed.flows import NO_CLASS, ClassCondition
from ddm_fed.privacy import (
    Claim,
    FunctionalGradients,
    ImageSet,
    NoisyUpdate,
    Private,
    PrivateStep,
    ProvedUpdate,
    Randomness,
    SlowGradient,
    UpdateRule,
    Weights,
    examine,
    keep_freed_memory,
    require_passed,
)
from ddm_fed.progress import QUIET, StepReport, Watch
from ddm_fed.records import Plan, SampledGaussianEvent
from ddm_fed.router.heads import head_network, heads_spec, own_coefficients
from ddm_fed.router.network import CoefficientNetwork
from ddm_fed.router.pooled_reference import PooledReference

LABEL_DROPOUT = 0.1
WEIGHT_DECAY = 0.01  # AdamW's own, as for heads without noise
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
    *,
    pay: Callable[[], SampledGaussianEvent],
    watch: Watch = QUIET,
) -> dict[str, Tensor]:
    """Returns the weights of a site's head, trained with noise.

    Some of its steps are computed again by another way; see `ddm_fed.privacy.proof`.

    Args:
        data: The site's images.
        plan: Gives the network and its training.
        reference: The pool all sites train against.
        noise: How it is made private.
        randomness: The secret of all that is drawn; with the same one, the same head comes back.
        pay: Called when the mechanism has passed its tests, before an image is looked at. Returns
            the event of the ledger's entry, which the proof believes.
        watch: Told how it goes. The loss is private.

    Raises:
        MechanismError: the mechanism does not keep its promise, and nothing was looked at; or a
            step was not what its ledger entry says.

    Guarantees:
        As `noise.event` is priced, up to floating point.
    """
    keep_freed_memory()
    images, network = data.reveal(), head_network(plan)
    network.reset_parameters(torch.Generator().manual_seed(randomness.seed("weights")))
    network.train()
    weights, rule = dict(network.named_parameters()), _rule(plan, noise)
    step_of = PrivateStep(
        FunctionalGradients(network, _pair_loss, rows_at_once=1024),
        randomness,
        sampling_rate=float(noise.event.sampling_rate),
        noise_multiplier=float(noise.event.noise_multiplier),
        expected_units=noise.expected_units,
    )
    require_passed(examine(step_of, weights, _made_up(network, plan, noise), noise.clip_norm))
    claim = Claim(pay(), noise.expected_units, _promised(plan))
    own = own_coefficients(images, plan)
    labels = images.labels if plan.data.classes else None
    units = _Units(own, labels, images.units, reference, randomness, noise.draws)
    update = NoisyUpdate(step_of, units, weights, rule.optimizer(weights), rule)
    steps = noise.event.steps
    proof = ProvedUpdate(
        update,
        claim,
        bytes.fromhex(randomness.hex),
        _slow(head_network(plan).double(), units),
        first=0,
        steps=steps,
    )
    for step in range(steps):
        watch.on_step(StepReport(step + 1, steps, proof.take(step) / noise.expected_units))
    proof.require_complete()
    return network.eval().requires_grad_(False).state_dict()


def _rule(plan: Plan, noise: HeadNoise) -> UpdateRule:
    """Returns how a head is trained: as one without noise is."""
    rate, steps = float(heads_spec(plan).head.learning_rate), noise.event.steps
    return UpdateRule(
        lambda step: rate * 0.5 * (1 + math.cos(math.pi * step / steps)),
        lambda _: noise.clip_norm,
        weight_decay=WEIGHT_DECAY,
    )


def _promised(plan: Plan) -> UpdateRule:
    """Returns what the plan says of a head's steps; the proof's own reading of it."""
    spec, sgd = heads_spec(plan).head, plan.privacy.sgd
    if sgd is None or sgd.head is None:
        raise TypeError("the plan trains heads without noise")
    clip_norm, rate = float(sgd.head.clip_norm), float(spec.learning_rate)
    half_turns = math.pi / spec.steps
    return UpdateRule(
        lambda step: rate * (0.5 + 0.5 * math.cos(half_turns * step)),
        lambda _: clip_norm,
        weight_decay=WEIGHT_DECAY,
    )


def _slow(network: CoefficientNetwork, units: "_Units") -> SlowGradient:
    """Returns the gradient of single units by plain back-propagation in float64."""

    def gradient(weights: Weights, step: int, unit: int) -> dict[str, Tensor]:
        from torch.func import functional_call  # takes long to load; most commands need none of it

        leaves = {name: value.detach().requires_grad_(True) for name, value in weights.items()}

        def network_of(*arguments: object) -> Tensor:
            answer: Tensor = functional_call(network, leaves, arguments)
            return answer

        (rows,) = units.alone(unit).blocks(step, torch.tensor([0]))
        one = [value[0].double() if value.is_floating_point() else value[0] for value in rows]
        loss = _pair_loss(network_of, *one).mean()
        found = torch.autograd.grad(loss, list(leaves.values()))
        return dict(zip(leaves, found, strict=True))

    return gradient


def _pair_loss(
    network: Callable[..., Tensor],
    own: Tensor,
    other: Tensor,
    t: Tensor,
    labels: Tensor | None = None,
) -> Tensor:
    """Returns the loss of telling own images from the reference's, `(R,)`; both are noised."""
    condition = None if labels is None else ClassCondition(labels)
    mine, theirs = network(own, t, condition)[:, 0], network(other, t, condition)[:, 0]
    return (functional.softplus(-mine) + functional.softplus(theirs)) / 2


class _Units:
    """Rows of units: noised coefficients of their own, of the reference, times, and labels.

    What a unit shows follows from the secret, the step and its place, and from nobody else.
    """

    def __init__(
        self,
        own: Tensor,
        labels: Tensor | None,
        units: Tensor | None,
        reference: PooledReference,
        randomness: Randomness,
        draws: int,
        first_place: int = 0,
    ) -> None:
        self._y, self._labels, self._reference = own, labels, reference
        self._randomness, self._draws, self._first = randomness, draws, first_place
        self._units = units if units is not None else torch.arange(len(own))
        self._order, self._sizes = self._units.argsort(stable=True), self._units.bincount()
        self._starts = self._sizes.cumsum(0) - self._sizes
        self._generator = torch.Generator()

    def __len__(self) -> int:
        return len(self._sizes)

    def alone(self, unit: int) -> "_Units":
        """Returns a unit as if nobody else were there."""
        rows = self._units == unit
        labels = None if self._labels is None else self._labels[rows]
        nobody_else = torch.zeros(int(rows.sum()), dtype=torch.int64)
        return _Units(
            self._y[rows],
            labels,
            nobody_else,
            self._reference,
            self._randomness,
            self._draws,
            self._first + unit,
        )

    def blocks(self, step: int, units: Tensor, /) -> Iterator[tuple[Tensor, ...]]:
        """Yields the rows of `units (U,)`, each `(U, K, ...)`; nothing where there are none."""
        if not len(units):
            return
        drawn = [self._draw(step, unit) for unit in units.tolist()]
        rows, place, mine, theirs, t, dropped = (
            torch.stack([one[part] for one in drawn]) for part in range(6)
        )
        labels = None
        if self._labels is not None:
            labels = torch.where(dropped, NO_CLASS, self._labels[rows])
        flat = None if labels is None else labels.flatten()
        other = self._reference.at(place.flatten(), mine.flatten(0, 1), flat).view(mine.shape)
        along = t[..., None]
        first, second = theirs.unbind(2)
        noised = (1 - along) * self._y[rows] + along * first
        found = [noised, (1 - along) * other + along * second, t]
        yield tuple(found) if labels is None else (*found, labels)

    def _draw(self, step: int, unit: int) -> tuple[Tensor, ...]:
        generator, count, width = self._generator, self._draws, self._y.shape[1]
        self._randomness.rewind(generator, "rows", step, self._first + unit)
        within = torch.rand(count, generator=generator, dtype=torch.float64)
        rows = self._order[self._starts[unit] + (within * int(self._sizes[unit])).long()]
        return (
            rows,
            torch.rand(count, generator=generator, dtype=torch.float64),
            torch.randn((count, width), generator=generator),
            torch.randn((count, 2, width), generator=generator),
            torch.rand(count, generator=generator),
            torch.rand(count, generator=generator) < LABEL_DROPOUT,
        )


def _made_up(network: CoefficientNetwork, plan: Plan, noise: HeadNoise) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    grid, width = (TEST_UNITS, noise.draws), network.embed.in_features
    rows = [torch.randn((*grid, width), generator=generator) for _ in range(2)]
    rows.append(torch.rand(grid, generator=generator))
    if plan.data.classes:
        rows.append(torch.randint(0, len(plan.data.classes), grid, generator=generator))
    return rows

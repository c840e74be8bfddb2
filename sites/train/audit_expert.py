"""Attacks on a finished expert by images that it was trained on and images that were held back."""

import hashlib
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddm_fed.auditing import (
    Draws,
    LabelledImages,
    Membership,
    NearestSamples,
    measure_membership,
    measure_nearest_samples,
    price,
)
from ddm_fed.errors import DataError
from ddm_fed.evaluation import Memorization, measure_memorization
from ddm_fed.flows import ClassCondition, Expert, integrate, time_grid
from ddm_fed.privacy import ImageSet
from ddm_fed.records import Event, ExpertDesign, Plan, network_of
from ddm_fed.training import seeded
from ddm_fed.training.plan_cost import planned_events

MOST_ATTACKED = 2000  # images of each kind that are attacked: more would only take longer
SAMPLES, SOLVER_STEPS = 500, 20
PLACES = Decimal("0.0001")
Rows = NDArray[np.float64]


@dataclass(frozen=True)
class ExpertAttacks:
    """What attacks on an expert found. All of it is private.

    Attributes:
        membership: Whether its loss tells its images from others.
        memorization: Whether its samples are copies.
        nearest: What distances of images to samples say of its epsilon.
        claimed_epsilon: What bounds the expert and all it was made of; None without noise.
    """

    membership: Membership
    memorization: Memorization
    nearest: NearestSamples
    claimed_epsilon: Decimal | None


def attack_expert(
    expert: Expert, design: ExpertDesign, plan: Plan, own: ImageSet, others: ImageSet, seed: int
) -> ExpertAttacks:
    """Returns what attacks on an expert find.

    Args:
        expert: As it is asked.
        design: What it is.
        plan: It was made under.
        own: Images it was made of.
        others: Images like these that were held back.
        seed: Of times, noise, samples and pairs.

    Raises:
        DataError: some of `others` are among `own`, or there are none.
    """
    _require_apart(own, others)
    draws = Draws.at(plan.data.shape, seeded(seed, "audit", 0))
    members, controls = (_labelled(images, plan, seed) for images in (own, others))
    samples = samples_of_expert(expert, plan, seed)
    bound_by, delta = _what_bounds(plan, design), float(plan.privacy.delta)
    claim, claimed_epsilon = None, None
    if bound_by:
        epsilon, claim = price(bound_by, delta)
        claimed_epsilon = Decimal(epsilon).quantize(PLACES, ROUND_CEILING)
    return ExpertAttacks(
        membership=measure_membership(expert, members, controls, draws),
        memorization=measure_memorization(
            samples,
            _flat(members.images),
            _flat(controls.images),
            generator=np.random.default_rng(seed),
        ),
        nearest=measure_nearest_samples(
            samples,
            *(_one_of_each_unit(images, seed) for images in (own, others)),
            delta=delta,
            generator=np.random.default_rng(seed),
            claim=claim,
        ),
        claimed_epsilon=claimed_epsilon,
    )


def _what_bounds(plan: Plan, design: ExpertDesign) -> tuple[Event, ...]:
    """Returns all that an expert was made of, its release included; nothing without noise."""
    planned = planned_events(plan)
    if planned.expert is None and network_of(design.architecture) is not None:
        return ()
    training = planned.training if network_of(design.architecture) is not None else []
    return (*planned.router, *training)


def _require_apart(own: ImageSet, others: ImageSet) -> None:
    """Refuses controls that were trained on: they would make every attack look harmless."""
    if len(others) == 0:
        raise DataError("--controls holds no images", hint="check the path")
    seen = {_fingerprint(own.batch(slice(row, row + 1))) for row in range(len(own))}
    both = sum(_fingerprint(others.batch(slice(r, r + 1))) in seen for r in range(len(others)))
    if both:
        raise DataError(
            f"{both} of the {len(others)} controls are among the images that were trained on",
            hint="give images of the same kind that no expert has seen",
        )


def _fingerprint(image: Tensor) -> bytes:
    return hashlib.sha256(image.numpy().tobytes()).digest()


def _labelled(images: ImageSet, plan: Plan, seed: int) -> LabelledImages:
    """Returns at most `MOST_ATTACKED` images, drawn without replacement."""
    order = torch.randperm(len(images), generator=seeded(seed, "attacked", len(images)))
    rows = order[:MOST_ATTACKED].sort().values
    if plan.data.text is not None:
        return LabelledImages(images.batch(rows), condition=images.condition(rows))
    labels = images.labels[rows] if plan.data.classes and images.labels is not None else None
    return LabelledImages(images.batch(rows), labels)


def _one_of_each_unit(images: ImageSet, seed: int) -> Rows:
    """Returns an image of each of at most `MOST_ATTACKED` units, drawn at random, `(U, C H W)`."""
    order = torch.randperm(len(images), generator=seeded(seed, "units", len(images)))
    if images.units is not None:
        _, first = np.unique(images.units[order].numpy(), return_index=True)
        order = order[np.sort(first)]
    return _flat(images.batch(order[:MOST_ATTACKED]))


def _flat(images: Tensor) -> Rows:
    return images.flatten(1).double().numpy()


@torch.no_grad()
def samples_of_expert(expert: Expert, plan: Plan, seed: int, count: int = SAMPLES) -> Rows:
    """Returns samples of the expert alone, the classes in turn, `(count, C H W)`.

    Of no caption: those of the site are private, and what is asked for by them would follow from
    more than the expert, of which epsilon speaks.
    """
    noise = torch.randn((count, *plan.data.shape), generator=seeded(seed, "samples", 0))
    condition = None
    if plan.data.classes:
        condition = ClassCondition(torch.arange(count) % len(plan.data.classes))

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return expert(x, t.expand(len(x)), condition)

    times = time_grid(SOLVER_STEPS, start=expert.largest_time)
    bound = float(plan.data.bound)
    return _flat(integrate(velocity, noise, times, "heun").clamp(-bound, bound))

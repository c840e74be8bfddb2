"""What a plan costs a site, and what noise it leaves, known before anything is spent.

The events follow from the plan alone, so that they are the same for all sites and tell nothing of
one. What they do to a gradient depends on how many units a site has.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

from ddm_fed.mixture import router_events
from ddm_fed.privacy import sampled_event
from ddm_fed.records import (
    MIXTURE,
    Event,
    ExpertDesign,
    GaussianEvent,
    HeadsRouterSpec,
    Plan,
    SampledGaussianEvent,
)
from ddm_fed.training import trained_weights

# Noise on a weight of the mean gradient, in clip norms, with which DPDM trained its MNIST models,
# and the epsilon it had there (docs/privacy.md says where from).
KNOWN_NOISE = ((0.0006, "10"), (0.004, "1"), (0.02, "0.2"))
FAILURES = 0.1  # of delta times units; the bound should not be expected to fail for anybody
FEW_DRAWS, MANY_STEPS, FULL_RATE = 8, 2000, 0.25


@dataclass(frozen=True)
class PlannedEvents:
    """What a site will spend under a plan; None for what is not trained, or without noise."""

    router: tuple[GaussianEvent, ...]
    expert: SampledGaussianEvent | None
    head: SampledGaussianEvent | None
    central: SampledGaussianEvent | None = None

    @property
    def all(self) -> list[Event]:
        """All of them."""
        return [*self.router, *([self.head] if self.head else []), *self.training]

    @property
    def training(self) -> list[Event]:
        """Those of the expert's training, in the order in which they are spent."""
        return [event for event in (self.central, self.expert) if event is not None]


@lru_cache(maxsize=128)
def planned_events(plan: Plan) -> PlannedEvents:
    """Returns the events of `plan`, which together cost at most what it allows.

    The router's release costs `router.epsilon`, the head `privacy.sgd.head.epsilon`, and central
    images `privacy.sgd.central.epsilon`, each as if alone; the expert gets the least noise with
    which all together cost `privacy.sgd.epsilon`.
    Takes some seconds where something is trained with noise.

    Raises:
        BudgetError: the others leave nothing for the expert.
    """
    delta, sgd = float(plan.privacy.delta), plan.privacy.sgd
    router = tuple(router_events(plan).values())
    if sgd is None:
        return PlannedEvents(router, None, None)
    head = None
    if sgd.head is not None and isinstance(plan.router, HeadsRouterSpec):
        spec = plan.router.head
        head = sampled_event(
            float(sgd.head.epsilon),
            delta,
            sampling_rate=sgd.sampling_rate(spec.batch_size),
            steps=spec.steps,
        )
    central = None
    if sgd.central is not None:
        central = sampled_event(
            float(sgd.central.epsilon),
            delta,
            sampling_rate=sgd.sampling_rate(sgd.central.batch_size),
            steps=sgd.central.images,
        )
    expert = sampled_event(
        float(sgd.epsilon),
        delta,
        sampling_rate=sgd.sampling_rate(plan.training.batch_size),
        steps=plan.training.steps,
        beside=[*router, *(event for event in (head, central) if event is not None)],
    )
    return PlannedEvents(router, expert, head, central)


@dataclass(frozen=True)
class Outlook:
    """What the noise does to a step of the expert at a site of `units` units.

    Attributes:
        units: Assumed; nothing was counted.
        weights: How many are trained.
        per_weight: Standard deviation of the noise on a weight of the mean gradient, in clip norms.
        whole: Norm of the noise on the whole mean gradient, in clip norms; the gradient itself has
            one at most.
        per_pixel: Standard deviation of the noise on a pixel of a central image, where classes are
            equally frequent; None if there are no such images.
    """

    units: int
    weights: int
    per_weight: float
    whole: float
    per_pixel: float | None = None


def outlook(plan: Plan, design: ExpertDesign, units: int) -> Outlook | None:
    """Returns what noise the expert of `design` gets at such a site; None without noise."""
    event, sgd = planned_events(plan).expert, plan.privacy.sgd
    if event is None or sgd is None:
        return None
    per_weight = float(event.noise_multiplier) / (units * float(event.sampling_rate))
    weights = trained_weights(plan.data, design, sgd.trainable)
    per_pixel, means = None, planned_events(plan).central
    if means is not None and sgd.central is not None:
        of_a_class = units * float(means.sampling_rate) / max(1, len(plan.data.classes))
        per_pixel = float(means.noise_multiplier) * float(sgd.central.radius) / of_a_class
    return Outlook(units, weights, per_weight, per_weight * math.sqrt(weights), per_pixel)


def delta_warning(plan: Plan, units: int) -> str | None:
    """Returns what is wrong with the plan's delta at a site of `units` units; None if nothing.

    What publishes every unit with probability delta, and nothing else, keeps the promise of any
    epsilon: delta has to be far below 1 / units (Dwork and Roth 2014, section 2.3).
    """
    expected = float(plan.privacy.delta) * units
    if expected <= FAILURES:
        return None
    unit = plan.privacy.unit
    return (
        f"WARNING: delta {plan.privacy.delta:f} times {units} {unit}s is {expected:.3g}: "
        f"publishing every {unit} with that probability would keep the plan's promise. Agree on a "
        f"`privacy.delta` far below 1 / {units}, at most {FAILURES / units:.1g}."
    )


def advice(plan: Plan, seen: Outlook) -> list[str]:
    """Returns what a plan could do against the noise, in plain words; nothing if little is lost."""
    sgd, found = plan.privacy.sgd, list[str]()
    if sgd is None:
        return found
    known = next((eps for noise, eps in KNOWN_NOISE if seen.per_weight <= noise), None)
    if known is None:
        found.append(
            "this much noise drowns training from scratch: nothing recognisable is to be expected "
            "without a public checkpoint to start from"
        )
    else:
        found.append(
            f"about the noise of published MNIST models at epsilon {known}, or a little less"
        )
    if known == "10":
        return found
    if MIXTURE not in plan.expert.architecture:
        found.append(
            "let the release be the expert, which needs no training: `expert.architecture` = "
            '"mixture", with `router.components`'
        )
    if plan.expert.base is None:
        found.append("start from a public checkpoint: `expert.base`")
        if sgd.central is None:
            found.append("or learn noisy mean images first: `privacy.sgd.central`")
    if sgd.trainable == "all":
        found.append(
            'train fewer weights: `privacy.sgd.trainable` = "last-1" or "lora-4", with a checkpoint'
        )
    if float(sgd.sampling_rate(plan.training.batch_size)) < FULL_RATE:
        found.append(
            "see more of the data in fewer steps: `training.batch_size` nearer to "
            "`privacy.sgd.units`"
        )
    if plan.training.steps > MANY_STEPS:
        found.append(f"take fewer steps: `training.steps` below {MANY_STEPS}")
    if sgd.draws < FEW_DRAWS:
        found.append(
            f"noise every image more often in a step, which costs time only: `privacy.sgd.draws` "
            f"of {FEW_DRAWS} or more"
        )
    if plan.training.time_sampling == "logit-normal" and plan.training.time_location <= 0:
        found.append("learn the coarse first: `training.time_location` of 0.5 to 1")
    return found

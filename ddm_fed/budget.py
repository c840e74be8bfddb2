"""What a plan costs a site: the events of its releases and trainings, known before any of them.

They follow from the plan alone, so that they are the same for all sites and tell nothing of one.
"""

from dataclasses import dataclass
from functools import lru_cache

from ddm_fed.privacy import epsilon, gaussian_events, sampled_event
from ddm_fed.records import Event, GaussianEvent, HeadsRouterSpec, Plan, SampledGaussianEvent
from ddm_fed.router import router_shares


@dataclass(frozen=True)
class PlannedEvents:
    """What a site will spend under a plan; None for what is not trained, or without noise."""

    router: tuple[GaussianEvent, ...]
    expert: SampledGaussianEvent | None
    head: SampledGaussianEvent | None

    @property
    def all(self) -> list[Event]:
        """All of them."""
        trained = [event for event in (self.head, self.expert) if event is not None]
        return [*self.router, *trained]


@lru_cache(maxsize=16)
def planned_events(plan: Plan) -> PlannedEvents:
    """Returns the events of `plan`, which together cost at most what it allows.

    The router's release costs `router.epsilon` and the head `privacy.sgd.head.epsilon`, each as if
    alone; the expert gets the least noise with which all together cost `privacy.sgd.epsilon`.
    Takes some seconds where something is trained with noise.

    Raises:
        BudgetError: router and head leave nothing for the expert.
    """
    delta, sgd = float(plan.privacy.delta), plan.privacy.sgd
    router = gaussian_events(float(plan.router.epsilon), delta, router_shares(plan))
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
    expert = sampled_event(
        float(sgd.epsilon),
        delta,
        sampling_rate=sgd.sampling_rate(plan.training.batch_size),
        steps=plan.training.steps,
        beside=[*router, *([head] if head else [])],
    )
    return PlannedEvents(router, expert, head)


def planned_epsilon(plan: Plan) -> float:
    """Returns what all events of `plan` cost together."""
    return epsilon(planned_events(plan).all, float(plan.privacy.delta))

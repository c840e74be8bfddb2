"""The site's own privacy policy against a plan: a plan may ask for more, never for less."""

from ddm_fed.errors import BudgetError
from ddm_fed.records import ExpertDesign, Plan, network_of
from ddm_fed.training.plan_cost import planned_events
from sites.workspace import SiteSettings


def require_policy(settings: SiteSettings, plan: Plan, design: ExpertDesign) -> None:
    """Refuses a plan that asks for less privacy than the site's own policy.

    Args:
        settings: The policy.
        plan: What is asked.
        design: The expert that the site makes under it. A mixture is not trained: it is what the
            release says, and as private.

    Raises:
        BudgetError: naming the key of `site.toml` and what the plan says.
    """
    privacy = plan.privacy
    if privacy.delta > settings.max_delta:
        raise _below("max_delta", settings.max_delta, f"states epsilon at delta {privacy.delta}")
    if settings.unit == "patient" and privacy.unit != "patient":
        raise _below("unit", settings.unit, f"protects one {privacy.unit} only")
    has_network = network_of(design.architecture) is not None
    if settings.keep_weights and has_network and plan.expert.remote is None:
        raise _below("keep_weights", "true", "lets no expert stay at its site (`expert.remote`)")
    if settings.keep_weights and plan.router.kind == "heads":
        raise _below("keep_weights", "true", "asks for the weights of a head")
    trained = set(settings.must_be_private) & {"head", *(["expert"] if has_network else [])}
    if privacy.sgd is None:
        # a plan without heads has none to protect
        needed = trained - ({"head"} if plan.router.kind != "heads" else set())
        if needed:
            raise _below(
                "must_be_private",
                ", ".join(settings.must_be_private),
                f"trains the {min(needed)} without noise",
            )
        return
    least = settings.least_noise_multiplier
    planned = planned_events(plan)
    for what, event in (
        ("trains the expert", planned.expert if has_network else None),
        ("trains the head", planned.head),
        ("makes central images", planned.central if has_network else None),
    ):
        if event is not None and event.noise_multiplier < least:
            raise _below(
                "least_noise_multiplier",
                least,
                f"{what} with a noise multiplier of {event.noise_multiplier}",
            )


def _below(key: str, limit: object, what: str) -> BudgetError:
    return BudgetError(
        f"this site's own policy (`{key} = {limit}` in site.toml) forbids it: the plan {what}",
        hint="agree on another plan; if the policy itself is to change, that is for the site's "
        "data-protection officer to decide",
    )

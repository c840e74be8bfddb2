"""What a submission has to say to be taken: made for us, valid now, and paid for.

It judges words, after the signatures held: rules 7, 8 and 13 of `ddm_fed.bundle`.
"""

from datetime import datetime, timedelta

from ddm_fed.errors import ExpiredError, PlanMismatchError, PolicyError
from ddm_fed.privacy import check_chain, epsilon_text, private_events
from ddm_fed.records import (
    Event,
    GaussianEvent,
    HeadsRouterSpec,
    LedgerEntry,
    NonPrivateEvent,
    Plan,
    Submission,
)
from ddm_fed.router import ROUTER_PURPOSES, release_tensors
from ddm_fed.signing import Trust

CLOCK_SKEW = timedelta(minutes=10)
EXPERT_PURPOSE, HEAD_PURPOSE = "expert", "head"


def require_ours(submission: Submission, trust: Trust, what: str) -> None:
    """Refuses a submission made for another federation, plan or roster than ours.

    Raises:
        PlanMismatchError: naming what was found and what was expected.
    """
    for field, found, expected in (
        ("federation", submission.federation, trust.plan.federation),
        ("plan", submission.plan_sha256, trust.plan_sha256),
    ):
        if found != expected:
            raise PlanMismatchError(
                f"{what} was made for the {field} `{found}`, expected `{expected}`",
                hint="the site trained under another plan; it has to train under this one",
            )
    plan, training = trust.plan, submission.training
    if not plan.expert.allows(submission.expert):
        raise PlanMismatchError(
            f"{what} holds an expert of {submission.expert}, which the plan does not allow",
            hint="the site has to choose among the plan's `expert` architecture, path, prediction",
        )
    if training.steps != plan.training.steps:
        raise PlanMismatchError(
            f"{what} was trained for {training.steps} steps, the plan asks for "
            f"{plan.training.steps}",
            hint="the site has to train as the plan says",
        )
    if training.ema_half_life not in plan.training.ema_half_lives:
        raise PlanMismatchError(
            f"{what} is averaged with a half-life of {training.ema_half_life} steps, the plan has "
            f"{', '.join(map(str, plan.training.ema_half_lives))}",
            hint="the site has to choose one of them: `ddm-site train --ema-half-life`",
        )
    _require_planned_head(submission, plan, what)
    if not trust.chain.knows(submission.roster):
        raise PlanMismatchError(
            f"{what} cites roster {submission.roster.version} "
            f"({submission.roster.sha256[:16]}…), which is not in the published chain",
            hint="the site used a roster this coordinator never published; ask where it came from",
        )


def _require_planned_head(submission: Submission, plan: Plan, what: str) -> None:
    head = submission.head
    if head is None:
        return
    if not isinstance(plan.router, HeadsRouterSpec):
        raise PlanMismatchError(
            f"{what} brings a head, the plan has a {plan.router.kind} router",
            hint='only a plan with router.kind = "heads" takes heads',
        )
    if head.steps != plan.router.head.steps:
        raise PlanMismatchError(
            f"{what} has a head trained for {head.steps} steps, the plan asks for "
            f"{plan.router.head.steps}",
            hint="the site has to train as the plan says",
        )


def require_valid_at(submission: Submission, trust: Trust, moment: datetime, what: str) -> None:
    """Refuses a submission that is not valid at `moment`.

    Raises:
        ExpiredError: it is from the future, expired, or valid for longer than the plan allows.
    """
    if submission.issued_at > moment + CLOCK_SKEW:
        raise ExpiredError(
            f"{what} was issued at {submission.issued_at:%Y-%m-%d %H:%M:%S} UTC, in the future",
            hint="compare the clocks of the site and of this machine",
        )
    longest = timedelta(days=trust.plan.submission.valid_days)
    if submission.expires_at - submission.issued_at > longest:
        raise ExpiredError(
            f"{what} claims to be valid until {submission.expires_at:%Y-%m-%d}, longer than the "
            f"{longest.days} days the plan allows",
            hint="ask the site to sign its bundle again",
        )
    if moment >= submission.expires_at:
        raise ExpiredError(
            f"{what} expired at {submission.expires_at:%Y-%m-%d %H:%M:%S} UTC",
            hint="ask the site to sign its bundle again",
        )


def check_privacy(submission: Submission, trust: Trust, *, what: str) -> None:
    """Refuses a submission whose ledger does not add up, or spent more than the plan allows.

    It checks arithmetic. Whether the site really added the noise it lists, no signature can show.

    Raises:
        PolicyError: naming the figure found and the one expected.
    """
    privacy, policy = submission.privacy, trust.plan.privacy
    check_chain(privacy.ledger)
    if privacy.randomness != "csprng":
        raise _policy(what, "its noise came from a test stream, which anyone can subtract")
    if privacy.delta != policy.delta:
        raise _policy(what, f"it states epsilon at delta {privacy.delta}, the plan {policy.delta}")
    events = private_events(privacy.ledger)
    recomputed = epsilon_text(events, float(policy.delta))
    if abs(float(recomputed) - float(privacy.releases_epsilon)) > 2e-4:
        raise _policy(
            what,
            f"it states epsilon {privacy.releases_epsilon}, its ledger adds up to {recomputed}",
        )
    if float(recomputed) > float(policy.max_epsilon):
        raise _policy(
            what,
            f"its ledger adds up to epsilon {recomputed}, the plan allows {policy.max_epsilon}",
        )
    released = release_events(submission)
    if released.keys() != release_tensors(trust.plan).keys():
        raise _policy(what, f"its ledger has entries for the router's {sorted(released)} only")
    price = epsilon_text(released.values(), float(policy.delta))
    if float(price) > float(trust.plan.router.epsilon):
        raise _policy(
            what, f"its router release cost {price}, the plan allows {trust.plan.router.epsilon}"
        )
    experts = [entry for entry in _of_this_plan(submission) if entry.purpose == EXPERT_PURPOSE]
    private = bool(experts) and not any(
        isinstance(entry.event, NonPrivateEvent) for entry in experts
    )
    if not experts or private != privacy.expert_is_private:
        raise _policy(what, "its ledger does not say how its expert was trained")
    if "expert" in policy.must_be_private and not private:
        raise _policy(what, "its expert was trained without privacy, which the plan demands")
    heads = [entry for entry in _of_this_plan(submission) if entry.purpose == HEAD_PURPOSE]
    if submission.head is not None and not heads:
        raise _policy(what, "its ledger does not say how its head was trained")
    if "expert" in policy.must_be_private and submission.head is not None:
        raise _policy(what, "its head was trained without privacy, and saw what its expert saw")


def release_events(submission: Submission) -> dict[str, GaussianEvent]:
    """Returns the event of the newest release of each router message for this plan."""
    newest: dict[str, Event] = {entry.purpose: entry.event for entry in _of_this_plan(submission)}
    return {
        name: event
        for name, purpose in ROUTER_PURPOSES.items()
        if isinstance(event := newest.get(purpose), GaussianEvent)
    }


def _of_this_plan(submission: Submission) -> list[LedgerEntry]:
    ledger = submission.privacy.ledger
    return [entry for entry in ledger if entry.plan_sha256 == submission.plan_sha256]


def _policy(what: str, reason: str) -> PolicyError:
    return PolicyError(
        f"{what} is refused: {reason}",
        hint="the data-protection officers of both sides should look at its ledger together",
    )

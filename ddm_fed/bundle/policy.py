"""What a submission has to say to be taken: made for us, valid now, and paid for.

It judges words, after the signatures held: rules 7, 8 and 13 of `ddm_fed.bundle.verify`.
"""

from datetime import datetime, timedelta

from ddm_fed.errors import ExpiredError, PlanMismatchError, PolicyError
from ddm_fed.mixture import ROUTER_PURPOSES, release_tensors
from ddm_fed.privacy import check_chain, epsilon_text, private_events
from ddm_fed.records import (
    Event,
    GaussianEvent,
    HeadsRouterSpec,
    LedgerEntry,
    NonPrivateEvent,
    Plan,
    SampledGaussianEvent,
    SgdSpec,
    Submission,
    network_of,
)
from ddm_fed.trust import Trust

CLOCK_SKEW = timedelta(minutes=10)
EXPERT_PURPOSE, HEAD_PURPOSE, CENTRAL_PURPOSE = "expert", "head", "central"


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
    if submission.held_expert is not None and plan.expert.remote is None:
        raise PlanMismatchError(
            f"{what} brings no expert: its weights stay at the site, which the plan does not allow",
            hint="agree on a plan with [expert.remote], or the site changes `keep_weights` in its "
            "site.toml",
        )
    if training is not None and training.steps != plan.training.steps:
        raise PlanMismatchError(
            f"{what} was trained for {training.steps} steps, the plan asks for "
            f"{plan.training.steps}",
            hint="the site has to train as the plan says",
        )
    if training is not None and training.ema_half_life not in plan.training.ema_half_lives:
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
    # days are whole: what is signed in the evening still holds for as long as the plan says
    longest = timedelta(days=trust.plan.submission.valid_days + 1)
    if submission.expires_at - submission.issued_at > longest:
        raise ExpiredError(
            f"{what} claims to be valid until {submission.expires_at:%Y-%m-%d}, longer than the "
            f"{trust.plan.submission.valid_days} days the plan allows",
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
    # distributions are composed in floating point, which machines round differently
    if abs(float(recomputed) - float(privacy.releases_epsilon)) > 2e-4 * max(1, float(recomputed)):
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
    if privacy.audit is not None and privacy.audit.verdict == "violates_claim":
        raise _policy(what, "its own audit rejects the claim that its training was private")
    if privacy.unit != policy.unit:
        raise _policy(what, f"it protects one {privacy.unit}, the plan asks for {policy.unit}")
    if policy.unit == "patient" and any(entry.unit == "image" for entry in privacy.ledger):
        raise _policy(what, "its ledger has releases that protect single images, not patients")
    plan = trust.plan
    _check_training(submission, plan, what)
    if policy.sgd is not None:
        spent: list[Event] = [*released.values(), *_trained(submission).values()]
        total = epsilon_text(spent, float(policy.delta))
        if float(total) > float(policy.sgd.epsilon) + 2e-4:
            raise _policy(
                what, f"release and training cost {total}, the plan allows {policy.sgd.epsilon}"
            )


def _check_training(submission: Submission, plan: Plan, what: str) -> None:
    """Refuses a submission whose ledger does not say how expert and head were trained."""
    privacy, sgd = submission.privacy, plan.privacy.sgd
    demands = "expert" in plan.privacy.must_be_private or sgd is not None
    # a mixture is what the release says, and as private
    released = network_of(submission.expert.architecture) is None
    experts, heads = (
        [entry.event for entry in _of_this_plan(submission) if entry.purpose == purpose]
        for purpose in (EXPERT_PURPOSE, HEAD_PURPOSE)
    )
    private = released or (
        bool(experts) and not any(isinstance(event, NonPrivateEvent) for event in experts)
    )
    if not (experts or released) or private != privacy.expert_is_private:
        raise _policy(what, "its ledger does not say how its expert was trained")
    if demands and not private:
        raise _policy(what, "its expert was trained without privacy, which the plan demands")
    if submission.head is not None and not heads:
        raise _policy(what, "its ledger does not say how its head was trained")
    head_is_private = None
    if submission.head is not None:
        head_is_private = not any(isinstance(event, NonPrivateEvent) for event in heads)
    if privacy.head_is_private != head_is_private:
        raise _policy(what, "its ledger does not say how its head was trained")
    if demands and head_is_private is False:
        raise _policy(what, "its head was trained without privacy, and saw what its expert saw")
    trained_privately = private and not released
    if sgd is None or not private:
        if privacy.sgd is not None or trained_privately:
            raise _policy(what, "it states private training, which the plan does not ask for")
        return
    expected = []
    if trained_privately:
        expected.append((EXPERT_PURPOSE, plan.training.batch_size, plan.training.steps))
    if submission.head is not None and isinstance(plan.router, HeadsRouterSpec):
        expected.append((HEAD_PURPOSE, plan.router.head.batch_size, plan.router.head.steps))
    if sgd.central is not None and trained_privately:
        expected.append((CENTRAL_PURPOSE, sgd.central.batch_size, sgd.central.images))
    trained = _trained(submission)
    for purpose, batch_size, steps in expected:
        event, rate = trained.get(purpose), sgd.sampling_rate(batch_size)
        if event is None or (event.sampling_rate, event.steps) != (rate, steps):
            raise _policy(
                what,
                f"its ledger does not say that its {purpose} was trained for {steps} steps at the "
                f"plan's sampling rate of {rate}",
            )
    facts = privacy.sgd
    if not trained_privately:
        if facts is not None:
            raise _policy(what, "it states private training of an expert that has no network")
        return
    _check_central(submission, sgd, what)
    agreed = (sgd.clip_norm, sgd.clip_norm_end or sgd.clip_norm, sgd.draws, sgd.trainable)
    if facts is None or agreed != (
        facts.clip_norm,
        facts.clip_norm_end,
        facts.draws,
        facts.trainable,
    ):
        raise _policy(
            what, "its expert was not clipped or trained as the plan's `privacy.sgd` says"
        )


def _check_central(submission: Submission, sgd: SgdSpec, what: str) -> None:
    """Refuses an expert whose central images are not the plan's, or were paid for once too few."""
    facts = submission.privacy.sgd
    found, wanted = None if facts is None else facts.central, sgd.central
    if (found is None) != (wanted is None) or (
        found is not None
        and wanted is not None
        and (found.images, found.centre, found.radius, found.steps)
        != (wanted.images, wanted.centre, wanted.radius, wanted.steps)
    ):
        raise _policy(what, "its central images are not as the plan's `privacy.sgd.central` says")
    purposes = [entry.purpose for entry in _of_this_plan(submission)]
    for before, purpose in zip(["", *purposes], purposes, strict=False):
        # each training has its own secret, and so its own central images
        if wanted is not None and purpose == EXPERT_PURPOSE and before != CENTRAL_PURPOSE:
            raise _policy(what, "its ledger does not say what its central images cost")


def _trained(submission: Submission) -> dict[str, SampledGaussianEvent]:
    """Returns the events of the newest private training of expert and head for this plan."""
    newest = {entry.purpose: entry.event for entry in _of_this_plan(submission)}
    return {
        purpose: event
        for purpose in (EXPERT_PURPOSE, HEAD_PURPOSE, CENTRAL_PURPOSE)
        if isinstance(event := newest.get(purpose), SampledGaussianEvent)
    }


def trained_event(submission: Submission) -> SampledGaussianEvent:
    """Returns the event of the expert of a submission that passed `check_privacy` as private."""
    return _trained(submission)[EXPERT_PURPOSE]


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

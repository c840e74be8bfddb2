"""The expert in the making: trained with or without noise, recorded, and found again."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ddm_fed.bundle.policy import CENTRAL_PURPOSE, EXPERT_PURPOSE
from ddm_fed.bundle.verify import EXPERT_FILE, ROUTER_FILE
from ddm_fed.errors import CheckpointError, PolicyError
from ddm_fed.flows import Expert
from ddm_fed.mixture import (
    Location,
    MixtureVelocity,
    SiteRelease,
    fit_image_mixtures,
    location_of,
    router_events,
)
from ddm_fed.models import build_expert, expert_tensors
from ddm_fed.privacy import ImageSet, Origin, Private, Randomness
from ddm_fed.progress import QUIET, Watch
from ddm_fed.records import (
    ExpertDesign,
    LedgerEntry,
    NonPrivateEvent,
    Plan,
    SampledGaussianEvent,
    TrainingFacts,
    adds_to_mixture,
    network_of,
    sha256_hex,
)
from ddm_fed.storage.files import open_regular, write_atomically
from ddm_fed.storage.tensors import Bounds, check_tensor_file, read_own_tensors, write_tensors
from ddm_fed.training import (
    CentralImages,
    FinishedRun,
    KnownVelocity,
    Paid,
    Payment,
    PrivateTraining,
    RunOptions,
    TrainedExpert,
    help_private_expert,
    read_trained,
    train_expert,
    train_private_expert,
)
from ddm_fed.training.plan_cost import planned_events
from ddm_fed.trust import Trust
from sites.privacy.ledger import SiteLedger

CHECKPOINT_FILE = "checkpoint.safetensors"
RELEASE_FILE = "release.json"
TRAINED_FILE = "trained.json"  # private: it identifies the data set


@dataclass(frozen=True)
class TrainingOptions:
    """What a site chooses about its own run. None of it changes what the plan fixes.

    Attributes:
        run: How it is computed.
        design: Which expert, out of those the plan allows; None is the plan's first.
        restart: Whether an earlier checkpoint and expert are forgotten.
        extend: Whether the run goes on from one that is finished, under an earlier plan.
        extends: That run, once it is found.
        embedder_weights: File of the embedder of the plan's centroids.
        randomness: For tests: where noise comes from. What is made with it is refused everywhere.
    """

    run: RunOptions = field(default_factory=RunOptions)
    design: ExpertDesign | None = None
    restart: bool = False
    extend: bool = False
    extends: FinishedRun | None = None
    randomness: Randomness | None = None
    embedder_weights: Path | None = None


def train_plainly(
    work: Path, trust: Trust, data: Private[ImageSet], options: TrainingOptions, watch: Watch
) -> TrainedExpert:
    """Returns the expert in `work`, trained without noise; every process of a team calls it."""
    return train_expert(
        data,
        trust.plan,
        trust.plan_sha256,
        work / CHECKPOINT_FILE,
        design=options.design,
        options=options.run,
        known=known_velocity(work, trust.plan, options.design or trust.plan.expert.default),
        extends=options.extends,
        watch=watch,
    )


def help_training(
    work: Path, trust: Trust, data: Private[ImageSet], options: TrainingOptions
) -> None:
    """Takes part in a training as any process but the first."""
    if trust.plan.privacy.sgd is None:
        train_plainly(work, trust, data, options, QUIET)
        return
    help_private_expert(
        data,
        trust.plan,
        trust.plan_sha256,
        work / CHECKPOINT_FILE,
        design=options.design,
        options=options.run,
        known=known_velocity(work, trust.plan, options.design or trust.plan.expert.default),
    )


def own_mixture(work: Path, plan: Plan, design: ExpertDesign) -> MixtureVelocity:
    """Returns what the release in `work` says of the velocity of the site's images.

    It is what an expert of `design` adds to, or is.
    """
    (own,) = fit_image_mixtures(plan, [released_by(work, plan)])
    return MixtureVelocity(plan, own, alone=network_of(design.architecture) is None)


def known_velocity(work: Path, plan: Plan, design: ExpertDesign) -> KnownVelocity | None:
    """Returns what an expert of `design` adds to; None where it is a network alone."""
    if not adds_to_mixture(design.architecture):
        return None
    return KnownVelocity(own_mixture(work, plan, design), work / ROUTER_FILE)


def expert_of(work: Path, plan: Plan, design: ExpertDesign) -> Expert:
    """Returns the expert in `work`, ready to be asked."""
    weights = None
    if network_of(design.architecture) is not None:
        read = read_own_tensors(work / EXPERT_FILE)
        weights = {name: torch.from_numpy(value) for name, value in read.items()}
    mixture = own_mixture(work, plan, design) if adds_to_mixture(design.architecture) else None
    return build_expert(plan.data, design, weights, mixture)


def make_expert(
    work: Path,
    trust: Trust,
    data: Private[ImageSet],
    data_sha256: str,
    options: TrainingOptions,
    ledger: SiteLedger,
    watch: Watch,
) -> None:
    """Leaves the expert of the plan in `work`, trained unless it is there already.

    Raises:
        BudgetError, MechanismError: it may not be, or cannot be, made private.
        CheckpointError: an earlier run does not fit this one.
    """
    design = options.design or trust.plan.expert.default
    has_network = network_of(design.architecture) is not None
    if (work / TRAINED_FILE).exists():
        _require_same_run(work, data_sha256, design)
        if not has_network:
            watch.say("the expert is the mixture that was released already")
            return
        _choose_average(work, trust, data_sha256, design, options, watch.say)
        return
    if not has_network:
        record_mixture(work, design, data_sha256)
        watch.say("the expert is the mixture that was released: nothing is trained")
        return
    private = trust.plan.privacy.sgd is not None
    if private:
        expert = _train_privately(work, trust, data, options, ledger, watch)
    else:
        expert = train_plainly(work, trust, data, options, watch)
    write_tensors(work / EXPERT_FILE, expert.state)
    _require_admissible(work / EXPERT_FILE, trust.plan, design)
    if not private:
        unit = trust.plan.privacy.unit
        ledger.append(trust.plan_sha256, EXPERT_PURPOSE, "no-noise", NonPrivateEvent(), unit)
    record_training(work, expert, design, data_sha256)


def _require_admissible(path: Path, plan: Plan, design: ExpertDesign) -> None:
    """Refuses an expert that every verifier would refuse, before more is spent on it.

    Raises:
        ValuesError: it holds values that the plan does not allow.
    """
    limits = plan.submission
    bounds = Bounds(float(limits.max_absolute), float(limits.max_norm))
    with open_regular(path) as file:
        check_tensor_file(
            file, expert_tensors(plan.data, design), what="the trained expert", bounds=bounds
        )


def _train_privately(
    work: Path,
    trust: Trust,
    data: Private[ImageSet],
    options: TrainingOptions,
    ledger: SiteLedger,
    watch: Watch,
) -> TrainedExpert:
    plan = trust.plan
    planned = planned_events(plan)
    event, means = planned.expert, planned.central
    if event is None:
        raise TypeError("the plan trains without noise")
    location = released_location(work, plan)
    counts = [location.count]
    if plan.data.classes:  # a class that drowned has no central image: 0 stands for that
        counts = location.weights.where(location.known, 0.0).tolist()
    central = CentralImages.planned(plan, means, counts)
    noise = PrivateTraining.planned(plan, event, location.count, central)

    def pay() -> str:
        ledger.require_budget(planned.training, plan)
        if central is not None and means is not None:
            ledger.append(
                trust.plan_sha256,
                CENTRAL_PURPOSE,
                "mean-images",
                means,
                plan.privacy.unit,
            )
        entry = ledger.append(trust.plan_sha256, EXPERT_PURPOSE, "dp-sgd", event, plan.privacy.unit)
        return sha256_hex(entry.to_json())

    return train_private_expert(
        data,
        plan,
        trust.plan_sha256,
        work / CHECKPOINT_FILE,
        noise,
        Payment(pay, lambda sha256: _paid(ledger.require_entry(sha256))),
        design=options.design,
        options=options.run,
        known=known_velocity(work, plan, options.design or plan.expert.default),
        randomness=options.randomness,
        watch=watch,
    )


def _paid(entries: Sequence[LedgerEntry]) -> Paid:
    """Returns what the last of these ledger entries, and the means before it, say was paid for."""
    *before, last = entries
    means = before[-1] if before and before[-1].purpose == CENTRAL_PURPOSE else None
    event = None if means is None else means.event
    return Paid(paid_event(last), event if isinstance(event, SampledGaussianEvent) else None)


def paid_event(entry: LedgerEntry) -> SampledGaussianEvent:
    """Returns what `entry` says of a training with noise.

    Raises:
        PolicyError: it is of something else.
    """
    if not isinstance(entry.event, SampledGaussianEvent):
        raise PolicyError(
            "the ledger's entry for the training that is under way is of something else",
            hint="it was exchanged: restore the site's ledger.jsonl from backup",
        )
    return entry.event


def is_released(work: Path, data_sha256: str) -> bool:
    """Returns whether the router's statistics of these images are released in `work`."""
    marker = work / RELEASE_FILE
    return marker.exists() and json.loads(marker.read_bytes())["data_sha256"] == data_sha256


def released_location(work: Path, plan: Plan) -> Location:
    """Returns what the release in `work` says of how many units the site has, and of what class."""
    return location_of(plan, released_by(work, plan))


def released_by(work: Path, plan: Plan) -> SiteRelease:
    """Returns the release in `work`."""
    events = router_events(plan).items()
    noise = {name: float(event.noise_multiplier) for name, event in events}
    return SiteRelease(read_own_tensors(work / ROUTER_FILE), noise)


def record_training(
    work: Path, expert: TrainedExpert, design: ExpertDesign, data_sha256: str
) -> None:
    """Says that the expert in `work` is complete, what it is, and which images it saw."""
    record = {
        "data_sha256": data_sha256,
        "design": design.model_dump(mode="json"),
        "facts": expert.facts.model_dump(mode="json"),
        "noise": expert.noise,
        "origin": expert.origin,
        "proved": expert.proved,
    }
    write_atomically(work / TRAINED_FILE, json.dumps(record).encode())


def record_mixture(work: Path, design: ExpertDesign, data_sha256: str) -> None:
    """Says that the expert in `work` is its release, and of which images that is."""
    record = {
        "data_sha256": data_sha256,
        "design": design.model_dump(mode="json"),
        "facts": None,
        "noise": "",
        "origin": "csprng",
    }
    write_atomically(work / TRAINED_FILE, json.dumps(record).encode())


@dataclass(frozen=True)
class Recorded:
    """What is known of the expert in a private folder; a mixture has no facts of a training."""

    facts: TrainingFacts | None
    design: ExpertDesign
    data_sha256: str
    noise: str
    origin: Origin


def recorded(work: Path) -> Recorded:
    """Returns what is known of the expert in `work`."""
    record = json.loads((work / TRAINED_FILE).read_bytes())
    return Recorded(
        None if record["facts"] is None else TrainingFacts.model_validate(record["facts"]),
        ExpertDesign.model_validate(record["design"]),
        record["data_sha256"],
        record["noise"],
        record["origin"],
    )


def _require_same_run(work: Path, data_sha256: str, design: ExpertDesign) -> None:
    """Refuses to pair an expert with the statistics of other images than it was trained on."""
    known = recorded(work)
    trained = known.design
    if known.data_sha256 != data_sha256:
        raise CheckpointError(
            "the expert was trained on other images than these; nothing more was spent",
            hint="give the images it was trained on, or train on these with --restart",
        )
    if trained != design:
        raise CheckpointError(
            f"the expert is trained already, as {trained}; asked for is {design}",
            hint="choose what it was trained as, or train it anew with --restart",
        )


def _choose_average(
    work: Path,
    trust: Trust,
    data_sha256: str,
    design: ExpertDesign,
    options: TrainingOptions,
    say: Callable[[str], None],
) -> None:
    """Puts another of the plan's averages in place of the expert, where one is asked for."""
    facts = recorded(work).facts
    if facts is None:
        raise TypeError("a mixture has no averages")
    present = facts.ema_half_life
    wanted = options.run.ema_half_life or present
    if wanted == present:
        say("the expert is trained already")
        return
    expert = read_trained(work / CHECKPOINT_FILE, trust.plan, ema_half_life=wanted)
    write_tensors(work / EXPERT_FILE, expert.state)
    record_training(work, expert, design, data_sha256)
    say(f"the expert is trained already; now it is its average of half-life {wanted} steps")

"""The site's whole job under a plan: train, release, write and sign the bundle.

Each stage leaves its result in `private/PLAN/`, so that the same command continues after a kill
and nothing private is released twice.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from torch import Tensor

from ddm_fed.bundle import (
    ENVELOPE_FILE,
    EXPERT_FILE,
    HEAD_FILE,
    ROUTER_FILE,
    TENSOR_FILES,
    file_digests,
    sign_bundle,
    verify_bundle,
)
from ddm_fed.errors import CheckpointError, RevokedKeyError, StateError, UnknownSignerError
from ddm_fed.files import new_folder, read_bounded, write_atomically
from ddm_fed.log import Log
from ddm_fed.privacy import (
    ImageSet,
    Private,
    accountant_name,
    epsilon_text,
    gaussian_events,
    private_events,
)
from ddm_fed.records import (
    MAX_DOCUMENT_BYTES,
    ExpertDesign,
    GaussianEvent,
    HeadFacts,
    LedgerEntry,
    NonPrivateEvent,
    Plan,
    PrivacyStatement,
    Submission,
    TrainingFacts,
    now,
)
from ddm_fed.router import release_statistics, router_shares
from ddm_fed.signing import Trust, require_in_force
from ddm_fed.submission import read_submission
from ddm_fed.training import (
    RunOptions,
    StepReport,
    TrainedExpert,
    read_trained,
    require_base,
    require_possible,
    train_expert,
)
from ddm_fed.weights import write_tensors
from sites.folder import SiteFolder
from sites.ledger import SiteLedger
from sites.outbox import find_bundles, member_of, sequence_for_next

CHECKPOINT_FILE = "checkpoint.safetensors"
TRAINED_FILE = "trained.json"  # private: it identifies the data set
RELEASE_FILE = "release.json"
HEAD_RECORD_FILE = "head.json"  # private, as the one above


@dataclass(frozen=True)
class TrainingOptions:
    """What a site chooses about its own run. None of it changes what the plan fixes.

    Attributes:
        run: How it is computed.
        design: Which expert, out of those the plan allows; None is the plan's first.
        restart: Whether an earlier checkpoint and expert are forgotten.
    """

    run: RunOptions = field(default_factory=RunOptions)
    design: ExpertDesign | None = None
    restart: bool = False


@dataclass(frozen=True)
class Screen:
    """Who is told how it goes: nobody, unless a command has a screen. All of it stays here."""

    on_step: Callable[[StepReport], None] = lambda _: None
    on_sample: Callable[[int, Tensor], None] = lambda *_: None
    say: Callable[[str], None] = lambda _: None


def require_member(site: SiteFolder, trust: Trust) -> None:
    """Refuses to work under a plan in whose roster this site, with its present key, is not.

    Raises:
        StateError: the site is not enrolled, or with another key.
        ExpiredError: plan or roster are not in force.
    """
    require_in_force(trust, now())
    site.key(member_of(site, trust))


def require_possible_privacy(plan: Plan) -> None:
    """Refuses a plan that demands noise this version cannot add.

    Raises:
        StateError: saying what it demands.
    """
    if "expert" in plan.privacy.must_be_private:
        raise StateError(
            "the plan demands that experts are trained with DP-SGD, which this version cannot do",
            hint='ask for a plan with must_be_private = ["router"], or use a newer version',
        )


def open_ledger(site: SiteFolder) -> SiteLedger:
    """Returns the site's ledger."""
    return SiteLedger(site.path / "ledger.jsonl", float(site.settings.max_epsilon))


def run_plan(
    site: SiteFolder,
    trust: Trust,
    log: Log,
    data: Private[ImageSet],
    options: TrainingOptions,
    screen: Screen | None = None,
) -> Path:
    """Returns the signed draft bundle of `site` under the plan of `trust`.

    Raises:
        StateError: the plan asks for what this version cannot do, or the site is no member.
        BudgetError: the release would exceed a limit; found out before any training.
        CheckpointError: an earlier run does not fit this one.
    """
    require_member(site, trust)
    plan = trust.plan
    require_possible_privacy(plan)
    screen = screen or Screen()
    work, ledger = site.work(trust.plan_sha256), open_ledger(site)
    data_sha256 = data.reveal().digest()
    design = options.design or plan.expert.default
    if options.restart or not (work / TRAINED_FILE).exists():
        require_possible(data.reveal(), plan, design, options.run)
    if options.restart or not (work / CHECKPOINT_FILE).exists():
        require_base(plan, options.run)
    if not _released(work, data_sha256):
        events = gaussian_events(
            float(plan.router.epsilon), float(plan.privacy.delta), router_shares(plan)
        )
        ledger.require_budget(events, plan)
    if options.restart:  # only now: a refusal above must not cost an expert
        for name in (CHECKPOINT_FILE, EXPERT_FILE, TRAINED_FILE):
            (work / name).unlink(missing_ok=True)
    _train(work, trust, data, data_sha256, options, ledger, screen)
    _release(work, trust, data, data_sha256, ledger, screen.say)
    return write_draft(site, trust, log)


def help_train(
    site: SiteFolder, trust: Trust, data: Private[ImageSet], options: TrainingOptions
) -> None:
    """Takes part in the training of `run_plan`, as any process but the first; writes nothing."""
    work = site.work(trust.plan_sha256)
    if options.restart or not (work / TRAINED_FILE).exists():
        _train_expert(work, trust, data, options, Screen())


def _train_expert(
    work: Path, trust: Trust, data: Private[ImageSet], options: TrainingOptions, screen: Screen
) -> TrainedExpert:
    return train_expert(
        data,
        trust.plan,
        trust.plan_sha256,
        work / CHECKPOINT_FILE,
        design=options.design,
        options=options.run,
        on_step=screen.on_step,
        on_sample=screen.on_sample,
        say=screen.say,
    )


def _train(
    work: Path,
    trust: Trust,
    data: Private[ImageSet],
    data_sha256: str,
    options: TrainingOptions,
    ledger: SiteLedger,
    screen: Screen,
) -> None:
    design = options.design or trust.plan.expert.default
    if (work / TRAINED_FILE).exists():
        _require_same_run(work, data_sha256, design)
        _choose_average(work, trust, data_sha256, design, options, screen.say)
        return
    expert = _train_expert(work, trust, data, options, screen)
    ledger.append(
        trust.plan_sha256,
        "expert",
        "training without noise: no formal guarantee for the images it saw",
        NonPrivateEvent(),
    )
    write_tensors(work / EXPERT_FILE, expert.state)
    record_training(work, expert.facts, design, data_sha256)


def record_training(
    work: Path, facts: TrainingFacts, design: ExpertDesign, data_sha256: str
) -> None:
    """Says that the expert in `work` is complete, what it is, and which images it saw."""
    record = {
        "data_sha256": data_sha256,
        "design": design.model_dump(mode="json"),
        "facts": facts.model_dump(mode="json"),
    }
    write_atomically(work / TRAINED_FILE, json.dumps(record).encode())


def _recorded(work: Path) -> tuple[TrainingFacts, ExpertDesign, str]:
    record = json.loads((work / TRAINED_FILE).read_bytes())
    facts = TrainingFacts.model_validate(record["facts"])
    return facts, ExpertDesign.model_validate(record["design"]), record["data_sha256"]


def _require_same_run(work: Path, data_sha256: str, design: ExpertDesign) -> None:
    """Refuses to pair an expert with the statistics of other images than it was trained on."""
    _, trained, trained_on = _recorded(work)
    if trained_on != data_sha256:
        raise CheckpointError(
            "the expert was trained on other images than these",
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
    present = _recorded(work)[0].ema_half_life
    wanted = options.run.ema_half_life or present
    if wanted == present:
        say("the expert is trained already")
        return
    expert = read_trained(work / CHECKPOINT_FILE, trust.plan, ema_half_life=wanted)
    write_tensors(work / EXPERT_FILE, expert.state)
    record_training(work, expert.facts, design, data_sha256)
    say(f"the expert is trained already; now it is its average of half-life {wanted} steps")


def _release(
    work: Path,
    trust: Trust,
    data: Private[ImageSet],
    data_sha256: str,
    ledger: SiteLedger,
    say: Callable[[str], None],
) -> None:
    if _released(work, data_sha256):
        say("the router statistics are released already; nothing more is spent")
        return

    def spend(purpose: str, mechanism: str, event: GaussianEvent) -> LedgerEntry:
        ledger.require_budget([event], trust.plan)
        return ledger.append(trust.plan_sha256, purpose, mechanism, event)

    released = release_statistics(data, trust.plan, spend)
    write_tensors(work / ROUTER_FILE, {name: item.value for name, item in released.items()})
    write_atomically(work / RELEASE_FILE, json.dumps({"data_sha256": data_sha256}).encode())


def _released(work: Path, data_sha256: str) -> bool:
    marker = work / RELEASE_FILE
    return marker.exists() and json.loads(marker.read_bytes())["data_sha256"] == data_sha256


def record_head(work: Path, facts: HeadFacts, data_sha256: str) -> None:
    """Says that the head in `work` is complete, what it is, and which images it saw."""
    record = {"data_sha256": data_sha256, "facts": facts.model_dump(mode="json")}
    write_atomically(work / HEAD_RECORD_FILE, json.dumps(record).encode())


def recorded_head(work: Path) -> HeadFacts | None:
    """Returns what the head in `work` is; None without one, or if it saw other images.

    Other than the expert's, that is.
    """
    file = work / HEAD_RECORD_FILE
    if not file.exists() or not (work / TRAINED_FILE).exists():
        return None
    record = json.loads(file.read_bytes())
    if record["data_sha256"] != _recorded(work)[2]:
        return None
    return HeadFacts.model_validate(record["facts"])


def require_trained_on(work: Path, data_sha256: str) -> None:
    """Refuses other images than the expert and the release in `work` are of.

    Raises:
        StateError: there is none yet.
        CheckpointError: they are of other images.
    """
    if not (work / TRAINED_FILE).exists() or not (work / RELEASE_FILE).exists():
        raise StateError(
            "this site has not trained under this plan yet",
            hint="run `ddm-site train` first: the reference is made of what it releases",
        )
    if _recorded(work)[2] != data_sha256 or not _released(work, data_sha256):
        raise CheckpointError(
            "the expert was trained on other images than these",
            hint="give the images it was trained on",
        )


def write_draft(site: SiteFolder, trust: Trust, log: Log) -> Path:
    """Signs what the site has made under the plan: expert, release, and the head if it has one.

    Returns an equal bundle that is there already, if there is one.
    """
    work = site.work(trust.plan_sha256)
    facts, design, _ = _recorded(work)
    head = recorded_head(work)
    names = TENSOR_FILES if head is None else (*TENSOR_FILES, HEAD_FILE)
    digests, sizes = file_digests(work, names)
    for bundle in (*find_bundles(site.drafts), *find_bundles(site.released)):
        if _same(bundle, trust, digests, facts, head):
            return bundle
    plan, issued_at = trust.plan, now()
    superseded = log.newest(site.settings.name)
    entries = open_ledger(site).entries()
    submission = Submission(
        federation=plan.federation,
        plan_sha256=trust.plan_sha256,
        roster=trust.chain.reference,
        site=site.settings.name,
        sequence=sequence_for_next(site, log),
        supersedes=superseded.submission_sha256 if superseded else None,
        seen_checkpoint=log.head,
        issued_at=issued_at,
        expires_at=issued_at + timedelta(days=plan.submission.valid_days),
        files=sizes,
        expert=design,
        training=facts,
        privacy=PrivacyStatement(
            delta=plan.privacy.delta,
            releases_epsilon=epsilon_text(private_events(entries), float(plan.privacy.delta)),
            expert_is_private=False,
            accountant=accountant_name(),
            randomness="csprng",
            ledger=entries,
        ),
        head=head,
    )
    building = site.drafts / ".building"
    if building.exists():
        shutil.rmtree(building)
    with new_folder(building) as folder:
        for name in names:
            shutil.copyfile(work / name, folder / name)
        sign_bundle(folder, submission, digests, [site.key(member_of(site, trust))])
    verified = verify_bundle(building, trust, now(), require=("site",))
    target = site.drafts / verified.payload_sha256
    building.rename(target)
    return target


def _same(
    bundle: Path,
    trust: Trust,
    digests: dict[str, str],
    facts: TrainingFacts,
    head: HeadFacts | None,
) -> bool:
    """Returns whether `bundle` says the same of the same files and plan, and is still valid."""
    envelope = read_bounded(bundle / ENVELOPE_FILE, MAX_DOCUMENT_BYTES)
    try:
        statement, _ = read_submission(
            envelope, trust.chain, what=f"the bundle {bundle.name[:16]}", require=("site",)
        )
    except (UnknownSignerError, RevokedKeyError):  # signed with a key this site had before
        return False
    submission = statement.predicate
    return (
        {subject.name: subject.digest.sha256 for subject in statement.subject} == digests
        and submission.plan_sha256 == trust.plan_sha256
        and submission.training == facts
        and submission.head == head
        and now() < submission.expires_at
    )

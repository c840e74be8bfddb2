"""The site's whole job under a plan: train, release, write and sign the bundle.

Each stage leaves its result in `private/PLAN/`, so that the same command continues after a kill
and nothing private is released twice.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

from ddm_fed.bundle.submission import read_submission
from ddm_fed.bundle.verify import (
    ENVELOPE_FILE,
    EXPERT_FILE,
    ROUTER_FILE,
    bundle_files,
    file_digests,
    sign_bundle,
    verify_bundle,
)
from ddm_fed.errors import CheckpointError, OptionError, RefusedError, StateError
from ddm_fed.mixture import EmbeddedImages, messages, planned_directions, release_statistics
from ddm_fed.privacy import (
    ImageSet,
    Origin,
    Private,
    Release,
    accountant_name,
    epsilon_text,
    private_events,
)
from ddm_fed.progress import QUIET, Watch
from ddm_fed.records import (
    MAX_DOCUMENT_BYTES,
    AuditFacts,
    Event,
    GaussianEvent,
    HeadFacts,
    LedgerEntry,
    Mechanism,
    PrivacyStatement,
    Submission,
    TrainingFacts,
    adds_to_mixture,
    network_of,
    now,
    today,
)
from ddm_fed.storage.digests import sha256_of
from ddm_fed.storage.files import new_folder, read_bounded, write_atomically
from ddm_fed.storage.tensors import write_tensors
from ddm_fed.training import PrivateTraining, require_base, require_possible
from ddm_fed.training.plan_cost import planned_events
from ddm_fed.trust import Trust, require_in_force
from ddm_fed.trust.log import Log
from sites.outbox.spending import before_spending
from sites.outbox.stages import (
    find_bundles,
    member_of,
    require_number_left,
    sequence_for_next,
)
from sites.privacy.ledger import SiteLedger, open_ledger
from sites.privacy.policy import require_policy
from sites.train.audit import shared_audit
from sites.train.expert import (
    CHECKPOINT_FILE,
    RELEASE_FILE,
    TRAINED_FILE,
    TrainingOptions,
    help_training,
    is_released,
    make_expert,
    recorded,
)
from sites.train.extend import found_extension, keep_plan
from sites.train.space import require_space
from sites.workspace import SiteFolder

RELEASE_TIMEOUT_S = 600
MANY_NUMBERS, SLOWLY = 100_000, "some 3 to 8 seconds"
HEAD_RECORD_FILE = "head.json"  # private, as the one above


def require_member(site: SiteFolder, trust: Trust) -> None:
    """Refuses to work under a plan in whose roster this site, with its present key, is not.

    Raises:
        StateError: the site is not enrolled, or with another key.
        ExpiredError: plan or roster are not in force.
    """
    require_in_force(trust, now())
    site.key(member_of(site, trust))


def run_plan(
    site: SiteFolder,
    trust: Trust,
    log: Log,
    data: Private[ImageSet],
    options: TrainingOptions,
    watch: Watch = QUIET,
) -> Path:
    """Returns the signed draft bundle of `site` under the plan of `trust`.

    Raises:
        StateError: the plan does not allow what was chosen, or the site is no member.
        BudgetError: it would exceed a limit, or the site's policy forbids it; found out before any
            training.
        MechanismError: private training does not keep its promise here; nothing was spent.
        CheckpointError: an earlier run does not fit this one.
    """
    require_member(site, trust)
    require_number_left(site, log)
    plan = trust.plan
    design = options.design or plan.expert.default
    require_policy(site.settings, plan, design)
    require_space(data, plan)
    work, ledger = site.work(trust.plan_sha256), open_ledger(site, log)
    data_sha256 = data.reveal().digest()
    if options.restart or not (work / TRAINED_FILE).exists():
        require_possible(data.reveal(), plan, design, options.run)
    if options.extend:
        options = found_extension(site, trust, data_sha256, design, options)
    has_network = network_of(design.architecture) is not None
    starts = options.restart or not (work / CHECKPOINT_FILE).exists()
    if has_network and starts and options.extends is None:
        require_base(plan, options.run)
    if not (has_network and planned_events(plan).expert) and options.run.gradients != "auto":
        raise OptionError(
            "--gradients belongs to training with noise, and this expert is trained without",
            hint="leave it out, or ask for a plan with [privacy.sgd]",
        )
    planned, due, directions = planned_events(plan), list[Event](), None
    if plan.centroids is None or not is_released(work, data_sha256):
        # opened here, so that missing or other weights are found out before anything is spent
        directions = planned_directions(plan, options.embedder_weights)
    if not is_released(work, data_sha256):
        due += planned.router
    begun = (work / CHECKPOINT_FILE).exists() or (work / TRAINED_FILE).exists()
    trained_privately = has_network and planned.expert is not None
    if trained_privately and (options.restart or not begun):
        due += planned.training
    ledger.require_budget(due, plan)
    for line in before_spending(site, plan, trust.plan_sha256, ledger.entries(), due):
        watch.say(line)
    if options.restart:  # only now: a refusal above must not cost an expert
        for name in (CHECKPOINT_FILE, EXPERT_FILE, TRAINED_FILE):
            (work / name).unlink(missing_ok=True)
    # a private training divides its sums by a released number of units; a mixture is a release
    first = trained_privately or adds_to_mixture(design.architecture)
    if first:
        _release(work, trust, data, data_sha256, ledger, watch.say, directions, site.directions)
    if options.extends is not None:
        before, last = options.extends.plan.training.steps, plan.training.steps
        watch.say(f"the run goes on from step {before} of an earlier plan, to step {last}")
    keep_plan(work, plan)
    make_expert(work, trust, data, data_sha256, options, ledger, watch)
    if not first:
        _release(work, trust, data, data_sha256, ledger, watch.say, directions, site.directions)
    return write_draft(site, trust, log)


def help_train(
    site: SiteFolder, trust: Trust, data: Private[ImageSet], options: TrainingOptions
) -> None:
    """Takes part in the training of `run_plan`, as any process but the first; writes nothing.

    Raises:
        StateError: the first process released nothing for this one to add to.
    """
    work = site.work(trust.plan_sha256)
    design = options.design or trust.plan.expert.default
    if network_of(design.architecture) is None:
        return
    if adds_to_mixture(design.architecture):
        _wait_for_release(work, data.reveal().digest())
    if options.restart or not (work / TRAINED_FILE).exists():
        help_training(work, trust, data, options)


def _wait_for_release(work: Path, data_sha256: str) -> None:
    """Returns when the first process has released what all of them add to."""
    until = time.monotonic() + RELEASE_TIMEOUT_S
    while not is_released(work, data_sha256):
        if time.monotonic() > until:
            raise StateError(
                f"the first process released nothing within {RELEASE_TIMEOUT_S} s",
                hint="see what it says; or train with one process until the release is there",
            )
        time.sleep(0.2)


def _release(
    work: Path,
    trust: Trust,
    data: Private[ImageSet],
    data_sha256: str,
    ledger: SiteLedger,
    say: Callable[[str], None],
    directions: EmbeddedImages | None,
    kept: Path,
) -> None:
    if is_released(work, data_sha256):
        say("the router statistics are released already; nothing more is spent")
        return
    if directions is not None:
        directions.keep(data.reveal(), kept)

    def spend(purpose: str, mechanism: Mechanism, event: GaussianEvent) -> LedgerEntry:
        ledger.require_budget([event], trust.plan)
        return ledger.append(trust.plan_sha256, purpose, mechanism, event, trust.plan.privacy.unit)

    numbers = sum(message.size for message in messages(trust.plan))
    if numbers > MANY_NUMBERS:
        say(f"releasing {numbers:,} numbers, each with exact noise: {SLOWLY} for each 100,000")
    released = release_statistics(data, trust.plan, spend, directions)
    write_releases(work / ROUTER_FILE, released)
    write_atomically(work / RELEASE_FILE, json.dumps({"data_sha256": data_sha256}).encode())


def write_releases(path: Path, releases: Mapping[str, Release]) -> None:
    """Writes what may leave; nothing but a release is taken, whatever its values are.

    Raises:
        TypeError: one of them is something else.
    """
    for name, item in releases.items():
        if not isinstance(item, Release):
            raise TypeError(f"{name} is a {type(item).__name__}, not a release")
    write_tensors(path, {name: item.value for name, item in releases.items()})


def record_head(work: Path, facts: HeadFacts, data_sha256: str, origin: Origin) -> None:
    """Says that the head in `work` is complete, what it is, and which images it saw."""
    record = {
        "data_sha256": data_sha256,
        "facts": facts.model_dump(mode="json"),
        "origin": origin,
    }
    write_atomically(work / HEAD_RECORD_FILE, json.dumps(record).encode())


def recorded_head(work: Path) -> tuple[HeadFacts, Origin] | None:
    """Returns what the head in `work` is and where its noise is from; None if there is none.

    None also if it saw other images than the expert.
    """
    file = work / HEAD_RECORD_FILE
    if not file.exists() or not (work / TRAINED_FILE).exists():
        return None
    record = json.loads(file.read_bytes())
    if record["data_sha256"] != recorded(work).data_sha256:
        return None
    return HeadFacts.model_validate(record["facts"]), record["origin"]


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
    if recorded(work).data_sha256 != data_sha256 or not is_released(work, data_sha256):
        raise CheckpointError(
            "the expert was trained on other images than these",
            hint="give the images it was trained on",
        )


def write_draft(site: SiteFolder, trust: Trust, log: Log) -> Path:
    """Signs what the site has made under the plan: expert, release, and the head if it has one.

    Returns an equal bundle that is there already, if there is one.
    """
    work = site.work(trust.plan_sha256)
    known, made = recorded(work), recorded_head(work)
    facts, design = known.facts, known.design
    head, origin = made if made is not None else (None, known.origin)
    audit = shared_audit(work) if site.settings.share_audit and known.noise else None
    held = site.settings.keep_weights and network_of(design.architecture) is not None
    names = bundle_files(design, with_head=head is not None, held=held)
    digests, sizes = file_digests(work, names)
    held_expert = sha256_of(work / EXPERT_FILE) if held else None
    entries = open_ledger(site, log).entries()  # it goes on from what was signed before
    for bundle in (*find_bundles(site.drafts), *find_bundles(site.released)):
        if _same(bundle, trust, digests, facts, head, audit, entries, held_expert):
            return bundle
    plan, issued_at = trust.plan, today()
    superseded = log.newest(site.settings.name)
    submission = Submission(
        federation=plan.federation,
        plan_sha256=trust.plan_sha256,
        roster=trust.chain.reference,
        site=site.settings.name,
        sequence=sequence_for_next(site, log),
        supersedes=superseded.submission_sha256 if superseded else None,
        seen_checkpoint=log.head,
        issued_at=issued_at,
        expires_at=issued_at + timedelta(days=plan.submission.valid_days + 1),
        files=sizes,
        expert=design,
        training=facts,
        privacy=PrivacyStatement(
            delta=plan.privacy.delta,
            releases_epsilon=epsilon_text(private_events(entries), float(plan.privacy.delta)),
            unit=plan.privacy.unit,
            expert_is_private=bool(known.noise) or network_of(design.architecture) is None,
            head_is_private=None if head is None else plan.privacy.sgd is not None,
            audit=audit,
            sgd=PrivateTraining.from_json(known.noise).facts() if known.noise else None,
            accountant=accountant_name(),
            randomness="test" if "test" in (known.origin, origin) else "csprng",
            ledger=entries,
        ),
        head=head,
        held_expert=held_expert,
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
    facts: TrainingFacts | None,
    head: HeadFacts | None,
    audit: AuditFacts | None,
    entries: tuple[LedgerEntry, ...],
    held_expert: str | None,
) -> bool:
    """Returns whether `bundle` says the same of the same files and plan, and holds just now."""
    try:
        envelope = read_bounded(bundle / ENVELOPE_FILE, MAX_DOCUMENT_BYTES)
        statement, _ = read_submission(
            envelope, trust.chain, what=f"the bundle {bundle.name[:16]}", require=("site",)
        )
    except RefusedError:  # damaged, or signed with a key this site had before
        return False
    submission = statement.predicate
    return (
        {subject.name: subject.digest.sha256 for subject in statement.subject} == digests
        and submission.plan_sha256 == trust.plan_sha256
        and submission.training == facts
        and submission.head == head
        and submission.held_expert == held_expert
        and submission.privacy.audit == audit
        and submission.privacy.ledger == entries  # what was spent since has to be said
        and _holds(bundle, trust)
    )


def _holds(bundle: Path, trust: Trust) -> bool:
    """Returns whether `bundle` could leave: whole, not expired, and not from a clock's future."""
    try:
        verify_bundle(bundle, trust, now(), require=("site",))
    except RefusedError:
        return False
    return True

"""The site's own attacks on what it makes: they read private images, and their figures stay here.

private/PLAN/audit.json       everything that was found
private/PLAN/canaries.json    what canaries found: the only part that may leave, if the site's
policy says `share_audit = true`
"""

import json
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from ddm_fed.auditing import (
    CANARIES,
    CanaryAudit,
    Membership,
    NearestSamples,
    OptimizerWatch,
    RunCanaries,
    audit_facts,
    audit_run,
    audit_step,
    describe_audit,
    describe_membership,
    describe_nearest_samples,
    examine_expected_units,
    examine_noise,
    examine_price,
)
from ddm_fed.bundle.verify import EXPERT_FILE, ROUTER_FILE
from ddm_fed.errors import MechanismError, StateError
from ddm_fed.evaluation import Memorization
from ddm_fed.mixture import (
    exact_statistics,
    examine_messages,
    message_named,
    planned_directions,
    router_events,
)
from ddm_fed.privacy import Finding, ImageSet, Private, Randomness
from ddm_fed.progress import Advance, Watch
from ddm_fed.records import (
    AuditFacts,
    ExpertDesign,
    Plan,
    SampledGaussianEvent,
    network_of,
)
from ddm_fed.storage.digests import sha256_of
from ddm_fed.storage.files import write_atomically
from ddm_fed.storage.tensors import read_own_tensors
from ddm_fed.training import (
    CentralImages,
    Paid,
    PrivateTraining,
    Source,
    TrainedPart,
    trial_run,
)
from ddm_fed.training.plan_cost import planned_events
from ddm_fed.trust import Trust
from sites.train.audit_expert import SAMPLES, attack_expert
from sites.train.expert import (
    RELEASE_FILE,
    TRAINED_FILE,
    Recorded,
    expert_of,
    is_released,
    recorded,
    released_location,
)
from sites.train.space import require_space
from sites.workspace import SiteFolder

AUDIT_FILE, CANARIES_FILE = "audit.json", "canaries.json"
STEPS = "steps of a training, computed again"
KEPT_STEPS = "gradient, weights and averages as the ledger's event says"


@dataclass(frozen=True)
class AuditOptions:
    """What is tried, and how hard.

    Attributes:
        canaries: How many.
        most_steps: Of the training that the canaries go through; None for all.
        run_steps: Of the short training that canaries go through as images do.
        embedder_weights: File of the embedder of the plan's centroids.
        controls: Images like the site's own that no expert was trained on.
        seed: Of times, noise and samples.
    """

    canaries: int = CANARIES
    most_steps: int | None = None
    run_steps: int = 20
    embedder_weights: Path | None = None
    controls: Private[ImageSet] | None = None
    seed: int = 0


@dataclass
class AuditResult:
    """What was found. Everything but `canaries` and the mechanism's findings is private.

    Attributes:
        mechanism: Of the step, on made-up units.
        canaries: Through the step.
        run: Canaries through a short training, with its loop and optimizer.
        releases: Of what was released, against the images.
        membership: Whether the expert's loss tells its images from others.
        memorization: Whether samples are copies.
        nearest: What the samples' distances to images say of the expert's epsilon.
        notes: What was left out, and why.
        claimed_epsilon: What bounds the expert and all it was made of; None without noise.
    """

    mechanism: list[Finding] = field(default_factory=list)
    canaries: AuditFacts | None = None
    run: AuditFacts | None = None
    releases: list[Finding] = field(default_factory=list)
    membership: Membership | None = None
    memorization: Memorization | None = None
    nearest: NearestSamples | None = None
    notes: list[str] = field(default_factory=list)
    claimed_epsilon: Decimal | None = None

    @property
    def violates(self) -> bool:
        """Whether something does not keep its promise."""
        attacks = [attack for attack in (self.canaries, self.run) if attack is not None]
        refuted = any(attack.verdict == "violates_claim" for attack in attacks)
        refuted |= self.nearest is not None and self.nearest.rejects
        return refuted or not all(found.passed for found in (*self.mechanism, *self.releases))

    def sentences(self) -> list[str]:
        """Returns what attacks found, in words."""
        found = [] if self.canaries is None else [describe_audit(self.canaries)]
        if self.run is not None:
            found.append(f"Canaries went through a whole training too. {describe_audit(self.run)}")
        if self.membership is not None:
            found.append(describe_membership(self.membership, self.claimed_epsilon))
        if self.memorization is not None:
            near = self.memorization.near_copies
            found.append(
                f"Of {SAMPLES} samples, {self.memorization.closer.value:.1%} are nearer to an image"
                " that was trained on than to as many others (50 % is chance), and "
                f"{near.value:.1%} [{near.low:.1%}, {near.high:.1%}] are near copies (by chance at "
                f"most {self.memorization.near_by_chance:.1%}). "
                "These figures are local too."
            )
        if self.nearest is not None:
            found.append(describe_nearest_samples(self.nearest, self.claimed_epsilon))
        return found

    def facts(self) -> dict[str, Any]:
        """Returns everything as it is written."""
        return {
            "violates": self.violates,
            "mechanism": [vars(finding) for finding in self.mechanism],
            "canaries": None if self.canaries is None else self.canaries.model_dump(mode="json"),
            "run": None if self.run is None else self.run.model_dump(mode="json"),
            "releases": [vars(finding) for finding in self.releases],
            "membership": None if self.membership is None else _plain(self.membership),
            "memorization": None if self.memorization is None else _plain(self.memorization),
            "nearest": None if self.nearest is None else _plain(self.nearest),
            "notes": self.notes,
            "sentences": self.sentences(),
        }


def run_audit(
    site: SiteFolder,
    trust: Trust,
    data: Private[ImageSet],
    options: AuditOptions,
    advance: Advance = lambda _: None,
) -> AuditResult:
    """Returns what attacks on the site's training and releases find; keeps it in its folder.

    Spends nothing, and works before training as after it: before, it tries the step as it would
    be taken, and notes what is not there yet.

    Args:
        site: The site.
        trust: The verified plan.
        data: Its images.
        options: What is tried.
        advance: Told of every step of the canaries.

    Raises:
        DataError: the controls are among the images, or there are none.
        StateError: the site has trained on, or released statistics of, other images.
    """
    plan, work, result = trust.plan, site.work(trust.plan_sha256), AuditResult()
    for images in (data, options.controls):
        if images is not None:
            require_space(images, plan)
    known = recorded(work) if (work / TRAINED_FILE).exists() else None
    _require_own(work, known, data)
    price = examine_price(planned_events(plan).all, float(plan.privacy.delta))
    result.mechanism += [] if price is None else [price]
    _attack_step(plan, known, options, advance, result)
    _examine_releases(plan, work, data, known, result, options.embedder_weights)
    _attack_expert(plan, work, data, known, options, result)
    facts = result.facts() | {"of": _digests(work)}
    write_atomically(work / AUDIT_FILE, json.dumps(facts, indent=1).encode(), mode=0o600)
    if result.canaries is not None:
        write_atomically(work / CANARIES_FILE, result.canaries.to_json())
    return result


@dataclass(frozen=True)
class AuditRecord:
    """What the last audit under a plan found. All of it is private.

    Attributes:
        violates: Whether something did not keep its promise.
        findings: Every test: its name, whether it passed, what was found and what was expected.
        sentences: What attacks found, in words.
        notes: What was left out, and why.
        of: Digests of the files that were attacked, by their names.
        attacked_expert: Whether the expert was attacked by images that were held back.
    """

    violates: bool
    findings: tuple[Finding, ...]
    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    of: dict[str, str]
    attacked_expert: bool


def read_audit(work: Path) -> AuditRecord | None:
    """Returns what the last audit in `work` found; None if there was none that says of what."""
    file = work / AUDIT_FILE
    if not file.exists():
        return None
    facts = json.loads(file.read_bytes())
    if "of" not in facts:  # of an earlier version
        return None
    return AuditRecord(
        violates=facts["violates"],
        findings=tuple(Finding(**found) for found in (*facts["mechanism"], *facts["releases"])),
        sentences=tuple(facts["sentences"]),
        notes=tuple(facts["notes"]),
        of=facts["of"],
        attacked_expert=facts["membership"] is not None,
    )


def _digests(work: Path) -> dict[str, str]:
    """Returns the digests of what was made so far, which an audit speaks of."""
    names = (ROUTER_FILE, EXPERT_FILE)
    return {name: sha256_of(work / name) for name in names if (work / name).exists()}


def _require_own(work: Path, known: Recorded | None, data: Private[ImageSet]) -> None:
    """Refuses other images than those that were used: a release of theirs would look like a lie."""
    sha256 = data.reveal().digest()
    used = (work / RELEASE_FILE).exists() and not is_released(work, sha256)
    if used or (known is not None and known.data_sha256 != sha256):
        raise StateError(
            "the site trained on, or released statistics of, other images than these",
            hint="give the images it used under this plan",
        )


def shared_audit(work: Path) -> AuditFacts | None:
    """Returns what canaries found, as it may leave; None if no audit was run."""
    file = work / CANARIES_FILE
    if not file.exists():
        return None
    return AuditFacts.from_json(file.read_bytes(), what=CANARIES_FILE)


def _attack_step(
    plan: Plan,
    known: Recorded | None,
    options: AuditOptions,
    advance: Advance,
    result: AuditResult,
) -> None:
    event, means = planned_events(plan).expert, planned_events(plan).central
    if known is not None and network_of(known.design.architecture) is None:
        result.notes.append(
            "the expert is the mixture that was released: what is found of the release is found of "
            "it, and nothing was trained"
        )
        return
    untrained = plan.expert.trained
    if event is None or untrained is None:
        result.notes.append("the plan trains without noise: there is no claim to be rejected")
        return
    if known is not None and known.noise:
        noise, design = PrivateTraining.from_json(known.noise), known.design
    else:
        sgd = plan.privacy.sgd
        assumed = 1.0 if sgd is None else float(sgd.units)
        noise, design = PrivateTraining.planned(plan, event, assumed), untrained
        result.notes.append("nothing is trained yet: this is the step as it would be taken")
    noise = replace(noise, central=noise.central or CentralImages.planned(plan, means, []))
    delta = float(plan.privacy.delta)
    with trial_run(plan, design, noise) as training:
        result.mechanism += training.findings()
        found = audit_step(
            training.update.step,
            event,
            delta=delta,
            canaries=options.canaries,
            most_steps=options.most_steps,
            clip_norm=noise.clip_norm,
            advance=advance,
        )
    result.canaries = audit_facts(found)
    try:
        result.run = audit_facts(_attack_run(plan, design, noise, event, options, delta))
    except MechanismError as error:
        result.mechanism.append(Finding(STEPS, False, error.message, KEPT_STEPS))
    else:
        result.mechanism.append(Finding(STEPS, True, "as claimed", KEPT_STEPS))


def _attack_run(
    plan: Plan,
    design: ExpertDesign,
    noise: PrivateTraining,
    event: SampledGaussianEvent,
    options: AuditOptions,
    delta: float,
) -> CanaryAudit:
    """Returns what canaries find that go through a whole short training, its loop and all."""
    steps = min(event.steps, options.run_steps)
    claim = event.model_copy(update={"steps": steps})
    made: list[RunCanaries] = []

    def source(part: TrainedPart) -> Source:
        longest = max(noise.clip_norm, noise.clip_norm_end)
        coins = Randomness.from_system()
        made.append(RunCanaries(part.trained, options.canaries, coins, longest))
        return Source(made[0], made[0].gradients, made[0].slow)

    alone = replace(noise, central=None)  # its rounds are noisy sums, which the tests looked at
    with trial_run(plan, design, alone, steps=steps, source=source) as training:
        looked = OptimizerWatch(training, made[0], claim, noise.expected_units)
        training.start("0" * 64)
        training.run_steps(Paid(claim), Watch(lambda now: looked.look(now.step - 1)))
    return audit_run(looked, made[0], claim, training_steps=event.steps, delta=delta)


def _examine_releases(
    plan: Plan,
    work: Path,
    data: Private[ImageSet],
    known: Recorded | None,
    result: AuditResult,
    weights: Path | None,
) -> None:
    if not (work / ROUTER_FILE).exists():
        result.notes.append("nothing is released yet")
        return
    released = read_own_tensors(work / ROUTER_FILE)
    directions = planned_directions(plan, weights)
    exact = exact_statistics(data, plan, released, directions)
    for name, event in router_events(plan).items():
        scale = message_named(plan, name).l2_sensitivity * float(event.noise_multiplier)
        vector = np.asarray(released[name])
        result.releases.append(examine_noise(vector, exact[name].reveal(), scale, what=name))
    result.releases += examine_messages(data, plan, released, directions)
    if known is None or not known.noise:
        return
    noise = PrivateTraining.from_json(known.noise)
    count = released_location(work, plan).count
    images = data.reveal()
    result.releases.append(
        examine_expected_units(
            noise.expected_units,
            sampling_rate=noise.sampling_rate,
            released_count=count,
            exact_count=images.unit_count,
        )
    )


def _attack_expert(
    plan: Plan,
    work: Path,
    data: Private[ImageSet],
    known: Recorded | None,
    options: AuditOptions,
    result: AuditResult,
) -> None:
    if known is None:
        return
    if options.controls is None:
        result.notes.append("no --controls: images nobody trained on are needed to attack weights")
        return
    expert = expert_of(work, plan, known.design)
    own, others = data.reveal(), options.controls.reveal()
    found = attack_expert(expert, known.design, plan, own, others, options.seed)
    result.membership, result.memorization = found.membership, found.memorization
    result.nearest, result.claimed_epsilon = found.nearest, found.claimed_epsilon


def _plain(value: Any) -> Any:
    """Returns nested named tuples as dictionaries."""
    if hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value

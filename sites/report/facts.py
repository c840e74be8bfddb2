"""What is known at a site about what would leave it. Part of it is private: all of it stays.

Nothing is signed or written here. What would leave is read from the signed draft, what was spent
from the ledger, what attacks found from the last audit.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddm_fed.bundle.verify import ENVELOPE_FILE, EXPERT_FILE, VerifiedBundle, verify_bundle
from ddm_fed.errors import PolicyError, RefusedError, StateError
from ddm_fed.evaluation.inputs import read_samples
from ddm_fed.privacy import ImageSet, Private, epsilon_text, private_events, submission_in_words
from ddm_fed.records import (
    IN_TOTO_PAYLOAD,
    MAX_DOCUMENT_BYTES,
    EgressRecord,
    LedgerEntry,
    PrivacyStatement,
    Statement,
    Submission,
    now,
)
from ddm_fed.report.facts import Unknown
from ddm_fed.report.sample_facts import named_in
from ddm_fed.signing import peek_payload
from ddm_fed.storage.files import read_bounded
from ddm_fed.trust import Trust
from sites.outbox.spending import abandoned, entries_that_left
from sites.outbox.stages import egress_of, find_bundles, newest_draft
from sites.privacy.ledger import open_ledger
from sites.published import Published
from sites.report.neighbours import Neighbours, find_neighbours
from sites.train.audit import AuditRecord, read_audit
from sites.train.audit_expert import samples_of_expert
from sites.train.expert import TRAINED_FILE, expert_of, recorded
from sites.train.space import require_space
from sites.workspace import SiteFolder

OWN_SAMPLES = 200


@dataclass(frozen=True)
class Outgoing:
    """What would leave, or has left.

    Attributes:
        bundle: The signed draft, or the released bundle.
        egress: All that leaves with it, and whose signatures it needs.
        stands: How far it is, in words.
        reviewed: Whether a review of it lies in the outbox.
        has_left: Whether it was released.
    """

    bundle: VerifiedBundle
    egress: EgressRecord
    stands: str
    reviewed: bool
    has_left: bool

    @property
    def privacy(self) -> PrivacyStatement:
        """What its manifest says that it costs."""
        return self.bundle.submission.privacy

    @property
    def sentences(self) -> list[str]:
        """The same in words."""
        return submission_in_words(self.bundle.submission)


@dataclass(frozen=True)
class LedgerFacts:
    """Everything the site ever spent.

    Attributes:
        entries: The entries that are there.
        epsilon: What those with noise add up to, at the plan's delta.
        left: Indices of those whose release is in a released bundle.
        abandoned: Sentences about what was spent and never left.
        cut: What is wrong with the ledger, or None.
    """

    entries: tuple[LedgerEntry, ...]
    epsilon: str
    left: frozenset[int]
    abandoned: tuple[str, ...]
    cut: str | None


@dataclass(frozen=True)
class SiteFacts:
    """All that a site's report says. Private.

    Attributes:
        site: The site.
        trust: The plan and rosters it works under.
        outgoing: What would leave, or None.
        ledger: What it spent.
        audit: What the last audit found, or None.
        audit_is_current: Whether that audit attacked the very files that would leave.
        neighbours: Samples beside private images, or None.
        unknown: What is not known.
    """

    site: SiteFolder
    trust: Trust
    outgoing: Outgoing | None
    ledger: LedgerFacts
    audit: AuditRecord | None
    audit_is_current: bool
    neighbours: Neighbours | None
    unknown: tuple[Unknown, ...]


def gather(
    site: SiteFolder, published: Published, data: Private[ImageSet] | None, samples: Path | None
) -> SiteFacts:
    """Returns what is known at a site.

    Args:
        site: The site.
        published: What the coordinator published.
        data: Its images, as pixels; None leaves out what they are near to.
        samples: Folder of samples to hold against them; without, the site's own expert is sampled.

    Raises:
        RefusedError: what would leave does not verify.
        StateError: `data` are not the images that the expert was trained on, or there are no
            samples in `samples`.
    """
    trust, work = published.trust, site.work(published.trust.plan_sha256)
    outgoing, audit = _outgoing(site, published), read_audit(work)
    neighbours = None
    if data is not None:
        neighbours = _neighbours(work, trust, data, samples)
    current = audit is not None and outgoing is not None and audit.of == _files(outgoing)
    found = SiteFacts(
        site=site,
        trust=trust,
        outgoing=outgoing,
        ledger=_ledger(site, published),
        audit=audit,
        audit_is_current=current,
        neighbours=neighbours,
        unknown=(),
    )
    return SiteFacts(**vars(found) | {"unknown": tuple(_unknown(found, work))})


def _files(outgoing: Outgoing) -> dict[str, str]:
    """Returns the digests of what an audit attacks."""
    return {name: sha for name, sha in outgoing.bundle.sha256.items() if name != "head.safetensors"}


def _outgoing(site: SiteFolder, published: Published) -> Outgoing | None:
    """Returns the newest draft under the plan, or else what was released last."""
    trust, log = published.trust, published.log
    try:
        draft = newest_draft(site)
    except StateError:
        draft = None
    if draft is not None and _is_of(draft, trust.plan_sha256):
        bundle = verify_bundle(draft, trust, now(), require=("site",))
        reviewed = (site.reviews / bundle.payload_sha256).exists()
        stands = "It is a draft that was reviewed" if reviewed else "It is a draft nobody reviewed"
        stands += ", and nothing of it has left"
        return Outgoing(bundle, egress_of(site, trust, bundle), stands, reviewed, has_left=False)
    for folder in reversed(find_bundles(site.released)):
        if not _is_of(folder, trust.plan_sha256):
            continue
        entry, position = log.find(folder.name), None
        moment, stands = now(), "It was released and may be on its way; it is not in the log yet"
        if entry is not None and entry.receipt is not None:
            moment, position = entry.receipt.admitted_at, entry.index
            stands = f"It was admitted on {moment:%Y-%m-%d}, as entry {entry.index} of the log"
        bundle = verify_bundle(folder, trust, moment, position=position)
        reviewed = (site.reviews / bundle.payload_sha256).exists()
        return Outgoing(bundle, egress_of(site, trust, bundle), stands, reviewed, has_left=True)
    return None


def _is_of(bundle: Path, plan_sha256: str) -> bool:
    try:
        envelope = read_bounded(bundle / ENVELOPE_FILE, MAX_DOCUMENT_BYTES)
        payload = peek_payload(envelope, IN_TOTO_PAYLOAD, what=bundle.name)
        found = Statement[Submission].from_json(payload, what=bundle.name).predicate
    except RefusedError:
        return False
    return found.plan_sha256 == plan_sha256


def _ledger(site: SiteFolder, published: Published) -> LedgerFacts:
    kept, delta = open_ledger(site, published.log), float(published.trust.plan.privacy.delta)
    entries, cut = kept.present(), None
    try:
        kept.entries()
    except PolicyError as error:
        cut = error.message
    return LedgerFacts(
        entries=entries,
        epsilon=epsilon_text(private_events(entries), delta),
        left=frozenset(entries_that_left(site)),
        abandoned=tuple(abandoned(site, entries, published.trust.plan_sha256, delta)),
        cut=cut,
    )


def _neighbours(
    work: Path, trust: Trust, data: Private[ImageSet], samples: Path | None
) -> Neighbours | None:
    if samples is not None:
        pictures, summary = read_samples(samples)
        if pictures.shape != trust.plan.data.pixel_shape:
            raise StateError(
                f"the samples in {samples} are {pictures.shape}, the plan's images are "
                f"{trust.plan.data.pixel_shape}",
                hint="give samples of an ensemble under this plan",
            )
        kind, sha256 = named_in(summary)
        source = f"{len(pictures.images)} given samples of the {kind} {sha256[:16]}…"
        return find_neighbours(pictures.rows().astype(np.float32) / 127.5 - 1, data, source)
    if trust.plan.data.latent is not None or not (work / TRAINED_FILE).exists():
        return None
    known = recorded(work)
    require_space(data, trust.plan)
    if known.data_sha256 != data.reveal().digest():
        raise StateError(
            "the site trained on other images than these",
            hint="give --data as it was given to `ddm-site train`",
        )
    expert = expert_of(work, trust.plan, known.design)
    rows = samples_of_expert(expert, trust.plan, 0, OWN_SAMPLES).astype(np.float32)
    return find_neighbours(rows, data, f"{OWN_SAMPLES} samples of this site's own expert")


def _unknown(found: SiteFacts, work: Path) -> list[Unknown]:
    missing, name = list[Unknown](), found.site.settings.name

    def ask(what: str, *words: str) -> None:
        command = shlex.join(["ddm-site", *words, "--site", name, "--plan", "PUBLISHED"])
        missing.append(Unknown(what, command))

    if found.outgoing is None:
        ask("what would leave: there is no draft under this plan", "train", "--data", "IMAGES")
    if found.audit is None or not (found.audit_is_current and found.audit.attacked_expert):
        ask(
            "what attacks find in what would leave",
            *("audit", "--data", "IMAGES", "--controls", "HELD_BACK"),
        )
    if found.neighbours is None:
        more = ["--samples", "SAMPLES"]
        if found.trust.plan.data.latent is None and (work / EXPERT_FILE).exists():
            more = []
        ask("which private images samples are like", "report", "--data", "IMAGES", *more)
    return missing

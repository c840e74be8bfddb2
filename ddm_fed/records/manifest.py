"""What a submission, a review, a receipt, a removal and an ensemble say about what they sign."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from ddm_fed.records.architecture import network_of
from ddm_fed.records.base import (
    Count,
    Day,
    Figure,
    LogSize,
    Moment,
    Name,
    PlainText,
    Positive,
    PublicKeyHex,
    Record,
    RootPin,
    Sha256,
)
from ddm_fed.records.built_router import LEARNED_ROUTERS, BuiltRouter, RouterName
from ddm_fed.records.ledger import LedgerHead, PrivacyStatement
from ddm_fed.records.plan import ExpertDesign
from ddm_fed.records.roster import Require
from ddm_fed.records.statement import FileName

SUBMISSION_PREDICATE = "urn:ddm-fed:expert-submission:v1"
REVIEW_PREDICATE = "urn:ddm-fed:egress-review:v1"
RECEIPT_PREDICATE = "urn:ddm-fed:receipt:v1"
REFERENCE_PREDICATE = "urn:ddm-fed:reference:v1"
REMOVAL_PREDICATE = "urn:ddm-fed:removal:v1"
ENSEMBLE_PREDICATE = "urn:ddm-fed:ensemble:v1"

# Closed forms: no text of a manifest can carry what was computed from images.
VERSION = r"[0-9]{1,4}(\.[0-9]{1,4}){1,2}[a-z0-9.+-]{0,30}$"
Program = Annotated[str, StringConstraints(pattern="^ddm-fed " + VERSION)]
TorchVersion = Annotated[str, StringConstraints(pattern="^" + VERSION)]
MAX_REASON = 1000


class RosterReference(Record):
    """The roster a document was made under."""

    version: Count
    sha256: Sha256


class LogHead(Record):
    """The transparency log at one size."""

    size: LogSize
    root: Sha256


class FileSize(Record):
    """The size a file must have before a byte of it is read."""

    name: FileName
    size_bytes: Count


class TrainingFacts(Record):
    """How the expert was trained. Holds nothing that was computed from private images."""

    program: Program
    torch: TorchVersion
    precision: Literal["float32", "bfloat16"]
    steps: Count
    ema_half_life: Count


class HeadFacts(Record):
    """How a router's head was trained: against which reference, for how many steps."""

    reference_sha256: Sha256
    steps: Count


class Submission(Record):
    """The manifest of a bundle: the predicate a site signs about its expert and its release.

    Under a plan with heads a site submits twice: the second bundle is the first with `head`.

    `seen_checkpoint` is the head of the log the site knew, which exposes a coordinator that shows
    two histories; `supersedes` is the site's newest submission in that very log, or None. An expert
    that is the mixture of its release has no `training`. `held_expert` is the digest of weights
    that stay at the site, which answers for them (`expert.remote` of the plan): no file holds them.
    """

    federation: Name
    plan_sha256: Sha256
    roster: RosterReference
    site: Name
    sequence: Count
    supersedes: Sha256 | None
    seen_checkpoint: LogHead
    issued_at: Day
    expires_at: Day
    files: Annotated[tuple[FileSize, ...], Field(min_length=1, max_length=16)]
    expert: ExpertDesign
    training: Annotated[TrainingFacts | None, Field(exclude_if=lambda facts: facts is None)] = None
    privacy: PrivacyStatement
    head: HeadFacts | None = None
    held_expert: Annotated[Sha256 | None, Field(exclude_if=lambda digest: digest is None)] = None

    @model_validator(mode="after")
    def _networks_are_trained(self) -> Self:
        network = network_of(self.expert.architecture)
        if (self.training is None) != (network is None):
            raise ValueError("`training` belongs to an expert with a network, and only to it")
        if self.held_expert is not None and network is None:
            raise ValueError("`held_expert`: a mixture has no weights that could stay")
        return self

    @property
    def reference_sha256(self) -> str | None:
        """What its head was trained against; None without a head."""
        return None if self.head is None else self.head.reference_sha256

    def size_of(self, name: str) -> int | None:
        """Returns the size signed for the file `name`, or None."""
        return next((file.size_bytes for file in self.files if file.name == name), None)


class EgressFile(Record):
    """One file that would leave."""

    name: FileName
    size_bytes: Count
    sha256: Sha256


class EgressRecord(Record):
    """All that would leave a site with one submission, and what it costs: what a person reviews.

    `officers` are the keys that may agree to it beside the site's own: no other may approve it.
    `held_expert` is the digest of weights that stay, about which the site is to answer questions.
    """

    federation: Name
    plan_sha256: Sha256
    site: Name
    sequence: Count
    submission_sha256: Sha256
    files: Annotated[tuple[EgressFile, ...], Field(min_length=1, max_length=16)]
    expert: ExpertDesign
    expert_is_private: bool
    head_is_private: bool | None = None  # None: there is no head
    releases_epsilon: Figure
    delta: Figure
    ledger_entries: Count
    require: Require
    officers: Annotated[tuple[PublicKeyHex, ...], Field(max_length=64)] = ()
    held_expert: Annotated[Sha256 | None, Field(exclude_if=lambda digest: digest is None)] = None


class Review(Record):
    """Says that an egress record was seen; the statement names it and the submission by digest."""

    federation: Name
    site: Name
    reviewed_at: Moment


MessageName = Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,32}$")]


class ReferenceMember(Record):
    """Whose release is in a reference, and the noise multiplier of each of its messages."""

    site: Name
    submission_sha256: Sha256
    noise_multipliers: dict[MessageName, Positive]


class Reference(Record):
    """What heads are trained against: the pool of what these sites released, named by digest.

    It cancels in Bayes' rule as long as all heads were trained against the same one, so it stays
    what it is when a site joins or leaves.
    """

    federation: Name
    plan_sha256: Sha256
    members: Annotated[tuple[ReferenceMember, ...], Field(min_length=1, max_length=1000)]
    published_at: Moment

    @model_validator(mode="after")
    def _members_are_distinct(self) -> Self:
        names = [member.site for member in self.members]
        if len(set(names)) != len(names):
            raise ValueError("a site is named twice")
        return self


class Receipt(Record):
    """The coordinator's answer to a submission, which the statement names by its payload digest.

    Its payload is the leaf `log_index` of the transparency log. `ledger` is the head of the ledger
    in the submission: what the site sends next must extend it. Receipts of earlier versions have
    none.
    """

    federation: Name
    site: Name
    sequence: Count
    verdict: Literal["admitted"] = "admitted"
    log_index: LogSize
    plan_sha256: Sha256
    roster: RosterReference
    ledger: Annotated[LedgerHead | None, Field(exclude_if=lambda head: head is None)] = None
    admitted_at: Moment


class Removal(Record):
    """The coordinator's word that what a site sent so far is used no more, on request.

    The statement names the submissions. `stale_ensembles` names the ensembles they are part of:
    whatever was derived from those (samples, students, routers trained on samples) is stale too.
    """

    federation: Name
    site: Name
    through_sequence: Count
    log_index: LogSize
    reason: Annotated[PlainText, StringConstraints(max_length=MAX_REASON)]
    stale_ensembles: Annotated[tuple[Sha256, ...], Field(max_length=1000)]
    removed_at: Moment


class EnsembleMember(Record):
    """One admitted submission of an ensemble, by the digest of its signed payload."""

    site: Name
    submission_sha256: Sha256
    log_index: LogSize


class EnsembleRecord(Record):
    """What an ensemble is made of. A pure function of log and rosters: it names no clock.

    `left_out` lists the sites that have an admitted submission under the plan and are not members.
    `built` says how the router in the ensemble's folder was made; without, it is computed from what
    the sites released.
    """

    federation: Name
    root: RootPin
    plan_sha256: Sha256
    roster: RosterReference
    log: LogHead
    router: RouterName
    members: Annotated[tuple[EnsembleMember, ...], Field(min_length=1, max_length=1000)]
    left_out: Annotated[tuple[Name, ...], Field(max_length=1000)]
    built: BuiltRouter | None = None

    @model_validator(mode="after")
    def _router_is_of_these_members(self) -> Self:
        if self.built is None:
            if self.router in LEARNED_ROUTERS:
                raise ValueError(f"a {self.router} router is made of samples; `built` is missing")
            return self
        if self.built.kind != self.router:
            raise ValueError(f"`built` is a {self.built.kind} router, `router` is {self.router}")
        if self.built.submissions != tuple(member.submission_sha256 for member in self.members):
            raise ValueError("`built` was made from the experts of other members")
        return self

    @model_validator(mode="after")
    def _members_are_distinct(self) -> Self:
        names = [*(member.site for member in self.members), *self.left_out]
        if len(set(names)) != len(names):
            raise ValueError("a site is named twice, which would double its weight")
        return self

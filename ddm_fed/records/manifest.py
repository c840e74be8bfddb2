"""What a submission, a receipt and an ensemble say about the files they sign."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from ddm_fed.records.base import Count, KeyId, Moment, Name, Record, Sha256
from ddm_fed.records.ledger import PrivacyStatement
from ddm_fed.records.statement import FileName

SUBMISSION_PREDICATE = "urn:ddm-fed:expert-submission:v1"
RECEIPT_PREDICATE = "urn:ddm-fed:receipt:v1"
ENSEMBLE_PREDICATE = "urn:ddm-fed:ensemble:v1"

Text = Annotated[str, StringConstraints(max_length=200)]


class RosterReference(Record):
    """The roster a document was made under."""

    version: Count
    sha256: Sha256


class FileSize(Record):
    """The size a file must have before a byte of it is read."""

    name: FileName
    size_bytes: Count


class TrainingFacts(Record):
    """How the expert was trained. Holds nothing that was computed from private images."""

    program: Text
    torch: Text
    precision: Literal["float32", "bfloat16"]
    steps: Count
    weights: Literal["ema"] = "ema"


class Submission(Record):
    """The manifest of a bundle: the predicate a site signs about its expert and its release."""

    federation: Name
    plan_sha256: Sha256
    roster: RosterReference
    site: Name
    sequence: Count
    issued_at: Moment
    expires_at: Moment
    files: Annotated[tuple[FileSize, ...], Field(min_length=1, max_length=16)]
    training: TrainingFacts
    privacy: PrivacyStatement

    def size_of(self, name: str) -> int | None:
        """Returns the size signed for the file `name`, or None."""
        return next((file.size_bytes for file in self.files if file.name == name), None)


class Receipt(Record):
    """The coordinator's answer to a submission, which the statement names by its payload digest."""

    federation: Name
    site: Name
    sequence: Count
    verdict: Literal["admitted"] = "admitted"
    admitted_at: Moment


class EnsembleMember(Record):
    """One admitted submission of an ensemble, by the digest of its signed payload."""

    site: Name
    submission_sha256: Sha256


class EnsembleRecord(Record):
    """What an ensemble is made of. A pure function of what was admitted: it names no clock."""

    federation: Name
    root_keyid: KeyId
    plan_sha256: Sha256
    roster: RosterReference
    router: Literal["prior", "mixture"]
    members: Annotated[tuple[EnsembleMember, ...], Field(min_length=1, max_length=1000)]

    @model_validator(mode="after")
    def _members_are_distinct(self) -> Self:
        names = [member.site for member in self.members]
        if len(set(names)) != len(names):
            raise ValueError("a site is a member twice, which would double its weight")
        return self

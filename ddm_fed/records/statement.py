"""in-toto Statement v1: a signed claim about files.

Source: in-toto/attestation `spec/v1/statement.md`. Unlike in-toto's default, unknown fields of
our predicates are refused: a verifier must understand all of what it vouches for.
"""

import re
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import Field, StringConstraints, field_validator

from ddm_fed.records.base import Record, Sha256

IN_TOTO_PAYLOAD = "application/vnd.in-toto+json"

# A relative path of plain names: lower case, no `..`, no empty part, no second spelling.
_FILE_NAME = r"[a-z0-9][a-z0-9._-]{0,63}(/[a-z0-9][a-z0-9._-]{0,63}){0,3}"
FileName = Annotated[str, StringConstraints(pattern=f"^{_FILE_NAME}$")]
PredicateT = TypeVar("PredicateT", bound=Record)


def is_file_name(text: str) -> bool:
    """Returns whether `text`, which a peer sent, is a name that a signed file can have."""
    return re.fullmatch(_FILE_NAME, text) is not None


class Digest(Record):
    """The digests of one subject."""

    sha256: Sha256


class Subject(Record):
    """One file a statement speaks of."""

    name: FileName
    digest: Digest


class Statement(Record, Generic[PredicateT]):
    """A claim (`predicate`) of a known kind (`predicate_type`) about `subject` files."""

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(
        default="https://in-toto.io/Statement/v1", alias="_type"
    )
    subject: Annotated[tuple[Subject, ...], Field(min_length=1, max_length=4096)]
    predicate_type: str = Field(alias="predicateType")
    predicate: PredicateT

    @field_validator("subject")
    @classmethod
    def _names_are_distinct(cls, subject: tuple[Subject, ...]) -> tuple[Subject, ...]:
        names = [item.name for item in subject]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"it names `{twice}` twice: readers could take either digest")
        return subject

    def digest_of(self, name: str) -> str | None:
        """Returns the SHA-256 the statement gives for the file `name`, or None."""
        return next((item.digest.sha256 for item in self.subject if item.name == name), None)


def subjects(digests: dict[str, str]) -> tuple[Subject, ...]:
    """Returns `{name: sha256}` as subjects in the order of their names."""
    return tuple(
        Subject(name=name, digest=Digest(sha256=digests[name])) for name in sorted(digests)
    )

"""What every folder of the coordinator that stands on members' submissions must agree with.

An ensemble holds the members' bundles, a student only what was distilled from them. Both name their
members, so both are held against the log in the same way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from ddm_fed.errors import DigestError, LogError, PlanMismatchError, StateError
from ddm_fed.limits import MAX_ENSEMBLE_FILES
from ddm_fed.records import (
    IN_TOTO_PAYLOAD,
    MAX_DOCUMENT_BYTES,
    EnsembleRecord,
    Statement,
    StudentRecord,
)
from ddm_fed.signing import VerifyKey, open_envelope
from ddm_fed.storage.files import list_regular_files, read_bounded
from ddm_fed.trust import Trust
from ddm_fed.trust.log import Log
from ddm_fed.trust.published import PLAN_FILE, read_published

RecordT = TypeVar("RecordT", EnsembleRecord, StudentRecord)


@dataclass(frozen=True)
class OpenedStatement(Generic[RecordT]):
    """What the coordinator signed about a folder, whose files are yet to be held against it.

    Attributes:
        sha256: Of what was signed.
        signers: Whose signatures hold.
        trust: What the pinned digest leads to.
        statement: About which files, and what it says.
    """

    sha256: str
    signers: frozenset[VerifyKey]
    trust: Trust
    statement: Statement[RecordT]


def open_statement(
    folder: Path,
    root: str,
    file: str,
    kind: type[Statement[RecordT]],
    predicate: str,
    *,
    what: str,
    made_by: str,
) -> OpenedStatement[RecordT]:
    """Returns the statement in `folder`, signed by the coordinator that `root` leads to.

    Args:
        folder: Of an ensemble or a student; nothing in it is read before its files are listed.
        root: The pinned digest of roster 1, learnt from a person.
        file: Of the statement.
        kind: Of the statement, by what it speaks of.
        predicate: The type that it has to name.
        what: Is opened, for messages: "the student".
        made_by: Which command writes such a folder.

    Raises:
        RefusedError: the first rule that fails.
        StateError: the folder is something else.
    """
    list_regular_files(folder, what=what, most=MAX_ENSEMBLE_FILES)
    if not any((folder / name).exists() for name in (file, PLAN_FILE)):
        raise StateError(
            f"{folder} is no {what.removeprefix('the ')}: there is no {file} in it",
            hint=f"give a folder that {made_by} wrote",
        )
    trust = read_published(folder, root)
    envelope = read_bounded(folder / file, MAX_DOCUMENT_BYTES)
    signed = open_envelope(envelope, IN_TOTO_PAYLOAD, trust.chain.coordinator_keys(None), what=what)
    statement = kind.from_json(signed.payload, what=what)
    record = statement.predicate
    require_same(
        what,
        {
            "predicate type": (statement.predicate_type, predicate),
            "federation": (record.federation, trust.plan.federation),
            "root": (record.root, trust.root),
            "plan": (record.plan_sha256, trust.plan_sha256),
            "roster": (record.roster.sha256, trust.chain.reference.sha256),
            "roster version": (str(record.roster.version), str(trust.chain.reference.version)),
        },
    )
    return OpenedStatement(signed.sha256, signed.signers, trust, statement)


def require_complete(record: EnsembleRecord | StudentRecord, log: Log, *, what: str) -> None:
    """Refuses a record that drops what the log admitted, or names what it did not.

    Args:
        record: Names members and who was left out.
        log: The log at the time.
        what: What the record is of, for messages.

    Raises:
        LogError: it does.
    """
    current = log.current(record.plan_sha256)
    named = {member.site for member in record.members} | set(record.left_out)
    # earlier versions named sites of which only a thief's submission was left
    fine = set(record.left_out) & log.current(record.plan_sha256, with_void=True).keys()
    for site in sorted(current.keys() ^ (named - (fine - current.keys()))):
        stated = "names it" if site in named else "neither has it nor says that it was left out"
        place = f"at entry {current[site].index}" if site in current else "nothing"
        raise LogError(
            f"the log admitted {place} of `{site}` for this plan; {what} {stated}",
            hint="a member was dropped or added after admission; ask the coordinator",
        )
    for member in record.members:
        entry = current[member.site]
        if (entry.index, entry.submission_sha256) != (member.log_index, member.submission_sha256):
            raise LogError(
                f"{what} has submission {member.submission_sha256[:16]}… of `{member.site}` "
                f"from entry {member.log_index}, the newest in the log is "
                f"{entry.submission_sha256[:16]}… at entry {entry.index}",
                hint="an older or another expert was put in; ask the coordinator",
            )


def require_same(what: str, fields: Mapping[str, tuple[str, str]]) -> None:
    """Refuses documents that do not belong together.

    Args:
        what: Whose fields they are, for messages.
        fields: What was found and what was expected, by name.

    Raises:
        PlanMismatchError: naming the first that differs.
    """
    for field, (found, expected) in fields.items():
        if found != expected:
            raise PlanMismatchError(
                f"{what} names the {field} `{found}`, expected `{expected}`",
                hint="documents of different ensembles were mixed; fetch the whole folder again",
            )


def require_digest(name: str, found: str, signed: str, *, of: str) -> None:
    """Refuses a file that is not what was signed.

    Raises:
        DigestError: it is another.
    """
    if found != signed:
        raise DigestError(
            f"`{name}` is not what {of} was signed with: found {found}, signed {signed}",
            hint="it was altered or damaged after signing; fetch the whole folder again",
        )

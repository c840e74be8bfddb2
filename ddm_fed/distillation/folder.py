"""A student as a folder: everything an outsider needs to check it with one digest.

    student.dsse.json                   the coordinator's statement about every other file
    plan.dsse.json                      what was agreed
    roster-0001.dsse.json ...           by whom
    leaves.jsonl, checkpoint            the transparency log of the ensemble it was made from
    sites/SITE/submission.dsse.json     what each member signed: whose expert taught, at which price
    student.safetensors                 its weights
    model.sig                           optional, for other tools; proves nothing

Verification: rosters and plan lead from the pinned digest to the coordinator's key; the statement
is signed by it; the folder holds exactly the files it names; the log holds; the members are what
the log admitted, or it is said who was left out; every manifest is the one that the log admitted,
signed by its site; the promises are theirs; and the weights are finite and of the stated network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from ddm_fed.bundle.submission import read_submission
from ddm_fed.bundle.verify import ENVELOPE_FILE
from ddm_fed.distillation.train import TaughtStudent
from ddm_fed.ensemble.agreement import (
    open_statement,
    require_complete,
    require_digest,
    require_same,
)
from ddm_fed.ensemble.folder import VerifiedEnsemble
from ddm_fed.ensemble.model_signing import SIGNATURE_FILE
from ddm_fed.errors import PlanMismatchError
from ddm_fed.limits import MAX_ENSEMBLE_FILES
from ddm_fed.models import expert_tensors
from ddm_fed.progress import Advance
from ddm_fed.records import (
    IN_TOTO_PAYLOAD,
    MAX_DOCUMENT_BYTES,
    STUDENT_PREDICATE,
    PrivacyStatement,
    Statement,
    StudentPrivacy,
    StudentRecord,
    Submission,
    sha256_hex,
    subjects,
)
from ddm_fed.signing import SigningKey, VerifyKey, seal
from ddm_fed.storage.digests import check_file, sha256_of
from ddm_fed.storage.files import (
    list_regular_files,
    new_folder,
    open_regular,
    read_bounded,
    require_file_set,
    write_atomically,
)
from ddm_fed.storage.tensors import Bounds, check_tensor_file, write_tensors
from ddm_fed.trust import Trust
from ddm_fed.trust.log import Log, read_log
from ddm_fed.trust.published import published_files

STUDENT_FILE, WEIGHTS_FILE = "student.dsse.json", "student.safetensors"


@dataclass(frozen=True)
class VerifiedStudent:
    """A student folder for which every rule above holds. Only `verify_student` makes one."""

    folder: Path
    sha256: str
    signers: frozenset[VerifyKey]
    trust: Trust
    log: Log
    record: StudentRecord
    submissions: tuple[Submission, ...]
    envelopes: tuple[bytes, ...]
    weights_sha256: str


@dataclass(frozen=True)
class WrittenStudent:
    """The digest of a student's statement, and what it says."""

    sha256: str
    record: StudentRecord


def write_student(
    target: Path,
    verified: VerifiedEnsemble,
    student: TaughtStudent,
    class_units: Sequence[float],
    key: SigningKey,
    *,
    advance: Advance = lambda _: None,
) -> WrittenStudent:
    """Writes the student folder `target`, signs it, verifies it, and only then names it.

    The same student of the same ensemble is the same bytes. A kill leaves no `target`.

    Args:
        target: Must not exist.
        verified: The ensemble it was made from.
        student: What was trained.
        class_units: Units of every class that the members released.
        key: The coordinator's key, as of the ensemble's roster.
        advance: Told the bytes verified.
    """
    trust = verified.trust
    with new_folder(target) as folder:
        digests: dict[str, str] = {}

        def put(name: str, data: bytes) -> None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / name, data)
            digests[name] = sha256_hex(data)

        for name in published_files(verified.folder):
            with open_regular(verified.folder / name) as file:
                put(name, file.read())
        for bundle in verified.bundles:
            put(f"sites/{bundle.site}/{ENVELOPE_FILE}", bundle.envelope)
        weights = folder / WEIGHTS_FILE
        write_tensors(weights, student.weights)
        weights.chmod(0o644)
        digests[WEIGHTS_FILE] = sha256_of(weights)
        made = student.distillation
        record = StudentRecord(
            federation=trust.plan.federation,
            root=trust.root,
            plan_sha256=trust.plan_sha256,
            roster=verified.record.roster,
            log=verified.record.log,
            ensemble_sha256=verified.sha256,
            members=verified.record.members,
            left_out=verified.record.left_out,
            design=student.design,
            size_bytes=weights.stat().st_size,
            class_units=tuple(_rounded(units) for units in class_units),
            distillation=made,
            privacy=privacy_of(
                [bundle.submission.privacy for bundle in verified.bundles],
                post_processing=made.source == "samples",
            ),
        )
        statement = Statement[StudentRecord](
            subject=subjects(digests), predicateType=STUDENT_PREDICATE, predicate=record
        )
        write_atomically(folder / STUDENT_FILE, seal(statement.to_json(), IN_TOTO_PAYLOAD, [key]))
        verify_student(folder, trust.root, advance=advance)
    return WrittenStudent(sha256_hex(statement.to_json()), record)


def verify_student(
    folder: Path, root: str, *, advance: Advance = lambda _: None
) -> VerifiedStudent:
    """Returns the student in `folder` if every rule of this module holds.

    Works anywhere, offline, for ever: it needs nothing but the folder and the pinned digest.

    Args:
        folder: The student.
        root: The pinned digest of roster 1, learnt from a person.
        advance: Told the bytes that were hashed.

    Raises:
        RefusedError: the first rule that fails; the message names the item.
        StateError: it is something else than a student.
    """
    what = "the student"
    signed = open_statement(
        folder,
        root,
        STUDENT_FILE,
        Statement[StudentRecord],
        STUDENT_PREDICATE,
        what=what,
        made_by="`ddm-coord distill`",
    )
    trust, statement = signed.trust, signed.statement
    record = statement.predicate
    require_same(
        what,
        {"number of classes": (str(len(record.class_units)), str(len(trust.plan.data.classes)))},
    )
    digests = {subject.name: subject.digest.sha256 for subject in statement.subject}
    manifests = [f"sites/{member.site}/{ENVELOPE_FILE}" for member in record.members]
    require_same(
        what,
        {
            "files": (
                ", ".join(sorted(digests)),
                ", ".join(sorted({*published_files(folder), *manifests, WEIGHTS_FILE})),
            )
        },
    )
    found = list_regular_files(folder, what=what, most=MAX_ENSEMBLE_FILES)
    expected = {*digests, STUDENT_FILE} | (found & {SIGNATURE_FILE})
    require_file_set(folder, expected, what=what, most=MAX_ENSEMBLE_FILES)
    for name in sorted(digests.keys() - {WEIGHTS_FILE}):
        require_digest(name, sha256_of(folder / name), digests[name], of=what)
    log = read_log(folder, trust.chain)
    require_same(
        what,
        {
            "log": (record.log.root, log.head.root),
            "log size": (str(record.log.size), str(log.size)),
        },
    )
    require_complete(record, log, what=what)
    envelopes, submissions = _members(folder, record, trust)
    _require_their_promises(record, [item.privacy for item in submissions])
    _require_weights(folder, record, digests[WEIGHTS_FILE], trust, advance)
    return VerifiedStudent(
        folder,
        signed.sha256,
        signed.signers,
        trust,
        log,
        record,
        submissions,
        envelopes,
        digests[WEIGHTS_FILE],
    )


def privacy_of(members: Sequence[PrivacyStatement], *, post_processing: bool) -> StudentPrivacy:
    """Returns what is promised of a student, from what its members promise.

    Args:
        members: The statement of every member.
        post_processing: Whether nothing but experts and releases was read.
    """
    largest = max(members, key=lambda item: Decimal(item.releases_epsilon))
    return StudentPrivacy(
        post_processing=post_processing,
        unit=members[0].unit,
        experts_are_private=all(item.expert_is_private for item in members),
        epsilon=largest.releases_epsilon,
        delta=max(item.delta for item in members),
    )


def _members(
    folder: Path, record: StudentRecord, trust: Trust
) -> tuple[tuple[bytes, ...], tuple[Submission, ...]]:
    """Returns the members' manifests, each signed by its site and the one the log admitted."""
    envelopes, submissions = [], []
    for member in record.members:
        what = f"the submission of `{member.site}`"
        name = f"sites/{member.site}/{ENVELOPE_FILE}"
        envelope = read_bounded(folder / name, MAX_DOCUMENT_BYTES)
        manifest = read_submission(envelope, trust.chain, member.log_index, what=what)
        submission = manifest.statement.predicate
        require_same(
            what,
            {
                "site": (submission.site, member.site),
                "plan": (submission.plan_sha256, record.plan_sha256),
                "digest": (manifest.payload_sha256, member.submission_sha256),
            },
        )
        envelopes.append(envelope)
        submissions.append(submission)
    return tuple(envelopes), tuple(submissions)


def _require_their_promises(record: StudentRecord, members: Sequence[PrivacyStatement]) -> None:
    """Refuses a student that promises something else than its members do.

    Raises:
        PlanMismatchError: it does.
    """
    theirs = privacy_of(members, post_processing=record.privacy.post_processing)
    if record.privacy != theirs:
        raise PlanMismatchError(
            f"the student promises epsilon {record.privacy.epsilon}, experts "
            f"{_private(record.privacy)}; its members promise epsilon {theirs.epsilon}, experts "
            f"{_private(theirs)}",
            hint="it was not written by this program; ask the coordinator",
        )


def _private(privacy: StudentPrivacy) -> str:
    return "private" if privacy.experts_are_private else "not private"


def _require_weights(
    folder: Path, record: StudentRecord, sha256: str, trust: Trust, advance: Advance
) -> None:
    """Refuses weights that are not those of the stated network, or not finite.

    Raises:
        DigestError: they are not what was signed.
        WeightsError, ValuesError: they are no such network.
    """
    what = f"`{WEIGHTS_FILE}`"
    check_file(
        folder / WEIGHTS_FILE,
        sha256=sha256,
        size_bytes=record.size_bytes,
        what=what,
        advance=advance,
    )
    limits = trust.plan.submission
    bounds = Bounds(float(limits.max_absolute), float(limits.max_norm))
    try:
        table = expert_tensors(trust.plan.data, record.design)
    except ValueError as problem:
        raise PlanMismatchError(
            f"the student does not fit the plan's images: {problem}",
            hint="it was not written by this program; ask the coordinator",
        ) from None
    with open_regular(folder / WEIGHTS_FILE) as file:
        check_tensor_file(file, table, what=what, bounds=bounds)


def _rounded(units: float) -> Decimal:
    return max(Decimal(0), Decimal(str(round(units, 3))))

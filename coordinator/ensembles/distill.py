"""From an ensemble to a signed student: one network, and a line in the journal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from coordinator import journal
from coordinator.workspace import CoordinatorFolder
from ddm_fed.distillation.folder import STUDENT_FILE, VerifiedStudent, verify_student, write_student
from ddm_fed.distillation.lessons import GivenImages
from ddm_fed.distillation.options import DistillOptions
from ddm_fed.distillation.train import (
    Teachers,
    require_teachable,
    train_student,
    work_folder,
    working,
)
from ddm_fed.ensemble.folder import VerifiedEnsemble
from ddm_fed.errors import StateError
from ddm_fed.progress import QUIET, Watch
from ddm_fed.signing import SigningKey
from ddm_fed.trust.published import read_chain


def distill(
    home: CoordinatorFolder,
    verified: VerifiedEnsemble,
    out: Path,
    options: DistillOptions,
    *,
    given: GivenImages | None = None,
    restart: bool = False,
    require_current: Callable[[], None] = lambda: None,
    watch: Watch = QUIET,
) -> VerifiedStudent:
    """Returns the student of an ensemble, signed and written to `out`.

    A killed run continues when it is started again with the same arguments, and ends with the same
    bytes.

    Args:
        home: The coordinator.
        verified: The ensemble.
        out: Folder to make.
        options: How.
        given: Images to learn from, in place of the ensemble's samples.
        restart: Whether to forget what an unfinished run has left.
        require_current: Refuses an ensemble that became stale while the student learnt.
        watch: Told how it goes.

    Raises:
        StateError: `out` exists, or the ensemble is signed by another key than is active now.
        OptionError, DataError, CheckpointError, DivergedError: as for `train_student`.
    """
    key = _key(home, verified)
    if out.exists() and not _is_ours(out, verified):
        raise StateError(
            f"{out} exists already", hint="a student is never changed; choose another --out"
        )
    teachers = Teachers.of(verified, options)
    require_teachable(teachers, options)
    with working(out, restart=restart) as work:
        student = train_student(teachers, options, work, given=given, watch=watch)
        require_current()
        if not out.exists():
            units = [] if teachers.class_units is None else teachers.class_units.tolist()
            write_student(out, verified, student, units, key)
        written = verify_student(out, verified.trust.root)
        with home.changing():
            if not any(event.get("student_sha256") == written.sha256 for event in _told(home)):
                journal.record(
                    home,
                    "distilled",
                    student_sha256=written.sha256,
                    ensemble_sha256=verified.sha256,
                    folder=str(out.resolve()),
                    members=sorted(member.site for member in written.record.members),
                )
    return written


def students_with(home: CoordinatorFolder, site: str) -> dict[str, str]:
    """Returns the students made here that `site` has a part in: digest to folder."""
    return {
        str(event["student_sha256"]): str(event["folder"])
        for event in _told(home)
        if site in event["members"]
    }


def _told(home: CoordinatorFolder) -> list[dict[str, Any]]:
    return [event for event in journal.events(home) if event["event"] == "distilled"]


def _is_ours(out: Path, verified: VerifiedEnsemble) -> bool:
    """Returns whether `out` is the student of a run that was killed just after it was whole."""
    if not work_folder(out).exists() or not (out / STUDENT_FILE).exists():
        return False
    return verify_student(out, verified.trust.root).record.ensemble_sha256 == verified.sha256


def _key(home: CoordinatorFolder, verified: VerifiedEnsemble) -> SigningKey:
    """Returns the key that may sign under the ensemble's roster, and may still.

    Raises:
        StateError: the coordinator has another by now.
    """
    chain = read_chain(home.published, home.settings.root)
    then, now = verified.trust.roster.coordinator_key, chain.current.coordinator_key
    if then != now:
        raise StateError(
            "the coordinator's key was replaced since the ensemble was assembled, and a student is "
            "signed by the key of its ensemble's roster",
            hint="assemble anew, and distil that ensemble",
        )
    return home.key(verified.trust.chain)

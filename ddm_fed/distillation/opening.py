"""Which of both a folder is, an ensemble or a student: the statement in it decides."""

from pathlib import Path

from ddm_fed.distillation.folder import STUDENT_FILE, VerifiedStudent, verify_student
from ddm_fed.ensemble.folder import STATEMENT_FILE, VerifiedEnsemble, verify_ensemble
from ddm_fed.errors import StateError
from ddm_fed.progress import Advance

Sampled = VerifiedEnsemble | VerifiedStudent


def is_student(folder: Path) -> bool:
    """Returns whether `folder` claims to be a student. One that is both is neither."""
    return (folder / STUDENT_FILE).exists() and not (folder / STATEMENT_FILE).exists()


def verify_either(folder: Path, root: str, *, advance: Advance = lambda _: None) -> Sampled:
    """Returns the verified ensemble or student in `folder`.

    Raises:
        RefusedError, StateError: as for `verify_ensemble` and `verify_student`.
    """
    if is_student(folder):
        return verify_student(folder, root, advance=advance)
    return verify_ensemble(folder, root, advance=advance)


def kind_of(verified: Sampled) -> str:
    """Returns what it is called."""
    return "student" if isinstance(verified, VerifiedStudent) else "ensemble"


def require_ensemble(folder: Path) -> None:
    """Refuses a student where experts and routers are needed.

    Raises:
        StateError: it is one.
    """
    if is_student(folder):
        raise StateError(
            f"{folder} is a student: one network, without experts and without a router",
            hint="give the ensemble it was made from, or another",
        )

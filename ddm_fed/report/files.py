"""Where reports are written: never over a file that is not one of ours."""

from pathlib import Path

from ddm_fed.errors import StateError
from ddm_fed.report.page import MARK
from ddm_fed.storage.files import write_atomically

PDF_MARK = b"%PDF-"
CARD_MARK = b"library_name: ddm-fed"
MARK_WITHIN = 4096  # bytes from the beginning
MARKS = {"--out": MARK, "--pdf": PDF_MARK, "--card": CARD_MARK}


def require_replaceable(path: Path, option: str) -> None:
    """Refuses to write over a file that this program did not write.

    Args:
        path: Where to write.
        option: Which option named it: it says what is written.

    Raises:
        StateError: another file is there, a link, or a folder; or no folder is there to hold it.
    """
    if not path.parent.is_dir():
        raise StateError(
            f"{option} {path}: there is no folder {path.parent}", hint="make it, or give another"
        )
    if not path.exists() and not path.is_symlink():
        return
    if path.is_symlink() or not path.is_file():
        raise StateError(f"{option} {path}: this is not a plain file", hint="give another name")
    with path.open("rb") as file:
        if MARKS[option] not in file.read(MARK_WITHIN):
            raise StateError(
                f"{option} {path}: there is a file that this command did not write",
                hint="give another name, or move that file away; nothing was overwritten",
            )


def write_report(path: Path, data: bytes, *, private: bool = False) -> None:
    """Writes a report in one step; a private one only its owner can read."""
    write_atomically(path, data, mode=0o600 if private else 0o644)

"""Folders for decoded images that nobody keeps.

What is in one is private, and a kill can leave it behind. So it is removed as early as it can be,
and every command that makes one first removes those of commands that are no longer there: each of
them holds a lock, which the system frees however a process ends.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ddm_fed.errors import BusyError
from ddm_fed.storage.files import exclusive

PREFIX = "ddm-fed-images-"
LOCK = ".lock"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Makes an empty folder of this user alone; it is gone when this ends.

    Files that were mapped can be read on: they are freed when nobody maps them any more.
    """
    remove_abandoned(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX) as made, exclusive(Path(made) / LOCK):
        yield Path(made)


def remove_abandoned(place: Path) -> None:
    """Removes this user's scratch folders in `place` that no process holds."""
    for folder in place.glob(f"{PREFIX}*"):
        # of another user, or just being made: then it has no lock yet
        if folder.is_symlink() or not (folder / LOCK).is_file():
            continue
        with suppress(OSError, BusyError):
            if folder.stat().st_uid != os.getuid():
                continue
            with exclusive(folder / LOCK):
                shutil.rmtree(folder)

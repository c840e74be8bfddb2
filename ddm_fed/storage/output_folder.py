"""Folders that a command writes into: new ones, empty ones, and those it has written before.

Any other folder may be somebody's images, and what is written there would lie among them.
"""

from collections.abc import Collection
from pathlib import Path

from ddm_fed.errors import StateError
from ddm_fed.storage.junk import is_junk

SHOWN = 3


def require_ours(folder: Path, marks: Collection[str], *, hint: str) -> None:
    """Refuses to write into `folder` unless it is not there, empty, or holds one of `marks`.

    What file managers leave does not count as content.

    Args:
        folder: Where to.
        marks: Names that only the same command leaves there.
        hint: What to give in its place.

    Raises:
        StateError: it holds other things, the first of which are named; or it is not a folder.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise StateError(f"{folder} is not a folder", hint=hint)
    names = sorted(path.name for path in folder.iterdir() if not is_junk(path.name))
    if names and not set(names) & set(marks):
        told = ", ".join(f"`{name}`" for name in names[:SHOWN])
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise StateError(
            f"{folder} holds other things, {told}{more}; nothing was written there", hint=hint
        )

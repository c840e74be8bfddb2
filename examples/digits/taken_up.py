"""Says what a demo finds of an earlier run, so that nobody takes old results for new ones."""

from collections.abc import Mapping
from pathlib import Path

from ddm_fed import console


def say_taken_up(run: Path, parts: Mapping[str, Path]) -> None:
    """Names the parts that are there already: they are used as they are, and not made again.

    Args:
        run: The demo's folder.
        parts: What a part is called, and the file or folder that is there once it is done; a
            folder counts if something is in it.
    """
    found = [name for name, path in parts.items() if is_there(path)]
    if not found:
        return
    console.say(f"Taken up from an earlier run in {run}/, and not made again: {', '.join(found)}.")
    missing = [name for name in parts if name not in found]
    console.say(f"Still to be made: {', '.join(missing)}." if missing else "Nothing is left to do.")
    console.say(f"Remove {run}/ to start afresh.")


def is_there(path: Path) -> bool:
    """Returns whether a part is done."""
    return any(path.iterdir()) if path.is_dir() else path.exists()

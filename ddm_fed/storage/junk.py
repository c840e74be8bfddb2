"""What file managers and storage boxes leave in folders without being asked: an exact list.

In folders that bundles travel in (an inbox, a medium, an outbox) these are passed over, and nothing
of them is read. A folder that was signed holds exactly its signed files: there they are refused
like any other file, by a name that people recognise.
"""

from collections.abc import Iterable

# files, by the program that writes them
_FILES = {
    ".DS_Store": "the macOS Finder",
    "Thumbs.db": "Windows Explorer",
    "ehthumbs.db": "Windows Explorer",
    "desktop.ini": "Windows Explorer",
    ".directory": "the KDE file manager",
}
_FOLDERS = {
    "__MACOSX": "a macOS archive",
    ".Spotlight-V100": "macOS",
    ".Trashes": "macOS",
    ".fseventsd": "macOS",
    ".TemporaryItems": "macOS",
    "System Volume Information": "Windows",
    "$RECYCLE.BIN": "Windows",
    "@eaDir": "a Synology box",
    "lost+found": "a Linux file system",
}
_APPLE_DOUBLE = "._"  # beside every file that macOS copies to a removable medium


def writer_of(path: str) -> str | None:
    """Returns who writes files or folders called `path`, in words; None for anything not listed.

    Args:
        path: A name, or a path with `/`, any part of which may be a listed folder.
    """
    *folders, name = path.split("/")
    for folder in folders:
        if folder in _FOLDERS:
            return _FOLDERS[folder]
    if name.startswith(_APPLE_DOUBLE):
        return "macOS"
    return _FILES.get(name) or _FOLDERS.get(name)


def is_junk(name: str) -> bool:
    """Returns whether `name` is one of the listed files or folders."""
    return writer_of(name) is not None


def hint_about(names: Iterable[str]) -> str | None:
    """Returns what to do if every one of `names` is junk; None if one of them is not."""
    found = [(name, writer_of(name)) for name in names]
    if not found or any(writer is None for _, writer in found):
        return None
    told = ", ".join(f"`{name}` (by {writer})" for name, writer in found[:3])
    return f"delete {told} and run the same command again: no signed folder may hold it"

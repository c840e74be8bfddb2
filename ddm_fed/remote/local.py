"""A folder that this machine's own file system leads to: a stick, a disk, a mounted share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ddm_fed.errors import FileSetError, MachineError, StateError
from ddm_fed.files import open_regular, read_bounded, sync_folder, write_atomically
from ddm_fed.remote.base import Entry, Kind, RemoteFolder, Source, Target


class LocalFolder(RemoteFolder):
    """A folder on a path. Links below it are never followed.

    Args:
        path: Where it is.
    """

    renames = appends = True
    path: Path

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.name = str(path)

    def require(self) -> None:
        """Refuses a folder that is not there.

        Raises:
            StateError: it is not.
        """
        if not self.path.is_dir():
            raise StateError(
                f"there is no folder {self.name}",
                hint="mount the stick or the share, and check the path",
            )

    def entries(self, folder: str) -> list[Entry]:
        """Returns what is in `folder`, by name; nothing if it is not there."""
        with _system_errors(self.name):
            try:
                with os.scandir(self._inside(folder)) as found:
                    return sorted(filter(None, map(_entry_of, found)))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def read(self, path: str, limit: int) -> bytes | None:
        """Returns the bytes of a plain file, at most `limit + 1`; None if it is not there."""
        file = self._plain(path)
        with _system_errors(self.name):
            return read_bounded(file, limit) if os.path.lexists(file) else None

    def write(self, path: str, data: bytes) -> None:
        """Writes a short file, so that a reader finds the old content or the new."""
        with _system_errors(self.name):
            write_atomically(self._made(path), data)

    @contextmanager
    def reading(self, path: str, start: int = 0) -> Iterator[Source]:
        """Yields a plain file, open for reading from byte `start` on."""
        file = self._plain(path)
        with _system_errors(self.name), open_regular(file) as opened:
            opened.seek(start)
            yield opened

    @contextmanager
    def writing(self, path: str, *, append: bool = False) -> Iterator[Target]:
        """Yields a file, open for writing; at the end of the block it is on the medium."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        flags |= os.O_APPEND if append else os.O_TRUNC
        with _system_errors(self.name):
            file = self._made(path)
            with os.fdopen(os.open(file, flags, 0o644), "wb") as opened:
                try:
                    yield opened
                finally:
                    opened.flush()
                    os.fsync(opened.fileno())
            sync_folder(file.parent)

    def rename(self, old: str, new: str) -> None:
        """Gives a folder another name."""
        with _system_errors(self.name):
            source, target = self._plain(old), self._plain(new)
            source.rename(target)
            sync_folder(target.parent)

    def remove(self, path: str) -> None:
        """Removes a file, if it is there."""
        with _system_errors(self.name):
            self._plain(path).unlink(missing_ok=True)

    def _plain(self, inner: str) -> Path:
        """Returns where `inner` lies; its folders are folders, and not links to elsewhere."""
        found = self.path
        for part in filter(None, inner.split("/")):
            if found != self.path and found.is_symlink():
                raise FileSetError(
                    f"`{found.relative_to(self.path)}` in {self.name} is a symbolic link",
                    hint="a link could lead anywhere: put a folder in its place",
                )
            found /= part
        return found

    def _inside(self, inner: str) -> Path:
        return self._plain(f"{inner}/-").parent  # the folder itself is no link either

    def _made(self, inner: str) -> Path:
        file = self._plain(inner)
        file.parent.mkdir(parents=True, exist_ok=True)
        return file


@contextmanager
def _system_errors(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MachineError(
            f"the operating system refused in {name}: {error.strerror or error}",
            hint="check that it is mounted, writable and has room, then run the same command "
            "again: it goes on from there",
        ) from None


def _entry_of(item: "os.DirEntry[str]") -> Entry | None:
    """Returns what `item` is; None if it went while the folder was read."""
    kind: Kind = "other"
    if item.is_symlink():
        kind = "link"
    elif item.is_dir(follow_symlinks=False):
        kind = "folder"
    elif item.is_file(follow_symlinks=False):
        kind = "file"
    with suppress(FileNotFoundError):
        return Entry(item.name, kind, item.stat(follow_symlinks=False).st_size)
    return None

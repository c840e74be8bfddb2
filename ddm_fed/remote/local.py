"""A folder that this machine's own file system leads to: a medium, a disk, a mounted share."""

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path

from ddm_fed.errors import FileSetError, MachineError, StateError
from ddm_fed.limits import MAX_ENTRIES
from ddm_fed.remote.base import Entry, Kind, RemoteFolder, Source, Target, within_entries
from ddm_fed.storage.files import open_folder_at, open_regular, write_at


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
                hint="mount the medium or the share, and check the path",
            )

    def entries(self, folder: str) -> list[Entry]:
        """Returns what is in `folder`, by name; nothing if it is not there.

        Raises:
            SizeError: there is more than anybody would put there.
        """
        with _system_errors(self.name):
            try:
                with self._opened(folder) as descriptor, os.scandir(descriptor) as found:
                    seen = [_entry_of(item) for item in islice(found, MAX_ENTRIES + 1)]
            except (FileNotFoundError, NotADirectoryError):
                return []
        listed = [entry for entry in seen if entry is not None]  # some may have gone meanwhile
        return within_entries(listed, f"{self.name}/{folder}")

    def read(self, path: str, limit: int) -> bytes | None:
        """Returns the bytes of a plain file, at most `limit + 1`; None if it is not there."""
        folder, name = _split(path)
        with _system_errors(self.name):
            try:
                with self._opened(folder) as descriptor:
                    os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    with open_regular(Path(name), folder=descriptor) as file:
                        return file.read(limit + 1)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def write(self, path: str, data: bytes) -> None:
        """Writes a short file, so that a reader finds the old content or the new."""
        folder, name = _split(path)
        with _system_errors(self.name), self._opened(folder, make=True) as descriptor:
            write_at(descriptor, name, data)

    @contextmanager
    def reading(self, path: str, start: int = 0) -> Iterator[Source]:
        """Yields a plain file, open for reading from byte `start` on."""
        folder, name = _split(path)
        with _system_errors(self.name), ExitStack() as held:
            try:
                descriptor = held.enter_context(self._opened(folder))
            except (FileNotFoundError, NotADirectoryError) as error:
                raise FileSetError(
                    f"`{path}` in {self.name} cannot be opened: {error.strerror}",
                    hint="copy the original folder again",
                ) from None
            opened = held.enter_context(open_regular(Path(name), folder=descriptor))
            opened.seek(start)
            yield opened

    @contextmanager
    def writing(self, path: str, *, append: bool = False) -> Iterator[Target]:
        """Yields a file, open for writing; at the end of the block it is on the medium."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        flags |= os.O_APPEND if append else os.O_TRUNC
        folder, name = _split(path)
        with _system_errors(self.name), self._opened(folder, make=True) as descriptor:
            opened = os.open(name, flags, 0o644, dir_fd=descriptor)
            with os.fdopen(opened, "wb") as file:
                try:
                    yield file
                finally:
                    file.flush()
                    os.fsync(file.fileno())
            os.fsync(descriptor)

    def rename(self, old: str, new: str) -> None:
        """Gives a folder another name."""
        (from_folder, from_name), (to_folder, to_name) = _split(old), _split(new)
        with (
            _system_errors(self.name),
            self._opened(from_folder) as source,
            self._opened(to_folder) as target,
        ):
            os.rename(from_name, to_name, src_dir_fd=source, dst_dir_fd=target)
            os.fsync(target)

    def remove(self, path: str) -> None:
        """Removes a file, if it is there."""
        folder, name = _split(path)
        with (
            _system_errors(self.name),
            suppress(FileNotFoundError),
            self._opened(folder) as descriptor,
        ):
            os.unlink(name, dir_fd=descriptor)

    @contextmanager
    def _opened(self, inner: str, *, make: bool = False) -> Iterator[int]:
        """Yields a descriptor of the folder `inner`: each folder on the way is opened in the last.

        So nobody can put a link to elsewhere in the place of one while we are at work.
        """
        with ExitStack() as held:
            at = held.enter_context(open_folder_at(self.path))
            for part in filter(None, inner.split("/")):
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(part, dir_fd=at)
                at = self._step(at, part, inner)
                held.callback(os.close, at)
            yield at

    def _step(self, at: int, part: str, inner: str) -> int:
        try:
            return os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
        except NotADirectoryError:
            if not stat.S_ISLNK(os.stat(part, dir_fd=at, follow_symlinks=False).st_mode):
                raise
            raise FileSetError(
                f"`{part}` of `{inner}` in {self.name} is a symbolic link",
                hint="a link could lead anywhere: put a folder in its place",
            ) from None


def _split(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder, name


@contextmanager
def _system_errors(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MachineError(
            f"the operating system refused in {name}: {error.strerror or error}",
            hint="check that it is mounted, writable and has room, then run the same command "
            "again: it continues from there",
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

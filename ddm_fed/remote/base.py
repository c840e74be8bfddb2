"""What every folder elsewhere can do, whatever leads there."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from ddm_fed.errors import SizeError
from ddm_fed.limits import MAX_ENTRIES

Kind = Literal["file", "folder", "link", "other"]


class Entry(NamedTuple):
    """Something in a folder.

    Attributes:
        name: Its last part, as the other side says it: anything may stand in it.
        kind: What it is.
        size_bytes: Of a file.
    """

    name: str
    kind: Kind
    size_bytes: int


def within_entries(found: list[Entry], where: str) -> list[Entry]:
    """Returns `found`, by name, unless it is more than anybody would put into one folder.

    Raises:
        SizeError: it is.
    """
    if len(found) > MAX_ENTRIES:
        raise SizeError(
            f"{where} holds more than {MAX_ENTRIES} files and folders",
            hint="it was filled with something else: move what belongs here to another folder",
        )
    return sorted(found)


class Source(Protocol):
    """A file that is read."""

    def read(self, size: int, /) -> bytes:
        """Returns the next bytes; none at the end."""


class Target(Protocol):
    """A file that is written."""

    def write(self, data: bytes, /) -> object:
        """Writes all of `data`."""


class RemoteFolder(ABC):
    """A folder elsewhere. Paths inside it are relative, with `/`.

    Every method raises `ExchangeError` where a later try may help, and `StateError` or
    `MachineError` where a person has to do something first.

    Attributes:
        name: As it may be shown: without user name and password.
        renames: Whether a whole folder can be given another name in one step.
        appends: Whether a file can be continued.
        path: Where it is, if this machine's own file system leads there.
    """

    name: str
    renames: bool
    appends: bool
    path: Path | None = None

    @abstractmethod
    def require(self) -> None:
        """Refuses a folder that is not there."""

    @abstractmethod
    def entries(self, folder: str) -> list[Entry]:
        """Returns what is in `folder`, by name; nothing if it is not there."""

    @abstractmethod
    def read(self, path: str, limit: int) -> bytes | None:
        """Returns the bytes of a file, at most `limit + 1`; None if it is not there."""

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Writes a short file, so that a reader finds the old content or the new."""

    @abstractmethod
    def reading(self, path: str, start: int = 0) -> AbstractContextManager[Source]:
        """Yields a file, open for reading from byte `start` on."""

    @abstractmethod
    def writing(self, path: str, *, append: bool = False) -> AbstractContextManager[Target]:
        """Yields a file, open for writing: anew, or after what is there."""

    @abstractmethod
    def rename(self, old: str, new: str) -> None:
        """Gives a folder another name, where `renames`."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Removes a file, if it is there."""

    def kind_of(self, path: str) -> Kind | None:
        """Returns what lies at `path`; None if nothing does."""
        folder, _, name = path.rpartition("/")
        found = {entry.name: entry.kind for entry in self.entries(folder)}
        return found.get(name)

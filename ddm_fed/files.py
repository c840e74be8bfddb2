"""Files that survive a kill and do not trust their neighbours.

A reader of anything written here finds the old content or the new, never a part: bytes go to a
temporary name, are flushed to disk, and take their name in one step.
"""

import fcntl
import hashlib
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from ddm_fed.errors import BusyError, DigestError, FileSetError, names_its_path, naming

BLOCK_BYTES = 1 << 20
MAX_DEPTH = 8  # folders in folders; our formats need two
PART_PREFIX = (
    ".part-"  # no file of any format begins with a dot, so a part is never taken for whole
)
# what NumPy raises where an .npy or .npz is damaged, or holds objects
UNREADABLE_ARCHIVE = (
    OSError,
    ValueError,
    EOFError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
Advance = Callable[[int], None]
"""Called with the number of bytes just done."""


@names_its_path
def write_atomically(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Writes `data` to `path` so that a kill leaves the old file or the new one."""
    part = path.with_name(f"{PART_PREFIX}{path.name}")
    part.unlink(missing_ok=True)  # what a killed attempt left may be read-only
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    commit_file(part, path)


@names_its_path
def commit_file(part: Path, path: Path) -> None:
    """Gives the finished file `part` the name `path`, in one step and durably."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)


@names_its_path
def append_durably(path: Path, line: bytes) -> None:
    """Appends `line` and a line feed to `path`; on return it is on disk."""
    with path.open("ab") as file:
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def drop_torn_line(path: Path) -> None:
    """Removes from the end of `path` what a kill left of a line that has no line feed yet."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        position = end
        while position:
            start = max(0, position - BLOCK_BYTES)
            file.seek(start)
            found = file.read(position - start).rfind(b"\n")
            if found >= 0:
                position = start + found + 1
                break
            position = start
        if position != end:
            file.truncate(position)
            os.fsync(file.fileno())


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds the lock file `path`; the system frees it however the process ends.

    Raises:
        BusyError: another process holds it.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"another process is working in {path.parent}",
                hint="wait until it has finished, or stop it, then run this again",
            ) from None
        yield


def is_locked(path: Path) -> bool:
    """Returns whether a process holds the lock file `path`."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def sync_folder(path: Path) -> None:
    """Makes the names in the folder `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder which takes the name `path` only if the block succeeds.

    `path` must not exist. What an earlier, killed attempt left behind is removed first.
    """
    part = path.with_name(f"{PART_PREFIX}{path.name}")
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True)
    try:
        with naming(path):
            yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    for folder, _, files in os.walk(part):
        for name in files:
            with (Path(folder) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(folder))
    part.rename(path)
    sync_folder(path.parent)


def size_below(folder: Path) -> int:
    """Returns the bytes of all files below `folder`, for a progress bar: files may come and go.

    A file counts as itself.
    """
    if folder.is_file():
        return folder.stat().st_size
    total, waiting = 0, [folder]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def list_regular_files(folder: Path, *, what: str) -> set[str]:
    """Returns the paths of all files under `folder`, relative, with `/`.

    Raises:
        FileSetError: `folder` is missing, or holds a link, a device or anything but files and
            folders. Links are not followed: they could lead out of the folder.
    """
    found: set[str] = set()
    try:
        if folder.is_symlink():
            raise _not_regular(what, ".", "a symbolic link")
        _collect(folder, "", found, what)
    except (FileNotFoundError, NotADirectoryError):
        raise FileSetError(
            f"{what} is not a folder: {folder}", hint="check the path; it is the folder itself"
        ) from None
    except OSError as error:
        raise FileSetError(
            f"{what} cannot be listed: {error.strerror}", hint="copy the original folder again"
        ) from None
    return found


def _collect(folder: Path, prefix: str, found: set[str], what: str) -> None:
    if prefix.count("/") > MAX_DEPTH:
        raise _not_regular(what, prefix, "nested too deeply")
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.is_symlink():
                raise _not_regular(what, name, "a symbolic link")
            if entry.is_dir(follow_symlinks=False):
                _collect(Path(entry.path), f"{name}/", found, what)
            elif entry.is_file(follow_symlinks=False):
                found.add(name)
            else:
                raise _not_regular(what, name, "not a regular file")


def _not_regular(what: str, name: str, kind: str) -> FileSetError:
    return FileSetError(
        f"{what} is refused: `{name}` is {kind}",
        hint="only plain files belong here; copy the original folder again",
    )


def require_file_set(folder: Path, expected: set[str], *, what: str) -> None:
    """Refuses `folder` unless it holds exactly the regular files `expected`.

    Raises:
        FileSetError: naming what is missing and what is too many.
    """
    found = list_regular_files(folder, what=what)
    if found != expected:
        missing, extra = sorted(expected - found), sorted(found - expected)
        parts = [f"`{name}` is missing" for name in missing[:3]]
        parts += [f"`{name}` does not belong there" for name in extra[:3]]
        raise FileSetError(
            f"{what} is refused: {', '.join(parts)}",
            hint="a file was added, removed or renamed after signing, or a copy is incomplete; "
            "copy the original folder again",
        )


@contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """Yields `path` open for reading; refuses links and anything that is not a plain file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise FileSetError(
            f"{path} cannot be opened: {error.strerror}", hint="copy the original folder again"
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(str(path), path.name, "not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        yield file


def read_bounded(path: Path, limit: int) -> bytes:
    """Returns the bytes of the plain file `path`, at most `limit + 1` of them."""
    with open_regular(path) as file:
        return file.read(limit + 1)


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of the plain file `path`."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(
    path: Path,
    *,
    sha256: str,
    size_bytes: int,
    what: str,
    copy_to: Path | None = None,
    advance: Advance = lambda _: None,
) -> None:
    """Checks size, then SHA-256, reading in blocks; with `copy_to`, hashes what it copies.

    The copy is what was hashed, whatever happens to `path` meanwhile.

    Raises:
        DigestError: size or digest differ from what was signed. A failed copy is removed.
    """
    with open_regular(path) as source:
        found_size = os.fstat(source.fileno()).st_size
        if found_size != size_bytes:
            raise _not_what_was_signed(what, f"{found_size} bytes", f"{size_bytes} bytes")
        if copy_to is None:
            found = _read_and_hash(source, size_bytes, None, advance)
        else:
            with naming(copy_to), copy_to.open("xb") as target:
                found = _read_and_hash(source, size_bytes, target, advance)
                target.flush()
                os.fsync(target.fileno())
    if found != sha256:
        if copy_to is not None:
            copy_to.unlink()
        raise _not_what_was_signed(what, found, sha256)


def _read_and_hash(
    source: BinaryIO, size_bytes: int, target: BinaryIO | None, advance: Advance
) -> str:
    """Returns the SHA-256 of at most `size_bytes` of `source`, written to `target` on the way."""
    digest = hashlib.sha256()
    left = size_bytes
    while left and (block := source.read(min(left, BLOCK_BYTES))):
        digest.update(block)
        if target is not None:
            target.write(block)
        left -= len(block)
        advance(len(block))
    return digest.hexdigest()


def _not_what_was_signed(what: str, found: str, signed: str) -> DigestError:
    return DigestError(
        f"{what} is not what was signed: found {found}, signed {signed}",
        hint="it was altered or damaged after signing; fetch it again from its sender",
    )

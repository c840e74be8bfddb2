"""Files that survive a kill and do not trust their neighbours.

A reader of anything written here finds the old content or the new, never a part: bytes go to a
temporary name, are flushed to disk, and take their name in one step.
"""

import errno
import os
import re
import secrets
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from ddm_fed.errors import (
    BusyError,
    FileSetError,
    SizeError,
    names_its_path,
    naming,
)
from ddm_fed.limits import MAX_FILES
from ddm_fed.storage.junk import hint_about

try:
    import fcntl
except ModuleNotFoundError:
    raise ImportError("DDM-Fed needs Linux or macOS: Windows has no locks like theirs") from None

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
    MemoryError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Called with the number of bytes just done."""


@names_its_path
def write_atomically(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Writes `data` to `path` so that a kill leaves the old file or the new one.

    The folder is opened once and all happens in it: in a new file of a name that nobody can guess,
    so that whoever may write there too can put no link in its way.
    """
    with open_folder_at(path.parent) as folder:
        write_at(folder, path.name, data, mode=mode)


@contextmanager
def open_folder_at(path: Path) -> Iterator[int]:
    """Yields a descriptor of the folder `path`; what is done by it stays in that very folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_at(folder: int, name: str, data: bytes, *, mode: int = 0o644) -> None:
    """Writes `data` to the file `name` in the folder of this descriptor, in one step."""
    with new_file_at(folder, name, mode=mode) as file:
        file.write(data)


@contextmanager
def new_file_at(
    folder: int, name: str, *, mode: int = 0o644, hidden: str = ""
) -> Iterator[BinaryIO]:
    """Yields a new file, which takes the place of `name` in `folder` after the block, durably.

    Args:
        folder: A descriptor.
        name: What it is called at last.
        mode: Its permissions.
        hidden: An ending of its name until then.
    """
    part = f"{PART_PREFIX}{name[:150]}.{secrets.token_hex(8)}{hidden}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(part, flags, mode, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(part, dir_fd=folder)
        raise
    os.fsync(folder)


def sweep_parts(folder: Path, *, older_than_s: float = 3600.0) -> None:
    """Deletes files in `folder` that a killed process did not finish: nobody else ever would."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(PART_PREFIX) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > older_than_s:
                        Path(entry.path).unlink()


@names_its_path
def commit_file(part: Path, path: Path) -> None:
    """Gives the finished file `part` the name `path`, in one step and durably.

    Only for a folder that nobody else may write to: `part` was made by its name.
    """
    with open_regular(part) as file:
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)


def open_to_append(path: Path) -> BinaryIO:
    """Returns the plain file `path`, open for writing at its end; it is made if it is not there.

    Raises:
        FileSetError: it is a link, or not a plain file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    return os.fdopen(_own_file(path, flags), "ab")


def _own_file(path: Path, flags: int) -> int:
    """Returns a descriptor of a plain file in a folder of ours; a link there leads elsewhere."""
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _not_regular(str(path.parent), path.name, "a symbolic link") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(str(path.parent), path.name, "not a regular file")
    return descriptor


@names_its_path
def append_durably(path: Path, line: bytes) -> None:
    """Appends `line` and a line feed to `path`; on return it is on disk."""
    with open_to_append(path) as file:
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def drop_torn_line(path: Path) -> None:
    """Removes from the end of `path` what a kill left of a line that has no line feed yet."""
    if not path.exists():
        return
    with os.fdopen(_own_file(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK), "r+b") as file:
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


def _lock_file(path: Path) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    return os.fdopen(_own_file(path, flags), "wb")


@contextmanager
def exclusive(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds the lock file `path`; the system frees it however the process ends.

    Args:
        path: The lock file; it is made where there is none.
        wait: Whether to wait for another process that holds it.

    Raises:
        BusyError: another process holds it, and `wait` is false.
    """
    with _lock_file(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            is_ours = os.fstat(file.fileno()).st_nlink > 0  # of a deleted file, others make another
        except BlockingIOError:
            is_ours = False
        if not is_ours:
            raise BusyError(
                f"another process is working in {path.parent}",
                hint="wait until it has finished, or stop it, then run this again",
            )
        yield


def is_locked(path: Path) -> bool:
    """Returns whether a process holds the lock file `path`."""
    try:
        with exclusive(path):
            return False
    except BusyError:
        return True


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
    path.parent.mkdir(parents=True, exist_ok=True)
    leftover = re.compile(rf"{re.escape(PART_PREFIX + path.name)}(\.[0-9a-f]{{16}})?")
    for earlier in path.parent.iterdir():
        if leftover.fullmatch(earlier.name) and not earlier.is_symlink() and earlier.is_dir():
            shutil.rmtree(earlier)
    part = path.with_name(f"{PART_PREFIX}{path.name}.{secrets.token_hex(8)}")
    part.mkdir()
    made = _identity(part)
    try:
        with naming(path):
            yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if _identity(part) != made:
        raise FileSetError(
            f"{part} was exchanged while it was written",
            hint="somebody else writes to this folder: find out who, and start again",
        )
    for folder, _, files in os.walk(part):
        for name in files:
            with open_regular(Path(folder) / name) as file:
                os.fsync(file.fileno())
        sync_folder(Path(folder))
    part.rename(path)
    sync_folder(path.parent)


def _identity(folder: Path) -> tuple[int, int]:
    facts = folder.lstat()
    return facts.st_dev, facts.st_ino


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


def list_regular_files(folder: Path, *, what: str, most: int = MAX_FILES) -> set[str]:
    """Returns the paths of all files under `folder`, relative, with `/`.

    Raises:
        FileSetError: `folder` is missing, or holds a link, a device or anything but files and
            folders. Links are not followed: they could lead out of the folder.
        SizeError: it holds more than `most` files.
    """
    found: set[str] = set()
    try:
        if folder.is_symlink():
            raise _not_regular(what, ".", "a symbolic link")
        _collect(folder, "", found, what, most)
    except (FileNotFoundError, NotADirectoryError):
        raise FileSetError(
            f"{what} is not a folder: {folder}", hint="check the path; it is the folder itself"
        ) from None
    except OSError as error:
        raise FileSetError(
            f"{what} cannot be listed: {error.strerror}", hint="copy the original folder again"
        ) from None
    return found


def _collect(folder: Path, prefix: str, found: set[str], what: str, most: int) -> None:
    if prefix.count("/") > MAX_DEPTH:
        raise _not_regular(what, prefix, "nested too deeply")
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.is_symlink():
                raise _not_regular(what, name, "a symbolic link")
            if entry.is_dir(follow_symlinks=False):
                _collect(Path(entry.path), f"{name}/", found, what, most)
            elif entry.is_file(follow_symlinks=False):
                found.add(name)
                if len(found) > most:
                    raise SizeError(
                        f"{what} holds more than {most} files",
                        hint="only plain files belong here; copy the original folder again",
                    )
            else:
                raise _not_regular(what, name, "not a regular file")


def _not_regular(what: str, name: str, kind: str) -> FileSetError:
    return FileSetError(
        f"{what} is refused: `{name}` is {kind}",
        hint="only plain files belong here; copy the original folder again",
    )


def require_file_set(folder: Path, expected: set[str], *, what: str, most: int = MAX_FILES) -> None:
    """Refuses `folder` unless it holds exactly the regular files `expected`.

    Raises:
        FileSetError: naming what is missing and what is too many.
    """
    found = list_regular_files(folder, what=what, most=most)
    if found != expected:
        missing, extra = sorted(expected - found), sorted(found - expected)
        parts = [f"`{name}` is missing" for name in missing[:3]]
        parts += [f"`{name}` does not belong there" for name in extra[:3]]
        hint = (
            "a file was removed or renamed after signing, or a copy is incomplete; copy the "
            "original folder again"
        )
        if not missing:
            hint = hint_about(extra) or (
                f"delete `{extra[0]}`, or copy the original folder again: a signed folder holds "
                "exactly its signed files"
            )
        raise FileSetError(f"{what} is refused: {', '.join(parts)}", hint=hint)


@contextmanager
def open_regular(path: Path, *, folder: int | None = None) -> Iterator[BufferedReader]:
    """Yields `path` open for reading; refuses links and anything that is not a plain file.

    Args:
        path: The file.
        folder: A descriptor of the folder it is in, if `path` is a name there.
    """
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags, dir_fd=folder)
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


def copy_bounded(source: Path, target: Path, limit: int) -> None:
    """Copies the plain file `source` of another party to the new file `target`, in blocks.

    Raises:
        SizeError: it goes on beyond `limit` bytes; what was copied is removed.
    """
    left = limit
    with open_regular(source) as file, target.open("xb") as copy:
        while block := file.read(min(BLOCK_BYTES, left + 1)):
            left -= len(block)
            if left < 0:
                break
            copy.write(block)
    if left < 0:
        target.unlink()
        raise SizeError(
            f"{source} has more than {limit} bytes, which is all that is read of it",
            hint="it is not what its name says: ask whoever put it there",
        )

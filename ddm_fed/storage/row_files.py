"""Rows that take long to compute, kept as they are found: by one process, or in parts by many.

A row is what a public network makes of one image. A folder holds

    NAME            the rows, one after another, in one file or several
    progress.json   how many of them are on the disk, their digests, and what they are made of
    .part-I-of-N/   the same of the I-th of N parts, in which another machine may have worked

A kill loses some seconds. Parts are computed in one folder that machines share, or `.part-*` of
several are copied into one. Computing all rows then takes up the parts, checks that each is made of
the same, is what was written and says each row once, computes what is missing, and ends with the
bytes that one machine would have made.

Machines may round unlike each other. So each part says what its machine makes of a fixed image, and
parts that differ in that are not put together.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from io import BufferedRandom
from pathlib import Path
from typing import Any, NamedTuple

from ddm_fed.errors import BusyError, OptionError, StateError, naming
from ddm_fed.progress import Advance
from ddm_fed.storage.files import (
    BLOCK_BYTES,
    PART_PREFIX,
    exclusive,
    open_regular,
    write_atomically,
)

SAVE_S = 5.0  # a kill loses no more than this
LOCK_FILE = ".lock"
PART = re.compile(rf"{re.escape(PART_PREFIX)}([1-9]\d{{0,5}})-of-([1-9]\d{{0,5}})")
ARITHMETIC = "arithmetic"

Part = tuple[int, int]
"""The I-th of N parts: `(I, N)`, I from 1."""
Compute = Callable[[range], Sequence[bytes]]
"""Makes some rows, for each file their bytes."""


class Said(NamedTuple):
    """What a progress file says."""

    done: int
    sha256: Sequence[str] = ()
    arithmetic: str | None = None


@dataclass(frozen=True)
class RowFiles:
    """Where rows lie, and what they are.

    Attributes:
        folder: Made if it is not there; readable by its owner only.
        files: Names of its files.
        row_bytes: Of one row in one file.
        total: Number of rows.
        made_of: All that decides about the rows, by name.
        at_once: Rows that are computed together, counted from the first: rounding may depend on it.
        progress_file: What says how far it is.
        first: The row that its files begin with; not 0 in a part.
    """

    folder: Path
    files: tuple[str, ...]
    row_bytes: int
    total: int
    made_of: Mapping[str, Any]
    at_once: int = 1
    progress_file: str = "progress.json"
    first: int = 0

    def done(self) -> int:
        """Returns how many rows another process has put on the disk so far."""
        try:
            said = int(json.loads((self.folder / self.progress_file).read_bytes())["done"])
            sizes = [(self.folder / name).stat().st_size for name in self.files]
        except (OSError, ValueError, KeyError):
            return 0
        return min(said, *(size // self.row_bytes for size in sizes))

    def rows_of(self, part: Part) -> range:
        """Returns the rows of a part: neighbours, and whole groups of those computed together.

        Raises:
            OptionError: there are fewer groups than parts.
        """
        index, count = part
        groups = -(-self.total // self.at_once)
        if count > groups:
            raise OptionError(
                f"--part {index}/{count}: {self.total} images are computed in {groups} groups of "
                f"{self.at_once}, each by one machine",
                hint=f"give at most {groups} parts",
            )
        first, stop = (self.at_once * (groups * number // count) for number in (index - 1, index))
        return range(first, min(stop, self.total))

    def compute_part(
        self, part: Part, compute: Compute, probe: bytes, advance: Advance = lambda _: None
    ) -> int:
        """Computes the rows of one part, and returns how many they are.

        Args:
            part: Which.
            compute: Makes rows.
            probe: What `compute` makes here of something that is the same everywhere.
            advance: Told how many more rows are done.

        Raises:
            OptionError: as `rows_of`.
            StateError: what is there already is of something else, or damaged.
            BusyError: another process computes the same part.
        """
        rows = self.rows_of(part)
        if self.said().done >= rows.stop:
            advance(len(rows))
            return len(rows)
        piece = self._piece(part)
        _make_private(piece.folder)
        arithmetic = hashlib.sha256(probe).hexdigest()
        with exclusive(piece.folder / LOCK_FILE):
            found = piece.said()
            if found.done and found.arithmetic != arithmetic:
                raise _unlike(f"the earlier run of {piece.folder}", "this one", piece.folder)
            with closing(_Writing(piece, found._replace(arithmetic=arithmetic))) as writing:
                advance(writing.done)
                writing.compute_until(rows.stop, compute, advance)
        return len(rows)

    def compute_all(
        self, compute: Compute, probe: Callable[[], bytes], advance: Advance = lambda _: None
    ) -> None:
        """Takes up the rows that parts have, and computes the others.

        Args:
            compute: Makes rows.
            probe: As for `compute_part`; asked only where there are parts and rows that none has.
            advance: Told how many more rows are done.

        Raises:
            StateError: what is there already, or a part, is of something else, or damaged; or parts
                say a row twice, or were computed by machines that round unlike.
            BusyError: another process computes all rows, or a part.
        """
        if self.said().done == self.total:
            advance(self.total)
            self._forget_parts()
            return
        _make_private(self.folder)
        with ExitStack() as held:
            held.enter_context(exclusive(self.folder / LOCK_FILE))
            pieces = self._pieces()
            for piece in pieces:
                held.enter_context(exclusive(piece.folder / LOCK_FILE))
            said = self.said()
            useful = [piece for piece in pieces if piece.until() > said.done]
            self._require_alike(useful, said.done, probe)
            with closing(_Writing(self, said)) as writing:
                advance(writing.done)
                for piece in useful:
                    writing.compute_until(piece.first, compute, advance)
                    writing.take(piece, advance)
                    shutil.rmtree(piece.folder)
                writing.compute_until(self.total, compute, advance)
        self._forget_parts()

    def _piece(self, part: Part) -> "RowFiles":
        index, count = part
        rows = self.rows_of(part)
        folder = self.folder / f"{PART_PREFIX}{index}-of-{count}"
        return replace(self, folder=folder, first=rows.start, total=len(rows))

    def _pieces(self) -> list["RowFiles"]:
        """Returns the parts that are there, in the order of their rows."""
        found = []
        for folder in self.folder.iterdir():
            if (match := PART.fullmatch(folder.name)) is None or not folder.is_dir():
                continue
            index, count = int(match[1]), int(match[2])
            if index > count or count > -(-self.total // self.at_once):
                raise StateError(
                    f"{folder} is no part of these {self.total} images",
                    hint="delete that folder, or look where it was copied from",
                )
            found.append(self._piece((index, count)))
        found.sort(key=lambda piece: (piece.first, piece.total))
        before, stop = None, 0
        for piece in found:
            if (last := piece.until()) == piece.first:
                continue
            if before is not None and piece.first < stop:
                raise StateError(
                    f"{before.folder} and {piece.folder.name} say the same rows",
                    hint="delete the one that is of another number of parts",
                )
            before, stop = piece, last
        return found

    def _require_alike(
        self, pieces: Sequence["RowFiles"], done: int, probe: Callable[[], bytes]
    ) -> None:
        """Refuses parts whose machines round unlike each other, or unlike this one if it is due."""
        known: dict[str | None, Path] = {}
        for piece in pieces:
            arithmetic = piece.said().arithmetic
            known.setdefault(arithmetic, piece.folder)
            if len(known) > 1:
                raise _unlike(str(known.popitem()[1]), str(next(iter(known.values()))))
        held = sum(piece.until() - max(piece.first, done) for piece in pieces)
        if known and held < self.total - done:
            arithmetic, folder = known.popitem()
            if hashlib.sha256(probe()).hexdigest() != arithmetic:
                raise _unlike("this machine", str(folder))

    def until(self) -> int:
        """Returns the row up to which it is done."""
        return self.first + self.said().done

    def _forget_parts(self) -> None:
        """Removes parts that are not needed any more: they are as private as the whole."""
        if not self.folder.is_dir():
            return
        for folder in self.folder.iterdir():
            if PART.fullmatch(folder.name) is not None and folder.is_dir():
                with suppress(OSError, BusyError), exclusive(folder / LOCK_FILE):
                    shutil.rmtree(folder)

    def said(self) -> Said:
        """Returns how far it is, having looked whether it is made of the same.

        Raises:
            StateError: it is of something else, or damaged.
        """
        path = self.folder / self.progress_file
        if not path.exists():
            return Said(0)
        try:
            with open_regular(path) as file:
                facts = json.load(file)
            said = Said(int(facts["done"]), list(facts.get("sha256", ())), facts.get(ARITHMETIC))
            found = {"first": 0, "of": self.total, **facts, **facts.get("made_of", self.made_of)}
        except (ValueError, TypeError, KeyError, AttributeError):
            raise _damaged(path) from None
        for name, expected in {**self.made_of, "first": self.first, "of": self.total}.items():
            if found.get(name) != expected:
                raise StateError(
                    f"{self.folder} was begun with another `{name}`: {found.get(name)}, now "
                    f"{expected}",
                    hint="delete that folder, or work in another",
                )
        if not 0 <= said.done <= self.total:
            raise _damaged(path)
        for name in self.files:
            held, due = self.folder / name, said.done * self.row_bytes
            size = held.stat().st_size if held.exists() else 0
            if size < due or (said.done == self.total and size > due):
                raise _damaged(held)
        return said


class _Writing:
    """The files of rows, open at the first row that is missing."""

    def __init__(self, rows: RowFiles, said: Said) -> None:
        self._rows, self._arithmetic = rows, said.arithmetic
        self.done = said.done
        self._opened = ExitStack()
        self._files, self._digests = list[BufferedRandom](), []
        self._saved = time.monotonic()
        length = said.done * rows.row_bytes
        for number, name in enumerate(rows.files):
            file = self._opened.enter_context(_continued(rows.folder / name, length))
            digest = hashlib.file_digest(file, "sha256")
            if number < len(said.sha256) and digest.hexdigest() != said.sha256[number]:
                self._opened.close()
                raise _damaged(rows.folder / name)
            self._files.append(file)
            self._digests.append(digest)

    def close(self) -> None:
        """Closes the files; what was not saved is computed again."""
        self._opened.close()

    def compute_until(self, stop: int, compute: Compute, advance: Advance) -> None:
        """Computes the rows before `stop` that are missing."""
        rows, started = self._rows, self.done
        with naming(rows.folder):
            while (start := rows.first + self.done) < stop:
                # those that are computed together begin at multiples, wherever a kill was
                end = min(stop, (start // rows.at_once + 1) * rows.at_once)
                for number, data in enumerate(compute(range(start, end))):
                    self._write(number, data)
                self.done += end - start
                advance(end - start)
                if time.monotonic() - self._saved > SAVE_S:
                    self._save()
            if self.done > started:
                self._save()

    def take(self, piece: RowFiles, advance: Advance) -> None:
        """Takes up the rows of a part, all of which are read and compared with its digests."""
        said, row_bytes, before = piece.said(), self._rows.row_bytes, self.done
        with naming(self._rows.folder):
            for number, name in enumerate(self._rows.files):
                digest, left = hashlib.sha256(), said.done * row_bytes
                known = (before - piece.first) * row_bytes  # bytes that are here already
                with open_regular(piece.folder / name) as file:
                    while left and (block := file.read(min(BLOCK_BYTES, left))):
                        left -= len(block)
                        digest.update(block)
                        self._write(number, block[known:])
                        known = max(0, known - len(block))
                if left or digest.hexdigest() != dict(enumerate(said.sha256)).get(number):
                    raise _damaged(piece.folder / name)  # nothing of it was saved
            self.done = piece.first + said.done
            self._save()
        advance(self.done - before)

    def _write(self, number: int, data: bytes) -> None:
        self._files[number].write(data)
        self._digests[number].update(data)

    def _save(self) -> None:
        """Says how many are done, when they are on the disk."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        rows = self._rows
        facts: dict[str, Any] = {
            "done": self.done,
            "of": rows.total,
            "sha256": [digest.hexdigest() for digest in self._digests],
            "made_of": dict(rows.made_of),
        }
        if self._arithmetic:
            facts |= {"first": rows.first, ARITHMETIC: self._arithmetic}
        text = json.dumps(facts, indent=1).encode()
        write_atomically(rows.folder / rows.progress_file, text, mode=0o600)
        self._saved = time.monotonic()


def _continued(path: Path, size: int) -> BufferedRandom:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    file = os.fdopen(os.open(path, flags, 0o600), "r+b")
    file.truncate(size)
    return file


def _make_private(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)


def _damaged(path: Path) -> StateError:
    return StateError(
        f"{path} is not what an earlier run left there",
        hint=f"delete {path.parent}, and what was in it is computed again",
    )


def _unlike(one: str, other: str, delete: Path | None = None) -> StateError:
    which = "one of them" if delete is None else delete
    return StateError(
        f"{one} and {other} round unlike each other: they are of different processors, numbers of "
        "threads or versions of a library, and the bytes would not be those of one machine",
        hint=f"delete {which}, and compute it where the other was computed",
    )

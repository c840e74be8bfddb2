"""Images decoded once, kept in files that are mapped: memory stays flat, a kill loses a block.

A store is a folder called by a digest of what went into it: the source's files (their names, sizes
and times), the plan's shape and the site's value range. In it:

    pixels.bin      uint8, one image after another, (C, H, W)
    rows.bin        int64, for each image: its label and its unit, as numbers, -1 for none, and
                    the number of its item in the source
    captions.jsonl  a JSON string or null for each image, where any has a caption
    blocks.jsonl    a line for each block that is wholly in the files above; the point of no return
    complete.json   written last

A unit is kept as a number. Its id (a patient's) is neither kept nor shown: after a kill the ids of
what is done already are read from the source again, and numbered in the same order.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ddm_fed.errors import BusyError, DataError, StateError, printable
from ddm_fed.limits import MIB
from ddm_fed.storage.files import exclusive, sync_folder, write_atomically
from sites.data.picture import Item, LeftOutError, Picture, PictureError, Pixels, Source, Wanted
from sites.data.report import DataReport
from sites.data.units import UnitIds

VERSION = 1
BLOCK_IMAGES, BLOCK_BYTES = 512, 16 * MIB
SPARE_BYTES = 64 * MIB  # that the disk keeps free
ROW = 3  # numbers

GREY = 2  # axes of an image without colours
Counting = Callable[[str, int, str], AbstractContextManager[Callable[..., None]]]
"""Shows how far a count has come, as `console.counting` does."""


@contextmanager
def nobody_counts(description: str, total: int, unit: str) -> Iterator[Callable[..., None]]:  # noqa: ARG001
    """Shows nothing."""
    yield lambda *_: None


class Stored(NamedTuple):
    """What a finished store holds.

    Attributes:
        pixels: uint8 `(N, C, H, W)`, mapped.
        labels: What each image is labelled as, as numbers into `names` `(N,)`; -1 for none.
        names: Labels as the source wrote them.
        items: The number of each image's item in the source `(N,)`.
        units: Numbers of units `(N,)` int64; -1 for none.
        joined: Ids of units that were taken as another's.
        captions: Of every image; None if no image has one.
    """

    pixels: Pixels
    labels: NDArray[np.int64]
    names: list[str | int]
    items: NDArray[np.int64]
    units: NDArray[np.int64]
    joined: int
    captions: tuple[str | None, ...] | None


@dataclass
class Progress:
    """What is done; a line of `blocks.jsonl` says it for one block, their sum for all."""

    items: int = 0
    images: int = 0
    caption_bytes: int = 0
    captioned: int = 0
    names: list[str | int] = field(default_factory=list)
    changes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    values: dict[str, list[float]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def take(self, picture: Picture) -> None:
        """Takes down what was done to one image."""
        self.images += 1
        self.changes.update(picture.changes)
        self.sizes[f"{picture.size[0]} x {picture.size[1]} {picture.mode}"] += 1
        low, high = picture.span
        self._widen(json.dumps([picture.depth, low, high]), *picture.found)

    def _widen(self, kind: str, least: float, greatest: float) -> None:
        known = self.values.get(kind, [least, greatest])
        self.values[kind] = [min(known[0], least), max(known[1], greatest)]

    def add(self, more: Self) -> None:
        """Adds what another block did."""
        self.items += more.items
        self.images += more.images
        self.caption_bytes += more.caption_bytes
        self.captioned += more.captioned
        self.names += more.names
        self.changes.update(more.changes)
        self.sizes.update(more.sizes)
        for kind, (least, greatest) in more.values.items():
            self._widen(kind, least, greatest)
        self.skipped += more.skipped
        for reason, names in more.left_out.items():
            self.left_out.setdefault(reason, []).extend(names)

    def note(self, report: DataReport) -> None:
        """Tells a report what was done."""
        report.skipped += self.skipped
        for reason, names in self.left_out.items():
            for name in names:
                report.leave_out(reason, name)
        report.note_changes(self.changes)
        report.sizes.update(self.sizes)
        kinds = sorted((json.loads(kind), found) for kind, found in self.values.items())
        for (depth, low, high), (least, greatest) in kinds:
            report.note_values(depth, (least, greatest), (low, high))


def key_of(source: Source, wanted: Wanted) -> tuple[str, int]:
    """Returns the digest that names the store of a source, and how many items it has."""
    digest, count = hashlib.sha256(), 0
    spec = wanted.spec
    shape = (VERSION, spec.channels, spec.height, spec.width, spec.fit, wanted.value_range)
    digest.update(repr(shape).encode())
    for stamp in source.stamps():
        digest.update(stamp.encode("utf-8", "surrogateescape") + b"\0")
    count = source.count()
    return digest.hexdigest()[:32], count


def store_images(
    folder: Path,
    source: Source,
    wanted: Wanted,
    report: DataReport,
    counting: Counting = nobody_counts,
) -> Stored:
    """Returns the images of a source, decoded into `folder`, or found there.

    Args:
        folder: Of all stores; one process at a time decodes into one of them, others wait.
        source: Where the images are.
        wanted: What they become.
        report: Gets what was done.
        counting: Shows how many items are done.

    Raises:
        StateError: the disk has no room.
        DataError: the source cannot be read.
    """
    key, count = key_of(source, wanted)
    place = folder / key
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    about = json.dumps([report.source, *wanted.spec.pixel_shape, wanted.spec.fit])
    with exclusive(place / ".lock", wait=True):
        if not (place / "complete.json").exists():
            write_atomically(place / "about.json", about.encode())
            with counting(f"decoding {report.source}", count, "files") as update:
                _Writer(place, source, wanted, count).run(update)
            _forget_others(folder, place, about)
        done, facts = _finished(place)
    done.note(report)
    for name in facts["unused"]:
        report.leave_out("columns and entries are not used", name)
    return _open(place, wanted, done, facts["joined"])


class _Writer:
    """Decodes what is missing."""

    def __init__(self, place: Path, source: Source, wanted: Wanted, count: int) -> None:
        self._place, self._source, self._wanted, self._count = place, source, wanted, count
        self._image_bytes = wanted.spec.channels * wanted.spec.height * wanted.spec.width
        self._numbers: dict[str | int, int] = {}
        self._ids = UnitIds()

    def run(self, update: Callable[..., None]) -> None:
        done = _read_blocks(self._place / "blocks.jsonl")
        self._require_room(self._count - done.items)
        self._numbers = {name: number for number, name in enumerate(done.names)}
        items = self._source.items()
        for item in islice(items, done.items):
            self._ids.number(item.unit())
        with self._files(done) as files:
            update(done.items)
            while block := self._block(items, files, update, done.items):
                files.commit(json.dumps(vars(block)).encode() + b"\n")
                done.add(block)
        facts = {"joined": self._ids.joined, "unused": sorted(self._source.unused)}
        write_atomically(self._place / "complete.json", json.dumps(facts).encode())
        sync_folder(self._place)

    def _files(self, done: Progress) -> "_Files":
        image, number = self._image_bytes, np.dtype(np.int64).itemsize
        return _Files(
            self._place,
            {
                "pixels.bin": done.images * image,
                "rows.bin": done.images * ROW * number,
                "captions.jsonl": done.caption_bytes,
            },
        )

    def _block(
        self, items: Iterator[Item], files: "_Files", update: Callable[..., None], before: int
    ) -> Progress | None:
        """Returns what the next block of items did; None if there are no more."""
        block = Progress()
        while block.images < BLOCK_IMAGES and block.images * self._image_bytes < BLOCK_BYTES:
            item = next(items, None)
            if item is None:
                break
            unit = self._ids.number(item.unit())  # also of what is skipped: see `run`
            self._take(item, (unit, before + block.items), block, files)
            block.items += 1
            update(before + block.items)
        return block if block.items else None

    def _take(self, item: Item, numbers: tuple[int, int], block: Progress, files: "_Files") -> None:
        mine, start = Progress(), files.pixels.tell()
        try:
            for picture in item.pictures(self._wanted):
                if mine.images * self._image_bytes % BLOCK_BYTES == 0:
                    self._require_room(1)
                shown = picture.pixels
                planes = shown[None] if shown.ndim == GREY else np.moveaxis(shown, 2, 0)
                files.pixels.write(np.ascontiguousarray(planes).tobytes())
                mine.take(picture)
        except (PictureError, LeftOutError) as error:
            # all of a file or nothing: a frame that breaks leaves the others of it in doubt
            files.pixels.seek(start)
            files.pixels.truncate()
            if isinstance(error, PictureError):
                block.skipped.append(printable(f"{item.name}: {error}"))
            else:
                block.left_out.setdefault(str(error), []).append(item.name)
            return
        line = json.dumps(item.caption).encode() + b"\n"
        files.captions.write(line * mine.images)
        mine.caption_bytes = mine.images * len(line)
        mine.captioned = mine.images * (item.caption is not None)
        row = np.array([self._label(item.label, mine), *numbers], dtype=np.int64)
        files.rows.write(row.tobytes() * mine.images)
        block.add(mine)

    def _label(self, label: str | int | None, block: Progress) -> int:
        if label is None:
            return -1
        if label not in self._numbers:
            self._numbers[label] = len(self._numbers)
            block.names.append(label)
        return self._numbers[label]

    def _require_room(self, images: int) -> None:
        needed = images * (self._image_bytes + 64) + SPARE_BYTES
        free = shutil.disk_usage(self._place).free
        if free < needed:
            raise StateError(
                f"{images:,} decoded images take {needed / MIB:,.0f} MiB, and the disk of "
                f"{self._place.parent} has {free / MIB:,.0f} MiB left",
                hint="free some, then run the same command again: it goes on where it stopped",
            )


class _Files:
    """The files of a store while it is written, each cut to what whole blocks put into it."""

    def __init__(self, place: Path, lengths: dict[str, int]) -> None:
        opened = []
        for name, length in lengths.items():
            file = (place / name).open("r+b" if (place / name).exists() else "w+b")
            file.truncate(length)
            file.seek(length)
            opened.append(file)
        self.pixels, self.rows, self.captions = opened
        self._blocks = (place / "blocks.jsonl").open("ab")

    def commit(self, line: bytes) -> None:
        """Makes what was written durable, and then the line that says so."""
        for file in (self.pixels, self.rows, self.captions):
            file.flush()
            os.fsync(file.fileno())
        self._blocks.write(line)
        self._blocks.flush()
        os.fsync(self._blocks.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for file in (self.pixels, self.rows, self.captions, self._blocks):
            file.close()


def _read_blocks(path: Path) -> Progress:
    """Returns what is done; cuts off a line that a kill left half written."""
    done, whole = Progress(), 0
    if not path.exists():
        return done
    data = path.read_bytes()
    for line in data.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        facts = json.loads(line)
        counters = {name: Counter(facts[name]) for name in ("changes", "sizes")}
        done.add(Progress(**(facts | counters)))
        whole += len(line)
    os.truncate(path, whole)
    return done


def _finished(place: Path) -> tuple[Progress, dict[str, Any]]:
    try:
        done = _read_blocks(place / "blocks.jsonl")
        return done, json.loads((place / "complete.json").read_bytes())
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{place} is damaged ({type(error).__name__})",
            hint="remove that folder and run the same command again: images are decoded anew",
        ) from None


def _open(place: Path, wanted: Wanted, done: Progress, joined: int) -> Stored:
    spec, count = wanted.spec, done.images
    shape = (count, spec.channels, spec.height, spec.width)
    if (place / "pixels.bin").stat().st_size != np.prod(shape):
        raise DataError(
            f"{place} is damaged: it does not hold {count} images",
            hint="remove that folder and run the same command again: images are decoded anew",
        )
    pixels: Pixels = (
        np.memmap(place / "pixels.bin", np.uint8, "r", shape=shape)
        if count
        else np.zeros(shape, np.uint8)
    )
    rows = np.fromfile(place / "rows.bin", np.int64).reshape(-1, ROW)
    captions = None
    if done.captioned:
        with (place / "captions.jsonl").open("rb") as file:
            captions = tuple(json.loads(line) for line in file)
    return Stored(pixels, rows[:, 0], done.names, rows[:, 2], rows[:, 1], joined, captions)


def _forget_others(folder: Path, place: Path, about: str) -> None:
    """Removes stores of the same source and shape as it was before: it has changed since."""
    for other in folder.iterdir():
        if other == place or not (other / "about.json").is_file():
            continue
        with suppress(OSError, BusyError):
            if (other / "about.json").read_text() == about:
                with exclusive(other / ".lock"):
                    shutil.rmtree(other)

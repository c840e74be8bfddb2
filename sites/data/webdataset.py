"""Shards of WebDataset: tar files in which the entries of one sample follow one another.

A sample is called like its entries up to the first dot. Entries are found by their headers alone
and read where they lie, so that a pass opens each shard once and nothing is unpacked. The package
`webdataset` is not used: it also opens commands and pickles; docs/adr/0037.
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ddm_fed.errors import DataError, printable
from ddm_fed.limits import KIB, MIB
from sites.data.dicom import SUFFIXES as DICOM_SUFFIXES
from sites.data.dicom import decode_dicom
from sites.data.folder import stamp_of
from sites.data.image_file import SUFFIXES, decode_picture
from sites.data.picture import Item, Picture, PictureError, Source, Wanted
from sites.data.table import COLUMNS, Row, json_object, to_row

MAX_IMAGE_BYTES = 1024 * MIB
MAX_TEXT_BYTES = 64 * KIB
TEXTS = {"cls": "label", "txt": "caption", "caption": "caption", "json": ""}
NO_IMAGE = "it has no image"


class Entry(NamedTuple):
    """Where an entry lies in its shard."""

    offset: int
    size: int


class Sample(NamedTuple):
    """The entries of one sample, by what follows the first dot of their names."""

    shard: Path
    key: str
    entries: dict[str, Entry]


@dataclass(frozen=True, kw_only=True)
class ShardItem(Item):
    """The image of a sample; or none, which is an error of its own."""

    shard: Path
    entry: Entry | None
    is_dicom: bool

    def pictures(self, wanted: Wanted) -> Iterator[Picture]:
        """Yields its images; see `Item`."""
        if self.entry is None:
            raise PictureError(NO_IMAGE)
        data = _read(self.shard, self.entry, MAX_IMAGE_BYTES)
        if data is None:
            raise PictureError(f"it has more than {MAX_IMAGE_BYTES} bytes")
        if self.is_dicom:
            yield from decode_dicom(io.BytesIO(data), wanted)
        else:
            yield decode_picture(io.BytesIO(data), wanted)


@dataclass(frozen=True)
class WebDatasetSource(Source):
    """The samples of shards, shard after shard in the order given."""

    shards: list[Path]
    unused: set[str] = field(default_factory=set)

    def count(self) -> int:
        """Returns how many items there are."""
        return sum(1 for shard in self.shards for _ in _samples(shard))

    def stamps(self) -> Iterator[str]:
        """Yields what changes when the files do."""
        for shard in self.shards:
            yield f"{shard}:{stamp_of(shard)}"

    def items(self) -> Iterator[Item]:
        """Yields the items, always in the same order."""
        for shard in self.shards:
            for sample in _samples(shard):
                yield self._item(sample)

    def _item(self, sample: Sample) -> Item:
        images = _of_kind(sample, SUFFIXES)
        scans = _of_kind(sample, DICOM_SUFFIXES)
        name = printable(f"{sample.shard.name}: {sample.key}")
        chosen = (images or scans)[:1]
        self.unused.update(
            f".{printable(other)}" for other in sample.entries if other not in (*chosen, *TEXTS)
        )
        row = self._said(sample, name)
        return ShardItem(
            name=name,
            stamp="",  # the shard's says it
            shard=sample.shard,
            entry=sample.entries[chosen[0]] if chosen else None,
            is_dicom=not images and bool(scans),
            label=row.label,
            caption=row.caption,
            unit_id=row.unit,
        )

    def _said(self, sample: Sample, name: str) -> Row:
        values: dict[str, Any] = {}
        for ending, meant in TEXTS.items():
            if ending not in sample.entries:
                continue
            data = _read(sample.shard, sample.entries[ending], MAX_TEXT_BYTES)
            found = _text(data, meant) if meant else json_object(data or b"", MAX_TEXT_BYTES)
            if found is None:
                raise DataError(
                    f"the .{ending} of {name} is not what is read",
                    hint=f"UTF-8, at most {MAX_TEXT_BYTES} bytes; a .json holds an object",
                )
            values |= {key: value for key, value in found.items() if key not in values}
        plain = {  # a name of a file says nothing here: the image lies in the shard
            key: value
            for key, value in values.items()
            if not isinstance(value, dict | list) and key.lower() not in COLUMNS["file"]
        }
        return to_row(plain, sample.shard, 0, self.unused)


def _of_kind(sample: Sample, suffixes: set[str]) -> list[str]:
    """Returns the entry that is the sample's image: `png`, or else the only one as `left.png`."""
    plain = [name for name in sample.entries if f".{name}" in suffixes]
    longer = [name for name in sample.entries if f".{name.rpartition('.')[2]}" in suffixes]
    return plain or (longer if len(longer) == 1 else [])


def _text(data: bytes | None, meant: str) -> dict[str, Any] | None:
    try:
        return None if data is None else {meant: data.decode("utf-8-sig").strip()}
    except UnicodeDecodeError:
        return None


def _samples(shard: Path) -> Iterator[Sample]:
    """Yields the samples of a shard; only headers of entries are read.

    Raises:
        DataError: it is compressed, broken, or ends before it should.
    """
    key, entries = "", dict[str, Entry]()
    try:
        with tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
                if not member.isreg():
                    continue
                folder, _, last = member.name.rpartition("/")
                stem, _, ending = last.partition(".")
                if not stem or last.startswith("._"):
                    continue
                of = f"{folder}/{stem}" if folder else stem
                if of != key or ending.lower() in entries:
                    if entries:
                        yield Sample(shard, key, entries)
                    key, entries = of, {}
                entries[ending.lower()] = Entry(member.offset_data, member.size)
    except (tarfile.TarError, EOFError, OSError):
        raise DataError(
            f"{shard} is no whole tar file",
            hint="copy it again; a compressed one is to be unpacked: gunzip, zstd -d",
        ) from None
    if entries:
        yield Sample(shard, key, entries)


def _read(shard: Path, entry: Entry, limit: int) -> bytes | None:
    """Returns an entry's bytes; None if they are more than `limit`."""
    if entry.size > limit:
        return None
    with shard.open("rb") as file:
        file.seek(entry.offset)
        return file.read(entry.size)

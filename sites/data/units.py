"""Which images belong to one patient: read where the images lie, kept as bare numbers.

Ids may be names or hospital numbers. They become indices in the order of their first image, so that
nothing of them is kept and renaming everybody changes nothing; no message shows one.
"""

import csv
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddm_fed.errors import DataError
from ddm_fed.records import PrivacyUnit
from ddm_fed.storage.files import UNREADABLE_ARCHIVE
from ddm_fed.storage.numpy_files import require_honest_archive, require_honest_array

Ids = NDArray[Any]
NPZ_KEYS = ("units", "patient_ids")
CSV_NAME = "units.csv"
CSV_HEADER = ["file", "unit"]
# What exports, tables and people write where an id is missing, in lower case; docs/plan.md states
# the list, and `_is_missing` what else is. As one id it would join strangers to one patient, who is
# then not the unit that epsilon speaks of.
MISSING = {
    *("na", "n/a", "n.a.", "n.a", "n/k", "nd", "n.d.", "nan", "-nan", "nat", "none", "null", "nil"),
    *("<na>", "#na", "#n/a", "#n/a n/a", "#null!", "#value!", "#ref!", "#name?", "#div/0!"),
    *("#num!", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "undefined", "missing", "unknown"),
    *("unk", "not known", "not available", "not applicable", "no id", "anonymous", "anon"),
    *("anonymized", "anonymised", "deidentified", "de-identified", "removed", "redacted", "tbd"),
    *("xxx", "unbekannt"),
}
INVISIBLE = {"Cf", "Cc"}  # zero-width blanks and joiners, marks of direction and of byte order
INVISIBLE_TOO = {"\u034f", "\u115f", "\u1160", "\u2800", "\u3164", "\uffa0"}  # and selectors:
SELECTORS = range(0xFE00, 0xFE10)
WHOLE = re.compile(r"([+-]?\d+)\.0+")  # how a table writes whole numbers where others are missing
IGNORED = "unit ids are ignored: the plan protects single images (`privacy.unit`)"
JOINED = (
    "{} ids differ from another only in blanks, invisible characters, the way an accent is "
    "written, or a decimal .0: they are taken as the same patient"
)
HOW_TO_GIVE = (
    "add `units` to the .npz, NAME.units.npy beside NAME.npy, to a folder units.csv with the "
    "columns file,unit, or to a table the column unit; DICOM files say it by themselves"
)


class UnitIds:
    """Numbers ids in the order in which they first appear, and keeps how often one is missing.

    Example:
        >>> ids = UnitIds()
        >>> [ids.number(each) for each in ("Ann", "Bob ", "Bob", "", None)]
        [0, 1, 1, -1, -1]
        >>> ids.missing, ids.joined
        (2, 1)
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._written = set[str]()
        self.missing = 0

    @property
    def joined(self) -> int:
        """How many ids differ from another only in ways that do not count."""
        return len(self._written) - len(self._numbers)

    def number(self, unit_id: str | None) -> int:
        """Returns the number of an id; -1 if it is missing."""
        normal = "" if unit_id is None else _normal(unit_id)
        if _is_missing(normal):
            self.missing += 1
            return -1
        self._written.add(str(unit_id))
        return self._numbers.setdefault(normal, len(self._numbers))


def units_of_items(
    numbers: NDArray[np.int64], joined: int, unit: PrivacyUnit, source: str, notes: list[str]
) -> torch.Tensor | None:
    """Returns for every image the index of its patient, `(N,)` int64; None if images are units.

    Args:
        numbers: Of the ids `(N,)`, as `UnitIds` numbered them; -1 where one is missing.
        joined: How many ids were taken as another's.
        unit: What the plan protects.
        source: Where the images are from, for messages.
        notes: Gets a line for the site's own eyes.

    Raises:
        DataError: ids are needed and missing.
    """
    missing = int((numbers < 0).sum())
    if unit == "image":
        if missing < len(numbers):
            notes.append(IGNORED)
        return None
    if missing == len(numbers):
        raise _no_units(source)
    if missing:
        raise _missing(missing, f"the unit ids of {source}")
    if joined:
        notes.append(JOINED.format(joined))
    units = _in_order_of_appearance(numbers)
    notes.append(f"they are of {int(units.max()) + 1} patients; the plan protects patients")
    return units


def load_units(
    place: Path | None, count: int, unit: PrivacyUnit, notes: list[str]
) -> torch.Tensor | None:
    """Returns for every image of an array the index of its patient, as `units_of_items` does.

    Args:
        place: The file of the images; None if they come from nowhere that has ids.
        count: N, the number of images that were read.
        unit: What the plan protects.
        notes: Gets a line for the site's own eyes.

    Raises:
        DataError: ids are needed and missing or malformed.
    """
    found = _places_of_ids(place)
    if unit == "image":
        if found:
            notes.append(IGNORED)
        return None
    if place is None or not found:
        raise _no_units(str(place or "the data set"))
    if len(found) > 1:
        raise DataError(f"{place} holds {' and '.join(found)}", hint="keep one of them")
    units = _indices(_read(place, found[0]), count, f"the unit ids of {place}", notes)
    notes.append(f"they are of {int(units.max()) + 1} patients; the plan protects patients")
    return units


def _no_units(place: str) -> DataError:
    return DataError(
        f"{place} does not say which images belong to one patient; the plan "
        'protects patients (privacy.unit = "patient")',
        hint=HOW_TO_GIVE,
    )


def _places_of_ids(place: Path | None) -> list[str]:
    """Returns what holds unit ids: keys of an archive, or the name of a file."""
    if place is None:
        return []
    if place.suffix == ".npz":
        with _archive(place) as archive:
            return [key for key in NPZ_KEYS if key in archive]
    beside = place.with_suffix(".units.npy")
    return [beside.name] if beside.is_file() else []


def _read(place: Path, name: str) -> Ids:
    if place.suffix == ".npz":
        with _archive(place) as archive:
            ids: Ids = archive[name]
            return ids
    beside = place.with_name(name)
    try:
        require_honest_array(beside)
        return np.asarray(np.load(beside, allow_pickle=False))
    except UNREADABLE_ARCHIVE as error:
        raise DataError(
            f"{beside} cannot be read: {error}", hint="write it with numpy.save, without objects"
        ) from None


@contextmanager
def _archive(path: Path) -> Iterator[Mapping[str, Ids]]:
    try:
        require_honest_archive(path)
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            yield archive
    except UNREADABLE_ARCHIVE as error:
        raise DataError(
            f"the unit ids of {path} cannot be read: {error}",
            hint="write them with numpy.savez_compressed, as whole numbers or text",
        ) from None


def read_units_csv(path: Path, files: Sequence[str]) -> dict[str, str]:
    """Returns the id of every one of `files` in the folder of `path`, and of no other.

    Raises:
        DataError: the table is malformed, lacks a file, or names another.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as opened:
            unit_of = _rows(path, csv.reader(opened, strict=True), set(files))
    except (OSError, UnicodeDecodeError, csv.Error):  # their messages may quote what they read
        raise DataError(f"{path} cannot be read", hint="save it as CSV in UTF-8") from None
    unlisted = [file for file in files if file not in unit_of]
    if unlisted:
        raise DataError(
            f"{path} lacks {len(unlisted)} of {len(files)} image files, for example {unlisted[0]}",
            hint="give every image file a row, also those that cannot be read",
        )
    return unit_of


def _rows(path: Path, reader: Any, files: set[str]) -> dict[str, str]:
    if [field.strip() for field in next(reader, [])] != CSV_HEADER:
        raise DataError(
            f"{path} does not begin with the line {','.join(CSV_HEADER)}",
            hint="separate the columns with a comma and name them in the first line",
        )
    # a table of one system and the files of another may compose accents differently
    composed = {unicodedata.normalize("NFC", file): file for file in files}
    unit_of: dict[str, str] = {}
    for row in reader:
        if not row:
            continue
        if len(row) != len(CSV_HEADER):
            raise DataError(
                f"{path} has {len(row)} columns in line {reader.line_num}",
                hint="two are needed: the file and its unit",
            )
        file, unit = row
        if file not in files:
            file = composed.get(unicodedata.normalize("NFC", file), file)
        if file not in files:
            raise DataError(
                f"{path} names {file}, which is not an image file in the folder",
                hint="write paths relative to the folder, with forward slashes; remove other rows",
            )
        if file in unit_of:
            raise DataError(f"{path} names {file} twice", hint="keep one row for every image file")
        if "\0" in unit:  # NumPy cuts text there, and two patients might become one
            raise csv.Error
        unit_of[file] = unit
    return unit_of


def _indices(ids: Ids, count: int, what: str, notes: list[str]) -> torch.Tensor:
    """Returns indices from 0 without a gap, in the order in which `ids` first appear."""
    if ids.ndim == 0 or ids.size != len(ids):
        raise DataError(f"{what} have shape {ids.shape}", hint="store them as (N,)")
    if len(ids) != count:
        raise DataError(
            f"{what} are {len(ids)}, the images {count}",
            hint="every image needs the id of its unit, in the order of the images",
        )
    flat = ids.reshape(-1)
    if flat.dtype.kind == "U":
        written = np.unique(flat)
        # the same patient written otherwise would be two, each with an epsilon of its own
        flat = np.array([_normal(str(each)) for each in flat], dtype=np.str_)
        missing = sum(_is_missing(str(each)) for each in flat)
        joined = len(written) - len(np.unique(flat))
        if joined and not missing:
            notes.append(JOINED.format(joined))
    else:
        missing = int(np.isnan(flat).sum()) if flat.dtype.kind == "f" else 0
    if missing:
        raise _missing(missing, what)
    if flat.dtype.kind not in "iuU":
        raise DataError(
            f"{what} are {flat.dtype}, neither whole numbers nor text",
            hint="convert them with .astype(str), or to whole numbers",
        )
    return _in_order_of_appearance(flat)


def _missing(count: int, what: str) -> DataError:
    return DataError(
        f"{count} of {what} are missing (empty, NaN, or what stands for unknown)",
        hint="give every image an id; an image of an unknown patient gets one of its own. "
        "docs/plan.md lists what counts as missing: an id that happens to be on it needs "
        "another name",
    )


def _in_order_of_appearance(ids: Ids) -> torch.Tensor:
    _, first, unit = np.unique(ids, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    return torch.from_numpy(rank[unit].astype(np.int64))


def _normal(text: str) -> str:
    """Returns an id in the one way it is compared: composed, without what nobody sees."""
    seen = "".join(c for c in text if c.isspace() or not _is_invisible(c))
    normal = unicodedata.normalize("NFC", " ".join(seen.split()))
    whole = WHOLE.fullmatch(normal)
    return whole[1] if whole else normal


def _is_invisible(letter: str) -> bool:
    return (
        unicodedata.category(letter) in INVISIBLE
        or letter in INVISIBLE_TOO
        or ord(letter) in SELECTORS
    )


def _is_missing(normal: str) -> bool:
    return normal.lower() in MISSING or not any(map(str.isalnum, normal))

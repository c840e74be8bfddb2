"""Reads images out of every form they come in."""

import math
import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ddm_fed.errors import DataError, printable
from ddm_fed.partition import depends_on_others
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import DataSpec, PrivacyUnit
from ddm_fed.storage.files import UNREADABLE_ARCHIVE
from ddm_fed.storage.numpy_files import require_honest_archive, require_honest_array
from sites.data.arrays import to_images
from sites.data.captions import KEY as CAPTIONS_KEY
from sites.data.captions import load_captions, take_captions
from sites.data.labels import class_indices, note_classes
from sites.data.picture import Pixels, Source, Wanted
from sites.data.report import DataReport
from sites.data.scratch import scratch_folder
from sites.data.sources import find_source
from sites.data.store import Counting, Stored, nobody_counts, store_images
from sites.data.units import load_units, units_of_items

NPZ_KEYS = (("images", "labels"), ("train_images", "train_labels"))  # ours, MedMNIST's
UNIT_KEYS = {"units", "patient_ids"}


def load_images(
    source: str,
    spec: DataSpec,
    *,
    unit: PrivacyUnit = "image",
    value_range: tuple[float, float] | None = None,
    max_bad_fraction: float = 0.05,
    store: Path | None = None,
    counting: Counting = nobody_counts,
) -> tuple[Private[ImageSet], DataReport]:
    """Returns the images at `source`, shaped and scaled as `spec` says, and a report.

    Args:
        source: `digits` or `digits:0-4` (the 8 by 8 digits of scikit-learn, all or some classes),
            an `.npz` file with `images` and optionally `labels` (or MedMNIST's `train_images` and
            `train_labels`), an `.npy` file of images with its labels in `NAME.labels.npy` beside
            it, or whatever `find_source` knows: folders of images or DICOM files, tables, shards,
            parquet. An `.npy` file of the plan's shape is mapped and never in memory as a whole.
            Captions are `captions` in an `.npz`, `NAME.captions.npy` beside an `.npy`, and what
            tables, shards and parquet say.
        spec: The plan's image shape and classes.
        unit: The plan's unit of privacy. Images of one patient are known by `units` (or
            `patient_ids`) in an `.npz`, `NAME.units.npy` beside an `.npy`, `units.csv` with the
            columns `file,unit` in a folder, a column `unit` of a table, and `PatientID` of DICOM.
        value_range: Values that mean black and white. Needed for signed integers; otherwise uint8
            is 0 to 255, uint16 0 to 65535, bool 0 to 1, and floats 0 to 1.
        max_bad_fraction: More unreadable files than this fraction are an error.
        store: Where images that are read one by one are kept once decoded, and mapped from; by
            default they are decoded into memory.
        counting: Shows how many of them are decoded.

    The report says what was changed and left out; its doubts are for a person to answer before
    anything is spent.

    Raises:
        DataError: naming what is wrong and what would be right.
    """
    report = DataReport(source)
    if value_range is not None and not (
        value_range[0] < value_range[1] and math.isfinite(value_range[1] - value_range[0])
    ):
        low, high = value_range
        raise DataError(f"--value-range {low:g} {high:g} is empty", hint="black first, then white")
    if source == "digits" or source.startswith("digits:"):
        held = _Held(None, *_digits(source), [str(digit) for digit in range(10)])
        return _of_array(held, spec, unit, value_range or (0.0, 16.0), report)
    path = Path(source)
    if path.is_file() and path.suffix in (".npz", ".npy"):
        _note_division(path, report)
        with counting(f"reading {source}", 0, ""):
            arrays = _npz(path, report) if path.suffix == ".npz" else _npy(path)
            return _of_array(_Held(path, *arrays, None), spec, unit, value_range, report)
    items = find_source(source, spec, report, unit)
    with scratch_folder() if store is None else nullcontext(store) as folder:
        wanted = Wanted(spec, value_range)
        found = store_images(folder, items, wanted, report, counting)
        if store is None:
            found = found._replace(pixels=np.array(found.pixels))
    return _of_items(found, items, spec, unit, max_bad_fraction, report), report


def names_of(
    source: str, spec: DataSpec, report: DataReport, rows: Sequence[int]
) -> dict[int, str]:
    """Returns what some images are called in their source, for the site's own people.

    Args:
        source: As `load_images` had it.
        spec: As `load_images` had it.
        report: Which `load_images` returned.
        rows: Of the images, in rising order.
    """
    if report.items is None:
        return {row: f"image {row}" for row in rows}
    found, wanted = dict[int, str](), {int(report.items[row]) for row in rows}
    items = find_source(source, spec, DataReport(source)).items() if wanted else iter(())
    called = {index: item.name for index, item in enumerate(items) if index in wanted}
    for row in rows:
        found[row] = called.get(int(report.items[row]), f"image {row}")
    return found


class _Held(NamedTuple):
    """Arrays as they lie in memory or in a file."""

    place: Path | None
    pixels: Pixels
    labels: Pixels | None
    names: list[str] | None


def _of_array(
    held: _Held,
    spec: DataSpec,
    unit: PrivacyUnit,
    value_range: tuple[float, float] | None,
    report: DataReport,
) -> tuple[Private[ImageSet], DataReport]:
    place, pixels, labels, names = held
    if pixels.ndim and len(pixels) == 0:
        raise _no_images(report)
    images, value_range = to_images(pixels, spec, value_range, report)
    report.count = len(images)
    indices = class_indices(labels, names, spec, report.source, len(images))
    _note_labels(indices, spec, report, given=labels is not None and place is not None)
    units = load_units(place, len(images), unit, report.notes)
    captions = take_captions(load_captions(place), spec, report.source, len(images), report)
    return Private(ImageSet(images, indices, value_range, units, captions)), report


def _of_items(
    found: Stored,
    source: Source,
    spec: DataSpec,
    unit: PrivacyUnit,
    max_bad_fraction: float,
    report: DataReport,
) -> Private[ImageSet]:
    count, bad = len(found.pixels), len(report.skipped)
    if bad > max_bad_fraction * (bad + count):
        raise DataError(
            f"{bad} of {bad + count} files in {report.source} cannot be read, for example "
            + "; ".join(report.skipped[:3]),
            hint=f"repair or remove them, or allow more than {max_bad_fraction:.0%} with "
            "--max-bad-fraction",
        )
    if not count:
        raise _no_images(report)
    report.count, report.items = count, found.items
    labels, names = _written(found, spec, report.source)
    indices = class_indices(
        labels, names, spec, report.source, count, folders=source.labels_are_folders
    )
    _note_labels(indices, spec, report, given=labels is not None)
    units = units_of_items(found.units, found.joined, unit, report.source, report.notes)
    captions = take_captions(found.captions, spec, report.source, count, report)
    return Private(ImageSet(found.pixels, indices, (0.0, 255.0), units, captions))


def _note_division(path: Path, report: DataReport) -> None:
    by = depends_on_others(path)
    if by is not None:
        report.doubts.append(
            f"{path.name} is one part of images that were divided by {by}: with one more or less, "
            "others would be in other parts, and no epsilon of the plan speaks of that. Where "
            "these are private images, divide them by public centres (`partition --centres`)"
        )


def _note_labels(
    indices: torch.Tensor | None, spec: DataSpec, report: DataReport, *, given: bool
) -> None:
    if indices is not None:
        note_classes(indices, spec, report, chosen=report.source.startswith("digits:"))
    elif given:
        report.notes.append("labels are not used: the plan has no classes")


def _written(
    found: Stored, spec: DataSpec, source: str
) -> tuple[NDArray[Any] | None, list[str] | None]:
    """Returns labels as `class_indices` takes them: numbers into names, or into the classes."""
    missing = int((found.labels < 0).sum())
    if missing == len(found.labels):
        return None, None
    if missing and spec.classes:
        raise DataError(
            f"{missing} of {len(found.labels)} images in {source} have no label",
            hint="give every image a label, or take out those without",
        )
    names = [str(name) for name in found.names]
    are_indices = all(name.isdecimal() and name.isascii() for name in names)
    if are_indices and not set(names) <= set(spec.classes):
        return np.array([int(name) for name in names], dtype=np.int64)[found.labels], None
    return found.labels, names


def _no_images(report: DataReport) -> DataError:
    source = report.source
    lines = [*report.left_out_lines(), *report.skipped[:3]]
    if not lines:
        return DataError(f"{source} holds no images", hint="check the path")
    return DataError(
        f"{source} holds no images that are read: {'; '.join(lines)}",
        hint="check the path; convert the images, for example to PNG, and put the files themselves "
        "there, not links to them",
    )


def _digits(source: str) -> tuple[Pixels, Pixels]:
    from sklearn.datasets import load_digits

    bundled = load_digits()
    wanted = set(range(10))
    if ":" in source:
        match = re.fullmatch(r"digits:(\d)(?:-(\d))?", source)
        if match is None or match[1] > (match[2] or match[1]):
            raise DataError(
                f"{source} names no digits",
                hint="write digits:3 or digits:0-4: from 0 to 9, the smaller one first",
            )
        wanted = set(range(int(match[1]), int(match[2] or match[1]) + 1))
    keep = np.isin(bundled.target, list(wanted))
    return bundled.images[keep], bundled.target[keep]


def _npz(path: Path, report: DataReport) -> tuple[Pixels, Pixels | None]:
    try:
        require_honest_archive(path)
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            for images, labels in NPZ_KEYS:
                if images in archive:
                    for unused in sorted(
                        set(archive.files) - {images, labels, CAPTIONS_KEY} - UNIT_KEYS
                    ):
                        report.leave_out("arrays of the file are not used", printable(unused))
                    return archive[images], archive.get(labels)
            found = ", ".join(sorted(archive.files)) or "nothing"
    except UNREADABLE_ARCHIVE as error:
        raise DataError(
            f"{path} cannot be read: {error}", hint="write it again with numpy.savez_compressed"
        ) from None
    raise DataError(
        f"{path} holds {found}, expected `images` or `train_images`",
        hint="numpy.savez_compressed(path, images=..., labels=...)",
    )


def _npy(path: Path) -> tuple[Pixels, Pixels | None]:
    """Returns images, mapped from the file, and labels, read from the file beside it."""
    beside = path.with_suffix(".labels.npy")
    try:
        for each in (path, *([beside] if beside.is_file() else [])):
            require_honest_array(each)
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
        labels = np.load(beside, allow_pickle=False) if beside.is_file() else None
    except UNREADABLE_ARCHIVE as error:
        raise DataError(
            f"{path} or its labels cannot be read: {error}", hint="write them with numpy.save"
        ) from None
    return pixels, labels

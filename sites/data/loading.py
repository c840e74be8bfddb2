"""Reads images out of every form they come in."""

import math
import re
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np

from ddm_fed.errors import DataError, printable
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import DataSpec, PrivacyUnit
from ddm_fed.storage.files import UNREADABLE_ARCHIVE
from ddm_fed.storage.numpy_files import require_honest_archive, require_honest_array
from sites.data.arrays import Pixels, to_images
from sites.data.find_files import class_folders_look_split, image_files, note_suspects
from sites.data.image_file import PictureError, read_picture
from sites.data.labels import class_indices, note_classes
from sites.data.report import DataReport
from sites.data.units import load_units

NPZ_KEYS = (("images", "labels"), ("train_images", "train_labels"))  # ours, MedMNIST's
UNIT_KEYS = {"units", "patient_ids"}


def load_images(
    source: str,
    spec: DataSpec,
    *,
    unit: PrivacyUnit = "image",
    value_range: tuple[float, float] | None = None,
    max_bad_fraction: float = 0.05,
) -> tuple[Private[ImageSet], DataReport]:
    """Returns the images at `source`, shaped and scaled as `spec` says, and a report.

    Args:
        source: `digits` or `digits:0-4` (the 8 by 8 digits of scikit-learn, all or some classes),
            an `.npz` file with `images` and optionally `labels` (or MedMNIST's `train_images` and
            `train_labels`), an `.npy` file of images with its labels in `NAME.labels.npy` beside
            it, or a folder of image files, with a subfolder per class or without. An `.npy` file
            of the plan's shape is mapped and never in memory as a whole.
        spec: The plan's image shape and classes.
        unit: The plan's unit of privacy. Images of one patient are known by `units` (or
            `patient_ids`) in an `.npz`, `NAME.units.npy` beside an `.npy`, and `units.csv` with the
            columns `file,unit` in a folder.
        value_range: Values that mean black and white. Needed for signed integers; otherwise uint8
            is 0 to 255, uint16 0 to 65535, bool 0 to 1, and floats 0 to 1.
        max_bad_fraction: In a folder, more unreadable files than this fraction are an error.

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
    labels: Pixels | None
    names: list[str] | None
    place: Path | None = Path(source)
    files: dict[str, bool] = {}
    if source == "digits" or source.startswith("digits:"):
        pixels, labels = _digits(source)
        place = None
        value_range = value_range or (0.0, 16.0)
        names = [str(digit) for digit in range(10)]
    elif Path(source).is_dir():
        pixels, labels, names, files = _image_folder(
            Path(source), spec, value_range, report, max_bad_fraction
        )
        value_range = None  # applied file by file, since files may differ in depth
    elif Path(source).suffix == ".npz" and Path(source).is_file():
        pixels, labels = _npz(Path(source), report)
        names = None
    elif Path(source).suffix == ".npy" and Path(source).is_file():
        pixels, labels = _npy(Path(source))
        names = None
    else:
        raise DataError(
            f"{source} is neither `digits`, an .npz or .npy file, nor a folder",
            hint="give a path that exists, or `digits` to try things out",
        )
    if pixels.ndim and len(pixels) == 0:
        raise _no_images(source, report)
    images, value_range = to_images(pixels, spec, value_range, report)
    report.count = len(images)
    indices = class_indices(labels, names, spec, source, len(images))
    if indices is not None:
        note_classes(indices, spec, report, chosen=source.startswith("digits:"))
    elif labels is not None and place is not None:
        report.notes.append("labels are not used: the plan has no classes")
    units = load_units(place, len(images), unit, report.notes, files)
    return Private(ImageSet(images, indices, value_range, units)), report


def _no_images(source: str, report: DataReport) -> DataError:
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
                    for unused in sorted(set(archive.files) - {images, labels} - UNIT_KEYS):
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


def _image_folder(
    folder: Path,
    spec: DataSpec,
    value_range: tuple[float, float] | None,
    report: DataReport,
    max_bad_fraction: float,
) -> tuple[Pixels, Pixels | None, list[str] | None, dict[str, bool]]:
    """Returns pixels, labels, names of the classes, and of every file whether it could be read."""
    files = image_files(folder, report)
    loose = [path for path in files if path.parent == folder]
    if loose and len(loose) != len(files):
        raise DataError(
            f"{folder} mixes images with subfolders, for example {loose[0].name}",
            hint="put every image into a class subfolder, or none",
        )
    note_suspects(folder, files, spec.classes, report)
    tops = [_top(path, folder) for path in files]
    names = sorted(set(tops)) if not loose else None
    if names is not None:
        _require_no_split(folder, names, spec)
    pixels, labels = [], []
    changes, spans = Counter[str](), dict[tuple[str, tuple[float, float]], tuple[float, float]]()
    readable = {path.relative_to(folder).as_posix(): True for path in files}
    for path, top in zip(files, tops, strict=True):
        try:
            picture = read_picture(path, spec, value_range)
        except PictureError as error:
            report.skipped.append(printable(f"{path.relative_to(folder)}: {error}"))
            readable[path.relative_to(folder).as_posix()] = False
            continue
        pixels.append(picture.pixels)
        changes.update(picture.changes)
        kind = (picture.depth, picture.span)
        low, high = spans.get(kind, picture.found)
        spans[kind] = (min(low, picture.found[0]), max(high, picture.found[1]))
        labels.append(names.index(top) if names else 0)
    if len(report.skipped) > max_bad_fraction * len(files):
        raise DataError(
            f"{len(report.skipped)} of {len(files)} files in {folder} cannot be read, for example "
            + "; ".join(report.skipped[:3]),
            hint=f"repair or remove them, or allow more than {max_bad_fraction:.0%} with "
            "--max-bad-fraction",
        )
    report.note_changes(changes)
    for (depth, span), found in sorted(spans.items()):
        report.note_values(depth, found, span)
    stacked = np.stack(pixels) if pixels else np.zeros((0, *spec.pixel_shape[1:]), np.uint8)
    return stacked, np.array(labels, dtype=np.int64) if names else None, names, readable


def _top(path: Path, folder: Path) -> str:
    """Returns the subfolder that `path` lies in, composed as people write it in a plan."""
    return unicodedata.normalize("NFC", path.relative_to(folder).parts[0])


def _require_no_split(folder: Path, names: list[str], spec: DataSpec) -> None:
    if not names or set(names) & set(spec.classes) or not spec.classes:
        return
    if class_folders_look_split(names):
        raise DataError(
            f"{folder} is divided into {', '.join(names)}, where the plan's classes "
            f"{', '.join(spec.classes[:10])} should be",
            hint=f"give --data the part that is for training, for example {folder / names[0]}",
        )

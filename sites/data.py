"""Opens private images. The only door to them: everything past it is `Private`.

Pixels become [-1, 1] by a rule that depends on the dtype alone, never on the values: a rule that
looked at the values would let one image change all others, and no privacy bound would hold.
"""

import math
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ddm_fed.arrays import require_honest_archive, require_honest_array
from ddm_fed.errors import DataError
from ddm_fed.files import UNREADABLE_ARCHIVE
from ddm_fed.privacy import ImageSet, Private, to_unit_range
from ddm_fed.records import DataSpec, PrivacyUnit
from sites.units import load_units

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm"}
NPZ_KEYS = (("images", "labels"), ("train_images", "train_labels"))  # ours, MedMNIST's
MAX_PIXELS = 64_000_000  # a header may claim any size; a decompression bomb stops here
BLOCK_IMAGES = 1024  # bounds memory while the values of a mapped file are checked
Pixels = NDArray[Any]


@dataclass
class DataReport:
    """What was done to the images on the way in; for the site's own eyes."""

    source: str
    count: int = 0
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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
        pixels, labels = _npz(Path(source))
        names = None
    elif Path(source).suffix == ".npy" and Path(source).is_file():
        pixels, labels = _npy(Path(source))
        names = None
    else:
        raise DataError(
            f"--data {source} is neither `digits`, an .npz or .npy file, nor a folder",
            hint="give a path that exists, or `digits` to try things out",
        )
    images, value_range = _to_images(pixels, spec, value_range, report)
    report.count = len(images)
    if report.count == 0:
        raise DataError(f"{source} holds no images", hint="check the path")
    class_indices = _class_indices(labels, names, spec, source)
    if class_indices is not None and len(class_indices) != len(images):
        raise DataError(
            f"{source} has {len(images)} images and {len(class_indices)} labels",
            hint="every image needs one label",
        )
    units = load_units(place, len(images), unit, report.notes, files)
    return Private(ImageSet(images, class_indices, value_range, units)), report


def _digits(source: str) -> tuple[Pixels, Pixels]:
    from sklearn.datasets import load_digits

    bundled = load_digits()
    wanted = set(range(10))
    if ":" in source:
        match = re.fullmatch(r"digits:(\d)(?:-(\d))?", source)
        if match is None:
            raise DataError(f"--data {source} names no digits", hint="write digits:3 or digits:0-4")
        wanted = set(range(int(match[1]), int(match[2] or match[1]) + 1))
    keep = np.isin(bundled.target, list(wanted))
    return bundled.images[keep], bundled.target[keep]


def _npz(path: Path) -> tuple[Pixels, Pixels | None]:
    try:
        require_honest_archive(path)
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            for images, labels in NPZ_KEYS:
                if images in archive:
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
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    loose = [path for path in files if path.parent == folder]
    if loose and len(loose) != len(files):
        raise DataError(
            f"{folder} mixes images with subfolders, for example {loose[0].name}",
            hint="put every image into a class subfolder, or none",
        )
    names = sorted({path.relative_to(folder).parts[0] for path in files}) if not loose else None
    pixels, labels = [], []
    readable = {path.relative_to(folder).as_posix(): True for path in files}
    for path in files:
        try:
            pixels.append(_read_image(path, spec, value_range))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            report.skipped.append(f"{path.relative_to(folder)}: {error}")
            readable[path.relative_to(folder).as_posix()] = False
            continue
        labels.append(names.index(path.relative_to(folder).parts[0]) if names else 0)
    if len(report.skipped) > max_bad_fraction * len(files):
        raise DataError(
            f"{len(report.skipped)} of {len(files)} files in {folder} cannot be read, for example "
            + "; ".join(report.skipped[:3]),
            hint=f"repair or remove them, or allow more than {max_bad_fraction:.0%} with "
            "--max-bad-fraction",
        )
    stacked = np.stack(pixels) if pixels else np.zeros((0, *spec.shape[1:]), np.uint8)
    return stacked, np.array(labels, dtype=np.int64) if names else None, names, readable


def _read_image(path: Path, spec: DataSpec, value_range: tuple[float, float] | None) -> Pixels:
    """Returns one file as uint8, `(H, W)` or `(H, W, 3)`, cropped to the plan's shape."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on odd metadata; sizes are checked below
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}"
                )
            upright = ImageOps.exif_transpose(image)
            deep = upright.mode.startswith(("I", "F"))
            if not deep:
                upright = upright.convert("L" if spec.channels == 1 else "RGB")
            if deep or value_range is not None:
                white = 1.0 if upright.mode == "F" else 65535.0 if deep else 255.0
                low, high = value_range or (0.0, white)
                values = (np.asarray(upright, dtype=np.float64) - low) / (high - low)
                if not (values.min() >= 0 and values.max() <= 1):
                    raise ValueError(
                        f"it holds values outside {low:g} to {high:g}; state what black and white "
                        "are with --value-range LOW HIGH"
                    )
                upright = Image.fromarray(np.round(values * 255).astype(np.uint8))
            mode = "L" if spec.channels == 1 else "RGB"
            fitted = ImageOps.fit(
                upright.convert(mode), (spec.width, spec.height), Image.Resampling.LANCZOS
            )
            return np.asarray(fitted)


def _to_images(
    pixels: Pixels, spec: DataSpec, value_range: tuple[float, float] | None, report: DataReport
) -> tuple[torch.Tensor | Pixels, tuple[float, float] | None]:
    """Returns pixels `(N, C, H, W)` and the values in them that mean -1 and 1, as ImageSet does.

    Bytes stay bytes and mapped files stay mapped, if they have the plan's shape.
    """
    if pixels.dtype.kind not in "buif":
        raise DataError(f"the images are {pixels.dtype}, not numbers", hint="store them as uint8")
    low, high = value_range or _range_of_dtype(pixels)
    if not low < high or not math.isfinite(high - low):
        raise DataError(
            f"--value-range {low:g} {high:g} is empty", hint="give black first, then white"
        )
    if pixels.ndim == 0 or 0 in pixels.shape[1:]:
        raise DataError(
            f"the images have shape {pixels.shape}, so they hold no pixels", hint="check the array"
        )
    for start in range(0, len(pixels), BLOCK_IMAGES):
        _require_range(pixels[start : start + BLOCK_IMAGES], low, high)
    pixels = _channels_first(pixels, spec)
    kept_as_is = isinstance(pixels, np.memmap) or pixels.dtype == np.uint8
    if kept_as_is and pixels.shape[1:] == spec.shape:
        return pixels, (low, high)
    images = to_unit_range(torch.from_numpy(pixels.astype(np.float32)), low, high)
    return _fitted(images, spec, report).contiguous(), None


def _require_range(pixels: Pixels, low: float, high: float) -> None:
    """Refuses values that are not finite, or not from `low` to `high`."""
    with np.errstate(over="ignore"):  # to infinity, which is refused next
        values = pixels.astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError("the images hold NaN or infinity", hint="clean them before training")
    if values.size and (values.min() < low or values.max() > high):
        raise DataError(
            f"the images hold values outside {low:g} to {high:g}, which is what "
            f"{pixels.dtype} means here",
            hint="state what black and white are with --value-range LOW HIGH",
        )


def _fitted(images: torch.Tensor, spec: DataSpec, report: DataReport) -> torch.Tensor:
    """Returns images of the plan's channels and size."""
    if images.shape[1] != spec.channels:
        images = _convert_channels(images, spec.channels, report)
    if tuple(images.shape[2:]) != (spec.height, spec.width):
        report.notes.append(
            f"resized from {images.shape[2]} x {images.shape[3]} to {spec.height} x {spec.width}"
        )
        images = torch.nn.functional.interpolate(
            images, (spec.height, spec.width), mode="bilinear", antialias=True
        )
    return images


def _range_of_dtype(pixels: Pixels) -> tuple[float, float]:
    if pixels.dtype == np.uint8:
        return (0.0, 255.0)
    if pixels.dtype == np.uint16:
        return (0.0, 65535.0)
    if pixels.dtype == np.bool_ or np.issubdtype(pixels.dtype, np.floating):
        return (0.0, 1.0)
    raise DataError(
        f"the images are {pixels.dtype}, which does not say what black and white are",
        hint="state it with --value-range LOW HIGH, for example --value-range 0 255",
    )


def _channels_first(images: Pixels, spec: DataSpec) -> Pixels:
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        return images.transpose(0, 3, 1, 2)
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    raise DataError(
        f"the images have shape {tuple(images.shape)}, expected (N, H, W), (N, H, W, C) or "
        f"(N, C, H, W) with C = 1 or 3, for images of {spec.shape}",
        hint="stack them along the first axis",
    )


def _convert_channels(images: torch.Tensor, channels: int, report: DataReport) -> torch.Tensor:
    if channels == 3:
        report.notes.append("grey images were repeated to three channels")
        return images.expand(-1, 3, -1, -1)
    report.notes.append("colour images were turned to grey (ITU-R 601 luma)")
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _class_indices(
    labels: Pixels | None, names: list[str] | None, spec: DataSpec, source: str
) -> torch.Tensor | None:
    """Returns labels as indices into the plan's classes; None for an unconditional plan."""
    if not spec.classes:
        return None
    if labels is None:
        raise DataError(
            f"{source} has no labels, the plan asks for the classes {', '.join(spec.classes)}",
            hint="add `labels` to the .npz, or put the images into class subfolders",
        )
    flat = np.asarray(labels).reshape(-1)
    if names is not None:
        unknown = sorted({names[i] for i in np.unique(flat)} - set(spec.classes))
        if unknown:
            raise DataError(
                f"{source} has the classes {unknown[:3]}, the plan has {list(spec.classes)[:10]}",
                hint="rename the subfolders to the plan's class names",
            )
        flat = np.array([spec.classes.index(names[i]) for i in flat], dtype=np.int64)
    if not np.issubdtype(flat.dtype, np.integer) or (
        flat.size and (flat.min() < 0 or flat.max() >= len(spec.classes))
    ):
        raise DataError(
            f"{source} has labels that are not whole numbers from 0 to {len(spec.classes) - 1}",
            hint="number them in the order of `data.classes` in the plan",
        )
    return torch.from_numpy(flat.astype(np.int64))

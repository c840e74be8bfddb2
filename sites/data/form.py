"""The form of a site's images, of which a plan may speak: size and colours, nothing of a value.

A plan is published and no ledger counts it, so it must not follow from images. Their form is what a
scanner or a file format gives all of them. It is taken from one image, and made coarse: of a large
picture the side becomes a power of two. How many there are, which classes they have, and what any
pixel is, is not looked at; a folder's subfolders are named for a person to judge, since people have
folders of patients as well.
"""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddm_fed.errors import DataError
from ddm_fed.records import DataSpec
from ddm_fed.storage.files import UNREADABLE_ARCHIVE
from ddm_fed.storage.numpy_files import HEADERS
from sites.data.arrays import CHANNELS
from sites.data.folder import FolderSource
from sites.data.image_file import GREY_MODES
from sites.data.loading import NPZ_KEYS
from sites.data.picture import LeftOutError, PictureError, Wanted
from sites.data.report import DataReport
from sites.data.sources import find_source

TRIES = 10  # of files that cannot be read
LEAST_SIDE, SMALL, LARGE = 4, 64, 256
MOST_FOLDERS = 64
DEEP_MODES = ("I", "F", "I;16", "")


class Form(NamedTuple):
    """What a plan may say of images.

    Attributes:
        height: In pixels.
        width: The same.
        channels: 1 or 3.
        folders: Names of subfolders, which may be classes.
    """

    height: int
    width: int
    channels: int
    folders: tuple[str, ...] = ()


def form_of(source: str) -> Form:
    """Returns the form of the images at `source`, from one of them.

    Raises:
        DataError: nothing there says it, or nothing so small can be trained.
    """
    form = _form_of(source)
    if min(form.height, form.width) < LEAST_SIDE:
        raise DataError(
            f"the images in {source} are {form.height} x {form.width} pixels, and sides from "
            f"{LEAST_SIDE} can be trained",
            hint="give other images, or --size and --channels without --data",
        )
    return _coarse(form)


def _form_of(source: str) -> Form:
    if source == "digits" or source.startswith("digits:"):
        return Form(8, 8, 1, tuple(map(str, range(10))))
    path = Path(source)
    if path.suffix in (".npz", ".npy") and path.is_file():
        return Form(*_of_shape(_array_shape(path), path))
    spec = DataSpec(channels=3, height=SMALL, width=SMALL)
    found = find_source(source, spec, DataReport(source))
    folders: tuple[str, ...] = ()
    if isinstance(found, FolderSource) and found.by_class:
        folders = found.class_folders()
    for tried, item in enumerate(found.items()):
        if tried == TRIES:
            break
        try:
            picture = next(iter(item.pictures(Wanted(spec))), None)
        except (PictureError, LeftOutError):
            continue
        if picture is not None:
            width, height = picture.size if all(picture.size) else (SMALL, SMALL)
            grey = picture.mode in (*GREY_MODES, *DEEP_MODES)
            named = folders if len(folders) <= MOST_FOLDERS else ()
            return Form(height, width, 1 if grey else 3, named)
    raise DataError(
        f"none of the first files in {source} says of which size images are",
        hint="give --size and --channels, and leave --data out",
    )


def _array_shape(path: Path) -> tuple[int, ...]:
    """Returns what the header of an array says; no value is read."""
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                return HEADERS[np.lib.format.read_magic(file)](file)[0]
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            key = next(key for key, _ in NPZ_KEYS if f"{key}.npy" in names)
            with archive.open(f"{key}.npy") as entry:
                return HEADERS[np.lib.format.read_magic(entry)](entry)[0]
    except (*UNREADABLE_ARCHIVE, KeyError, StopIteration) as error:
        raise DataError(
            f"{path} does not say of which shape its images are: {error}",
            hint="give --size and --channels, and leave --data out",
        ) from None


def _of_shape(shape: tuple[int, ...], path: Path) -> tuple[int, int, int]:
    if len(shape) == 3:
        return shape[1], shape[2], 1
    if len(shape) == 4 and shape[3] in CHANNELS:
        return shape[1], shape[2], shape[3]
    if len(shape) == 4 and shape[1] in CHANNELS:
        return shape[2], shape[3], shape[1]
    raise DataError(
        f"{path} holds images of shape {shape}, expected (N, H, W), (N, H, W, C) or (N, C, H, W)",
        hint="stack them along the first axis",
    )


def _coarse(form: Form) -> Form:
    """Returns a form that tells little of one image: small ones as they are, others to a square."""
    height, width = form.height, form.width
    if max(height, width) > SMALL:
        height = width = min(LARGE, 1 << (min(height, width).bit_length() - 1))
    return form._replace(height=height - height % 2, width=width - width % 2)

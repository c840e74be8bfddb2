"""Reads samples and real images, which must be of one shape: resizing would change figures."""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ddm_fed.errors import DataError, StateError
from ddm_fed.storage.files import UNREADABLE_ARCHIVE
from ddm_fed.storage.numpy_files import require_honest_archive

UNREADABLE = UNREADABLE_ARCHIVE
Part = Literal["test", "train"]


class Pictures(NamedTuple):
    """Images `(N, C, H, W)` uint8, and labels `(N,)` int64 where there are any."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def classes(self) -> int:
        """How many classes there are images of."""
        return 0 if self.labels is None else len(np.unique(self.labels))

    def of(self, rows: NDArray[np.integer]) -> NDArray[np.int64] | None:
        """Returns the labels of `rows`, where there are any."""
        return None if self.labels is None else self.labels[rows]

    def unit(self, rows: NDArray[np.integer] | None = None) -> torch.Tensor:
        """Returns images in [-1, 1], all or those of `rows`."""
        chosen = self.images if rows is None else self.images[rows]
        return torch.from_numpy(chosen).float() / 127.5 - 1

    def tensors(self, rows: NDArray[np.integer] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns images in [-1, 1] and labels.

        Raises:
            ValueError: there are no labels.
        """
        if self.labels is None:
            raise ValueError("these images have no labels")
        return self.unit(rows), torch.from_numpy(self.labels if rows is None else self.labels[rows])

    def rows(self) -> NDArray[np.uint8]:
        """Returns pixels `(N, C H W)`."""
        return self.images.reshape(len(self.images), -1)


def read_samples(folder: Path) -> tuple[Pictures, dict[str, Any]]:
    """Returns the samples that `sample` wrote, and its summary.

    Raises:
        StateError: the folder holds no finished samples.
        DataError: the files in it are damaged.
    """
    archive, file = folder / "samples.npz", folder / "samples.json"
    if not archive.is_file() or not file.is_file():
        raise StateError(
            f"{folder} holds no finished samples",
            hint="make some with `ddm-site sample` or `ddm-coord sample`; a run that was stopped "
            "continues when it is run again",
        )
    try:
        summary = json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}", hint="draw the samples again") from None
    if not isinstance(summary, dict):
        raise DataError(f"{file} holds no summary", hint="draw the samples again")
    if summary.get("decoded") is False:
        raise DataError(
            f"the samples in {folder} are latents that were not decoded",
            hint="draw them again with `sample --autoencoder FOLDER`: images are judged",
        )
    return _read(archive, (("images", "labels"),)), summary


def read_real(path: Path, part: Part, shape: tuple[int, int, int]) -> Pictures:
    """Returns real images of the samples' shape.

    Args:
        path: `.npz` with MedMNIST's `test_images` and `test_labels`, or `train_…`, as `part` says;
            or with `images` and `labels`. Labels may be missing.
        part: Which images are wanted.
        shape: Channels, height and width of the samples.

    Raises:
        DataError: naming what is wrong.
    """
    return _of_shape(path, part, shape, "the samples")


def read_public(path: Path, shape: tuple[int, int, int] | None) -> Pictures:
    """Returns public images of the plan's shape.

    Args:
        path: `.npz` with MedMNIST's `train_images`, or with `images`.
        shape: Channels, height and width in the plan; None takes any.

    Raises:
        DataError: naming what is wrong.
    """
    return _of_shape(path, "train", shape, "the plan's")


def _of_shape(path: Path, part: Part, shape: tuple[int, int, int] | None, of: str) -> Pictures:
    names = ((f"{part}_images", f"{part}_labels"), ("images", "labels"))
    found = _read(path, names)
    if shape is not None and found.shape != shape:
        sizes = [" x ".join(map(str, each)) for each in (found.shape, shape)]
        raise DataError(
            f"the images in {path} are {sizes[0]}, {of} {sizes[1]}",
            hint="prepare them as the sites prepared theirs: figures depend on how images are "
            "resized, so it is not done here",
        )
    return found


def _read(path: Path, names: tuple[tuple[str, str], ...]) -> Pictures:
    if not path.is_file():
        raise DataError(f"{path} is not there", hint="give an .npz file of images")
    try:
        require_honest_archive(path)
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            for images, labels in names:
                if images in archive:
                    return _checked(path, archive[images], archive.get(labels))
            found = ", ".join(sorted(archive.files)) or "nothing"
    except UNREADABLE as error:
        raise DataError(
            f"{path} cannot be read: {error}", hint="write it again with numpy.savez_compressed"
        ) from None
    raise DataError(
        f"{path} holds {found}, expected `{'` or `'.join(name for name, _ in names)}`",
        hint="numpy.savez_compressed(path, images=..., labels=...)",
    )


def _checked(path: Path, images: NDArray[Any], labels: NDArray[Any] | None) -> Pictures:
    if images.ndim == 3 and images.shape[2] in (1, 3):
        raise DataError(
            f"{path} holds images of shape {images.shape}, which may be one with its channels",
            hint="give the array a fourth axis: images[None] for one image, images[..., None] for "
            "grey ones",
        )
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(
            f"{path} holds images of {images.dtype} and shape {images.shape}",
            hint="store uint8 as (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3",
        )
    if labels is None:
        return Pictures(np.ascontiguousarray(images), None)
    flat = labels.reshape(-1)
    if len(flat) != len(images) or flat.dtype.kind not in "iu" or (len(flat) and flat.min() < 0):
        raise DataError(
            f"{path} holds {len(images)} images and labels of {labels.dtype} and shape "
            f"{labels.shape}",
            hint="every image needs one whole number, in the order of `data.classes` in the plan; "
            "of one-hot labels store labels.argmax(axis=1)",
        )
    return Pictures(np.ascontiguousarray(images), flat.astype(np.int64))

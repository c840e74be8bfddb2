"""Images to be divided: read in batches from an `.npy` that is mapped, or from an `.npz`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddm_fed.errors import DataError
from ddm_fed.storage.files import UNREADABLE_ARCHIVE
from ddm_fed.storage.numpy_files import require_honest_archive

BESIDE = ("labels", "captions", "units")  # what an image may have, under these names


@dataclass(frozen=True)
class MappedImages:
    """Images of one size, and what each has beside it.

    Attributes:
        pixels: uint8, `(N, H, W)`, `(N, H, W, C)` or `(N, C, H, W)`; mapped where it is an `.npy`.
        beside: Labels, captions, units: one row per image each, as they were read.
    """

    pixels: NDArray[np.uint8]
    beside: Mapping[str, NDArray[np.generic]]

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        if self.pixels.ndim == 3:
            return 1, self.pixels.shape[1], self.pixels.shape[2]
        first, second, third = self.pixels.shape[1:]
        return (third, first, second) if self._channels_last else (first, second, third)

    def unit(self, rows: slice) -> Tensor:
        """Returns images in [-1, 1], `(B, C, H, W)` float32."""
        part = np.array(self.pixels[rows])  # a copy: what is mapped cannot be written to
        if part.ndim == 3:
            part = part[:, None]
        elif self._channels_last:
            part = part.transpose(0, 3, 1, 2)
        return torch.from_numpy(np.ascontiguousarray(part)).float() / 127.5 - 1

    @property
    def _channels_last(self) -> bool:
        return self.pixels.ndim == 4 and self.pixels.shape[1] not in (1, 3)


def open_images(path: Path) -> MappedImages:
    """Returns the images of a file, an `.npy` without reading it into memory.

    Args:
        path: `.npy` with images, and `NAME.labels.npy`, `NAME.captions.npy`, `NAME.units.npy`
            beside it; or `.npz` with `images`, `labels`, `captions`, `units` (or `patient_ids`),
            or with MedMNIST's `train_images` and `train_labels`.

    Raises:
        DataError: naming what is wrong.
    """
    if path.suffix not in (".npy", ".npz") or not path.is_file():
        raise DataError(
            f"{path} is no .npy or .npz file",
            hint="give images as uint8, (N, H, W) or (N, H, W, C); `numpy.save(path, images)` "
            "makes such a file, and larger ones than memory are read from the disk",
        )
    try:
        found = _npy(path) if path.suffix == ".npy" else _npz(path)
    except UNREADABLE_ARCHIVE as error:
        raise DataError(
            f"{path} cannot be read: {error}", hint="write it again with numpy.save or numpy.savez"
        ) from None
    _require_sound(path, found)
    return found


def _npy(path: Path) -> MappedImages:
    pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    beside = {}
    for name in BESIDE:
        file = path.with_suffix(f".{name}.npy")
        if file.is_file():
            beside[name] = np.load(file, allow_pickle=False)
    return MappedImages(pixels, beside)


def _npz(path: Path) -> MappedImages:
    require_honest_archive(path)
    with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
        prefix = "" if "images" in archive else "train_"
        if f"{prefix}images" not in archive:
            found = ", ".join(sorted(archive.files)) or "nothing"
            raise DataError(
                f"{path} holds {found}, expected `images` or `train_images`",
                hint="numpy.savez_compressed(path, images=..., labels=...)",
            )
        beside = {
            name: archive[f"{prefix}{name}"] for name in BESIDE if f"{prefix}{name}" in archive
        }
        if "patient_ids" in archive:  # the other name of units
            beside.setdefault("units", archive["patient_ids"])
        return MappedImages(archive[f"{prefix}images"], beside)


def _require_sound(path: Path, found: MappedImages) -> None:
    pixels = found.pixels
    flat = pixels.ndim == 3 and pixels.shape[2] not in (1, 3)
    colour = pixels.ndim == 4 and (pixels.shape[1] in (1, 3) or pixels.shape[3] in (1, 3))
    if pixels.dtype != np.uint8 or not (flat or colour):
        raise DataError(
            f"{path} holds images of {pixels.dtype} and shape {pixels.shape}",
            hint="store uint8 as (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3",
        )
    for name, values in found.beside.items():
        if len(values) != len(pixels):
            raise DataError(
                f"{path} has {len(pixels)} images and {len(values)} {name}",
                hint=f"give one of {name} for every image, or none",
            )

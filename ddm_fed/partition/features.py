"""What an image is clustered by: numbers of fixed length, kept on the disk as they are found.

Shapes: N images, E numbers each.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddm_fed.embedding import Embedder, dct_basis, fixed_images
from ddm_fed.errors import DataError, StateError
from ddm_fed.partition.images import MappedImages
from ddm_fed.progress import Advance
from ddm_fed.storage.digests import sha256_of
from ddm_fed.storage.row_files import Part, RowFiles

FEATURES_FILE, STATE_FILE = "features.f32", "features.json"


@dataclass(frozen=True)
class Describe:
    """A public way from images to features.

    Attributes:
        name: Which, with the digest of its weights where it has any; decides whether features that
            were kept may be used again.
        dimension: E.
        images: Images in [-1, 1] `(B, C, H, W)` to features `(B, E)`.
    """

    name: str
    dimension: int
    images: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, embedder: Embedder) -> "Describe":
        """Returns the features of a network."""
        return cls(f"{embedder.name} {embedder.digest}", embedder.dimension, embedder.images)


def cosines(shape: tuple[int, int, int], frequencies: int) -> Describe:
    """Returns the lowest DCT coefficients of every channel: features that need no network."""
    basis = dct_basis(shape, frequencies).float()
    return Describe(
        f"{frequencies} cosines per channel", len(basis), lambda x: x.flatten(1).float() @ basis.T
    )


def described(
    images: MappedImages,
    source: Path,
    describe: Describe,
    folder: Path,
    *,
    batch_size: int = 256,
    part: Part | None = None,
    advance: Advance = lambda _: None,
) -> NDArray[np.float32] | None:
    """Returns the features of all images, `(N, E)`, mapped from a file in `folder`.

    Memory does not grow with N. A run that was stopped goes on where it was last kept, and what
    parts described is taken up.

    Args:
        images: What is described.
        source: The file they are from: features of another file are not taken for those of this.
        describe: How.
        folder: Where features are kept; made if it is not there.
        batch_size: Images at once.
        part: Which of how many parts is described, and nothing is returned.
        advance: Told how many images were just described, or were already.

    Raises:
        StateError: `folder` holds features of other images, or made otherwise, or the disk has no
            room.
        OptionError: there are fewer batches than parts.
        BusyError: another process describes the same.
        DataError: a feature is not finite.
    """
    made_of = {
        "source_sha256": sha256_of(source),
        "images": len(images),
        "features": describe.name,
        "dimension": describe.dimension,
        "batch_size": batch_size,
    }
    row_bytes = 4 * describe.dimension
    files = (FEATURES_FILE,)
    kept = RowFiles(folder, files, row_bytes, len(images), made_of, batch_size, STATE_FILE)
    missing = len(images) - kept.said().done if part is None else len(kept.rows_of(part))
    _require_room(kept, missing)

    def compute(rows: range) -> list[bytes]:
        values = describe.images(images.unit(slice(rows.start, rows.stop))).numpy()
        if not np.isfinite(values).all():
            raise DataError(
                f"images {rows.start} to {rows.stop - 1} have features that are not finite",
                hint="the file of --weights is damaged, or is that of another network",
            )
        return [values.astype("<f4").tobytes()]

    def probe() -> bytes:
        return describe.images(fixed_images(images.shape, batch_size)).numpy().tobytes()

    if part is not None:
        kept.compute_part(part, compute, probe(), advance)
        return None
    kept.compute_all(compute, probe, advance)
    shape = (len(images), describe.dimension)
    return np.memmap(folder / FEATURES_FILE, np.float32, "r", shape=shape)


def _require_room(kept: RowFiles, rows: int) -> None:
    kept.folder.mkdir(parents=True, exist_ok=True)
    size, free = rows * kept.row_bytes, shutil.disk_usage(kept.folder).free
    if size > free:
        raise StateError(
            f"{kept.folder} has room for {free:,} bytes, and the features of {rows:,} images "
            f"are {size:,}",
            hint="give an --out on a larger disk, or fewer --frequencies",
        )

"""The images of every island in a file of its own, which `ddm-site train --data` takes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddm_fed.errors import DataError
from ddm_fed.partition.division import write_division
from ddm_fed.partition.images import MappedImages
from ddm_fed.progress import Advance
from ddm_fed.storage.files import new_folder

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Shard:
    """One island: its name, its file of images, and how many they are."""

    name: str
    file: Path
    images: int


def write_shards(
    images: MappedImages,
    clusters: NDArray[np.int64],
    count: int,
    folder: Path,
    *,
    by: str,
    advance: Advance = lambda _: None,
) -> list[Shard]:
    """Writes `NAME.npy`, and labels, captions and units beside it, for each of `count` islands.

    Rows keep their order. Memory does not grow with the number of images. Files are readable by
    their owner only.

    Args:
        images: All of them.
        clusters: The island of each, `(N,)`.
        count: K.
        folder: Must not exist yet, and does not if this is stopped.
        by: By what they were divided, one of `division.WAYS`; written beside the shards.
        advance: Told how many images were just written.

    Raises:
        DataError: an island would have no image.
    """
    shards = []
    with new_folder(folder) as part:
        part.chmod(0o700)
        for island in range(count):
            rows = np.flatnonzero(clusters == island)
            if not len(rows):
                raise DataError(
                    f"island {island + 1} of {count} would have no image",
                    hint="choose fewer --islands, or other --centres: few units of privacy, which "
                    "are kept whole, or few images that differ, do not fill them",
                )
            name = f"island-{island + 1}"
            _write(images, rows, part / f"{name}.npy", advance)
            shards.append(Shard(name, folder / f"{name}.npy", len(rows)))
        write_division(part, by, count)
    return shards


def _write(images: MappedImages, rows: NDArray[np.int64], file: Path, advance: Advance) -> None:
    file.touch(mode=0o600)
    target = np.lib.format.open_memmap(
        file, "w+", np.uint8, shape=(len(rows), *images.pixels.shape[1:])
    )
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        target[start : start + len(some)] = images.pixels[some]
        advance(len(some))
    target.flush()
    for name, values in images.beside.items():
        beside = file.with_suffix(f".{name}.npy")
        beside.touch(mode=0o600)
        np.save(beside, values[rows], allow_pickle=False)

"""What an image is clustered by: numbers of fixed length, kept on the disk as they are found.

Shapes: N images, E numbers each.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddm_fed.embedding import Embedder, dct_basis
from ddm_fed.errors import DataError, StateError
from ddm_fed.partition.images import MappedImages
from ddm_fed.progress import Advance
from ddm_fed.storage.digests import sha256_of
from ddm_fed.storage.files import write_atomically

FEATURES_FILE, STATE_FILE = "features.f32", "features.json"
KEEP_EVERY_S = 10.0


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
    advance: Advance = lambda _: None,
) -> NDArray[np.float32]:
    """Returns the features of all images, `(N, E)`, mapped from a file in `folder`.

    Memory does not grow with N. A run that was stopped goes on where it was last kept.

    Args:
        images: What is described.
        source: The file they are from: features of another file are not taken for those of this.
        describe: How.
        folder: Where features are kept; made if it is not there.
        batch_size: Images at once.
        advance: Told how many images were just described, or were already.

    Raises:
        StateError: `folder` holds features of other images, or made otherwise, or the disk has no
            room.
        DataError: a feature is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    identity = {
        "source_sha256": sha256_of(source),
        "images": len(images),
        "features": describe.name,
        "dimension": describe.dimension,
    }
    done = _kept(folder, identity)
    size = 4 * len(images) * describe.dimension
    file = folder / FEATURES_FILE
    if not file.exists():
        free = shutil.disk_usage(folder).free
        if size > free:
            raise StateError(
                f"{folder} has room for {free:,} bytes, and the features of {len(images):,} images "
                f"are {size:,}",
                hint="give an --out on a larger disk, or fewer --frequencies",
            )
        with file.open("wb") as new:
            new.truncate(size)
    found = np.memmap(file, np.float32, "r+", shape=(len(images), describe.dimension))
    advance(done)
    kept_at = monotonic()
    for start in range(done, len(images), batch_size):
        rows = slice(start, min(start + batch_size, len(images)))
        values = describe.images(images.unit(rows)).numpy()
        if not np.isfinite(values).all():
            raise DataError(
                f"images {rows.start} to {rows.stop - 1} have features that are not finite",
                hint="the file of --weights is damaged, or is that of another network",
            )
        found[rows] = values
        advance(rows.stop - rows.start)
        if rows.stop == len(images) or monotonic() - kept_at > KEEP_EVERY_S:
            found.flush()
            _keep(folder, identity, rows.stop)
            kept_at = monotonic()
    return np.memmap(file, np.float32, "r", shape=found.shape)


def _kept(folder: Path, identity: dict[str, object]) -> int:
    state = folder / STATE_FILE
    if not state.exists():
        return 0
    try:
        found = json.loads(state.read_bytes())
        done = int(found.pop("done"))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _damaged(folder, STATE_FILE) from None
    size = 4 * int(str(identity["images"])) * int(str(identity["dimension"]))
    file = folder / FEATURES_FILE
    if found == identity and (not file.exists() or file.stat().st_size != size):
        raise _damaged(folder, FEATURES_FILE)
    if found != identity:
        changed = next(name for name in identity if found.get(name) != identity[name])
        raise StateError(
            f"{folder} was begun with another `{changed}`: {found.get(changed)}, now "
            f"{identity[changed]}",
            hint="give another --out, or delete that folder",
        )
    return done


def _damaged(folder: Path, name: str) -> StateError:
    return StateError(
        f"{folder / name} is not what an earlier run left there",
        hint="delete that folder, and the features are found again",
    )


def _keep(folder: Path, identity: dict[str, object], done: int) -> None:
    text = json.dumps({**identity, "done": done}, indent=1)
    write_atomically(folder / STATE_FILE, text.encode())

"""A site's images as a plan's autoencoder sees them: encoded once, kept, and mapped from files.

Means and deviations lie in `private/latents/KEY`, float32, where KEY follows from the images and
the plan's autoencoder. What a kill leaves is continued. They are as private as the images.

Every image is encoded alone. In a batch, the rounding of one image's latent may change when another
image joins, and the bound on what one unit can change would not hold to the bit.
"""

import json
import os
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch

from ddm_fed.autoencoders import Autoencoder
from ddm_fed.errors import MachineError, StateError, naming
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.progress import Advance
from ddm_fed.records import DataSpec, canonical_json, sha256_hex
from ddm_fed.storage.files import write_atomically

SAVE_S = 5.0  # a kill loses no more than this
SPARE_BYTES = 64 << 20
PATIENCE_S = 600
FLOAT_BYTES = 4
PROGRESS_FILE = "progress.json"


class _Store(NamedTuple):
    """Where the latents of a set of images lie."""

    folder: Path
    key: str
    files: tuple[str, ...]
    shape: tuple[int, int, int]
    total: int

    @property
    def row_bytes(self) -> int:
        """Of one latent in one file."""
        return FLOAT_BYTES * int(np.prod(self.shape))

    def done(self) -> int:
        """Returns how many latents are whole in every file."""
        try:
            said = json.loads((self.folder / PROGRESS_FILE).read_bytes())["done"]
            sizes = [(self.folder / name).stat().st_size for name in self.files]
        except (OSError, ValueError, KeyError):
            return 0
        return min(int(said), *(size // self.row_bytes for size in sizes))

    def images(self, source: ImageSet, bound: float) -> ImageSet:
        """Returns the latents, mapped; labels, units and captions are those of the images."""
        means, *deviations = (
            np.memmap(self.folder / name, np.float32, "r", shape=(self.total, *self.shape))
            for name in self.files
        )
        return ImageSet(
            means,
            source.labels,
            units=source.units,
            captions=source.captions,
            texts=source.texts,
            deviations=deviations[0] if deviations else None,
            bound=bound,
            source_sha256=self.key,
        )


def encode_images(
    data: Private[ImageSet],
    autoencoder: Autoencoder,
    folder: Path,
    advance: Advance = lambda _: None,
) -> Private[ImageSet]:
    """Returns the latents of a site's images; what is encoded already is not encoded again.

    Args:
        data: The images, as pixels.
        autoencoder: The plan's.
        folder: Where latents of this site are kept.
        advance: Told how many more images are encoded.

    Raises:
        MachineError: the disk has no room for them; nothing was written.
        DataError: the autoencoder makes nothing of them that is finite.

    Guarantees:
        The latent of an image is the same to the bit whatever other images there are.
    """
    images = data.reveal()
    store = _store_of(images, autoencoder.data, folder)
    done = store.done()
    advance(done)
    if done < store.total:
        _require_room(store, done)
        _encode(images, autoencoder, store, done, advance)
    return Private(store.images(images, float(autoencoder.spec.bound)))


def wait_for_images(data: Private[ImageSet], spec: DataSpec, folder: Path) -> Private[ImageSet]:
    """Returns the latents that another process of this training encodes, when it has.

    Raises:
        StateError: it does not come further.
    """
    images = data.reveal()
    store = _store_of(images, spec, folder)
    before, until = -1, 0.0
    while (done := store.done()) < store.total:
        if done > before:
            before, until = done, time.monotonic() + PATIENCE_S
        elif time.monotonic() > until:
            raise StateError(
                f"the first process encoded no image within {PATIENCE_S} s",
                hint="see what it says; or train with one process until all images are encoded",
            )
        time.sleep(0.2)
    return Private(store.images(images, float(spec.bound)))


def latent_bytes(spec: DataSpec) -> int:
    """Returns how many bytes the latent of one image takes on the disk of a site."""
    return FLOAT_BYTES * int(np.prod(spec.shape)) * len(_files(spec))


def _files(spec: DataSpec) -> tuple[str, ...]:
    if spec.latent is None:
        raise TypeError("the plan's images are not latents")
    return ("means.f32",) if spec.latent.kind == "tiny" else ("means.f32", "deviations.f32")


def _store_of(images: ImageSet, spec: DataSpec, folder: Path) -> _Store:
    files = _files(spec)
    if spec.latent is None or images.shape != spec.pixel_shape:
        raise TypeError(f"these images are {images.shape}, the plan's {spec.pixel_shape}")
    made_of = {
        "images": images.digest(),
        "latent": spec.latent.model_dump(mode="json"),
        "shape": list(spec.pixel_shape),
    }
    key = sha256_hex(canonical_json(made_of))
    return _Store(folder / key[:16], key, files, spec.shape, len(images))


def _require_room(store: _Store, done: int) -> None:
    store.folder.mkdir(parents=True, exist_ok=True)
    store.folder.parent.chmod(0o700)
    needed = (store.total - done) * store.row_bytes * len(store.files) + SPARE_BYTES
    free = shutil.disk_usage(store.folder).free
    if free < needed:
        raise MachineError(
            f"the latents of {store.total:,} images need {needed / 1e9:,.1f} GB in "
            f"{store.folder.parent}, and {free / 1e9:,.1f} GB are free",
            hint="make room, then run the same command again; latents of other plans there may be "
            "deleted, they are made again when they are needed",
        )


def _encode(
    images: ImageSet, autoencoder: Autoencoder, store: _Store, done: int, advance: Advance
) -> None:
    with naming(store.folder), ExitStack() as opened:
        files = [
            opened.enter_context(_continued(store.folder / name, done * store.row_bytes))
            for name in store.files
        ]
        saved = time.monotonic()
        for row in range(done, store.total):
            # in memory of its own, for its alignment
            own = images.batch(slice(row, row + 1)).clone(memory_format=torch.contiguous_format)
            for file, values in zip(files, autoencoder.encode(own), strict=False):
                file.write(values.numpy().astype("<f4").tobytes())
            advance(1)
            if time.monotonic() - saved > SAVE_S:
                _save(store, files, row + 1)
                saved = time.monotonic()
        _save(store, files, store.total)


def _continued(path: Path, size: int) -> BinaryIO:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    file = os.fdopen(os.open(path, flags, 0o600), "r+b")
    file.truncate(size)
    file.seek(size)
    return file


def _save(store: _Store, files: list[BinaryIO], done: int) -> None:
    """Says that so many are done, when they are on the disk."""
    for file in files:
        file.flush()
        os.fsync(file.fileno())
    progress = json.dumps({"done": done, "of": store.total}).encode()
    write_atomically(store.folder / PROGRESS_FILE, progress, mode=0o600)

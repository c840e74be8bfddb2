"""A site's images as a plan's autoencoder sees them: encoded once, kept, and mapped from files.

Means and deviations lie in `private/latents/KEY`, float32, where KEY follows from the images and
the plan's autoencoder. What a kill leaves is continued, and several machines may encode parts: see
`ddm_fed.storage.row_files`. All of it is as private as the images.

Every image is encoded alone. In a batch, the rounding of one image's latent may change when another
image joins, and the bound on what one unit can change would not hold to the bit.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddm_fed.autoencoders import Autoencoder
from ddm_fed.embedding import fixed_images
from ddm_fed.errors import MachineError, StateError
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.progress import Advance
from ddm_fed.records import DataSpec, canonical_json, sha256_hex
from ddm_fed.storage.row_files import Compute, Part, RowFiles

SPARE_BYTES = 64 << 20
PATIENCE_S = 600
FLOAT_BYTES = 4


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
        StateError: what is there, or a part of it, is damaged, foreign, or of a machine that
            rounds unlike the others.

    Guarantees:
        The latent of an image is the same to the bit whatever other images there are.
    """
    images, store = _opened(data, autoencoder.data, folder)
    _require_room(store, store.total - store.said().done)
    compute, probe = _computing(images, autoencoder)
    store.compute_all(compute, probe, advance)
    return Private(_mapped(store, images, autoencoder.data))


def encode_part(
    data: Private[ImageSet],
    autoencoder: Autoencoder,
    folder: Path,
    part: Part,
    advance: Advance = lambda _: None,
) -> int:
    """Encodes one part of a site's images, for `encode_images` to take up, and says how many.

    Args:
        data: As for `encode_images`: all images.
        autoencoder: The plan's.
        folder: Where latents of this site are kept.
        part: Which of how many.
        advance: Told how many more images are encoded.

    Raises:
        OptionError: there are fewer images than parts.
        MachineError, DataError, StateError: as for `encode_images`.
        BusyError: another process encodes that part.
    """
    images, store = _opened(data, autoencoder.data, folder)
    _require_room(store, len(store.rows_of(part)))
    compute, probe = _computing(images, autoencoder)
    return store.compute_part(part, compute, probe(), advance)


def wait_for_images(data: Private[ImageSet], spec: DataSpec, folder: Path) -> Private[ImageSet]:
    """Returns the latents that another process of this training encodes, when it has.

    Raises:
        StateError: it does not come further.
    """
    images, store = _opened(data, spec, folder)
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
    return Private(_mapped(store, images, spec))


def latent_bytes(spec: DataSpec) -> int:
    """Returns how many bytes the latent of one image takes on the disk of a site."""
    return FLOAT_BYTES * int(np.prod(spec.shape)) * len(_files(spec))


def _files(spec: DataSpec) -> tuple[str, ...]:
    if spec.latent is None:
        raise TypeError("the plan's images are not latents")
    return ("means.f32",) if spec.latent.kind == "tiny" else ("means.f32", "deviations.f32")


def _opened(data: Private[ImageSet], spec: DataSpec, folder: Path) -> tuple[ImageSet, RowFiles]:
    """Returns the images, and where their latents lie."""
    images, files = data.reveal(), _files(spec)
    if spec.latent is None or images.shape != spec.pixel_shape:
        raise TypeError(f"these images are {images.shape}, the plan's {spec.pixel_shape}")
    made_of = {
        "images": images.digest(),
        "latent": spec.latent.model_dump(mode="json"),
        "shape": list(spec.pixel_shape),
    }
    key = sha256_hex(canonical_json(made_of))
    row_bytes = FLOAT_BYTES * int(np.prod(spec.shape))
    return images, RowFiles(folder / key[:16], files, row_bytes, len(images), {"key": key})


def _mapped(store: RowFiles, source: ImageSet, spec: DataSpec) -> ImageSet:
    """Returns the latents; labels, units and captions are those of the images."""
    means, *deviations = (
        np.memmap(store.folder / name, np.float32, "r", shape=(store.total, *spec.shape))
        for name in store.files
    )
    return ImageSet(
        means,
        source.labels,
        units=source.units,
        captions=source.captions,
        texts=source.texts,
        deviations=deviations[0] if deviations else None,
        bound=float(spec.bound),
        source_sha256=str(store.made_of["key"]),
    )


def _require_room(store: RowFiles, rows: int) -> None:
    if not rows:
        return
    store.folder.mkdir(parents=True, exist_ok=True)
    store.folder.parent.chmod(0o700)
    needed = rows * store.row_bytes * len(store.files) + SPARE_BYTES
    free = shutil.disk_usage(store.folder).free
    if free < needed:
        raise MachineError(
            f"the latents of {rows:,} images need {needed / 1e9:,.1f} GB in "
            f"{store.folder.parent}, and {free / 1e9:,.1f} GB are free",
            hint="make room, then run the same command again; latents of other plans there may be "
            "deleted, they are made again when they are needed",
        )


def _computing(images: ImageSet, autoencoder: Autoencoder) -> tuple[Compute, Callable[[], bytes]]:
    """Returns what encodes images, one in each call, and what encodes an image of its own."""

    def coded(own: Tensor) -> list[bytes]:
        return [values.numpy().astype("<f4").tobytes() for values in autoencoder.encode(own)]

    def compute(rows: range) -> list[bytes]:
        # in memory of its own, for its alignment
        own = images.batch(slice(rows.start, rows.stop))
        found = coded(own.clone(memory_format=torch.contiguous_format))
        return found[: len(_files(autoencoder.data))]

    def probe() -> bytes:
        return b"".join(coded(fixed_images(autoencoder.data.pixel_shape, 1)))

    return compute, probe

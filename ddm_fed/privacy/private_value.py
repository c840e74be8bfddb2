"""Values that must not leave the site: wrapped, so that leaving them lying about is hard."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, NoReturn, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ddm_fed.flows import ClassCondition, Condition, EncodedTexts

T = TypeVar("T")
U = TypeVar("U")
BLOCK_IMAGES = 1024  # bounds memory while a whole set is read


class Private(Generic[T]):
    """Hides its value from logs and refuses to be pickled or copied.

    `reveal` is the only way in, so a search for that word finds every place that reads private
    data. A `Private` becomes public only as a `Release`, through a mechanism.

    Example:
        >>> secret = Private([3, 4])
        >>> secret
        Private(…)
        >>> secret.map(sum)
        Private(…)
        >>> secret.map(sum).reveal()
        7
    """

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "Private(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("private values are not serialised: release a statistic of them instead")

    def reveal(self) -> T:
        """Returns the value. Whatever is computed from it is private too."""
        return self._value

    def map(self, function: Callable[[T], U]) -> "Private[U]":
        """Returns `function` of the value, still private."""
        return Private(function(self._value))


@dataclass(frozen=True)
class ImageSet:
    """Images and what they are, by class or caption, in memory or mapped from a file.

    They may also be latents of images: then values are not pixels and reach beyond [-1, 1].

    Attributes:
        pixels: Float32 values in [-1, 1], `(N, C, H, W)`; or, with `value_range`, an array of any
            real dtype of that shape, which may be mapped from a file and is then read in parts.
        labels: Class indices `(N,)` int64, or None.
        value_range: The values in `pixels` that mean -1 and 1; None if they are so already.
        units: For every image the unit of privacy it belongs to, `(N,)` int64: those from 0 to
            U - 1, none without an image. Images of one unit are protected together. None if every
            every image is a unit of its own.
        captions: What every image shows, N texts, the empty one for an image without; or None.
            Never shown: a caption is as private as its image.
        texts: The captions as networks read them. It follows from them and a public encoder, so it
            is no part of the digest.
        deviations: Where `pixels` are the means of latents: their standard deviations, of the same
            shape, float32. Statistics are taken of the means; training draws from the whole.
        bound: The largest absolute value of what is drawn so.
        source_sha256: What the set is known by, where it follows from something else: then the
            digest is that, and needs no look at the values.

    Raises:
        ValueError: `units` are not as described, so that they would protect something else; or
            there are not as many captions as images.

    Example:
        >>> patients = torch.tensor([0, 0, 1, 2, 2])
        >>> images = ImageSet(torch.zeros(5, 1, 8, 8), torch.arange(5), units=patients)
        >>> len(images), images.shape, images.unit_count
        (5, (1, 8, 8), 3)
        >>> len(images.of_unit(2))
        2
    """

    pixels: torch.Tensor | NDArray[Any]
    labels: torch.Tensor | None
    value_range: tuple[float, float] | None = None
    units: torch.Tensor | None = None
    captions: tuple[str, ...] | None = field(default=None, repr=False)
    texts: EncodedTexts | None = field(default=None, repr=False, compare=False)
    deviations: torch.Tensor | NDArray[Any] | None = None
    bound: float = 1.0
    source_sha256: str | None = None

    def __post_init__(self) -> None:
        if self.units is not None:
            _require_dense(self.units, len(self))
        if self.captions is not None and len(self.captions) != len(self):
            raise ValueError(f"{len(self.captions)} captions are given for {len(self)} images")

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image, `(C, H, W)`."""
        _, channels, height, width = self.pixels.shape
        return (channels, height, width)

    @property
    def unit_count(self) -> int:
        """U, the number of units of privacy. As private as the images."""
        if self.units is None or len(self) == 0:
            return len(self)
        return int(self.units.max()) + 1

    @property
    def images(self) -> torch.Tensor:
        """All images, `(N, C, H, W)` float32 in [-1, 1]: all of them in memory."""
        return self.batch(slice(None))

    def batch(self, rows: torch.Tensor | slice) -> torch.Tensor:
        """Returns some images, `(B, C, H, W)` float32 in [-1, 1]; only these are read."""
        chosen = _chosen(self.pixels, rows)
        return chosen if self.value_range is None else to_unit_range(chosen, *self.value_range)

    def condition(self, rows: torch.Tensor | slice) -> Condition | None:
        """Returns what some images are: their captions, or else their classes; None if neither.

        Raises:
            ValueError: there are captions, and nothing that was made of them.
        """
        if self.captions is None:
            return None if self.labels is None else ClassCondition(self.labels[rows])
        if self.texts is None:
            raise ValueError("these captions have not been encoded")
        chosen = range(len(self))[rows] if isinstance(rows, slice) else rows.tolist()
        return self.texts.condition([self.captions[row] for row in chosen])

    def drawn(self, rows: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Returns some images as a step of training sees them, `(B, C, H, W)` float32.

        Where they are latents with a deviation, they are drawn anew by `noise (B, C, H, W)`, which
        is standard normal. What is drawn of a row depends on its own image and noise alone.
        """
        means = self.batch(rows)
        if self.deviations is None:
            return means
        found = means + _chosen(self.deviations, rows) * noise
        return found.clamp(-self.bound, self.bound)

    def of_unit(self, unit: int) -> "ImageSet":
        """Returns the images of one unit alone: what it adds to a sum depends on nothing else."""
        return self.of_units(torch.tensor([unit]))

    def of_units(self, chosen: torch.Tensor) -> "ImageSet":
        """Returns the images of the units `chosen (U,)` alone; only these are read."""
        units = torch.arange(len(self)) if self.units is None else self.units
        rows = torch.isin(units, chosen).nonzero()[:, 0]
        pixels = self.pixels[rows if isinstance(self.pixels, torch.Tensor) else rows.numpy()]
        labels = None if self.labels is None else self.labels[rows]
        dense = torch.unique(units[rows], return_inverse=True)[1]
        captions = None
        if self.captions is not None:
            captions = tuple(self.captions[row] for row in rows.tolist())
        deviations = None if self.deviations is None else _chosen(self.deviations, rows)
        return ImageSet(
            pixels,
            labels,
            self.value_range,
            dense,
            captions,
            self.texts,
            deviations=deviations,
            bound=self.bound,
        )

    def digest(self) -> str:
        """Returns a SHA-256 of images, labels, units and captions.

        It identifies the data: it stays private.

        It is the same however the images are stored.
        """
        if self.source_sha256 is not None:
            return self.source_sha256
        digest = hashlib.sha256()
        for start in range(0, len(self), BLOCK_IMAGES):
            block = self.batch(slice(start, start + BLOCK_IMAGES)).contiguous()
            digest.update(block.numpy().data)
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        if self.units is not None:
            digest.update(b"units")  # or units without labels would look like labels
            digest.update(self.units.numpy().tobytes())
        if self.captions is not None:
            digest.update(b"captions")
            for caption in self.captions:
                text = caption.encode("utf-8", "surrogatepass")
                digest.update(len(text).to_bytes(8, "big") + text)
        if self.deviations is not None:
            digest.update(b"deviations")
            for start in range(0, len(self), BLOCK_IMAGES):
                rows = slice(start, start + BLOCK_IMAGES)
                digest.update(_chosen(self.deviations, rows).contiguous().numpy().data)
        return digest.hexdigest()


def _chosen(values: torch.Tensor | NDArray[Any], rows: torch.Tensor | slice) -> torch.Tensor:
    """Returns some rows, in memory; of a mapped file only these are read."""
    if isinstance(values, torch.Tensor):
        return values[rows]
    index = rows if isinstance(rows, slice) else rows.numpy()
    return torch.from_numpy(np.array(values[index], dtype=np.float32))


def _require_dense(units: torch.Tensor, count: int) -> None:
    if units.dtype != torch.int64 or tuple(units.shape) != (count,):
        raise ValueError(f"units are {units.dtype} {tuple(units.shape)}, wanted int64 ({count},)")
    if count and (units.min() < 0 or units.max() >= count or not units.bincount().all()):
        raise ValueError("units are not numbered from 0 without a gap")


def to_unit_range(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Returns `values` mapped linearly so that `low` becomes -1 and `high` becomes 1, float32."""
    return 2 * (values.float() - low) / (high - low) - 1

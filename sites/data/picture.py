"""One image out of a file, in the plan's shape: what every kind of file is brought to."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ddm_fed.records import DataSpec

Pixels = NDArray[Any]
MAX_PIXELS = 64_000_000  # a header may claim any size; a decompression bomb stops here
WHITE = 255


class PictureError(Exception):
    """One file that cannot be taken; says why."""


class LeftOutError(Exception):
    """One file that is not to be taken, although it could be read; says of which kind it is."""


class Wanted(NamedTuple):
    """What every image becomes.

    Attributes:
        spec: The plan's shape, and how other shapes meet it.
        value_range: What black and white are, where the site said so.
    """

    spec: DataSpec
    value_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Picture:
    """One image as it was read.

    Attributes:
        pixels: uint8, `(H, W)` or `(H, W, 3)`, of the plan's shape.
        depth: What its values are.
        found: Its darkest and brightest value, as stored.
        span: The values that mean black and white.
        changes: What was done to it.
        size: Width and height before.
        mode: Its colours before.
    """

    pixels: Pixels
    depth: str
    found: tuple[float, float]
    span: tuple[float, float]
    changes: tuple[str, ...]
    size: tuple[int, int] = (0, 0)
    mode: str = ""


@dataclass(frozen=True, kw_only=True)
class Item(ABC):
    """One file, or entry of a file, with what its source says about it.

    Attributes:
        name: As it is shown to the site's own people.
        stamp: Changes when its bytes do.
        label: Name of its class, or an index into the plan's classes; None if nothing says.
        caption: What a person wrote about it; None if nobody did.
        unit_id: The unit of privacy it belongs to, as the source says; None if it does not.
    """

    name: str
    stamp: str
    label: str | int | None = None
    caption: str | None = None
    unit_id: str | None = None

    def unit(self) -> str | None:
        """Returns `unit_id`, or what the file itself says. As private as an image."""
        return self.unit_id

    @abstractmethod
    def pictures(self, wanted: Wanted) -> Iterator[Picture]:
        """Yields its images: one, or the frames of a file of several.

        Raises:
            PictureError: it cannot be taken.
            LeftOutError: it is not to be taken.
        """


class Source(ABC):
    """Where images lie that are read one by one.

    Attributes:
        labels_are_folders: Whether labels are the names of subfolders.
        unused: Columns and entries that nobody reads, known after a pass.
    """

    labels_are_folders = False
    unused: set[str] = set()  # noqa: RUF012 - of sources that have none

    @abstractmethod
    def count(self) -> int:
        """Returns how many items there are, without opening what is large."""

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """Yields the items, always in the same order."""

    def stamps(self) -> Iterator[str]:
        """Yields lines that change whenever an item does: its bytes, label, caption or unit."""
        for item in self.items():
            yield repr((item.name, item.stamp, item.label, item.caption, item.unit_id))


def fit_picture(image: Image.Image, spec: DataSpec) -> tuple[Image.Image, list[str]]:
    """Returns an image of the plan's size, and what was done to it, as `data.fit` says."""
    size = (spec.width, spec.height)
    if image.size == size:
        return image, []
    same = image.width * spec.height == image.height * spec.width
    done = {
        "crop": "cropped about their centre and resized",
        "pad": "padded with black and resized",
        "stretch": "stretched",
    }
    changes = [f"{'resized' if same else done[spec.fit]} to {spec.height} x {spec.width}"]
    if spec.fit == "stretch":
        return image.resize(size, Image.Resampling.LANCZOS), changes
    how = ImageOps.pad if spec.fit == "pad" else ImageOps.fit
    return how(image, size, Image.Resampling.LANCZOS), changes


def to_shades(unit: Pixels) -> Pixels:
    """Returns values from 0 (black) to 1 (white) as the 256 shades that are stored, uint8."""
    return np.round(unit * WHITE).astype(np.uint8)

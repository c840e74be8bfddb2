"""Values that must not leave the site: wrapped, so that leaving them lying about is hard."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NoReturn, TypeVar

import torch

T = TypeVar("T")
U = TypeVar("U")


class Private(Generic[T]):
    """Hides its value from logs and refuses to be pickled or copied.

    `reveal` is the only way in, so a search for that word finds every place that reads private
    data. A `Private` becomes public only as a `Release`, through a mechanism.
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
    """Images in [-1, 1], `(N, C, H, W)` float32, and class indices `(N,)` int64 or None."""

    images: torch.Tensor
    labels: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.images)

    def digest(self) -> str:
        """Returns a SHA-256 of images and labels. It identifies the data set: it stays private."""
        digest = hashlib.sha256(self.images.numpy().tobytes())
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()

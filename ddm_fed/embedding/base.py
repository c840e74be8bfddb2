"""What an embedder is: images to directions, through public weights named by their digest."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Embedder(Protocol):
    """Describes images by unit vectors. It is public, so what it computes is as private as they."""

    @property
    def name(self) -> str:
        """What sort of network it is, such as `clip`."""
        ...

    @property
    def dimension(self) -> int:
        """E, the length of an embedding."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of the file of its weights, hexadecimal."""
        ...

    def images(self, images: Tensor) -> Tensor:
        """Returns the embeddings of `images`, `(B, C, H, W)` in [-1, 1], as `(B, E)`.

        Rows are float32 of norm 1.
        """
        ...


class FeatureEmbedder(Embedder, Protocol):
    """An embedder that also says what its network gave before it became a direction."""

    def features(self, images: Tensor) -> Tensor:
        """Returns the network's own outputs for images as `images` takes them, `(B, E)`.

        Published distances of samples are in these: their lengths tell images apart as well.
        """
        ...


class TextEmbedder(Embedder, Protocol):
    """An embedder that puts text into the space of its images."""

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Returns the embeddings of `texts`, `(B, E)` float32 of norm 1."""
        ...


def prepared(images: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Returns `images` as networks for photographs take them, `(B, 3, size, size)` float32.

    The shorter side becomes `size`, bicubic, and the middle of the longer one is kept. Grey images
    become three equal channels.

    Args:
        images: In [-1, 1], `(B, C, H, W)` with C 1 or 3.
        size: Side of the square in pixels.
        mean: What the network subtracts from each channel of values in [0, 1].
        std: What it divides each channel by.

    Raises:
        ValueError: the images have other channels, as latents do.
    """
    channels, height, width = images.shape[1:]
    if channels not in (1, 3):
        raise ValueError(f"an embedder reads grey or colour images, not {channels} channels")
    unit = (images.detach().float().clamp(-1, 1).expand(-1, 3, -1, -1) + 1) / 2
    shorter = min(height, width)
    sides = (round(height * size / shorter), round(width * size / shorter))
    if sides != (height, width):
        unit = torch.nn.functional.interpolate(unit, sides, mode="bicubic", antialias=True)
        unit = unit.clamp(0, 1)  # bicubic overshoots; a resized file could not
    top, left = (sides[0] - size) // 2, (sides[1] - size) // 2
    middle = unit[:, :, top : top + size, left : left + size]
    per_channel = (1, 3, 1, 1)
    return (middle - torch.tensor(mean).reshape(per_channel)) / torch.tensor(std).reshape(
        per_channel
    )


def on_the_sphere(embeddings: Tensor) -> Tensor:
    """Returns the rows of `embeddings` at norm 1, float32; a row of zeros stays."""
    return torch.nn.functional.normalize(embeddings.float(), dim=1)

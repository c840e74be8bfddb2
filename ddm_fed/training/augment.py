"""Small changes of an image that leave it what it is, drawn anew every time it is seen."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ddm_fed.records import Augmentation

LARGEST_SHIFT = 8  # a side is shifted by up to this part of it


class Moves(NamedTuple):
    """What happens to each image of a batch.

    Attributes:
        flip: Whether left and right are exchanged, `(B,)` bool; None for none.
        shift: Pixels down and right, `(B, 2)` int64; None for none.
    """

    flip: Tensor | None
    shift: Tensor | None

    def rows(self, rows: slice) -> Self:
        """Returns the moves of some rows of the batch."""
        return type(self)(*(None if part is None else part[rows] for part in self))


def draw_moves(
    augmentations: Sequence[Augmentation],
    count: int,
    size: tuple[int, int],
    generator: torch.Generator,
) -> Moves:
    """Returns moves for `count` images of `size` (height, width).

    `horizontal-flip` exchanges left and right with probability 1/2; `translate` shifts by whole
    pixels, up to an eighth of each side, all shifts being equally likely.
    """
    flip = shift = None
    if "horizontal-flip" in augmentations:
        flip = torch.rand(count, generator=generator) < 0.5
    if "translate" in augmentations:
        limits = [side // LARGEST_SHIFT for side in size]
        shift = torch.stack(
            [torch.randint(-most, most + 1, (count,), generator=generator) for most in limits], 1
        )
    return Moves(flip, shift)


def join_moves(parts: Sequence[Moves]) -> Moves:
    """Returns the moves of several batches, drawn alike, as those of one."""

    def joined(values: Sequence[Tensor | None]) -> Tensor | None:
        kept = [value for value in values if value is not None]
        return torch.cat(kept) if kept else None

    return Moves(joined([part.flip for part in parts]), joined([part.shift for part in parts]))


def move_images(images: Tensor, moves: Moves) -> Tensor:
    """Returns `images (B, C, H, W)` after their moves; what a shift uncovers repeats the edge."""
    if moves.flip is not None:
        images = torch.where(moves.flip[:, None, None, None], images.flip(-1), images)
    if moves.shift is not None:
        batch, channels, height, width = images.shape
        down, right = moves.shift[:, 0, None], moves.shift[:, 1, None]  # (B, 1)
        from_row = (torch.arange(height) - down).clamp(0, height - 1)  # (B, H)
        from_column = (torch.arange(width) - right).clamp(0, width - 1)  # (B, W)
        image = torch.arange(batch)[:, None, None, None]
        channel = torch.arange(channels)[None, :, None, None]
        images = images[image, channel, from_row[:, None, :, None], from_column[:, None, None]]
    return images

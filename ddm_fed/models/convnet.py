"""A small network of convolutions at one resolution, for what is local in an image.

Every square of pixels becomes a row of channels, and every block mixes each with its eight
neighbours. Weights are shared by all places, so that there are few of them: what a mixture leaves
is mostly edges, which look alike everywhere, and under DP-SGD the noise grows with the number of
weights. A convolution is written as a linear layer of the nine neighbours side by side, which
private training knows (`privacy.RecordedGradients`).

Shapes: B batch, C channels, H and W pixels, P patch, R = H/P, S = W/P, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from ddm_fed.flows import Condition
from ddm_fed.models.base import ExpertNetwork
from ddm_fed.models.layers import (
    Modulation,
    PositionEmbedding,
    TimeEmbedding,
    patchify,
    plain_norm,
    reset_transformer,
    unpatchify,
)
from ddm_fed.records import ConvSize

REACH = (0, 1, 2)  # a place and its neighbours, after one row or column of zeros all around


def neighbours(h: Tensor) -> Tensor:
    """Returns every place's nine neighbours side by side, `(B, R, S, D) -> (B, R, S, 9 D)`."""
    rows, columns = h.shape[1:3]
    padded = F.pad(h, (0, 0, 1, 1, 1, 1))
    return torch.cat([padded[:, y : y + rows, x : x + columns] for y in REACH for x in REACH], -1)


class ConvBlock(nn.Module):
    """A convolution of three by three places that adds to what it reads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = plain_norm(width)
        self.modulation = Modulation(width, 2 * width)
        self.mix = nn.Linear(9 * width, width)
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """Returns the next rows of channels, from `h (B, R, S, D)` and condition `c (B, D)`."""
        shift, scale = self.modulation(c)[:, None, None].chunk(2, dim=-1)  # (B, 1, 1, D)
        mixed = self.mix(neighbours(self.norm(h) * (1 + scale) + shift))
        h = h + self.out(F.gelu(mixed, approximate="tanh"))
        return h  # noqa: RET504 - mypy wants the type of h


class ConvNet(ExpertNetwork):
    """Convolutions at one resolution, `(B, C, H, W), (B,), condition -> (B, C, H, W)`.

    Args:
        shape: One image's `(C, H, W)`.
        size: Depth and width.
        patch: Side of a square of pixels; divides H and W.
        classes: Number of classes; 0 makes an unconditional network.

    Example:
        >>> from ddm_fed.records import CONV_SIZES
        >>> network = ConvNet((1, 28, 28), CONV_SIZES["Nano"], 2, classes=10)
        >>> network.reset_parameters(torch.Generator().manual_seed(0))
        >>> network(torch.zeros(5, 1, 28, 28), torch.full((5,), 0.5)).shape
        torch.Size([5, 1, 28, 28])
    """

    def __init__(
        self, shape: tuple[int, int, int], size: ConvSize, patch: int, classes: int
    ) -> None:
        super().__init__(classes)
        channels, height, width = shape
        self.patch, self.rows, self.columns = patch, height // patch, width // patch
        self.embed = nn.Linear(channels * patch * patch, size.width)
        self.position = PositionEmbedding(self.rows, self.columns, size.width)
        self.time = TimeEmbedding(size.width)
        self.label = nn.Embedding(classes + 1, size.width) if classes else None
        self.blocks = nn.ModuleList(ConvBlock(size.width) for _ in range(size.depth))
        self.norm = plain_norm(size.width)
        self.modulation = Modulation(size.width, 2 * size.width)
        self.head = nn.Linear(size.width, channels * patch * patch)

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Returns the prediction at `x` (images at time `t`), `(B, C, H, W)` float32."""
        rows = self.class_rows(t, condition)  # (B,)
        c = self.time(t)  # (B, D)
        if self.label is not None:
            c = c + self.label(rows)  # (B, D)
        h = self.position(self.embed(patchify(x, self.patch)))  # (B, R S, D)
        h = h.unflatten(1, (self.rows, self.columns))  # (B, R, S, D)
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.modulation(c)[:, None].chunk(2, dim=-1)  # (B, 1, D)
        h = self.head(self.norm(h.flatten(1, 2)) * (1 + scale) + shift)  # (B, R S, C P P)
        return unpatchify(h, self.rows, self.columns, self.patch).float()

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draws new weights: Xavier for linear layers, zero for every modulation and the head."""
        reset_transformer(self, self.head, generator)

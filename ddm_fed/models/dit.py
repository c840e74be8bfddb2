"""The diffusion transformer an expert is made of.

Patches become tokens; time and label modulate every block through adaLN-zero, so that each block
starts as the identity; attention is torch's fused scaled dot product.

Shapes: B batch, C channels, H and W pixels, T = (H/P)(W/P) tokens, D width, P patch.

Source: Peebles and Xie 2023, arXiv:2212.09748, section 3.2 and figure 3.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from ddm_fed.records import DitSize


class TimeEmbedding(nn.Module):
    """Sinusoids of the time through a small network, `(B,) -> (B, D)`."""

    def __init__(self, width: int, frequencies: int = 64) -> None:
        super().__init__()
        self.register_buffer("rates", _rates(frequencies), persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, t: Tensor) -> Tensor:
        """Returns the embedding of times in [0, 1], scaled to [0, 1000] as the field does."""
        angles = 1000 * t.float()[:, None] * self.get_buffer("rates")  # (B, 64)
        embedded: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))  # (B, D)
        return embedded


class PositionEmbedding(nn.Module):
    """Adds fixed two-dimensional sinusoids, `(B, T, D) -> (B, T, D)`."""

    def __init__(self, rows: int, columns: int, width: int) -> None:
        super().__init__()
        self.register_buffer("table", _sincos_2d(rows, columns, width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` with the position of every token added."""
        return x + self.get_buffer("table")


class Attention(nn.Module):
    """Multi-head self-attention, `(B, T, D) -> (B, T, D)`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Returns every token's attention-weighted mixture of all tokens."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, D/heads)
        x = F.scaled_dot_product_attention(q, k, v)  # (B, heads, T, D/heads)
        mixed: Tensor = self.out(x.transpose(1, 2).reshape(batch, tokens, width))  # (B, T, D)
        return mixed


class Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition (adaLN-zero)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm_2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Returns the next tokens, from tokens `x (B, T, D)` and condition `c (B, D)`."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(F.silu(c))[
            :, None
        ].chunk(6, dim=-1)  # each (B, 1, D)
        x = x + gate_1 * self.attention(self.norm_1(x) * (1 + scale_1) + shift_1)
        x = x + gate_2 * self.mlp(self.norm_2(x) * (1 + scale_2) + shift_2)
        return x  # noqa: RET504 - mypy wants the type of x


class DiT(nn.Module):
    """Velocity of images, `(B, C, H, W), (B,), (B,) or None -> (B, C, H, W)`.

    Args:
        shape: One image's `(C, H, W)`.
        size: Depth, width and heads.
        patch: Side of a patch in pixels; divides H and W.
        classes: Number of classes; 0 makes an unconditional model. Index `classes` stands for
            "no label" and is what label dropout puts in a label's place.
    """

    def __init__(
        self, shape: tuple[int, int, int], size: DitSize, patch: int, classes: int
    ) -> None:
        super().__init__()
        channels, height, width = shape
        self.patch, self.classes = patch, classes
        self.rows, self.columns = height // patch, width // patch
        self.embed = nn.Linear(channels * patch * patch, size.width)
        self.position = PositionEmbedding(self.rows, self.columns, size.width)
        self.time = TimeEmbedding(size.width)
        self.label = nn.Embedding(classes + 1, size.width) if classes else None
        self.blocks = nn.ModuleList(Block(size.width, size.heads) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(size.width, 2 * size.width)
        self.head = nn.Linear(size.width, channels * patch * patch)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Returns the velocity at `x` (images at time `t`), float32.

        Args:
            x: `(B, C, H, W)`.
            t: Times in [0, 1], `(B,)`.
            label: Class indices `(B,)`; None means "no label" for a conditional model.

        Raises:
            ValueError: labels were given to an unconditional model.
        """
        c = self.time(t)  # (B, D)
        if self.label is not None:
            none = torch.full_like(t, self.classes, dtype=torch.long)
            c = c + self.label(none if label is None else label)  # (B, D)
        elif label is not None:
            raise ValueError("this model is unconditional: it takes no labels")
        h = self.position(self.embed(self._patchify(x)))  # (B, T, D)
        for block in self.blocks:
            h = block(h, c)  # (B, T, D)
        shift, scale = self.modulation(F.silu(c))[:, None].chunk(2, dim=-1)  # (B, 1, D)
        h = self.head(self.norm(h) * (1 + scale) + shift)  # (B, T, C P P)
        return self._unpatchify(h).float()  # (B, C, H, W)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draws new weights as DiT does: Xavier for linear layers, zero for every gate and head."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02, generator=generator)
        for module in self.time.mlp:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02, generator=generator)
        gates = [block.modulation for block in self.blocks if isinstance(block, Block)]
        for gate in (*gates, self.modulation, self.head):
            nn.init.zeros_(gate.weight)

    def _patchify(self, x: Tensor) -> Tensor:
        batch, channels, _, _ = x.shape
        x = x.reshape(batch, channels, self.rows, self.patch, self.columns, self.patch)
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, T, C P P)

    def _unpatchify(self, h: Tensor) -> Tensor:
        batch, p = len(h), self.patch
        h = h.reshape(batch, self.rows, self.columns, -1, p, p)  # (B, H/P, W/P, C, P, P)
        return h.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, self.rows * p, self.columns * p)


def _rates(count: int) -> Tensor:
    """Returns `count` angular rates from 1 down towards 1 / 10,000, evenly in their logarithm.

    Tables are made by numpy: on the meta device, torch.arange would first load half of torch.
    """
    return torch.from_numpy(np.exp(-math.log(10_000) * np.arange(count) / count)).float()


def _sincos_2d(rows: int, columns: int, width: int) -> Tensor:
    """Returns one sinusoidal code per token, half for the row and half for the column, `(T, D)`."""
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    rates = _rates(width // 4).numpy()
    codes = [wave(axis.reshape(-1, 1) * rates) for axis in (y, x) for wave in (np.sin, np.cos)]
    return torch.from_numpy(np.concatenate(codes, axis=1)).float()

"""What the transformers are built from: patches, times, positions, attention, modulation.

Shapes: B batch, C channels, H and W pixels, T = (H/P)(W/P) tokens, D width, P patch, E = D / heads.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from ddm_fed.records import Grid

TIME_BASE = 10_000
# A rotary base of 10,000 is for long texts: along the few dozen tokens of an image's side, most of
# its pairs would hardly turn.
ROTARY_BASE = 100
Floats = NDArray[np.float64]


def patchify(x: Tensor, patch: int) -> Tensor:
    """Returns the squares of images `(B, C, H, W)` in reading order, `(B, T, C P P)`."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(h: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """Returns the images whose squares are `h (B, T, C P P)`, `(B, C, H, W)`."""
    batch = h.shape[0]  # not len(h): an export would take it for a constant
    h = h.reshape(batch, rows, columns, -1, patch, patch)  # (B, H/P, W/P, C, P, P)
    return h.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, rows * patch, columns * patch)


class TimeEmbedding(nn.Module):
    """Sinusoids of the time through a small network, `(B,) -> (B, D)`.

    With `as_diffusers`, in 128 frequencies down to the base itself, which the others stop short of.
    """

    def __init__(self, width: int, *, as_diffusers: bool = False) -> None:
        super().__init__()
        frequencies = 128 if as_diffusers else 64
        rates = _rates(frequencies, TIME_BASE, frequencies - as_diffusers)
        self.register_buffer("rates", rates, persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, t: Tensor) -> Tensor:
        """Returns the embedding of times in [0, 1], scaled to [0, 1000] as the field does."""
        angles = 1000 * t.float()[:, None] * self.get_buffer("rates")  # (B, 64)
        embedded: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))  # (B, D)
        return embedded


class PositionEmbedding(nn.Module):
    """Adds fixed two-dimensional sinusoids, `(B, T, D) -> (B, T, D)`.

    Args:
        rows: Rows of tokens.
        columns: Columns of tokens.
        width: D.
        grid: The rows and columns whose sinusoids are stretched over these tokens; None for these.
    """

    def __init__(self, rows: int, columns: int, width: int, grid: Grid | None = None) -> None:
        super().__init__()
        places = _places(rows, columns, grid)
        self.register_buffer("table", _sincos_2d(places, width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` with the position of every token added."""
        return x + self.get_buffer("table")


class LearnedPosition(nn.Module):
    """Adds one learned code per token, `(B, T, D) -> (B, T, D)`.

    Args:
        rows: Rows of tokens.
        columns: Columns of tokens.
        width: D.
        grid: The rows and columns that have codes, of which a token takes the nearest four by how
            near they are; None for a code of every token.
    """

    def __init__(self, rows: int, columns: int, width: int, grid: Grid | None = None) -> None:
        super().__init__()
        self.known = grid or Grid(rows, columns)
        self.table = nn.Parameter(torch.empty(self.known.rows * self.known.columns, width))
        self.stretched = self.known != (rows, columns)
        if self.stretched:
            y, x = _places(rows, columns, grid)
            self.register_buffer("down", _hats(y[:, 0], self.known.rows), persistent=False)
            self.register_buffer("across", _hats(x[0], self.known.columns), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` with the position of every token added."""
        if not self.stretched:
            return x + self.table
        table = self.table.reshape(*self.known, -1)  # (R, S, D)
        down, across = self.get_buffer("down"), self.get_buffer("across")
        # in the precision of the table: a sum in bfloat16 would leave all blocks after it in that
        device = "cpu" if x.is_meta else x.device.type  # meta, which costs are counted on, has none
        with torch.autocast(device, enabled=False):
            stretched = torch.einsum("rR,sS,RSd->rsd", down, across, table)
        return x + stretched.flatten(0, 1)


class RotaryPosition(nn.Module):
    """Turns queries and keys by their place: half of the pairs by the row, half by the column.

    The product of a query and a key then depends on how far apart they are, not on where.

    Args:
        rows: Rows of tokens.
        columns: Columns of tokens.
        width: Channels of one head; a multiple of 4.
        leading: Tokens before those of the image, which stay unturned.
        grid: The rows and columns whose angles are stretched over these tokens; None for these.

    Source: Su et al. 2021, arXiv:2104.09864; here for two axes; stretched as in Chen et al. 2023,
    arXiv:2306.15595.
    """

    def __init__(
        self, rows: int, columns: int, width: int, leading: int = 0, grid: Grid | None = None
    ) -> None:
        super().__init__()
        y, x = _places(rows, columns, grid)
        rates = _rates(width // 4, ROTARY_BASE).numpy()
        angles = np.concatenate([axis.reshape(-1, 1) * rates for axis in (y, x)], axis=1)
        angles = np.concatenate([np.zeros((leading, width // 2)), angles])  # (T, E/2)
        self.register_buffer("cos", torch.from_numpy(np.cos(angles)).float(), persistent=False)
        self.register_buffer("sin", torch.from_numpy(np.sin(angles)).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns queries or keys `(B, heads, T, E)`, each turned; same shape and dtype."""
        cos, sin = self.get_buffer("cos"), self.get_buffer("sin")
        left, right = x.float().chunk(2, dim=-1)  # (B, heads, T, E/2)
        turned = [left * cos - right * sin, left * sin + right * cos]
        return torch.cat(turned, dim=-1).type_as(x)


class QkNorm(nn.Module):
    """Gives queries and keys a root mean square that is learned, so that no logit runs away.

    Source: Esser et al. 2024, arXiv:2403.03206.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.RMSNorm(width, eps=1e-6)
        self.key = nn.RMSNorm(width, eps=1e-6)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Returns both normalised over their last axis, same shapes and dtypes."""
        # in float32: torch warns of, and is slow with, half-precision values and float32 scales
        return self.query(q.float()).type_as(q), self.key(k.float()).type_as(k)


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries, keys and values, each `(B, heads, T, E)`, of `qkv (B, T, 3 D)`."""
    batch, tokens, width = qkv.shape
    qkv = qkv.reshape(batch, tokens, 3, heads, width // (3 * heads))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns every token's mixture of all values, heads side by side, `(B, T, D)`.

    With `mask (B, 1, 1, keys)` bool, of those where it is true; each row has one.
    """
    # by position: private training knows these calls
    told = (q, k, v) if mask is None else (q, k, v, mask)
    return F.scaled_dot_product_attention(*told).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Multi-head self-attention, `(B, T, D) -> (B, T, D)`."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.qk_norm = QkNorm(width // heads) if qk_norm else None

    def forward(self, x: Tensor, rotary: RotaryPosition | None = None) -> Tensor:
        """Returns every token's attention-weighted mixture of all tokens."""
        q, k, v = split_heads(self.qkv(x), self.heads)
        if self.qk_norm is not None:
            q, k = self.qk_norm(q, k)
        if rotary is not None:
            q, k = rotary(q), rotary(k)
        mixed: Tensor = self.out(attend(q, k, v))
        return mixed


class AddedAttention(nn.Module):
    """Tokens attend to others, `(B, T, D) -> (B, T, D)`; it adds nothing before training."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = plain_norm(width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Returns what each of `x` takes from `tokens (B, N, D)` where `mask (B, N)` is true."""
        q = self.q(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv = self.kv(tokens).unflatten(-1, (2, self.heads, -1))  # (B, N, 2, heads, E)
        k, v = kv.permute(2, 0, 3, 1, 4)
        mixed: Tensor = self.out(attend(q, k, v, mask[:, None, None]))
        return mixed


class Modulation(nn.Linear):
    """Shifts, scales and gates of a condition, `(B, D) -> (B, n D)`; zero before training."""

    def forward(self, c: Tensor) -> Tensor:
        """Returns the modulation of the condition `c`."""
        return super().forward(F.silu(c))


class ModulationTable(nn.Module):
    """A block's own offset to a modulation that all blocks share, `(B, n D) -> (B, n D)`.

    Source: Chen et al. 2023 (PixArt-alpha), arXiv:2310.00426 (adaLN-single).
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(rows, width))

    def forward(self, shared: Tensor) -> Tensor:
        """Returns the block's modulation."""
        return shared + self.table.flatten()


def feed_forward(width: int) -> nn.Sequential:
    """Returns the network that every token passes by itself, `(B, T, D) -> (B, T, D)`."""
    return nn.Sequential(
        nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
    )


def plain_norm(width: int) -> nn.LayerNorm:
    """Returns a layer norm without weights: the modulation shifts and scales."""
    return nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)


def reset_transformer(model: nn.Module, head: nn.Linear, generator: torch.Generator) -> None:
    """Draws weights as DiT does: Xavier for linear layers, zero for modulations and the head."""
    for module in model.modules():
        match module:
            case nn.Linear():
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
            case nn.Embedding():
                nn.init.normal_(module.weight, std=0.02, generator=generator)
            case LearnedPosition():
                nn.init.normal_(module.table, std=0.02, generator=generator)
            case ModulationTable():
                nn.init.zeros_(module.table)
            case nn.RMSNorm():
                nn.init.ones_(module.weight)
    # Drawn twice, so that a seed gives the weights it always gave.
    for embedding in model.modules():
        if isinstance(embedding, TimeEmbedding):
            for module in embedding.mlp:
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02, generator=generator)
    for module in model.modules():
        if isinstance(module, Modulation):
            nn.init.zeros_(module.weight)
    for module in model.modules():
        if isinstance(module, AddedAttention):
            nn.init.zeros_(module.out.weight)
    nn.init.zeros_(head.weight)


def _rates(count: int, base: float, steps: int | None = None) -> Tensor:
    """Returns `count` angular rates from 1 down, evenly in their logarithm.

    The next after `steps`, by default after the last one, would be 1 / base.

    Tables are made by numpy: on the meta device, torch.arange would first load half of torch.
    """
    exponents = np.arange(count) / (steps or count)
    return torch.from_numpy(np.exp(-math.log(base) * exponents)).float()


def _places(rows: int, columns: int, grid: Grid | None) -> tuple[Floats, Floats]:
    """Returns the row and the column of every token, each `(rows, columns)`.

    They are counted in tokens of `grid`, whose edges are those of the image: where it has other
    rows or columns than these tokens, places lie between its own, as pixels do when an image is
    made larger.
    """
    known = grid or (rows, columns)
    y, x = (
        (np.arange(count) + 0.5) * (of / count) - 0.5
        for count, of in zip((rows, columns), known, strict=True)
    )
    first, second = np.meshgrid(y, x, indexing="ij")
    return first, second


def _hats(places: Floats, count: int) -> Tensor:
    """Returns the share of each of `count` codes at `places (T,)`, `(T, count)`: linear between."""
    held = np.clip(places, 0, count - 1)[:, None]  # as the outermost ones, beyond them
    return torch.from_numpy(np.clip(1 - np.abs(held - np.arange(count)), 0, None)).float()


def _sincos_2d(places: tuple[Floats, Floats], width: int) -> Tensor:
    """Returns one sinusoidal code per token, half for the row and half for the column, `(T, D)`."""
    rates = _rates(width // 4, TIME_BASE).numpy()
    codes = [wave(axis.reshape(-1, 1) * rates) for axis in places for wave in (np.sin, np.cos)]
    return torch.from_numpy(np.concatenate(codes, axis=1)).float()

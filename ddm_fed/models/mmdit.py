"""A transformer of two streams: tokens of the condition and of the image attend to each other.

First come blocks in which each stream has its own weights, then blocks of one stream that holds the
tokens of both, with attention and MLP side by side. Time and condition modulate every block through
adaLN, whose gates start closed. Queries and keys are normalised; those of the image are turned by
their place.

Shapes: B batch, C channels, H and W pixels, N tokens of the condition, T = (H/P)(W/P) of the image,
D width, P patch, E = D / heads.

Source: Esser et al. 2024, arXiv:2403.03206 (blocks of two streams); blocks of one
stream as in FLUX.1.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from ddm_fed.flows import Condition
from ddm_fed.models.base import ExpertNetwork
from ddm_fed.models.layers import (
    Modulation,
    QkNorm,
    RotaryPosition,
    TimeEmbedding,
    attend,
    feed_forward,
    patchify,
    plain_norm,
    reset_transformer,
    split_heads,
    unpatchify,
)
from ddm_fed.models.text import TextInput
from ddm_fed.records import Grid, MmditSize, TextSpec

CONDITION_TOKENS = 4  # a class says little: a few tokens give the image something to attend to


class Stream(nn.Module):
    """The weights that one kind of token has in a block of two streams."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = Modulation(width, 6 * width)
        self.norm_1 = plain_norm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.qk_norm = QkNorm(width // heads)
        self.out = nn.Linear(width, width)
        self.norm_2 = plain_norm(width)
        self.mlp = feed_forward(width)

    def ask(self, x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries, keys and values of tokens `x`, each `(B, heads, tokens, E)`."""
        q, k, v = split_heads(self.qkv(self.norm_1(x) * (1 + scale) + shift), self.heads)
        q, k = self.qk_norm(q, k)
        return q, k, v

    def think(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """Returns what every token makes of itself, `(B, tokens, D)`."""
        made: Tensor = self.mlp(self.norm_2(x) * (1 + scale) + shift)
        return made


class DoubleBlock(nn.Module):
    """Both streams, each with its own weights, attending to all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.condition = Stream(width, heads)
        self.image = Stream(width, heads)

    def forward(
        self,
        condition: Tensor,
        image: Tensor,
        c: Tensor,
        rotary: RotaryPosition,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the next tokens `(B, N, D)` and `(B, T, D)`, modulated by `c (B, D)`."""
        streams, tokens = (self.condition, self.image), (condition, image)
        shifts = [stream.modulation(c)[:, None].chunk(6, dim=-1) for stream in streams]
        asked = [
            stream.ask(x, shift[0], shift[1])
            for stream, x, shift in zip(streams, tokens, shifts, strict=True)
        ]
        q, k, v = (torch.cat(parts, dim=2) for parts in zip(*asked, strict=True))
        mixed = attend(rotary(q), rotary(k), v, mask)  # (B, N + T, D)
        count = condition.shape[1]
        parts = (mixed[:, :count], mixed[:, count:])
        condition, image = (
            _advance(stream, x, part, shift)
            for stream, x, part, shift in zip(streams, tokens, parts, shifts, strict=True)
        )
        return condition, image


def _advance(stream: Stream, x: Tensor, mixed: Tensor, shifts: tuple[Tensor, ...]) -> Tensor:
    _, _, gate_1, shift_2, scale_2, gate_2 = shifts
    x = x + gate_1 * stream.out(mixed)
    return x + gate_2 * stream.think(x, shift_2, scale_2)


class SingleBlock(nn.Module):
    """Attention and MLP side by side, out of one linear layer and into one."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.modulation = Modulation(width, 3 * width)
        self.norm = plain_norm(width)
        self.inner = nn.Linear(width, 7 * width)  # queries, keys, values, and the MLP's 4 D
        self.qk_norm = QkNorm(width // heads)
        self.outer = nn.Linear(5 * width, width)

    def forward(
        self, x: Tensor, c: Tensor, rotary: RotaryPosition, mask: Tensor | None = None
    ) -> Tensor:
        """Returns the next tokens, from tokens `x (B, N + T, D)` and condition `c (B, D)`."""
        shift, scale, gate = self.modulation(c)[:, None].chunk(3, dim=-1)  # each (B, 1, D)
        inner = self.inner(self.norm(x) * (1 + scale) + shift)  # (B, N + T, 7 D)
        qkv, hidden = inner.split([3 * self.width, 4 * self.width], dim=-1)
        q, k, v = split_heads(qkv, self.heads)
        q, k = self.qk_norm(q, k)
        mixed = attend(rotary(q), rotary(k), v, mask)  # (B, N + T, D)
        x = x + gate * self.outer(torch.cat([mixed, F.gelu(hidden, approximate="tanh")], dim=-1))
        return x  # noqa: RET504 - mypy wants the type of x


class MMDiT(ExpertNetwork):
    """A transformer of two streams, `(B, C, H, W), (B,), condition -> (B, C, H, W)`.

    A class is a few learned tokens; "no class" has tokens of its own, and an unconditional network
    has only those. Their mean also joins the time in the modulation. A caption has tokens of its
    own, and its pooled vector joins the time.

    Args:
        shape: One image's `(C, H, W)`.
        size: Blocks of two streams and of one, width and heads.
        patch: Side of a patch in pixels; divides H and W.
        classes: Number of classes; 0 makes an unconditional network.
        text: What captions are made of; None makes a network that reads none.
        grid: The rows and columns of patches that positions are made for and stretched from; None
            for those of the image.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        size: MmditSize,
        patch: int,
        classes: int,
        *,
        text: TextSpec | None = None,
        grid: Grid | None = None,
    ) -> None:
        super().__init__(classes)
        channels, height, width = shape
        self.patch, self.rows, self.columns = patch, height // patch, width // patch
        self.embed = nn.Linear(channels * patch * patch, size.width)
        self.text = TextInput(text, size.width) if text is not None else None
        self.tokens = None
        if text is None:
            self.tokens = nn.Embedding(classes + 1, CONDITION_TOKENS * size.width)
        self.leading = CONDITION_TOKENS if text is None else 1 + text.tokens
        self.time = TimeEmbedding(size.width)
        self.rotary = RotaryPosition(
            self.rows, self.columns, size.width // size.heads, self.leading, grid
        )
        self.double_blocks = nn.ModuleList(
            DoubleBlock(size.width, size.heads) for _ in range(size.double_blocks)
        )
        self.single_blocks = nn.ModuleList(
            SingleBlock(size.width, size.heads) for _ in range(size.single_blocks)
        )
        self.norm = plain_norm(size.width)
        self.modulation = Modulation(size.width, 2 * size.width)
        self.head = nn.Linear(size.width, channels * patch * patch)

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Returns the prediction at `x` (images at time `t`), `(B, C, H, W)` float32."""
        image = self.embed(patchify(x, self.patch))  # (B, T, D)
        tokens, said, mask = self._told(t, condition, image)
        c = self.time(t) + said  # (B, D)
        for block in self.double_blocks:
            tokens, image = block(tokens, image, c, self.rotary, mask)
        h = torch.cat([tokens, image], dim=1)  # (B, N + T, D)
        for block in self.single_blocks:
            h = block(h, c, self.rotary, mask)
        shift, scale = self.modulation(c)[:, None].chunk(2, dim=-1)  # (B, 1, D)
        h = self.norm(h[:, self.leading :]) * (1 + scale) + shift  # (B, T, D)
        return unpatchify(self.head(h), self.rows, self.columns, self.patch).float()

    def _told(
        self, t: Tensor, condition: Condition | None, image: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns the condition's tokens `(B, N, D)`, what joins the time `(B, D)`, and a mask.

        The mask, of the tokens of condition and image that may be attended to, is there where some
        may not be.
        """
        if self.text is not None:
            told = self.text(t, condition)
            seen = torch.ones_like(image[:, :, 0], dtype=torch.bool)  # (B, T)
            return told.tokens, told.pooled, torch.cat([told.mask, seen], 1)[:, None, None]
        if self.tokens is None:
            raise TypeError("a network without captions has tokens of its own")
        tokens = self.tokens(self.class_rows(t, condition))
        tokens = tokens.unflatten(1, (CONDITION_TOKENS, -1))  # (B, N, D)
        return tokens, tokens.mean(1), None

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draws new weights: Xavier for linear layers, zero for every gate and the head."""
        reset_transformer(self, self.head, generator)

"""The diffusion transformer an expert is made of.

Patches become tokens; time and class modulate every block through adaLN, whose gates start closed,
so that each block starts as the identity; attention is torch's fused scaled dot product. A caption
joins the modulation by its pooled vector, and every block attends to its tokens.

Shapes: B batch, C channels, H and W pixels, T = (H/P)(W/P) tokens, D width, P patch.

Source: Peebles and Xie 2023, arXiv:2212.09748, section 3.2 and figure 3; attention to a
caption between that to the image and the MLP: Chen et al. 2023 (PixArt-alpha), arXiv:2310.00426.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from ddm_fed.flows import Condition
from ddm_fed.models.base import ExpertNetwork
from ddm_fed.models.layers import (
    AddedAttention,
    Attention,
    LearnedPosition,
    Modulation,
    ModulationTable,
    PositionEmbedding,
    RotaryPosition,
    TimeEmbedding,
    feed_forward,
    patchify,
    plain_norm,
    reset_transformer,
    unpatchify,
)
from ddm_fed.models.text import TextInput, Told
from ddm_fed.records import DitSize, Grid, TextSpec


class Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition.

    With `single`, the condition is the modulation that all blocks share, `(B, 6 D)`, to which the
    block adds a table; otherwise it is an embedding, `(B, D)`, with a linear layer per block.
    With `reads_text` it also attends to a caption.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        single: bool = False,
        qk_norm: bool = False,
        reads_text: bool = False,
    ) -> None:
        super().__init__()
        self.norm_1 = plain_norm(width)
        self.attention = Attention(width, heads, qk_norm=qk_norm)
        self.norm_2 = plain_norm(width)
        self.mlp = feed_forward(width)
        self.modulation = ModulationTable(6, width) if single else Modulation(width, 6 * width)
        self.added = AddedAttention(width, heads) if reads_text else None

    def forward(
        self,
        x: Tensor,
        c: Tensor,
        rotary: RotaryPosition | None = None,
        told: Told | None = None,
    ) -> Tensor:
        """Returns the next tokens, from tokens `x (B, T, D)` and condition `c`."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(c)[:, None].chunk(
            6, dim=-1
        )  # each (B, 1, D)
        x = x + gate_1 * self.attention(self.norm_1(x) * (1 + scale_1) + shift_1, rotary)
        if self.added is not None and told is not None:
            x = x + self.added(x, told.tokens, told.mask)
        x = x + gate_2 * self.mlp(self.norm_2(x) * (1 + scale_2) + shift_2)
        return x  # noqa: RET504 - mypy wants the type of x


class DiT(ExpertNetwork):
    """A transformer of patches, `(B, C, H, W), (B,), condition -> (B, C, H, W)`.

    Args:
        shape: One image's `(C, H, W)`.
        size: Depth, width and heads.
        patch: Side of a patch in pixels; divides H and W.
        classes: Number of classes; 0 makes an unconditional network.
        modulation: "zero" gives every block a linear layer of the condition, "single" all of them
            one (adaLN-single), which saves about a third of the weights.
        qk_norm: Whether queries and keys are normalised.
        positions: How a token knows its place.
        more_times: Whether times are embedded as in diffusers' DiT.
        text: What captions are made of; None makes a network that reads none.
        grid: The rows and columns of patches that positions are made for and stretched from; None
            for those of the image.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        size: DitSize,
        patch: int,
        classes: int,
        *,
        modulation: Literal["zero", "single"] = "zero",
        qk_norm: bool = False,
        positions: Literal["sincos", "rope", "learned"] = "sincos",
        more_times: bool = False,
        text: TextSpec | None = None,
        grid: Grid | None = None,
    ) -> None:
        super().__init__(classes)
        channels, height, width = shape
        single = modulation == "single"
        self.patch, self.rows, self.columns = patch, height // patch, width // patch
        self.embed = nn.Linear(channels * patch * patch, size.width)
        self.position: nn.Module = nn.Identity()
        if positions == "sincos":
            self.position = PositionEmbedding(self.rows, self.columns, size.width, grid)
        elif positions == "learned":
            self.position = LearnedPosition(self.rows, self.columns, size.width, grid)
        self.time = TimeEmbedding(size.width, as_diffusers=more_times)
        self.label = nn.Embedding(classes + 1, size.width) if classes else None
        self.blocks = nn.ModuleList(
            Block(
                size.width,
                size.heads,
                single=single,
                qk_norm=qk_norm,
                reads_text=text is not None,
            )
            for _ in range(size.depth)
        )
        self.norm = plain_norm(size.width)
        self.modulation = Modulation(size.width, 2 * size.width)
        self.head = nn.Linear(size.width, channels * patch * patch)
        self.shared = Modulation(size.width, 6 * size.width) if single else None
        self.text = TextInput(text, size.width) if text is not None else None
        self.rotary = None
        if positions == "rope":
            head = size.width // size.heads
            self.rotary = RotaryPosition(self.rows, self.columns, head, grid=grid)

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Returns the prediction at `x` (images at time `t`), `(B, C, H, W)` float32."""
        c, told = self.time(t), None  # (B, D)
        if self.text is not None:
            told = self.text(t, condition)
            c = c + told.pooled  # (B, D)
        else:
            rows = self.class_rows(t, condition)  # (B,)
            if self.label is not None:
                c = c + self.label(rows)  # (B, D)
        h = self.position(self.embed(patchify(x, self.patch)))  # (B, T, D)
        for_blocks = c if self.shared is None else self.shared(c)  # (B, D) or (B, 6 D)
        for block in self.blocks:
            h = block(h, for_blocks, self.rotary, told)  # (B, T, D)
        shift, scale = self.modulation(c)[:, None].chunk(2, dim=-1)  # (B, 1, D)
        h = self.head(self.norm(h) * (1 + scale) + shift)  # (B, T, C P P)
        return unpatchify(h, self.rows, self.columns, self.patch).float()

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draws new weights as DiT does: Xavier for linear layers, zero for every gate and head."""
        reset_transformer(self, self.head, generator)

"""The paper's router: a diffusion transformer that answers at a class token.

It reads the whole noised image, where `CoefficientNetwork` reads cosines of it, and so sees texture
and place as an expert does. The class token attends to all patches, and what it holds after the
last block becomes one score per site.

Shapes: B batch, C channels, H and W pixels, T tokens of patches, D width.

Source: McAllister et al. 2025, arXiv:2501.05450, section 3.3; the token: Dosovitskiy et al. 2021,
arXiv:2010.11929.
"""

import torch
from torch import Tensor, nn

from ddm_fed.flows import NO_CLASS, Condition
from ddm_fed.models import Block
from ddm_fed.models.layers import (
    LearnedPosition,
    Modulation,
    PositionEmbedding,
    RotaryPosition,
    TimeEmbedding,
    patchify,
    plain_norm,
    reset_transformer,
)
from ddm_fed.records import DitArchitecture


class ImageTransformer(nn.Module):
    """A DiT of patches and one class token, `(B, C, H, W), (B,), condition -> (B, outputs)`.

    The last layer starts at zero: untrained, it prefers no site.

    Args:
        shape: One image's `(C, H, W)`.
        architecture: Size, patch, modulation and positions, as those of an expert.
        outputs: Scores per image.
        classes: Number of classes; 0 makes an unconditional network.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        architecture: DitArchitecture,
        outputs: int,
        classes: int,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        size, patch, grid = architecture.size, architecture.patch, architecture.grid
        rows, columns = height // patch, width // patch
        single = architecture.modulation == "single"
        self.patch, self.classes = patch, classes
        self.embed = nn.Linear(channels * patch * patch, size.width)
        self.position: nn.Module = nn.Identity()
        self.rotary = None
        if architecture.positions == "sincos":
            self.position = PositionEmbedding(rows, columns, size.width, grid)
        elif architecture.positions == "learned":
            self.position = LearnedPosition(rows, columns, size.width, grid)
        else:
            self.rotary = RotaryPosition(rows, columns, size.width // size.heads, 1, grid)
        self.token = nn.Parameter(torch.empty(size.width))
        self.time = TimeEmbedding(size.width, as_diffusers=architecture.more_times)
        self.label = nn.Embedding(classes + 1, size.width) if classes else None
        self.shared = Modulation(size.width, 6 * size.width) if single else None
        self.blocks = nn.ModuleList(
            Block(size.width, size.heads, single=single, qk_norm=architecture.qk_norm)
            for _ in range(size.depth)
        )
        self.norm = plain_norm(size.width)
        self.modulation = Modulation(size.width, 2 * size.width)
        self.head = nn.Linear(size.width, outputs)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Returns scores `(B, outputs)` of images `x_t (B, C, H, W)` at times `t (B,)`."""
        level = t.to(x_t).view(-1, 1, 1, 1)
        scaled = x_t / ((1 - level) ** 2 + level**2).sqrt()  # of order one at every time
        c = self.time(t)  # (B, D)
        if self.label is not None:
            c = c + self.label(self._class_rows(t, condition))
        for_blocks = c if self.shared is None else self.shared(c)  # (B, D) or (B, 6 D)
        patches = self.position(self.embed(patchify(scaled, self.patch)))  # (B, T, D)
        h = torch.cat([self.token.expand(len(x_t), 1, -1), patches], dim=1)  # (B, 1 + T, D)
        for block in self.blocks:
            h = block(h, for_blocks, self.rotary)
        shift, scale = self.modulation(c).chunk(2, dim=-1)  # (B, D)
        scores: Tensor = self.head(self.norm(h[:, 0]) * (1 + scale) + shift)
        return scores

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draws new weights as DiT does: Xavier for linear layers, zero for gates and the head."""
        reset_transformer(self, self.head, generator)
        nn.init.normal_(self.token, std=0.02, generator=generator)

    def _class_rows(self, t: Tensor, condition: Condition | None) -> Tensor:
        if condition is None:
            return torch.full_like(t, self.classes, dtype=torch.long)
        return torch.where(condition.labels == NO_CLASS, self.classes, condition.labels)

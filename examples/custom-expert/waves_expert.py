"""A small network of dilated convolutions: nobody's architecture but ours."""

import math

import torch
from torch import Tensor, nn

from ddm_fed.flows import Condition
from ddm_fed.models import ExpertNetwork

WIDTH, REACH = 32, (1, 2, 4, 1)


class Waves(ExpertNetwork):
    """Any module of yours goes here, with these three methods and these two arguments.

    Args:
        shape: One image's `(C, H, W)`.
        classes: Number of classes; 0 for none. A table of classes has one row more, for "none".
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__(classes)
        channels, height, width = shape
        if min(height, width) < max(REACH):
            raise ValueError(f"images have at least {max(REACH)} rows and columns")
        self.first = nn.Conv2d(channels, WIDTH, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.label = nn.Embedding(classes + 1, WIDTH) if classes else None
        self.blocks = nn.ModuleList(
            nn.Conv2d(WIDTH, WIDTH, 3, padding=reach, dilation=reach) for reach in REACH
        )
        self.head = nn.Conv2d(WIDTH, channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Returns the prediction at `x (B, C, H, W)` and times `t (B,)`, float32, as `x`."""
        rates = torch.exp(torch.linspace(0, math.log(100), WIDTH // 2, device=t.device))
        angles = t.float()[:, None] * rates
        told = self.time(torch.cat([angles.cos(), angles.sin()], dim=1))
        rows = self.class_rows(t, condition)  # also refuses what it cannot read
        if self.label is not None:
            told = told + self.label(rows)
        h = self.first(x)
        for block in self.blocks:
            h = h + block(nn.functional.silu(h + told[:, :, None, None]))
        return self.head(nn.functional.silu(h)).float()

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draws every weight from `generator` alone; the first output is zero."""
        for weight in self.parameters():
            spread = 1 / math.sqrt(weight[0].numel()) if weight.ndim > 1 else 0.0
            weight.data.normal_(std=spread, generator=generator) if spread else weight.data.zero_()
        nn.init.zeros_(self.head.weight)

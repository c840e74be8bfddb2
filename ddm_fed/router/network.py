"""The small network of learned routers: coefficients of a noised image, time and class to scores.

It reads y_t = P x_t for a public orthonormal basis P. White noise stays white under P, so a
posterior given y_t is a genuine posterior at every noise level; with all frequencies of the basis
it is that of x_t. A network this small costs little beside an expert and learns from few samples.

Shapes: B batch, D coefficients, W width.
"""

import math

import torch
from torch import Tensor, nn

from ddm_fed.flows import NO_CLASS, Condition

TIME_FEATURES = 64


class CoefficientNetwork(nn.Module):
    """A residual perceptron whose blocks are scaled and shifted by time and class.

    The last layer starts at zero: untrained, it prefers no site.

    Args:
        coefficients: D.
        outputs: Scores per image.
        classes: Number of classes; 0 makes an unconditional network.
        width: Channels of every block.
        depth: Number of blocks.

    Source of the modulation: FiLM, Perez et al. 2018, arXiv:1709.07871.
    """

    def __init__(
        self, coefficients: int, outputs: int, classes: int, width: int = 256, depth: int = 3
    ) -> None:
        super().__init__()
        self.classes = classes
        self.embed = nn.Linear(coefficients, width)
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU())
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, y_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Returns scores `(B, outputs)` of coefficients `y_t (B, D)` at times `t (B,)`."""
        t = t.to(y_t)[:, None]
        scaled = y_t / ((1 - t) ** 2 + t**2).sqrt()  # of order one at every time
        c = self.time(_time_features(t))  # (B, W)
        if self.label is not None:
            c = c + self.label(self._class_rows(len(y_t), condition, y_t.device))
        h = self.embed(scaled)
        for block in self.blocks:
            h = block(h, c)
        scores: Tensor = self.head(self.norm(h))
        return scores

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draws new weights: Xavier for linear layers, zero for the last of all."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.head.weight)

    def _class_rows(self, count: int, condition: Condition | None, device: torch.device) -> Tensor:
        if condition is None:
            return torch.full((count,), self.classes, device=device)
        return torch.where(condition.labels == NO_CLASS, self.classes, condition.labels)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.modulation(c).chunk(2, dim=-1)
        moved: Tensor = h + self.mlp(self.norm(h) * (1 + scale) + shift)
        return moved


def _time_features(t: Tensor) -> Tensor:
    """Returns sines and cosines of `t (B, 1)`, `(B, TIME_FEATURES)`."""
    half = TIME_FEATURES // 2
    rates = torch.exp(math.log(200.0) * torch.arange(half, device=t.device) / half)
    angles = t * rates.to(t)
    return torch.cat([angles.sin(), angles.cos()], dim=1)

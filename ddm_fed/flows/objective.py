"""What an expert minimises: the flow-matching loss, and how its times are drawn."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddm_fed.flows.path import interpolate, velocity

VelocityModel = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""`(x_t (B, C, H, W), t (B,), label (B,) or None) -> velocity (B, C, H, W)`."""


def velocity_loss(
    model: VelocityModel, x_0: Tensor, eps: Tensor, t: Tensor, label: Tensor | None
) -> Tensor:
    """Returns the mean squared velocity error of each image, `(B,)`, float32.

    The loss stays per image because a private training step clips one image at a time.

    Args:
        model: Velocity network.
        x_0: Images in [-1, 1], `(B, C, H, W)`.
        eps: Standard normal noise, same shape.
        t: Times in [0, 1], `(B,)`.
        label: Class indices `(B,)`, or None for an unconditional model.

    Source:
        McAllister et al. 2025, arXiv:2501.05450, eq. 6.
    """
    error = model(interpolate(x_0, eps, t), t, label).float() - velocity(x_0, eps)
    return error.square().flatten(1).mean(1)


def uniform_times(count: int, generator: torch.Generator) -> Tensor:
    """Returns `count` times drawn evenly from [0, 1), `(count,)`."""
    return torch.rand(count, generator=generator)


def logit_normal_times(
    count: int, generator: torch.Generator, *, location: float, scale: float
) -> Tensor:
    """Returns `count` times whose logit is normal; a positive `location` favours noise.

    Source: Esser et al. 2024, arXiv:2403.03206, section 3.1.
    """
    return torch.sigmoid(location + scale * torch.randn(count, generator=generator))

"""What an expert minimises: a weighted squared error, and how its times are drawn."""

import torch
from torch import Tensor

from ddm_fed.flows.condition import Condition
from ddm_fed.flows.convert import Network
from ddm_fed.flows.path import LINEAR, Path, interpolate, velocity
from ddm_fed.records import LossWeighting, Prediction


def denoising_loss(
    network: Network,
    x_0: Tensor,
    eps: Tensor,
    t: Tensor,
    condition: Condition | None,
    *,
    path: Path = LINEAR,
    prediction: Prediction = "velocity",
    weighting: LossWeighting = "none",
) -> Tensor:
    """Returns the mean squared error of what the network predicts for each image, `(B,)`, float32.

    The loss stays per image because a private training step clips one image at a time.

    Args:
        network: Predicts velocity, noise or image.
        x_0: Images in [-1, 1], `(B, C, H, W)`.
        eps: Standard normal noise, same shape.
        t: Times in [0, 1], `(B,)`.
        condition: What the images are, or None.
        path: How x_t is made.
        prediction: What the network returns.
        weighting: How much an image counts by its time; see `loss_weight`.

    Source:
        McAllister et al. 2025, arXiv:2501.05450, eq. 6 (velocity on the linear path).
    """
    target = {"noise": eps, "image": x_0}.get(prediction)
    if target is None:
        target = velocity(x_0, eps, t, path)
    error = network(interpolate(x_0, eps, t, path), t, condition).float() - target
    loss = error.square().flatten(1).mean(1)
    if weighting == "none":
        return loss
    return loss * loss_weight(t, path, prediction)


def without_known(x_0: Tensor, eps: Tensor, t: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Returns images and noise with the same x_t, and a velocity that is less by `known`.

    A network that learns velocity from these learns what `known` leaves: x_0 + t v and
    eps - (1 - t) v meet at the same x_t = (1 - t) x_0 + t eps, and differ by eps - x_0 - v. So
    nothing of a training has to know of it.

    Args:
        x_0: Images, `(B, C, H, W)`.
        eps: Noise, same shape.
        t: Times of the linear path, `(B,)`.
        known: A velocity at x_t, `(B, C, H, W)`.
    """
    time = t.reshape(-1, *(1,) * (x_0.ndim - 1))
    return x_0 + time * known, eps - (1 - time) * known


def loss_weight(t: Tensor, path: Path, prediction: Prediction, *, limit: float = 5.0) -> Tensor:
    """Returns the min-SNR weight of each time, `(B,)`: min(SNR, limit) in units of the x_0 error.

    With SNR = (alpha / sigma)^2, an error of noise is the x_0 error times SNR, and one of velocity
    times (alpha sigma' - sigma alpha')^2 / sigma^2, so the weights are divided by that.

    Source: Hang et al. 2023, arXiv:2303.09556, eq. 8 and section 3.4.
    """
    alpha, sigma = path.alpha(t), path.sigma(t)
    snr = (alpha / sigma).square()
    clipped = snr.clamp(max=limit)
    match prediction:
        case "image":
            return clipped
        case "noise":
            # min(SNR, limit) / SNR without a division by zero at t = 1
            return (limit / snr).clamp(max=1.0)
        case "velocity":
            scale = alpha * path.sigma_rate(t) - sigma * path.alpha_rate(t)
            return clipped * sigma.square() / scale.square()


def uniform_times(count: int, generator: torch.Generator) -> Tensor:
    """Returns `count` times drawn evenly from (0, 1], `(count,)`.

    Never 0: there the path vp moves with infinite speed.
    """
    return 1 - torch.rand(count, generator=generator)


def logit_normal_times(
    count: int, generator: torch.Generator, *, location: float, scale: float
) -> Tensor:
    """Returns `count` times whose logit is normal; a positive `location` favours noise.

    Source: Esser et al. 2024, arXiv:2403.03206, section 3.1.
    """
    return torch.sigmoid(location + scale * torch.randn(count, generator=generator))


def shift_times(t: Tensor, shift: float) -> Tensor:
    """Returns `t` moved towards noise: the ratio sigma / alpha of the linear path times `shift`.

    Images of more pixels need more noise to be hidden as well. 1 changes nothing; ends stay.

    Source: Esser et al. 2024, arXiv:2403.03206, section 5.3.2, eq. 23.
    """
    return shift * t / (1 + (shift - 1) * t)

"""Which scale and shift give the latents of public images a mean of 0 and a deviation of 1."""

from decimal import Decimal
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddm_fed.autoencoders.config import AutoencoderConfig
from ddm_fed.autoencoders.networks import moments
from ddm_fed.errors import DataError
from ddm_fed.records import LatentSpec
from ddm_fed.records.latent import DEFAULT_BOUND

PIXELS_AT_ONCE = 1 << 18


class MeasuredLatents(NamedTuple):
    """What latents of public images are like.

    Attributes:
        scale: One over their standard deviation, to four digits.
        shift: Their mean, to four digits of the deviation.
        cut_off: The part of them that lies beyond the bound after both.
    """

    scale: Decimal
    shift: Decimal
    cut_off: float

    def toml(self, config: AutoencoderConfig, sha256: str) -> str:
        """Returns the lines of a plan."""
        return latent_toml(config, sha256, self.scale, self.shift)


@torch.inference_mode()
def measure_latents(
    config: AutoencoderConfig, network: nn.Module, images: Tensor
) -> MeasuredLatents:
    """Returns scale and shift of the latents of PUBLIC `images (N, C, H, W)` in [-1, 1].

    Raises:
        DataError: the latents are not finite, or all alike.
    """
    device = next(network.parameters()).device
    rows = max(1, PIXELS_AT_ONCE // (images.shape[2] * images.shape[3]))
    means, variance = [], 0.0
    for part in torch.split(images, rows):
        shown = part.to(device).expand(-1, config.image_channels, -1, -1)
        mean, deviation = moments(config, network, shown)
        means.append(mean.flatten().double().cpu())
        variance += float(deviation.double().square().sum())
    found = torch.cat(means)
    spread = float((found.var(correction=0) + variance / len(found)).sqrt())
    if not 1e-6 < spread < 1e6:
        raise DataError(
            f"the latents of these images have deviation {spread:.3g}",
            hint="give public images that differ, of the kind that the plan is about",
        )
    scale = Decimal(f"{1 / spread:.4g}")
    shift = Decimal(f"{float(found.mean()) / spread:.3f}") / scale
    shift = round(shift, 6) + Decimal(0)
    cut_off = ((found - float(shift)) * float(scale)).abs() > float(DEFAULT_BOUND)
    return MeasuredLatents(scale, shift, float(cut_off.double().mean()))


def latent_toml(config: AutoencoderConfig, sha256: str, scale: Decimal, shift: Decimal) -> str:
    """Returns the lines of a plan that name this autoencoder.

    Raises:
        ValueError: no plan can name it: its latents are not as plans allow.
    """
    LatentSpec(
        kind=config.kind,
        sha256=sha256,
        channels=config.channels,
        factor=config.factor,  # type: ignore[arg-type]
        scale=scale,
        shift=shift,
    )
    lines = [
        "[data.latent]",
        f'kind = "{config.kind}"',
        f'sha256 = "{sha256}"',
        f"channels = {config.channels}",
        f"factor = {config.factor}",
        f"scale = {format(scale.normalize(), 'f')}",
    ]
    if shift:
        lines.append(f"shift = {format(shift.normalize(), 'f')}")
    return "\n".join(lines)

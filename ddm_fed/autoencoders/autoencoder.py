"""From images to what is diffused, and back: a plan's autoencoder, scaled and cut off by the plan.

Values are computed in float32 and a bounded number of pixels at a time.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddm_fed.autoencoders.config import AutoencoderConfig
from ddm_fed.autoencoders.folder import read_folder
from ddm_fed.autoencoders.networks import build_network, moments, pictures
from ddm_fed.errors import DataError, OptionError
from ddm_fed.records import DataSpec, LatentSpec

PIXELS_AT_ONCE = 1 << 18  # 64 images of 64 pixels, one of 512


class AutoencoderCost(NamedTuple):
    """Work for one image; a multiply-add counts as 2 FLOP."""

    parameters: int
    encode_flops: int
    decode_flops: int


class Autoencoder:
    """A plan's autoencoder.

    Args:
        config: What its folder says.
        network: It.
        data: The plan's images; has `latent`.
        device: Where it runs.
    """

    def __init__(
        self,
        config: AutoencoderConfig,
        network: nn.Module,
        data: DataSpec,
        device: str | torch.device = "cpu",
    ) -> None:
        if data.latent is None:
            raise TypeError("the plan's images are not latents")
        self._config, self._data, self.spec = config, data, data.latent
        self._device = torch.device(device)
        self._network = network.to(self._device)
        height, width = data.pixel_shape[1:]
        self._rows = max(1, PIXELS_AT_ONCE // (height * width))

    @property
    def data(self) -> DataSpec:
        """The plan's images."""
        return self._data

    @torch.inference_mode()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation of what is diffused of `images`.

        Args:
            images: `(B, C, H, W)` in [-1, 1]. Grey ones are shown in colour to an autoencoder that
                takes colour.

        Returns:
            Two tensors `(B, c, h, w)` float32 on the processor; the mean is cut off at the plan's
            bound. An autoencoder without deviation has zeros.

        Raises:
            DataError: the autoencoder gives something that is not finite.
        """
        found = [self._encoded(part) for part in torch.split(images, self._rows)]
        means, deviations = (torch.cat(parts) for parts in zip(*found, strict=True))
        return means, deviations

    def _encoded(self, images: Tensor) -> tuple[Tensor, Tensor]:
        shown = images.to(self._device, torch.float32)
        if shown.shape[1] < self._config.image_channels:
            shown = shown.expand(-1, self._config.image_channels, -1, -1)
        mean, deviation = moments(self._config, self._network, shown)
        if tuple(mean.shape[1:]) != self._data.shape:
            raise DataError(
                f"the autoencoder made latents of {tuple(mean.shape[1:])}, the plan says "
                f"{self._data.shape}",
                hint="ask the coordinator to correct [data.latent]",
            )
        if not bool(mean.isfinite().all() and deviation.isfinite().all()):
            raise DataError(
                "the autoencoder made latents that are not finite numbers",
                hint="it does not fit such images: agree on another one",
            )
        scale, bound = float(self.spec.scale), float(self.spec.bound)
        scaled = ((mean - float(self.spec.shift)) * scale).clamp(-bound, bound)
        return scaled.float().cpu(), (deviation * scale).float().cpu()

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Returns the images of `latents (B, c, h, w)`: `(B, C, H, W)` in [-1, 1], float32."""
        found = []
        for part in torch.split(latents, self._rows):
            raw = part.to(self._device, torch.float32) / float(self.spec.scale)
            images = pictures(self._network, raw + float(self.spec.shift)).clamp(-1, 1)
            if images.shape[1] > self._data.channels:
                images = images.mean(1, keepdim=True)
            found.append(images.float().cpu())
        return torch.cat(found)

    def cost(self) -> AutoencoderCost:
        """Returns what one image costs. Allocates nothing."""
        from torch.utils.flop_counter import FlopCounterMode

        flops, shape = [], (1, self._config.image_channels, *self._data.pixel_shape[1:])
        with torch.device("meta"):
            network = build_network(self._config).eval()
            for coding in ("encode", "decode"):
                with torch.no_grad(), FlopCounterMode(display=False) as counter:
                    if coding == "encode":
                        moments(self._config, network, torch.empty(shape))
                    else:
                        pictures(network, torch.empty(1, *self._data.shape))
                flops.append(counter.get_total_flops())
        parameters = sum(value.numel() for value in network.parameters())
        return AutoencoderCost(parameters, *flops)


def require_named(folder: Path | None, data: DataSpec) -> LatentSpec | None:
    """Returns the plan's latents, if it has them, when a folder is named where one is needed.

    Raises:
        OptionError: the plan has latents and no folder is named, or the other way round.
    """
    if data.latent is None:
        if folder is not None:
            raise OptionError(
                "--autoencoder is given, but the plan's images are pixels",
                hint="leave --autoencoder out, or ask for a plan with [data.latent]",
            )
        return None
    if folder is None or not folder.is_dir():
        missing = " is missing" if folder is None else f" {folder}: there is no such folder"
        raise OptionError(
            f"--autoencoder{missing}; the plan's images are latents of a public autoencoder",
            hint="ask the coordinator where to get it, and name its folder with --autoencoder: "
            f"`ddm-coord autoencoder show FOLDER` has to print the sha256 {data.latent.sha256}",
        )
    return data.latent


def open_autoencoder(
    folder: Path | None, data: DataSpec, device: str | torch.device = "cpu"
) -> Autoencoder | None:
    """Returns the plan's autoencoder from its folder; None where the plan's images are pixels.

    Raises:
        OptionError: the plan has latents and no folder is named, or the other way round.
        DigestError: it is another autoencoder than the plan's.
        DataError: the folder cannot be read, or is not what the plan says of it.
    """
    spec = require_named(folder, data)
    if spec is None or folder is None:
        return None
    opened = read_folder(folder, sha256=spec.sha256)
    config = opened.config
    for name, found, wanted in (
        ("kind", config.kind, spec.kind),
        ("channels", config.channels, spec.channels),
        ("factor", config.factor, spec.factor),
    ):
        if found != wanted:
            raise DataError(
                f"{folder} has {name} {found}, and the plan says {wanted}",
                hint="ask the coordinator to correct [data.latent]: `ddm-coord autoencoder show` "
                "prints it",
            )
    if data.channels > config.image_channels:
        raise DataError(
            f"{folder} takes grey images, and the plan's have {data.channels} channels",
            hint="ask the coordinator for a plan with an autoencoder of colour images",
        )
    return Autoencoder(config, opened.network, data, device)

"""Small autoencoders with weights of chance, in folders as diffusers writes them."""

import json
from pathlib import Path

import torch

from ddm_fed.autoencoders import Autoencoder, open_autoencoder, read_folder
from ddm_fed.autoencoders.config import read_config
from ddm_fed.autoencoders.fit import FitOptions, config_for
from ddm_fed.autoencoders.folder import write_folder
from ddm_fed.autoencoders.networks import build_network
from ddm_fed.autoencoders.scale import latent_toml, measure_latents
from ddm_fed.records import DataSpec, LatentSpec

PIXELS, FACTOR, CHANNELS = 16, 2, 2


def pictures(count: int, seed: int = 0, channels: int = 1, side: int = PIXELS) -> torch.Tensor:
    """Returns noise images `(N, C, H, W)` in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((count, channels, side, side), generator=generator) * 2 - 1


def make_folder(folder: Path, seed: int = 0, kind: str = "kl", image_channels: int = 1) -> Path:
    """Returns `folder`, which now holds an autoencoder of 16 pixels."""
    options = FitOptions(kind=kind, factor=FACTOR, channels=CHANNELS, width=8, seed=seed)
    written = config_for(options, image_channels, PIXELS)
    with torch.device("cpu"):
        network = build_network(read_config(json.dumps(written).encode(), "config.json"))
    generator = torch.Generator().manual_seed(seed)
    for value in network.parameters():
        with torch.no_grad():
            value.copy_(torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5)
    write_folder(folder, written, network)
    return folder


def block_of(folder: Path) -> str:
    """Returns the lines of a plan that name the autoencoder in `folder`."""
    opened = read_folder(folder)
    images = pictures(32, channels=opened.config.image_channels)
    found = measure_latents(opened.config, opened.network, images)
    return latent_toml(opened.config, opened.sha256, found.scale, found.shift)


def data_of(folder: Path, channels: int = 1) -> DataSpec:
    """Returns the images of a plan with the autoencoder in `folder`."""
    opened = read_folder(folder)
    images = pictures(32, channels=opened.config.image_channels)
    found = measure_latents(opened.config, opened.network, images)
    latent = LatentSpec(
        kind=opened.config.kind,
        sha256=opened.sha256,
        channels=opened.config.channels,
        factor=opened.config.factor,
        scale=found.scale,
        shift=found.shift,
    )
    return DataSpec(channels=channels, height=PIXELS, width=PIXELS, latent=latent)


def opened(folder: Path, channels: int = 1) -> Autoencoder:
    """Returns the autoencoder in `folder`, opened as a plan's."""
    found = open_autoencoder(folder, data_of(folder, channels))
    assert found is not None
    return found

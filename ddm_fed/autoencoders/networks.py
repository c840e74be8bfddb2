"""diffusers' autoencoders as networks. The only place that loads the library for them."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ddm_fed.autoencoders.config import AutoencoderConfig
from ddm_fed.embedding.public_weights import import_torchvision

# Checkpoints from before diffusers 0.17 name the parts of attention so; diffusers reads both.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def build_network(config: AutoencoderConfig) -> nn.Module:
    """Returns the network that `config` describes; its weights are diffusers' first ones.

    Under `torch.device("meta")` nothing is allocated.
    """
    with suppress(ImportError):  # diffusers imports torchvision wherever it is installed
        import_torchvision()
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    network: nn.Module = (AutoencoderKL if config.kind == "kl" else AutoencoderTiny)(
        **config.arguments
    )
    return network


def with_weights(config: AutoencoderConfig, weights: dict[str, Tensor]) -> nn.Module:
    """Returns the network with these weights in float32, ready to be asked.

    Raises:
        ValueError: they are not those of this network, or not finite.
    """
    with torch.device("meta"):
        network = build_network(config)
    named = {new_name(name): value for name, value in weights.items()}
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in named.items()}
    if wanted != found:
        apart = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
        raise ValueError(f"{len(apart)} tensors differ, for example `{apart[0]}`")
    for name, value in named.items():
        if not value.is_floating_point() or not bool(value.isfinite().all()):
            raise ValueError(f"`{name}` holds values that are not finite numbers")
    whole = {name: value.float().contiguous() for name, value in named.items()}
    network.load_state_dict(whole, assign=True)
    return network.eval().requires_grad_(False)


def new_name(name: str) -> str:
    """Returns the present name of a tensor that old checkpoints name otherwise."""
    parts = name.split(".")
    if "attentions" in parts and len(parts) > 1 and parts[-2] in _OLD_NAMES:
        parts[-2] = _OLD_NAMES[parts[-2]]
    return ".".join(parts)


def moments(config: AutoencoderConfig, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation of the latents of `images (B, C, H, W)` in [-1, 1]."""
    module: Any = network
    if config.kind == "tiny":
        mean: Tensor = module.encode(images).latents
        return mean, torch.zeros_like(mean)
    posterior = module.encode(images).latent_dist
    return posterior.mean, posterior.std


def pictures(network: nn.Module, latents: Tensor) -> Tensor:
    """Returns the images of `latents (B, c, h, w)`, as the network gives them."""
    module: Any = network
    found: Tensor = module.decode(latents).sample
    return found

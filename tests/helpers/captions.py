"""A CLIP as small as its package can build one, in a file as published ones are converted to."""

import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file

from ddm_fed.embedding.public_weights import import_torchvision


def write_clip(path: Path, *, seed: int = 1) -> Path:
    """Writes a network of the real architecture with drawn weights, and returns the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()
        import clip
    with torch.random.fork_rng():
        network = clip.model.CLIP(
            embed_dim=24, image_resolution=32, vision_layers=1, vision_width=64,
            vision_patch_size=16, context_length=77, vocab_size=49408, transformer_width=64,
            transformer_heads=1, transformer_layers=2,
        )  # fmt: skip
    state = {}
    for place, (name, value) in enumerate(network.float().state_dict().items()):
        generator = torch.Generator().manual_seed(seed * 10_000 + place)
        drawn = torch.randn(value.shape, generator=generator) * 0.3
        state[name] = drawn / max(value.shape[-1:], default=1) ** 0.5
        if name.startswith("ln_final"):
            state[name] = torch.ones_like(value) if name.endswith("weight") else value
        elif "embedding" in name:
            state[name] = drawn
    state |= {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77)}
    state |= {"vocab_size": torch.tensor(49408)}
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path

"""Writes a text encoder of CLIP's architecture with drawn weights, small enough for an example.

    python examples/text/draw_clip.py clip.safetensors

Nothing is downloaded, so that this runs anywhere. A drawn encoder gives every caption a vector of
its own, which is enough to learn ten captions by heart, and knows nothing of English: a phrase that
nobody trained on means nothing to it. README.md here says how a real one is named.
"""

import sys
import warnings

import torch
from safetensors.torch import save_file

from ddm_fed.embedding.public_weights import import_torchvision


def main() -> None:
    """Draws and writes the weights."""
    import_torchvision()  # as this torch takes it; clip imports it as well
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of setuptools, about what clip imports
        from clip.model import CLIP

    network = CLIP(
        embed_dim=24,
        image_resolution=32,
        vision_layers=1,
        vision_width=64,
        vision_patch_size=16,
        context_length=77,
        vocab_size=49408,
        transformer_width=64,
        transformer_heads=1,
        transformer_layers=2,
    )
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, value in network.float().state_dict().items():
        drawn = torch.randn(value.shape, generator=generator)
        if name.startswith("ln_final"):
            state[name] = value  # scales of 1, offsets of 0
        else:
            wide = 1 if "embedding" in name else max(value.shape[-1:], default=1) ** 0.5
            state[name] = (drawn / wide).contiguous()
    save_file(state, sys.argv[1])
    print(f"{sys.argv[1]}: {sum(value.numel() for value in state.values()):,} drawn weights")


if __name__ == "__main__":
    main()

"""diffusers' `DiTTransformer2DModel`, as a DiT of ours with its times and learned positions.

The same arithmetic, up to rounding: diffusers' second norm of a block has an epsilon of 1e-5, ours
of 1e-6. Every block of theirs has its own copy of the embeddings of time and class, where published
ones hold the same values; ours has one. Their positions are a fixed table in another order, which
ours starts from and learns on; for images of another size they are stretched.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddm_fed.errors import printable
from ddm_fed.export.base_folder import Found, arguments_of, load_network, refused, require_values
from ddm_fed.records import DIT_SIZES, DataSpec, DitSize, parse_architecture

EXPECTED = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
    "norm_type": "ada_norm_zero",
}
MOST_PATCHES = 256  # along a side; the largest published ones have 32
TIME = "norm1.emb.timestep_embedder."
LEARNED = "its positions, which are a fixed table, are learned from now on"
LABELS = "norm1.emb.class_embedder.embedding_table.weight"


def read_dit(folder: Path, data: DataSpec) -> Found:
    """Returns the network in `folder` as one of a plan for `data`.

    Raises:
        DataError: no plan can name it, or it is for other images.
    """
    with suppress(ImportError):  # diffusers imports torchvision wherever it is installed
        from ddm_fed.models.unet import diffusers_unet

        diffusers_unet()
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    config = arguments_of(DiTTransformer2DModel, folder)
    name, notes = _name(config, folder), [LEARNED]
    side, patch = config["sample_size"], config["patch_size"]
    if not isinstance(side, int) or side < patch or side % patch:
        shown = printable(repr(side))[:40]
        raise refused(folder, f"`sample_size` {shown} is not a number of patches of {patch} pixels")
    if side // patch > MOST_PATCHES:  # before its table is made, which has a row for each patch
        shown = printable(repr(side))[:40]
        raise refused(
            folder, f"`sample_size` {shown} is more than {MOST_PATCHES} patches of {patch} pixels"
        )
    if (side, side) != data.shape[1:]:
        name += f"-grid{side // patch}x{side // patch}"
        notes.append(f"they are stretched from {side} x {side} to the plan's images")
    twice = _predicts_twice(config, data, folder)
    network: Any = load_network(DiTTransformer2DModel, folder)
    theirs = network.state_dict()
    table = network.pos_embed.pos_embed[0]  # (T, D)
    if twice:
        notes.append("it also predicts a variance, which is left out")
    weights = _weights(theirs, table, config, folder, data.shape[0])
    return Found(name, weights, "label.weight", "time.mlp.2.bias", "head", tuple(notes))


def _name(config: dict[str, Any], folder: Path) -> str:
    require_values(folder, config, EXPECTED, "DiT")
    heads, each = config["num_attention_heads"], config["attention_head_dim"]
    try:
        size = DitSize(config["num_layers"], heads * each, heads)
        names = [name for name, known in DIT_SIZES.items() if known == size]
        name = f"DiT-{names[0] if names else '?'}/{config['patch_size']}-learned-times128"
        parse_architecture(name)
    except (TypeError, ValueError):
        shown = printable(f"{config['num_layers']!r} layers, {heads!r} heads of {each!r}")[:120]
        raise refused(
            folder,
            f"it has {shown} and patches of {printable(repr(config['patch_size']))[:40]}, and no "
            f"DiT of a plan has: sizes are {', '.join(DIT_SIZES)}, patches 1, 2, 4 and 8",
        ) from None
    return name


def _predicts_twice(config: dict[str, Any], data: DataSpec, folder: Path) -> bool:
    """Returns whether half of its output is a variance."""
    channels = data.channels
    told = config["out_channels"] or config["in_channels"]
    if config["in_channels"] != channels or told not in (channels, 2 * channels):
        raise refused(
            folder,
            f"`in_channels` and `out_channels` are {printable(repr(config['in_channels']))[:40]} "
            f"and {printable(repr(told))[:40]}, and the plan's images have {channels} channels",
            "choose another checkpoint; one of latents needs [data.latent] in the plan",
        )
    return bool(told != channels)


def _weights(
    theirs: dict[str, Tensor],
    table: Tensor,
    config: dict[str, Any],
    folder: Path,
    channels: int,
) -> dict[str, Tensor]:
    first, patch = "transformer_blocks.0.", config["patch_size"]
    found = {
        "embed.weight": theirs["pos_embed.proj.weight"].flatten(1),  # (D, C P P)
        "embed.bias": theirs["pos_embed.proj.bias"],
        "position.table": table,
        "label.weight": theirs[first + LABELS],
        "modulation.weight": theirs["proj_out_1.weight"],
        "modulation.bias": theirs["proj_out_1.bias"],
        "head.weight": _own_order(theirs["proj_out_2.weight"], patch, channels),
        "head.bias": _own_order(theirs["proj_out_2.bias"], patch, channels),
    }
    for kind in ("weight", "bias"):
        for place in (1, 2):
            key = f"{first}{TIME}linear_{place}.{kind}"
            found[f"time.mlp.{2 * (place - 1)}.{kind}"] = theirs[key]
        for index in range(config["num_layers"]):
            here, ours = f"transformer_blocks.{index}.", f"blocks.{index}."
            parts = [theirs[f"{here}attn1.to_{part}.{kind}"] for part in "qkv"]
            found |= {
                f"{ours}attention.qkv.{kind}": torch.cat(parts),
                f"{ours}attention.out.{kind}": theirs[f"{here}attn1.to_out.0.{kind}"],
                f"{ours}mlp.0.{kind}": theirs[f"{here}ff.net.0.proj.{kind}"],
                f"{ours}mlp.2.{kind}": theirs[f"{here}ff.net.2.{kind}"],
                f"{ours}modulation.{kind}": theirs[f"{here}norm1.linear.{kind}"],
            }
    shared = (LABELS, *(f"{TIME}linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")))
    for index in range(1, config["num_layers"]):
        for part in shared:
            key = f"transformer_blocks.{index}.{part}"
            if not torch.equal(theirs[key], theirs[first + part]):
                raise refused(
                    folder,
                    f"{key} differs from that of the first block: it was trained with an embedding "
                    "of time and class in every block, and a DiT of a plan has one",
                )
    return {key: value.contiguous() for key, value in found.items()}


def _own_order(rows: Tensor, patch: int, channels: int) -> Tensor:
    """Returns the last layer's rows as (C, P, P), where theirs are (P, P, C), first C of them."""
    split: Tensor = rows.unflatten(0, (patch, patch, -1))[:, :, :channels]
    return split.movedim(2, 0).flatten(0, 2)

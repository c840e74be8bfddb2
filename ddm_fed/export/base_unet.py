"""diffusers' `UNet2DModel`, which is a U-Net of ours to the bit."""

from pathlib import Path
from typing import Any

from ddm_fed.errors import printable
from ddm_fed.export.base_folder import (
    Found,
    arguments_of,
    defaults_of,
    load_network,
    refused,
    require_values,
)
from ddm_fed.models.unet import DDPM, diffusers_unet, unet_config
from ddm_fed.records import DataSpec, UnetSize, parse_architecture, unet_name

SHAPES = {"sample_size", "in_channels", "out_channels", "num_class_embeds"}
UNUSED = {"dropout", "num_train_timesteps"}  # this training drops nothing; times are sinusoids


def read_unet(folder: Path, data: DataSpec) -> Found:
    """Returns the network in `folder` as one of a plan for `data`.

    Raises:
        DataError: no plan can name it, or it is for other images.
    """
    config = arguments_of(diffusers_unet(), folder)
    name = _name(config, folder)
    _require_shape(config, data, folder)
    network = load_network(diffusers_unet(), folder)
    return Found(
        name,
        {f"net.{key}": value for key, value in network.state_dict().items()},
        "net.class_embedding.weight",
        "net.time_embedding.linear_2.bias",
        "net.conv_out",
    )


def _name(config: dict[str, Any], folder: Path) -> str:
    kinds = config["down_block_types"]
    size = UnetSize(
        config["block_out_channels"],
        config["layers_per_block"],
        tuple(kind == "AttnDownBlock2D" for kind in kinds),
        config["attention_head_dim"],
        config["norm_num_groups"],
        all(config[key] == value for key, value in DDPM.items()),
    )
    try:
        name = unet_name(size)
        parse_architecture(name)
    except (TypeError, ValueError) as error:
        raise refused(folder, f"no plan can name its levels: {error}") from None
    ours = defaults_of(diffusers_unet()) | unet_config((1, 8, 8), size, 0)
    expected = {key: ours[key] for key in ours.keys() - SHAPES - UNUSED}
    require_values(folder, config, expected, name)
    return name


def _require_shape(config: dict[str, Any], data: DataSpec, folder: Path) -> None:
    channels = (config["in_channels"], config["out_channels"])
    wanted = data.shape[0]
    if channels != (wanted, wanted):
        hint = "choose another checkpoint, or a plan with `data.channels` of the checkpoint"
        if channels[1] == 2 * channels[0]:
            hint = "it also predicts a variance, which no U-Net does: choose another checkpoint"
        raise refused(
            folder,
            f"`in_channels` and `out_channels` are {channels[0]} and {channels[1]}, and the "
            f"plan's images have {wanted} channels",
            hint,
        )
    embedded = config["num_class_embeds"]
    if embedded is not None and (type(embedded) is not int or embedded < 1):
        raise refused(folder, f"`num_class_embeds` is {printable(repr(embedded))[:80]}")

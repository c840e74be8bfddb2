"""diffusers' `UNet2DModel` as the network of an expert.

The library is loaded when such a network is built, not when this package is imported.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddm_fed.embedding.public_weights import import_torchvision
from ddm_fed.flows import Condition
from ddm_fed.models.base import ExpertNetwork
from ddm_fed.records import UnetSize

# where DDPM's published networks differ from diffusers' defaults
DDPM = {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6}


class UNet(ExpertNetwork):
    """Convolutions at several resolutions, `(B, C, H, W), (B,), condition -> (B, C, H, W)`.

    Args:
        shape: One image's `(C, H, W)`; H and W can be halved as often as `size` has levels less 1.
        size: Levels, blocks, attention and the like.
        classes: Number of classes; 0 makes an unconditional network.
    """

    def __init__(self, shape: tuple[int, int, int], size: UnetSize, classes: int) -> None:
        super().__init__(classes)
        self.net: nn.Module = diffusers_unet()(**unet_config(shape, size, classes))

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Returns the prediction at `x` (images at time `t`), `(B, C, H, W)` float32."""
        rows = self.class_rows(t, condition)
        labels = rows if self.classes else None
        # its sinusoids are made for times that run to 1000
        out: Tensor = self.net(x, 1000 * t, class_labels=labels, return_dict=False)[0]
        return out.float()

    def save_pretrained(self, folder: Path) -> None:
        """Writes it as diffusers' own, which `UNet2DModel.from_pretrained` loads without us.

        Its times run to 1000 then, and its last class is "no class".
        """
        save: Callable[..., None] = getattr(self.net, "save_pretrained")  # noqa: B009
        save(folder, safe_serialization=True)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draws new weights from torch's default distributions, and zeroes the last layer."""
        for module in self.modules():
            _reset(module, generator)
        last = self.net.get_submodule("conv_out")
        for value in last.parameters():
            nn.init.zeros_(value)


def diffusers_unet() -> Any:
    """Returns diffusers' class of such networks."""
    with suppress(ImportError):  # diffusers imports torchvision wherever it is installed
        import_torchvision()
    from diffusers.models.unets.unet_2d import UNet2DModel

    return UNet2DModel


def unet_config(shape: tuple[int, int, int], size: UnetSize, classes: int) -> dict[str, Any]:
    """Returns the arguments of `UNet2DModel` for images of `shape`."""
    channels, height, width = shape
    return {
        "sample_size": (height, width),
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": size.channels,
        "layers_per_block": size.blocks,
        "down_block_types": tuple(f"{'Attn' * on}DownBlock2D" for on in size.attends),
        "up_block_types": tuple(f"{'Attn' * on}UpBlock2D" for on in reversed(size.attends)),
        "attention_head_dim": size.head,
        "norm_num_groups": size.groups,
        "num_class_embeds": classes + 1 if classes else None,
        **(DDPM if size.ddpm else {}),
    }


def _reset(module: nn.Module, generator: torch.Generator) -> None:
    match module:
        case nn.Linear() | nn.Conv2d():
            bound = 1 / math.sqrt(module.weight[0].numel())  # torch's own, of the fan-in
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            if module.bias is not None:
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        case nn.GroupNorm():
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        case nn.Embedding():
            nn.init.normal_(module.weight, generator=generator)
        case _ if next(module.parameters(recurse=False), None) is not None:
            raise TypeError(f"no start is known for the weights of {type(module).__name__}")

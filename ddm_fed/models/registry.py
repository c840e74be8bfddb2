"""From the name in a plan to a network, and to the table of tensors a site must send."""

from functools import lru_cache

import torch
from torch import nn

from ddm_fed.models.base import ExpertNetwork
from ddm_fed.models.convnet import ConvNet
from ddm_fed.models.dit import DiT
from ddm_fed.models.installed import installed_network
from ddm_fed.models.mmdit import MMDiT
from ddm_fed.models.unet import UNet
from ddm_fed.records import (
    Architecture,
    ConvArchitecture,
    DataSpec,
    DitArchitecture,
    ExpertDesign,
    MixtureArchitecture,
    MmditArchitecture,
    PackageArchitecture,
    TextSpec,
    UnetArchitecture,
    network_of,
    parse_architecture,
    require_fit,
    require_reads_text,
)
from ddm_fed.storage.tensors import TensorTable


def build_network(data: DataSpec, design: ExpertDesign) -> ExpertNetwork:
    """Returns the network of `design` for images of `data`, with weights that are still to be set.

    It has `reset_parameters(generator)` and `classes`; what its output means, the design says. Of
    an expert that adds to a mixture, it is the network that learns what the mixture leaves.

    Raises:
        ValueError: the architecture cannot take images of this size, or has no network.
        StateError: it is of a package that is not installed, or does not keep its promise.
    """
    return network_named(design.architecture, data.shape, len(data.classes), data.text)


def network_named(
    architecture: str, shape: tuple[int, int, int], classes: int, text: TextSpec | None = None
) -> ExpertNetwork:
    """Returns the network of that name for images of `shape (C, H, W)`, weights still to be set.

    Raises:
        ValueError: the name is unknown, or stands for a network that cannot take this size, or
            captions.
        StateError: it is of a package that is not installed, or does not keep its promise.
    """
    return _built(_network_of(architecture, shape, text), shape, classes, text)


def _network_of(
    architecture: str, shape: tuple[int, int, int], text: TextSpec | None
) -> Architecture:
    require_fit(architecture, shape[1], shape[2])
    if text is not None:
        require_reads_text(architecture)
    name = network_of(architecture)
    if name is None:
        raise ValueError(f"an expert of {architecture} has no network: it is made of a release")
    return parse_architecture(name)


def _built(
    network: Architecture, shape: tuple[int, int, int], classes: int, text: TextSpec | None
) -> ExpertNetwork:
    match network:
        case DitArchitecture() as dit:
            return DiT(
                shape,
                dit.size,
                dit.patch,
                classes,
                modulation=dit.modulation,
                qk_norm=dit.qk_norm,
                positions=dit.positions,
                more_times=dit.more_times,
                text=text,
                grid=dit.grid,
            )
        case MmditArchitecture() as mmdit:
            return MMDiT(shape, mmdit.size, mmdit.patch, classes, text=text, grid=mmdit.grid)
        case UnetArchitecture() as unet:
            return UNet(shape, unet.size, classes)
        case ConvArchitecture() as conv:
            return ConvNet(shape, conv.size, conv.patch, classes)
        case PackageArchitecture() as wanted:
            return installed_network(wanted, shape, classes)
        case MixtureArchitecture():
            raise TypeError(f"{network} is no network")


def expert_tensors(data: DataSpec, design: ExpertDesign) -> TensorTable:
    """Returns name, dtype and shape of every weight of an expert. Allocates nothing.

    An expert that is a mixture has none.
    """
    if network_of(design.architecture) is None:
        return {}
    network = _network_of(design.architecture, data.shape, data.text)
    # a package can be exchanged while this process runs
    table = _table.__wrapped__ if isinstance(network, PackageArchitecture) else _table
    return dict(table(network, data.shape, len(data.classes), data.text))


# every look at a bundle asks, and building a network takes a tenth of a second; named tuples of two
# classes can be equal, so their types count
@lru_cache(maxsize=64, typed=True)
def _table(
    network: Architecture, shape: tuple[int, int, int], classes: int, text: TextSpec | None
) -> TensorTable:
    with torch.device("meta"):
        model = _built(network, shape, classes, text)
    return {name: ("F32", tuple(value.shape)) for name, value in model.state_dict().items()}


def parameter_count(model: nn.Module) -> int:
    """Returns the number of trainable values of `model`."""
    return sum(value.numel() for value in model.parameters() if value.requires_grad)

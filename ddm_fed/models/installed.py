"""Networks that other packages bring: a plan names one, and never causes anything to be installed.

A package offers a network by an entry point of the group `ddm_fed.networks`, a subclass of
`ExpertNetwork` with the arguments `(shape, classes)`:

    [project.entry-points."ddm_fed.networks"]
    Waves = "waves_expert:Waves"

Code is imported only if the owner of the machine has installed that package, in the very version
that the plan names, and the package itself offers the network under that name. See ADR 0049.
"""

from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any

import torch
from torch import nn

from ddm_fed.errors import StateError
from ddm_fed.models.base import ExpertNetwork
from ddm_fed.records import PackageArchitecture

GROUP = "ddm_fed.networks"
MIXES_ROWS = nn.modules.batchnorm._BatchNorm  # noqa: SLF001 - what all kinds of it derive from


def installed_network(
    wanted: PackageArchitecture, shape: tuple[int, int, int], classes: int
) -> ExpertNetwork:
    """Returns the network of an installed package for images of `shape (C, H, W)`.

    Raises:
        StateError: the package is not installed in this version, offers no such network, or the
            network cannot be an expert.
    """
    called = f"{wanted.package}=={wanted.version}:{wanted.name}"
    build = _offered(wanted, called)
    try:
        network = build(shape, classes)
    except ValueError as error:
        raise _unfit(called, f"takes no images of {shape} and {classes} classes: {error}") from None
    except Exception as error:  # it is somebody else's code that runs here
        raise _unfit(called, f"cannot be built: {_said(error)}") from error
    if not isinstance(network, ExpertNetwork):
        raise _unfit(called, f"is a {type(network).__name__}, no ddm_fed.models.ExpertNetwork")
    for name, module in network.named_modules():
        if isinstance(module, MIXES_ROWS):
            raise _unfit(called, f"has a batch norm, `{name}`: rows of a batch influence another")
    for name, value in network.state_dict().items():
        if value.dtype != torch.float32:
            raise _unfit(called, f"`{name}` is {value.dtype}, and weights travel as float32")
    if network.classes != classes:
        raise _unfit(called, f"says that it has {network.classes} classes, and was given {classes}")
    return network


def _offered(wanted: PackageArchitecture, called: str) -> Any:
    package = _installed(wanted, called)
    for entry in package.entry_points:
        if (entry.group, entry.name) == (GROUP, wanted.name):
            try:
                return entry.load()
            except Exception as error:  # it is somebody else's code that runs here
                raise _unfit(called, f"cannot be imported: {_said(error)}") from error
    raise StateError(
        f"the installed package {wanted.package} offers no network {wanted.name}",
        hint=f"nothing of it was imported; networks are its entry points of the group {GROUP}",
    )


def _installed(wanted: PackageArchitecture, called: str) -> Distribution:
    needed = f"pip install {wanted.package}=={wanted.version}"
    hint = (
        f"if you trust whoever wrote it, {needed}: it will run with everything this machine shows "
        "it; nothing was imported"
    )
    try:
        package = distribution(wanted.package)
    except PackageNotFoundError:
        raise StateError(
            f"{called} is a network of the package {wanted.package}, which is not installed",
            hint=hint,
        ) from None
    if package.version != wanted.version:
        raise StateError(
            f"{called} is wanted, and {wanted.package} {package.version} is installed", hint=hint
        )
    return package


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _unfit(called: str, why: str) -> StateError:
    return StateError(
        f"{called} {why}",
        hint="it is for the authors of the package; examples/custom-expert shows what a network "
        "has to keep to",
    )

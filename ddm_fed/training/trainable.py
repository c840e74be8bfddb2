"""Which weights a training changes: the fewer they are, the less noise drowns the gradient.

Without noise, a part learns with less memory, and from fewer images without forgetting the base.

    all       every weight
    last-N    the last N blocks and what comes after them
    lora-R    every linear layer, by a product of two matrices of rank R

Source: Hu et al. 2021, arXiv:2106.09685 (LoRA).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ddm_fed.errors import StateError
from ddm_fed.flows import Condition
from ddm_fed.models import ExpertNetwork, NetworkCost, build_network, network_cost
from ddm_fed.records import DataSpec, ExpertDesign, Plan

DOWN, UP = "::down", "::up"  # of a low-rank product, after the name of the weight it adds to
LAST_PARTS = ("norm", "modulation", "head", "shared")


class TrainedPart(nn.Module):
    """The trained weights of a network as parameters, and its other weights as buffers.

    Parameters are the network's own, unless `kind` is a LoRA, and have `/` in their names where the
    network's have dots.

    Args:
        network: Its weights are set. Weights that are not trained lose `requires_grad`.
        kind: See the module.

    Raises:
        StateError: the network has no such part.
    """

    def __init__(self, network: ExpertNetwork, kind: str) -> None:
        super().__init__()
        self._network = (network,)  # no module of this one: its weights are this one's
        name, _, number = kind.partition("-")
        chosen = _chosen(network, name, int(number or 0))
        for own, weight in network.named_parameters():
            slashed = own.replace(".", "/")
            if own in chosen and name != "lora":
                self.register_parameter(slashed, weight)
                continue
            weight.requires_grad_(False)
            self.register_buffer(slashed, weight.data)
            if own in chosen:
                rows, columns = weight.shape
                rank = int(number)
                device = weight.device
                down = nn.Parameter(torch.zeros(rank, columns, device=device))
                up = nn.Parameter(torch.zeros(rows, rank, device=device))
                self.register_parameter(slashed + DOWN, down)
                self.register_parameter(slashed + UP, up)

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Returns what the network says with these weights."""
        weights = self.full(self.trained)
        said: Tensor = functional_call(self._network[0], weights, (x, t, condition))
        return said

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draws the inner matrices of low-rank products; the outer ones are zero."""
        for name, weight in self.named_parameters():
            if name.endswith(DOWN):
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5, generator=generator)

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return dict(self.named_parameters())

    @property
    def still(self) -> frozenset[str]:
        """The names of the weights that are left as they are."""
        return frozenset(name for name, _ in self.named_buffers())

    def full(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns all weights of the network, by its own names, with `trained` in their places."""
        return full_weights({**dict(self.named_buffers()), **trained})


def trained_weights(data: DataSpec, design: ExpertDesign, kind: str) -> int:
    """Returns how many weights of an expert are trained. Allocates nothing.

    Raises:
        StateError: the network has no such part.
    """
    with torch.device("meta"):
        part = TrainedPart(build_network(data, design), kind)
    return sum(weight.numel() for weight in part.parameters())


def training_cost(plan: Plan, architecture: str) -> NetworkCost:
    """Returns what training a network of the plan costs, of the part that the plan trains.

    Allocates nothing.

    Raises:
        StateError: the network has no such part.
    """
    cost = network_cost(architecture, plan.data.shape, len(plan.data.classes), plan.data.text)
    sgd = plan.privacy.sgd
    kind = plan.training.trainable if sgd is None else sgd.trainable
    if kind == "all" or not cost.parameters:
        return cost
    with torch.device("meta"):
        part = TrainedPart(build_network(plan.data, plan.expert.design(architecture)), kind)
    beside = [weight for name, weight in part.named_parameters() if name.endswith((DOWN, UP))]
    with_product = {name.removesuffix(DOWN) for name in part.trained if name.endswith(DOWN)}
    return cost._replace(
        trained=sum(weight.numel() for weight in part.parameters()),
        beside=sum(weight.numel() for weight in beside),
        merged=sum(w.numel() for name, w in part.named_buffers() if name in with_product),
    )


def full_weights(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the network's weights out of a part's: products added, names with dots."""
    weights = {}
    for name, value in values.items():
        if name.endswith((DOWN, UP)):
            continue
        if name + DOWN in values:
            value = value + values[name + UP] @ values[name + DOWN]
        weights[name.replace("/", ".")] = value
    return weights


def _chosen(network: ExpertNetwork, name: str, number: int) -> set[str]:
    """Returns the names of the weights that are trained, or that get a product."""
    if name == "all":
        return {own for own, _ in network.named_parameters()}
    if name == "lora":
        found = {
            f"{own}.weight"
            for own, module in network.named_modules()
            if isinstance(module, nn.Linear) and min(module.weight.shape) > number
        }
        if not found:
            raise StateError(
                f"no linear layer of the network has more than {number} rows and columns, so that "
                "there is nothing for a LoRA to add to",
                hint='choose `trainable` = "all", a lower rank, or another architecture',
            )
        return found
    blocks = getattr(network, "blocks", None)
    if not isinstance(blocks, nn.ModuleList) or not 0 < number <= len(blocks):
        count = len(blocks) if isinstance(blocks, nn.ModuleList) else "no"
        raise StateError(
            f"the network has {count} blocks in a row: its last {number} cannot be trained alone",
            hint='choose `trainable` = "all" or "lora-R" for it, or another architecture',
        )
    last = tuple(f"blocks.{index}." for index in range(len(blocks) - number, len(blocks)))
    return {
        own
        for own, _ in network.named_parameters()
        if own.startswith(last) or own.split(".")[0] in LAST_PARTS
    }

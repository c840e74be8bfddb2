"""What a network costs, before any of it is allocated: for plans, and for tables of results."""

from typing import NamedTuple

import torch

from ddm_fed.models.registry import network_named, parameter_count

FLOAT32_BYTES = 4
ADAM_MOMENTS = 2


class NetworkCost(NamedTuple):
    """Size of a network and work of one forward pass.

    Attributes:
        parameters: Trainable values.
        flops_per_image: Of a forward pass of one image. A multiply-add counts as 2, so this is
            twice the "Gflops" of papers that count it as 1, among them DiT's. Only products of
            matrices, convolutions and attention count.
    """

    parameters: int
    flops_per_image: int

    @property
    def weights_bytes(self) -> int:
        """Size of the weights, in float32 as a site sends them."""
        return FLOAT32_BYTES * self.parameters

    def training_bytes(self, averages: int = 1) -> int:
        """Returns the memory training holds between steps: float32 throughout, no activations.

        Weights, gradients, both moments of Adam, and `averages` moving averages of the weights,
        one per half-life of the plan. Activations come on top and grow with the batch.
        """
        return (1 + 1 + ADAM_MOMENTS + averages) * self.weights_bytes


def network_cost(architecture: str, shape: tuple[int, int, int], classes: int = 0) -> NetworkCost:
    """Returns what the network of that name costs for images of `shape (C, H, W)`.

    Allocates nothing: the pass runs on the meta device, where only shapes are computed.

    Raises:
        ValueError: the name is unknown, or stands for a network that cannot take this size.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = network_named(architecture, shape, classes).to("meta")  # tables are made elsewhere
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.empty(1, *shape), torch.empty(1))
    return NetworkCost(parameter_count(model), counter.get_total_flops())

"""From weights, and the mixture a site released, to the expert that is asked for a velocity."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ddm_fed.flows import Condition, Expert
from ddm_fed.mixture import MixtureVelocity
from ddm_fed.models.registry import build_network
from ddm_fed.records import DataSpec, ExpertDesign, adds_to_mixture, network_of


class ResidualNetwork(nn.Module):
    """The velocity of a mixture plus what a network learned of the rest.

    Args:
        mixture: Of the site's own release.
        network: Trained on what the mixture leaves; zero at first.
    """

    def __init__(self, mixture: MixtureVelocity, network: nn.Module) -> None:
        super().__init__()
        self.mixture, self.network = mixture, network

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Returns the velocity at `x (B, C, H, W)` and times `t (B,)`, `(B, C, H, W)` float32."""
        velocity: Tensor = self.mixture(x, t, condition) + self.network(x, t, condition)
        return velocity


def build_expert(
    data: DataSpec,
    design: ExpertDesign,
    weights: Mapping[str, Tensor] | None,
    mixture: MixtureVelocity | None,
) -> Expert:
    """Returns the expert of `design`; its weights are in memory once.

    Args:
        data: The images.
        design: What it is.
        weights: Of its network, by name; None where it has none.
        mixture: Of the site's release, where the design adds to one.

    Raises:
        ValueError: weights or mixture are missing, or are given where the design has none.
    """
    if (mixture is not None) != adds_to_mixture(design.architecture):
        raise ValueError(f"a mixture and {design} do not go together")
    if (weights is not None) != (network_of(design.architecture) is not None):
        raise ValueError(f"weights and {design} do not go together")
    if weights is None:
        if mixture is None:
            raise ValueError("an expert is made of weights, or of a mixture")
        return Expert(mixture.eval(), design.path, design.prediction)
    with torch.device("meta"):
        network = build_network(data, design)
    network.load_state_dict(dict(weights), assign=True)
    if any(value.is_meta for value in network.buffers()):  # tables that are no weights
        network = build_network(data, design)
        network.load_state_dict(dict(weights), assign=True)
    whole: nn.Module = network if mixture is None else ResidualNetwork(mixture, network)
    return Expert(whole.eval().requires_grad_(False), design.path, design.prediction)

"""From the name in a plan to a network, and to the table of tensors a site must send."""

import torch
from torch import nn

from ddm_fed.models.dit import DiT
from ddm_fed.records import Plan, parse_architecture
from ddm_fed.weights import TensorTable


def build_expert(plan: Plan) -> DiT:
    """Returns the expert network `plan` names, with weights that are still to be set."""
    size, patch = parse_architecture(plan.expert.architecture)
    return DiT(plan.data.shape, size, patch, classes=len(plan.data.classes))


def expert_tensors(plan: Plan) -> TensorTable:
    """Returns name, dtype and shape of every weight of the plan's expert. Allocates nothing."""
    with torch.device("meta"):
        model = build_expert(plan)
    return {name: ("F32", tuple(value.shape)) for name, value in model.state_dict().items()}


def parameter_count(model: nn.Module) -> int:
    """Returns the number of trainable values of `model`."""
    return sum(value.numel() for value in model.parameters() if value.requires_grad)

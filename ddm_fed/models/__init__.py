"""Networks an expert can be."""

from ddm_fed.models.dit import DiT as DiT
from ddm_fed.models.registry import build_expert as build_expert
from ddm_fed.models.registry import expert_tensors as expert_tensors
from ddm_fed.models.registry import parameter_count as parameter_count

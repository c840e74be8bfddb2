"""Networks an expert can be."""

from ddm_fed.models.base import ExpertNetwork as ExpertNetwork
from ddm_fed.models.convnet import ConvNet as ConvNet
from ddm_fed.models.cost import NetworkCost as NetworkCost
from ddm_fed.models.cost import network_cost as network_cost
from ddm_fed.models.dit import Block as Block
from ddm_fed.models.dit import DiT as DiT
from ddm_fed.models.expert import build_expert as build_expert
from ddm_fed.models.machines import ACCELERATORS as ACCELERATORS
from ddm_fed.models.machines import island_cost as island_cost
from ddm_fed.models.mmdit import MMDiT as MMDiT
from ddm_fed.models.registry import build_network as build_network
from ddm_fed.models.registry import expert_tensors as expert_tensors
from ddm_fed.models.registry import network_named as network_named
from ddm_fed.models.registry import parameter_count as parameter_count
from ddm_fed.models.unet import UNet as UNet

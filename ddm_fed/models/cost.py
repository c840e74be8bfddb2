"""What a network costs, before any of it is allocated: for plans, and for tables of results."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ddm_fed.models.registry import network_named, parameter_count
from ddm_fed.records import TextSpec, network_of

FLOAT32_BYTES = 4
ADAM_MOMENTS = 2


class NetworkCost(NamedTuple):
    """Size of a network and work of one forward pass.

    Attributes:
        parameters: Values of the network, as a site sends them.
        flops_per_image: Of a forward pass of one image. A multiply-add counts as 2, so this is
            twice the "Gflops" of papers that count it as 1, among them DiT's. Only products of
            matrices, convolutions and attention count.
        activation_bytes: What a forward pass of one image keeps for the backward one, in float32
            and with fused attention, as torch computes it wherever it can. Where only a part is
            trained, at most that.
        trained: Values that a step changes: `parameters`, unless the plan trains a part.
        beside: Those of them that are none of the network's own: the products of a LoRA.
        merged: Values of the network that products are added to, which a pass holds as sums.
    """

    parameters: int
    flops_per_image: int
    activation_bytes: int
    trained: int
    beside: int = 0
    merged: int = 0

    @property
    def weights_bytes(self) -> int:
        """Size of the weights, in float32 as a site sends them."""
        return FLOAT32_BYTES * self.parameters

    def training_bytes(self, averages: int = 1) -> int:
        """Returns the memory training holds between steps: float32 throughout, no activations.

        All weights; of those that are trained, gradients, both moments of Adam, and `averages`
        moving averages, one per half-life of the plan. `pass_bytes` come on top.
        """
        kept = 1 + ADAM_MOMENTS + averages
        return FLOAT32_BYTES * (self.parameters + self.beside + kept * self.trained)

    def checkpoint_bytes(self, averages: int = 1) -> int:
        """Returns the size of what a killed run goes on from: the same without gradients."""
        return self.training_bytes(averages) - FLOAT32_BYTES * self.trained

    def pass_bytes(self, images: int) -> int:
        """Returns what a step holds besides while `images` are in memory at once."""
        return FLOAT32_BYTES * self.merged + images * self.activation_bytes


def network_cost(
    architecture: str,
    shape: tuple[int, int, int],
    classes: int = 0,
    text: TextSpec | None = None,
) -> NetworkCost:
    """Returns what the network of that name costs for images of `shape (C, H, W)`.

    Allocates nothing: the pass runs on the meta device, where only shapes are computed.

    Raises:
        ValueError: the name is unknown, or stands for a network that cannot take this size.
    """
    from torch.utils.flop_counter import FlopCounterMode

    if network_of(architecture) is None:  # nothing is trained, and nothing beside the release sent
        return NetworkCost(0, 0, 0, 0)
    with torch.device("meta"):
        model = network_named(architecture, shape, classes, text)
        model = model.to("meta")  # tables are made elsewhere
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.empty(1, *shape), torch.empty(1))
        kept = _kept_for_backward(model, torch.empty(1, *shape), torch.empty(1))
    parameters = parameter_count(model)
    return NetworkCost(parameters, counter.get_total_flops(), kept, parameters)


class _FusedAttention(TorchFunctionMode):
    """Computes attention as a processor does; of shapes alone, torch would take the long way."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and kwargs.get("attn_mask") is None:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args[:3])[0]  # noqa: SLF001
        return func(*args, **kwargs)


def _kept_for_backward(model: nn.Module, x_t: Tensor, t: Tensor) -> int:
    """Returns the bytes that a forward pass of `x_t (1, C, H, W)` keeps besides the weights."""
    own = {value.untyped_storage() for value in (*model.parameters(), *model.buffers())}
    known = {storage._cdata for storage in own}  # noqa: SLF001 - meta tensors have no address
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in known:  # noqa: SLF001
            kept[storage._cdata] = (storage.nbytes(), value)  # noqa: SLF001 - held: its number stays
        return value

    with _FusedAttention(), torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        model(x_t, t)
    return sum(size for size, _ in kept.values())

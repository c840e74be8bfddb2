"""What a training takes of accelerators: time, memory and traffic, from the plan alone.

Nothing is measured here. Peak figures are the vendors' for dense bfloat16 products; what a training
keeps up of it, its utilisation, is an assumption that a few steps on the machine replace.
"""

from typing import NamedTuple

from ddm_fed.models.cost import NetworkCost

BACKWARD = 3  # forward and backward together, in forward passes
DAY_S = 86_400
HALF = 2  # bytes of an activation or a gradient in bfloat16
UTILISATION = 0.35


class Accelerator(NamedTuple):
    """Peak of dense bfloat16 products in FLOP a second, and memory in bytes; of data sheets."""

    flops: float
    memory_bytes: float


ACCELERATORS = {
    "a40": Accelerator(149.7e12, 48e9),
    "a100": Accelerator(312e12, 80e9),
    "l40s": Accelerator(362e12, 48e9),
    "h100": Accelerator(989e12, 80e9),
    "h200": Accelerator(989e12, 141e9),
    "b200": Accelerator(2250e12, 180e9),
    "mi300x": Accelerator(1307e12, 192e9),
}


class IslandCost(NamedTuple):
    """What one island's training takes.

    Attributes:
        step_flops: Of a step: forward and backward of its batch.
        step_s: Seconds of a step.
        days: Of all steps.
        gpu_days: Of all its accelerators.
        memory_bytes: On each, with the batch cut to `micro_batch` images.
        fits: Whether that is at most what one has.
        micro_batch: Most images of a step at once on one accelerator that fit; 0 if none does.
        checkpoint_bytes: What a killed run goes on from.
        traffic_bytes: What one accelerator sends inside the island in a step.
    """

    step_flops: float
    step_s: float
    days: float
    gpu_days: float
    memory_bytes: float
    fits: bool
    micro_batch: int
    checkpoint_bytes: int
    traffic_bytes: float


def island_cost(
    cost: NetworkCost,
    *,
    steps: int,
    batch_size: int,
    averages: int,
    kind: str,
    gpus: int,
    utilisation: float = UTILISATION,
    shard: bool = False,
) -> IslandCost:
    """Returns what it takes to train one network on `gpus` accelerators of a kind.

    Args:
        cost: Of the network, and of the part of it that is trained.
        steps: Of training.
        batch_size: Images of a step, divided among the accelerators.
        averages: Moving averages of the weights.
        kind: A key of `ACCELERATORS`.
        gpus: How many the island has.
        utilisation: The part of the peak that training keeps up.
        shard: Whether weights, gradients and moments are divided among them as well (FSDP).
    """
    peak, memory = ACCELERATORS[kind]
    flops = float(BACKWARD * cost.flops_per_image * batch_size)
    step_s = flops / (gpus * peak * utilisation)
    held = cost.training_bytes(averages) / (gpus if shard else 1) + cost.pass_bytes(0)
    image = cost.activation_bytes * HALF / 4  # counted in float32, kept in bfloat16
    own = -(-batch_size // gpus)
    fitting = min(own, int(max(0.0, memory - held) // image)) if image else own
    micro = max(fitting, 1)
    # a ring sends every value twice but for the own part; sharded weights are gathered twice more
    rings = 3 if shard else 2
    traffic = rings * (gpus - 1) / gpus * HALF * cost.trained if gpus > 1 else 0.0
    return IslandCost(
        step_flops=flops,
        step_s=step_s,
        days=steps * step_s / DAY_S,
        gpu_days=gpus * steps * step_s / DAY_S,
        memory_bytes=held + micro * image,
        fits=fitting > 0,
        micro_batch=fitting,
        checkpoint_bytes=cost.checkpoint_bytes(averages),
        traffic_bytes=traffic,
    )

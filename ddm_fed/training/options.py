"""What a site may choose about its own run, and what comes of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from ddm_fed.privacy import Origin
from ddm_fed.records import TrainingFacts
from ddm_fed.training.precision import Precision


@dataclass(frozen=True)
class RunOptions:
    """How a site runs the training that the plan fixes. No choice here changes its mathematics.

    Attributes:
        seed: For reproducible experiments without noise. By default drawn from the operating
            system, and kept only in the checkpoint; refused where the plan trains with noise.
        precision: `auto` times both on this machine and takes the faster.
        checkpoint_every_s: Seconds between checkpoints; 0 writes one after every step.
        micro_batch: Most images per process in memory at once; None takes the whole batch.
        compile: Whether torch compiles the network. Without a working compiler a notice is given
            and the run goes on as if this were False.
        shard: Under torchrun, whether weights, averages and optimizer state are divided among the
            processes (FSDP) instead of copied to each (DDP).
        base: The public checkpoint on this machine, where the plan starts from one.
        ema_half_life: Which of the plan's averages is the expert, in steps; None is the first.
        sample_every: Steps between two previews; None draws none.
        sample_count: Images of a preview.
        gradients: Which engine clips per unit, where the plan trains with noise; `auto` takes the
            fastest that agrees with single units.
    """

    seed: int | None = None
    precision: Precision | Literal["auto"] = "auto"
    checkpoint_every_s: float = 30.0
    micro_batch: int | None = None
    compile: bool = False
    shard: bool = False
    base: Path | None = None
    ema_half_life: int | None = None
    sample_every: int | None = None
    sample_count: int = 16
    gradients: Literal["auto", "functional", "recorded"] = "auto"

    def __post_init__(self) -> None:
        for name in ("micro_batch", "sample_every", "sample_count"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")


@dataclass(frozen=True)
class TrainedExpert:
    """The averaged (EMA) weights, and the facts about them that may be published.

    The checkpoint they were read from holds the plan's other averages: see `read_trained`.

    Attributes:
        state: By name.
        facts: How they were trained.
        noise: How they were made private, as JSON of `PrivateTraining`; "" if they were not.
        origin: Where the noise is from; "test" may not leave.
        proved: Which of the private steps were computed again, as JSON; stays at the site.
    """

    state: dict[str, Tensor]
    facts: TrainingFacts
    noise: str = ""
    origin: Origin = "csprng"
    proved: str = ""

"""What the studies of this folder run at: minutes of a processor's core, or one large GPU.

`--scale gpu` is a preset: a larger network, more steps and samples, on the GPU in bfloat16. Each of
its values gives way to the option that is named after it. What the networks take is counted and
printed before anything is trained. Judges and routers run on the processor at either scale.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ddm_fed.ensemble.pool import ExpertPool
from ddm_fed.ensemble.strategy import Strategy
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.flows import CALLS_PER_STEP, Expert
from ddm_fed.models import NetworkCost
from ddm_fed.models.machines import ACCELERATORS, BACKWARD, island_cost
from ddm_fed.records import sha256_hex
from ddm_fed.router import Router
from ddm_fed.training import RunOptions
from ddm_fed.training.state import read_identity

KINDS = ("a100", "h100", "h200")  # of 80, 80 and 141 GB
UTILISATION = 0.2  # of small networks; a guess, as no GPU was at hand
MINUTE_S = 60
UNNAMED = "0" * 64  # as earlier versions called every plan
COMMON = {
    "device": "cuda",
    "precision": "bfloat16",
    "batch": 256,
    "learning_rate": 5e-4,
    "ema_half_life": 2000,
}
# what earlier versions of these scripts had no option for
BEFORE = {"precision": "float32", "batch": "64", "learning_rate": "0.002", "ema_half_life": "200"}


def read_options(parser: argparse.ArgumentParser, gpu: Mapping[str, Any]) -> argparse.Namespace:
    """Returns the options of a study, having made the processor or the GPU ready.

    Args:
        parser: Of the study; gets the options that all studies have in common.
        gpu: What `--scale gpu` sets beside `COMMON`.
    """
    parser.add_argument("--scale", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=64, help="of one network for all images")
    parser.add_argument("--learning-rate", type=float, default=0.002)
    parser.add_argument("--ema-half-life", type=int, default=200, help="in steps, at most")
    parser.add_argument("--utilisation", type=float, default=UTILISATION, help="for the budget")
    if parser.parse_known_args()[0].scale == "gpu":
        parser.set_defaults(**COMMON, **gpu)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "--device cuda: this machine has no GPU that torch can use; --device cpu runs the same "
            "on the processor, for which --scale gpu is far too large unless steps and samples are "
            "given"
        )
    if options.device == "cpu":  # training takes a GPU where it sees one
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if options.scale == "cpu":
        torch.set_num_threads(1)  # a core each, so that parts run side by side
    return options


def run_options(options: argparse.Namespace, seed: int) -> RunOptions:
    """Returns how an expert is trained."""
    return RunOptions(seed=seed, precision=options.precision)


def together(options: argparse.Namespace, experts: Iterable[Expert], router: Router) -> Ensemble:
    """Returns an ensemble whose experts run where and as the options say."""
    pool = ExpertPool.of(list(experts), devices=(options.device,), precision=options.precision)
    return Ensemble(pool, router)


def at_once(options: argparse.Namespace) -> dict[str, int]:
    """Returns how many samples are worked on at once; it changes speed and memory only."""
    return {} if options.scale == "cpu" else {"batch_size": 1024, "in_flight": 4096}


def plan_digest(text: str, checkpoint: Path) -> str:
    """Returns the digest of a plan's text, which a checkpoint names.

    One that an earlier version of these scripts left goes on under the name it has.
    """
    if checkpoint.exists() and read_identity(checkpoint).plan_sha256 == UNNAMED:
        return UNNAMED
    return sha256_hex(text.encode())


def training_flops(cost: NetworkCost, steps: int, batch: int) -> float:
    """Returns the arithmetic of training one network."""
    return float(BACKWARD * cost.flops_per_image * steps * batch)


def sampling_flops(
    cost: NetworkCost,
    samples: int,
    steps: int,
    *,
    solver: str = "heun",
    strategy: str = "sticky",
    experts: int = 1,
    guidance: float = 1.0,
) -> float:
    """Returns the arithmetic of sampling, at most."""
    asked = Strategy.parse(strategy)
    each = 1 if asked.draws_sites else min(asked.k or experts, experts)
    calls = CALLS_PER_STEP[solver] * steps * each * (1 if guidance == 1 else 2)
    return float(samples * calls * cost.flops_per_image)


def say_budget(
    options: argparse.Namespace,
    cells: Iterable[tuple[Any, ...]],
    flops_of: Callable[[tuple[Any, ...]], float],
    cost: NetworkCost,
) -> None:
    """Prints what the networks of the missing cells take on one GPU, before any is trained."""
    if options.scale == "cpu":
        return
    missing = list(cells)
    flops = sum(map(flops_of, missing))
    minutes = {
        kind: flops / (ACCELERATORS[kind].flops * options.utilisation) / MINUTE_S for kind in KINDS
    }
    held = island_cost(
        cost, steps=1, batch_size=options.batch, averages=1, kind=KINDS[0], gpus=1
    ).memory_bytes
    print(
        f"budget: {len(missing)} cells are missing, whose networks take {flops:.2e} FLOP: "
        + ", ".join(f"{count:,.0f} minutes on one {kind}" for kind, count in minutes.items())
        + f", if it keeps up {options.utilisation:g} of its peak, which is a guess until a few "
        f"steps were timed. Training takes {held / 1e9:.1f} GB of its memory. Judges and routers "
        "come on top, on the processor.",
        file=sys.stderr,
        flush=True,
    )

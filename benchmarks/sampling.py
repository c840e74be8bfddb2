"""What does sampling an ensemble cost, beside one dense expert and beside asking every expert?

    python benchmarks/sampling.py            (about five minutes on two cores)
    python benchmarks/sampling.py --quick    (fewer rounds and sites)

Three tables. Speed: sticky-then-routed against one expert of the same size on all samples, and
against the loop that asks all K experts about every sample in every step; in turn, in one process.
The dense expert is also given as few images at a time as each of the K experts gets, since small
batches may be the faster ones on a processor.
Cost by K: the same with more and more sites, each beside the dense expert. Memory: the
peak of a process of its own that may hold one expert at a time. Weights are random: they do not
change the cost. Last answer: see results/sampling_cpu_20261123.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
from safetensors.torch import save_file

from ddm_fed.ensemble.pool import ExpertPool
from ddm_fed.ensemble.sampling import SamplingOptions, sample
from ddm_fed.ensemble.strategy import Strategy
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.flows import Expert
from ddm_fed.mixture import GaussianMixtures
from ddm_fed.models import build_network
from ddm_fed.records import DataSpec, ExpertDesign
from ddm_fed.router import MixtureRouter, PriorRouter

DATA = DataSpec(channels=3, height=32, width=32)
DESIGN = ExpertDesign(architecture="DiT-Ti/4")
LARGE = ExpertDesign(architecture="DiT-S/4")
COEFFICIENTS = 48
SITES, SAMPLES, STEPS = 8, 64, 8
ROUTED = Strategy.parse("sticky-then-routed")


def network(design: ExpertDesign, seed: int) -> Expert:
    model = build_network(DATA, design)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return Expert(model.eval().requires_grad_(False))


def router(sites: int) -> MixtureRouter:
    """Returns a router of one Gaussian of 48 coefficients per site, at random places."""
    draws = torch.Generator().manual_seed(1)
    shape = (sites, 1, COEFFICIENTS)
    pixels = DATA.channels * DATA.height * DATA.width
    random = torch.randn((pixels, COEFFICIENTS), generator=draws, dtype=torch.float64)
    fitted = GaussianMixtures(
        torch.ones(sites, 1, dtype=torch.float64),
        torch.randn(shape, generator=draws, dtype=torch.float64),
        torch.ones(shape, dtype=torch.float64),
        torch.eye(COEFFICIENTS, dtype=torch.float64).expand(sites, 1, -1, -1),
    )
    basis = torch.linalg.qr(random).Q.T
    return MixtureRouter(fitted, basis, centre=0.0, cells_are_classes=False)


def options(strategy: Strategy, steps: int = STEPS, batch_size: int = SAMPLES) -> SamplingOptions:
    return SamplingOptions(strategy, steps=steps, solver="euler", seed=0, batch_size=batch_size)


def routed(experts: list[Expert], count: int, steps: int = STEPS) -> Callable[[], object]:
    ensemble = Ensemble(experts, router(len(experts)))
    chosen = options(ROUTED, steps)
    return lambda: sample(ensemble, DATA.shape, count, chosen)


def dense(
    expert: Expert, count: int, steps: int = STEPS, batch_size: int = SAMPLES
) -> Callable[[], object]:
    ensemble = Ensemble([expert], PriorRouter(torch.ones(1, 1)))
    chosen = options(Strategy.parse("sticky"), steps, batch_size)
    return lambda: sample(ensemble, DATA.shape, count, chosen)


def loop(experts: list[Expert], count: int) -> Callable[[], object]:
    """Every expert on every sample in every step, weighted by the posterior: the naive way."""
    scores = router(len(experts))

    @torch.inference_mode()
    def run() -> torch.Tensor:
        x = torch.randn((count, *DATA.shape), generator=torch.Generator().manual_seed(0))
        for step in range(STEPS):
            t = torch.full((count,), 1 - step / STEPS)
            weight = scores.log_posterior(x, t, None).exp().float()
            u = sum(weight[:, k, None, None, None] * e(x, t) for k, e in enumerate(experts))
            x = x - u / STEPS
        return x

    return run


def seconds(job: Callable[[], object]) -> float:
    started = perf_counter()
    job()
    return perf_counter() - started


def in_turn(jobs: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Returns the times of each job over `rounds` rounds, after a round that warms up."""
    found = [[seconds(job) for job in jobs] for _ in range(rounds + 1)][1:]
    return [list(column) for column in zip(*found, strict=True)]


def ratio(first: list[float], second: list[float]) -> str:
    found = sorted(a / b for a, b in zip(first, second, strict=True))
    return f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


def speed(*, quick: bool) -> None:
    experts = [network(DESIGN, seed) for seed in range(SITES)]
    rounds = 1 if quick else 3
    few = SAMPLES // SITES
    jobs = [
        dense(experts[0], SAMPLES),
        routed(experts, SAMPLES),
        loop(experts, SAMPLES),
        dense(experts[0], SAMPLES, batch_size=few),
    ]
    one, ours, naive, small = in_turn(jobs, rounds)
    print(f"K = {SITES}, {SAMPLES} samples, {STEPS} Euler steps, {rounds} rounds, {DESIGN}\n")
    print(f"| dense s | dense, {few} at a time s | routed s | loop s ", end="")
    print(f"| routed / dense | routed / dense, {few} at a time | loop / routed |")
    print("| --- " * 7 + "|")
    medians = " | ".join(f"{statistics.median(times):.2f}" for times in (one, small, ours, naive))
    ratios = " | ".join([ratio(ours, one), ratio(ours, small), ratio(naive, ours)])
    print(f"| {medians} | {ratios} |\n", flush=True)


def cost_by_sites(*, quick: bool) -> None:
    print("sticky-then-routed by number of sites, 4 Euler steps, each beside the dense expert\n")
    print("| K | samples | images per expert | dense s | routed s | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    experts = [network(DESIGN, seed) for seed in range(8 if quick else 64)]
    for sites in (2, 8) if quick else (2, 8, 32, 64):
        for count in (64,) if quick else (64, 256):
            jobs = [dense(experts[0], count, 4), routed(experts[:sites], count, 4)]
            one, ours = in_turn(jobs, 1 if quick else 2)
            cells = [sites, count, f"{count / sites:.0f}"]
            cells += [f"{statistics.median(times):.2f}" for times in (one, ours)]
            print("| " + " | ".join(map(str, [*cells, ratio(ours, one)])) + " |", flush=True)
    print()


# A process of its own, started by a small one, since Linux hands a peak on to what is started.
# The peak is set back after the imports (clear_refs), and is that of this program image (VmHWM).
SAMPLER = """
import json, re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from sampling import sample_lazily

def status(key):
    return int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
loads = sample_lazily(Path(sys.argv[1]), int(sys.argv[2]))
print(json.dumps([status("VmHWM") - before, loads]))
"""
LAUNCHER = """
import os, sys
os.waitpid(os.posix_spawn(sys.executable, [sys.executable, "-c", *sys.argv[1:]], os.environ), 0)
"""


def sample_lazily(file: Path, sites: int) -> int:
    """Samples from `sites` experts read from `file`, one in memory at a time; returns the loads."""
    from types import SimpleNamespace

    from ddm_fed.bundle.verify import EXPERT_FILE
    from ddm_fed.ensemble.load import load_expert
    from ddm_fed.storage.digests import sha256_of

    bundle = SimpleNamespace(
        submission=SimpleNamespace(expert=LARGE),
        site="site",
        files={EXPERT_FILE: file},
        sha256={EXPERT_FILE: sha256_of(file)},
    )
    pool = ExpertPool([lambda: load_expert(DATA, bundle)] * sites, resident=1)
    ensemble = Ensemble(pool, router(sites))
    chosen = options(ROUTED, 2)
    sample(ensemble, DATA.shape, SAMPLES, chosen)
    return sum(pool.loads)


def memory(*, quick: bool) -> None:
    print(f"One expert in memory at a time, {SAMPLES} samples, 2 Euler steps, {LARGE}\n")
    print("| K | weights of all MB | loads | peak above imports MiB | beside K = 1 |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "expert.safetensors"
        save_file(network(LARGE, 0).network.state_dict(), file)
        size_mb = file.stat().st_size / 1e6
        alone = 0.0
        for sites in (1, 2, 8) if quick else (1, 2, 8, 32):
            here = str(Path(__file__).parent)
            command = [sys.executable, "-S", "-c", LAUNCHER, SAMPLER, str(file), str(sites), here]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peak, loads = json.loads(done.stdout)
            alone = alone or peak
            row = f"{sites} | {sites * size_mb:.0f} | {loads} | {peak:.0f} | {peak / alone:.2f}"
            print(f"| {row} |", flush=True)


def main() -> None:
    """Prints the three tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds and sites")
    quick = parser.parse_args().quick
    speed(quick=quick)
    cost_by_sites(quick=quick)
    memory(quick=quick)


if __name__ == "__main__":
    main()

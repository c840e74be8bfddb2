"""What does a step of DP-SGD cost, in time and memory, against a plain step and against Opacus?

Every mode runs in processes of its own, one after the other, again and again; the table holds
medians and their ratio to the plain step of the same round. `plain` is forward and backward of the
same rows at once. `opacus hooks` and `opacus ghost` are used as their manuals say: the whole batch
at once. `ours` is a step as training takes it: the clipped sum of recorded layers, and the noise.
`ours, functional` makes the gradient of each unit instead. Ours keep freed memory, as training
does; with --keep-memory all, the others do too.

    python benchmarks/dp.py            # some 20 minutes on two cores
    python benchmarks/dp.py --rounds 1 --models DiT-Nano/4 --cases 64x1 64x8
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch

from ddm_fed.flows import denoising_loss
from ddm_fed.models import network_named, parameter_count
from ddm_fed.privacy import (
    FunctionalGradients,
    Randomness,
    RecordedGradients,
    keep_freed_memory,
    noised,
)

SHAPE = (1, 28, 28)
CLIP_NORM = 1.0
MODES = ("plain", "opacus hooks", "opacus ghost", "ours", "ours, functional")


def row_loss(network, x_0, eps, t):
    return denoising_loss(network, x_0, eps, t, None)


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def build(name: str):
    model = network_named(name, SHAPE, 0)
    generator = torch.Generator().manual_seed(0)
    model.reset_parameters(generator)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn(value.shape, generator=generator), alpha=0.02)
    return model.train()


def add_noise(total: dict[str, torch.Tensor]) -> None:
    stream = Randomness.for_tests(0).stream("noise", 0)
    noised(total, clip_norm=CLIP_NORM, noise_multiplier=1.0, normals=stream.normals)


def step_of(mode: str, model, rows):
    """Returns a function that takes one step's gradient, noise included where there is any."""
    flat = [value.flatten(0, 1) for value in rows]
    weights = dict(model.named_parameters())
    draws = rows[0].shape[1]

    def plain() -> None:
        model.zero_grad()
        row_loss(model, *flat).mean().backward()

    def opacus_hooks() -> None:
        from opacus.grad_sample import GradSampleHooks

        hooks = GradSampleHooks(model, batch_first=True, loss_reduction="sum", strict=True)
        sums: dict[str, torch.Tensor] = {}
        for draw in range(draws):
            row_loss(model, *(value[:, draw] for value in rows)).sum().backward()
            for name, value in weights.items():
                each = value.grad_sample / draws
                sums[name] = each if name not in sums else sums[name] + each
                value.grad_sample = value.grad = None
        norms = torch.stack([v.flatten(1).norm(dim=1) for v in sums.values()], 1).norm(dim=1)
        factors = (CLIP_NORM / norms.clamp(min=1e-12)).clamp(max=1.0)
        add_noise({n: torch.einsum("i,i...->...", factors, v) for n, v in sums.items()})
        hooks.cleanup()

    def opacus_ghost() -> None:
        from opacus.grad_sample import GradSampleHooksFastGradientClipping

        hooks = GradSampleHooksFastGradientClipping(
            model,
            batch_first=True,
            loss_reduction="sum",
            strict=True,
            max_grad_norm=CLIP_NORM,
            use_ghost_clipping=True,
        )
        losses = row_loss(model, *flat)
        losses.sum().backward(retain_graph=True)
        factors = hooks.get_clipping_coef()
        model.zero_grad()
        hooks.disable_hooks()
        (factors * losses).sum().backward()
        add_noise({name: value.grad for name, value in weights.items()})
        hooks.cleanup()

    recorded = RecordedGradients(model, row_loss)
    functional = FunctionalGradients(model, row_loss)

    def ours() -> None:
        add_noise(recorded.clipped_sum(weights, rows, CLIP_NORM).total)

    def ours_functional() -> None:
        add_noise(functional.clipped_sum(weights, rows, CLIP_NORM).total)

    steps = (plain, opacus_hooks, opacus_ghost, ours, ours_functional)
    return dict(zip(MODES, steps, strict=True))[mode]


def work(
    mode: str, name: str, units: int, draws: int, steps: int, *, threads: int, keep: bool
) -> dict[str, float]:
    torch.set_num_threads(threads)
    # one thread's own time says the same on a machine that others use
    clock = time.process_time if threads == 1 else time.perf_counter
    if keep:
        keep_freed_memory()
    warnings.filterwarnings("ignore")
    model = build(name)
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(units, draws, *SHAPE, generator=generator) for _ in range(2)]
    rows = (*images, torch.rand(units, draws, generator=generator))
    step = step_of(mode, model, rows)
    reset_peak()
    before = peak_bytes()
    step()
    seconds = []
    for _ in range(steps):
        began = clock()
        step()
        seconds.append(clock() - began)
    return {"seconds": min(seconds), "bytes": peak_bytes() - before}


def measured(
    mode: str, name: str, units: int, draws: int, options: argparse.Namespace
) -> dict[str, float] | None:
    case = [mode, name, str(units), str(draws), str(options.steps)]
    shared = ["--keep-memory", options.keep_memory, "--threads", str(options.threads)]
    command = [sys.executable, __file__, *shared, "--work", *case]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason"]
        print(f"{mode} on {name}: {reason[0]}", file=sys.stderr)
        return None
    return json.loads(done.stdout)


def table(name: str, units: int, draws: int, options: argparse.Namespace) -> None:
    modes = [mode for mode in options.modes if draws == 1 or mode != "opacus ghost"]
    found: dict[str, list[dict[str, float]]] = {mode: [] for mode in modes}
    for _ in range(options.rounds):
        for mode in modes:
            result = measured(mode, name, units, draws, options)
            if result is not None:
                found[mode].append(result)
    count = parameter_count(build(name))
    print(f"\n{name}, {count:,} weights, {units} units, K = {draws}\n")
    print("| step | ms | of plain | of opacus hooks | peak MiB |\n| --- | --- | --- | --- | --- |")
    for mode in modes:
        if not found[mode]:
            print(f"| {mode} | fails | | | |")
            continue
        ms = statistics.median(1000 * r["seconds"] for r in found[mode])
        mib = statistics.median(r["bytes"] / 2**20 for r in found[mode])
        ratios = [
            statistics.median(
                mine["seconds"] / other["seconds"]
                for mine, other in zip(found[mode], found[base], strict=False)
            )
            if found.get(base)
            else float("nan")
            for base in ("plain", "opacus hooks")
        ]
        print(f"| {mode} | {ms:.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} | {mib:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=["DiT-Nano/4", "DiT-Ti/4"])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--cases", nargs="+", default=["64x1", "64x8", "256x1"])
    parser.add_argument("--threads", type=int, default=2, help="1: the thread's time is told")
    parser.add_argument("--keep-memory", choices=("ours", "all"), default="ours")
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        mode, name, *numbers = options.work
        keep = options.keep_memory == "all" or mode.startswith("ours")
        found = work(mode, name, *map(int, numbers), threads=options.threads, keep=keep)
        print(json.dumps(found))
        return
    timed = "CPU time of one thread" if options.threads == 1 else f"{options.threads} threads"
    print(f"torch {torch.__version__}, {timed}, {SHAPE[1]} x {SHAPE[2]} images")
    for name in options.models:
        for case in options.cases:
            units, draws = map(int, case.split("x"))
            table(name, units, draws, options)


if __name__ == "__main__":
    main()

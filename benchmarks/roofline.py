"""What bounds a training step on this machine: products, attention, activations, or memory?

    python benchmarks/roofline.py --size DiT-Nano/4 1x28x28 64
    python benchmarks/roofline.py --size DiT-Ti/2 1x28x28 64

For one transformer it times each kind of work of a block by itself at the block's own shapes,
forward and backward, beside what bounds it: products of matrices against the fastest product of
this machine, all else against the time that its reads and writes take at the speed of a copy. Then
it times a whole step of our loop. What the parts do not explain is overhead of torch and Python.
Times are CPU seconds of one thread, so that other work disturbs them little.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from training import make_images, make_plan, ours

from ddm_fed.privacy import keep_freed_memory
from ddm_fed.records import DitArchitecture, parse_architecture

FLOAT = 4
GIGA = 1e9


class Work(NamedTuple):
    """One kind of work of a block: forward and backward, and what it must do at least."""

    name: str
    seconds: float
    flops: float
    moved: float  # bytes, if every tensor is read and written once
    times: int  # in a block


def seconds(run: Callable[[], object], rounds: int = 9) -> float:
    run()
    found = []
    for _ in range(rounds):
        began = time.process_time()
        run()
        found.append(time.process_time() - began)
    return statistics.median(found)


def both(function: Callable[..., Tensor], *tensors: Tensor) -> Callable[[], None]:
    """Returns the forward and backward pass of `function`."""
    leaves = [tensor.requires_grad_() for tensor in tensors]
    gradient = torch.randn_like(function(*leaves).detach())

    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        function(*leaves).backward(gradient)

    return run


def works(batch: int, tokens: int, width: int, heads: int) -> list[Work]:
    """Returns what a block of a DiT does."""
    rows, found = batch * tokens, []
    for name, inner, outer, times in (
        ("product D x 3 D", width, 3 * width, 1),
        ("product D x D", width, width, 1),
        ("product D x 4 D", width, 4 * width, 1),
        ("product 4 D x D", 4 * width, width, 1),
    ):
        run = both(functional.linear, torch.randn(rows, inner), torch.randn(outer, inner))
        moved = 3 * FLOAT * (rows * (inner + outer) + inner * outer)
        found.append(Work(name, seconds(run), 6.0 * rows * inner * outer, moved, times))
    parts = [torch.randn(batch, heads, tokens, width // heads) for _ in range(3)]
    run = both(functional.scaled_dot_product_attention, *parts)
    flops = 14.0 * batch * tokens * tokens * width  # 2 products forward, 5 backward
    found.append(Work("attention", seconds(run), flops, 12 * FLOAT * rows * width, 1))
    hidden = torch.randn(batch, tokens, 4 * width)
    for name, times in (("tanh", 1), ("none", 0)):
        run = both(lambda x, name=name: functional.gelu(x, approximate=name), hidden.clone())
        label = "GELU" if times else "GELU by erf, which DiT has not"
        found.append(Work(label, seconds(run), 0.0, 5 * FLOAT * hidden.numel(), times))
    x, scale, shift = torch.randn(batch, tokens, width), *torch.randn(2, batch, 1, width)
    run = both(
        lambda x, scale, shift: functional.layer_norm(x, (width,)) * (1 + scale) + shift,
        *(x, scale, shift),
    )
    found.append(Work("norm and modulation", seconds(run), 0.0, 5 * FLOAT * x.numel(), 2))
    return found


def show(name: str, shape: tuple[int, int, int], batch: int) -> None:
    known = parse_architecture(name)
    if not isinstance(known, DitArchitecture):
        sys.exit(f"error: {name} is no DiT, whose blocks this knows")
    size, tokens = known.size, (shape[1] // known.patch) * (shape[2] // known.patch)
    big = [torch.randn(2048, 2048) for _ in range(2)]
    peak = 2 * 2048**3 / seconds(lambda: big[0] @ big[1], 5)
    block, target = torch.zeros(1 << 24), torch.zeros(1 << 24)
    copied = 2 * FLOAT * len(block) / seconds(lambda: target.copy_(block), 5)
    print(f"fastest product {peak / GIGA:.0f} Gflop/s, copy {copied / GIGA:.1f} GB/s, one thread")
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(name, shape, batch)
        loop = ours(plan, make_images(shape), Path(folder), compiled=False)
        precision = next(loop)
        step = seconds(lambda: next(loop), 7)
    print(f"\n{name}, {'x'.join(map(str, shape))}, batch {batch}, {precision}: {step * 1e3:.1f} ms")
    print("\n| of a step | ms | share | least, ms | bound by |\n| --- | --- | --- | --- | --- |")
    explained = least = 0.0
    for work in works(batch, tokens, size.width, size.heads):
        bounds = {"products": work.flops / peak, "memory": work.moved / copied}
        by = max(bounds, key=lambda key: bounds[key])
        count = work.times * size.depth
        explained, least = explained + count * work.seconds, least + count * bounds[by]
        shown = count or size.depth
        print(
            f"| {work.name} | {shown * work.seconds * 1e3:.1f} | "
            + (f"{count * work.seconds / step:.0%}" if count else "(not in it)")
            + f" | {shown * bounds[by] * 1e3:.1f} | {by} |"
        )
    print(f"| all else | {(step - explained) * 1e3:.1f} | {1 - explained / step:.0%} | | |")
    print(f"\nAt their bounds the parts take {least * 1e3:.1f} ms, {least / step:.0%} of the step.")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size",
        nargs=3,
        default=["DiT-Nano/4", "1x28x28", "64"],
        metavar=("NETWORK", "CxHxW", "BATCH"),
    )
    name, shape, batch = parser.parse_args().size
    channels, height, width = map(int, shape.split("x"))
    torch.set_num_threads(1)
    keep_freed_memory()
    show(name, (channels, height, width), int(batch))


if __name__ == "__main__":
    main()

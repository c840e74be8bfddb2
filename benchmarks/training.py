"""How many images per second does training take in, against what others would write?

    python benchmarks/training.py              # both sizes, some minutes
    python benchmarks/training.py --quick      # the small size, small batches
    python benchmarks/training.py --compile    # with our loop compiled as well: slow to start
    python benchmarks/training.py --size DiT-Nano/4 1x28x28 64 --threads 1 --rounds 9 --steps 20

The same network, images and batch size are trained by up to four loops, each in a process of its
own (ours changes how its process keeps memory), one after the other in every round, so that all
meet the same machine; the medians over rounds and their ratios are printed.

* ours: the loop of `train_expert`, with the precision it chooses here.
* ours, compiled: the same with `RunOptions(compile=True)`, where a compiler works.
* plain fp32: a straightforward PyTorch loop. float32 without autocast, tensors in memory indexed
  by a random permutation, AdamW with its `for` loop over parameters, gradients clipped, and the
  average updated parameter by parameter.
* reference: what small public repositories of flow matching do. A DataLoader without workers over a
  TensorDataset, Adam as it comes, no clipping, the average by one `lerp_` per parameter, the loss
  read every step for a progress bar, and autocast to bfloat16.

On a GPU it also prints the model FLOP utilisation of DiT-B/2 and DiT-XL/2 on latents of 4 x 32 x
32, against the dense bfloat16 peak of the card.
"""

import argparse
import copy
import gc
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ddm_fed.flows import ClassCondition
from ddm_fed.models import build_network, network_cost
from ddm_fed.privacy import ImageSet
from ddm_fed.records import Plan, read_plan_toml
from ddm_fed.training import RunOptions
from ddm_fed.training.batches import Batches
from ddm_fed.training.loop import Training
from ddm_fed.training.parallel import Team
from ddm_fed.training.state import Job, require_same_run, start_run

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLASSES = 10
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16, vendor's tables


BASELINES = ("plain fp32", "reference")
LOOPS = ("ours", *BASELINES, "ours, compiled")
Clock = Callable[[], float]


class Size(NamedTuple):
    """What is trained, and for how long."""

    name: str
    shape: tuple[int, int, int]
    batch: int
    rounds: int
    steps: int


def make_plan(name: str, shape: tuple[int, int, int], batch: int) -> Plan:
    channels, height, width = shape
    classes = ", ".join(f'"c{index}"' for index in range(CLASSES))
    return read_plan_toml(f"""
federation = "benchmark"
expires_at = 2036-01-01
[data]
channels = {channels}
height = {height}
width = {width}
conditioning = "class"
classes = [{classes}]
[expert]
architecture = "{name}"
[training]
steps = 1000000
batch_size = {batch}
[router]
kind = "prior"
epsilon = 1
[privacy]
max_epsilon = 1
""")


def make_images(shape: tuple[int, int, int], count: int = 2000) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return ImageSet(pixels, labels, (0.0, 255.0))


def ours(plan: Plan, images: ImageSet, folder: Path, *, compiled: bool) -> Iterator[str]:
    """Yields after every step, saying how it is computed."""
    team, options = Team(DEVICE), RunOptions(seed=0, compile=compiled)
    design, path = plan.expert.default, folder / f"checkpoint-{compiled}"
    job = Job(plan, "0" * 64, "0" * 64, design, options, team)
    start_run(path, job)
    run = require_same_run(path, job, finished=False)
    conditional = plan.data.conditional
    batches = Batches(images, plan.training, conditional=conditional, seed=run.seed)
    training = Training(batches, job, run, path)
    said: list[str] = []
    training.prepare(said.append)
    if said:
        raise RuntimeError(said[0])
    for _ in training.steps():
        yield run.precision


def network(plan: Plan) -> nn.Module:
    model = build_network(plan.data, plan.expert.default)
    model.reset_parameters(torch.Generator().manual_seed(0))
    return model.to(DEVICE)


def flow_loss(model: nn.Module, x_0: Tensor, labels: Tensor) -> Tensor:
    eps = torch.randn_like(x_0)
    t = torch.sigmoid(torch.randn(len(x_0), device=x_0.device))
    labels = torch.where(torch.rand(len(x_0), device=x_0.device) < 0.1, -1, labels)
    s = t[:, None, None, None]
    predicted = model((1 - s) * x_0 + s * eps, t, ClassCondition(labels))
    return (predicted - (eps - x_0)).square().mean()


def plain_fp32(plan: Plan, images: ImageSet) -> Iterator[str]:
    model, batch = network(plan), plan.training.batch_size
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False)
    pixels, labels = images.images, images.labels
    while True:
        for rows in torch.randperm(len(pixels)).split(batch):
            if len(rows) < batch:
                continue
            loss = flow_loss(model, pixels[rows].to(DEVICE), labels[rows].to(DEVICE))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=False)
            optimizer.step()
            with torch.no_grad():
                for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                    mean.mul_(0.999).add_(value, alpha=0.001)
            loss.item()  # for the log
            yield "float32"


def reference(plan: Plan, images: ImageSet) -> Iterator[str]:
    model, batch = network(plan), plan.training.batch_size
    average = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    data = TensorDataset(images.images, images.labels)
    loader = DataLoader(data, batch, shuffle=True, drop_last=True, num_workers=0)
    while True:
        for x_0, labels in loader:
            optimizer.zero_grad()
            with torch.autocast(DEVICE.type, torch.bfloat16):
                loss = flow_loss(model, x_0.to(DEVICE), labels.to(DEVICE))
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                    mean.lerp_(value, 0.001)
            loss.item()  # for the progress bar
            yield "bfloat16"


def seconds_per_step(steps: Iterator[str], count: int, clock: Clock = time.perf_counter) -> float:
    started = clock()
    for _ in range(count):
        next(steps)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return (clock() - started) / count


def loop_named(label: str, plan: Plan, images: ImageSet, folder: Path) -> Iterator[str]:
    if label == "plain fp32":
        return plain_fp32(plan, images)
    if label == "reference":
        return reference(plan, images)
    return ours(plan, images, folder, compiled=label == "ours, compiled")


def take_turns(
    talk: Connection, label: str, size: Size, threads: int | None, *, cpu_time: bool
) -> None:
    """Runs one loop in a process of its own, so many steps at a time as it is told."""
    if threads is not None:
        torch.set_num_threads(threads)
    clock = time.process_time if cpu_time else time.perf_counter
    plan, images = make_plan(size.name, size.shape, size.batch), make_images(size.shape)
    with tempfile.TemporaryDirectory() as folder:
        loop = loop_named(label, plan, images, Path(folder))
        try:
            talk.send(next(loop))
        except RuntimeError as error:  # such as no compiler
            talk.send(error)
            return
        while (count := talk.recv()) is not None:
            talk.send(seconds_per_step(loop, count, clock))


def compare(size: Size, loops: list[str], options: argparse.Namespace) -> dict[str, float]:
    """Prints and returns the median images per second of every loop."""
    processes = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for label in loops:
        pipes[label], theirs = processes.Pipe()
        processes.Process(
            target=take_turns,
            args=(theirs, label, size, options.threads),
            kwargs={"cpu_time": options.cpu_time},
            daemon=True,
        ).start()
    how = {label: pipe.recv() for label, pipe in pipes.items()}
    for label, answer in how.items():
        if isinstance(answer, RuntimeError):
            print(f"no loop of {label}: {answer}")
            del pipes[label]
    timings: dict[str, list[float]] = {label: [] for label in pipes}
    for turn in range(size.rounds):
        for label in pipes if turn % 2 == 0 else reversed(pipes):
            pipes[label].send(size.steps)
            timings[label].append(pipes[label].recv())
    for pipe in pipes.values():
        pipe.send(None)
    speed = {label: size.batch / statistics.median(found) for label, found in timings.items()}
    print(
        f"\n{size.name}, {'x'.join(map(str, size.shape))}, batch {size.batch}, "
        f"{size.rounds} rounds of {size.steps} steps"
        + (", images per second of CPU time" if options.cpu_time else "")
    )
    for label, value in speed.items():
        ratios = ", ".join(
            f"{value / speed[other]:.2f} x {other}" for other in BASELINES if other in speed
        )
        print(f"  {label:15} {value:8.1f} images/s   {ratios}   ({how[label]})", flush=True)
    return speed


def utilisation(folder: Path) -> None:
    """Prints the model FLOP utilisation on this GPU."""
    card = torch.cuda.get_device_name()
    peak = next((flops for part, flops in PEAK_FLOPS.items() if part in card), None)
    for name, batch in (("DiT-B/2", 256), ("DiT-XL/2", 96)):
        plan = make_plan(name, (3, 32, 32), batch)
        flops = 3 * network_cost(name, (3, 32, 32), CLASSES).flops_per_image  # backward is twice
        # a plan's images have one or three channels; the fourth of a latent costs nothing here
        for compiled in (False, True):
            target = folder / f"{name.replace('/', '-')}-{compiled}"
            loop = ours(plan, make_images((3, 32, 32)), target, compiled=compiled)
            seconds_per_step(loop, 5)
            speed = batch / seconds_per_step(loop, 20)
            share = f", MFU {speed * flops / peak:.1%}" if peak else ""
            label = "compiled" if compiled else "eager"
            print(f"  {name} {label}: {speed:.0f} images/s{share} on {card}")
            del loop
            gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the small size, small batches")
    parser.add_argument("--compile", action="store_true", help="with our loop compiled as well")
    parser.add_argument("--loops", nargs="+", default=["ours", *BASELINES], choices=LOOPS)
    parser.add_argument("--size", nargs=3, metavar=("NETWORK", "CxHxW", "BATCH"), help="another")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="of each round")
    parser.add_argument("--threads", type=int, help="of each loop")
    parser.add_argument(
        "--cpu-time", action="store_true", help="CPU seconds, where a machine has other work"
    )
    options = parser.parse_args()
    print(
        f"torch {torch.__version__}, {DEVICE}, {options.threads or torch.get_num_threads()} threads"
    )
    if options.size:
        name, shape, batch = options.size
        channels, height, width = map(int, shape.split("x"))
        sizes = [Size(name, (channels, height, width), int(batch), options.rounds, options.steps)]
    elif options.quick:
        sizes = [Size("DiT-Ti/2", (1, 28, 28), 16, 5, 2)]
    else:
        sizes = [Size("DiT-Ti/2", (1, 28, 28), 64, 5, 1), Size("DiT-S/2", (3, 32, 32), 32, 3, 1)]
    for size in sizes:
        compare(size, options.loops + ["ours, compiled"] * options.compile, options)
    if DEVICE.type == "cuda":
        with tempfile.TemporaryDirectory() as folder:
            utilisation(Path(folder))


if __name__ == "__main__":
    main()

"""How many images per second does training take in, against what others would write?

    python benchmarks/training.py              # both sizes, some minutes
    python benchmarks/training.py --quick      # the small size, small batches
    python benchmarks/training.py --compile    # with our loop compiled as well: slow to start

The same network, images and batch size are trained by four loops, one after the other in every
round, so that all meet the same machine; the medians over rounds and their ratios are printed.

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
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

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


def seconds_per_step(steps: Iterator[str], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        next(steps)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / count


def compare(
    name: str, shape: tuple[int, int, int], batch: int, *, rounds: int, steps: int, compiled: bool
) -> dict[str, float]:
    """Prints and returns the median images per second of every loop."""
    plan, images = make_plan(name, shape, batch), make_images(shape)
    with tempfile.TemporaryDirectory() as folder:
        loops: dict[str, Iterator[str]] = {
            "ours": ours(plan, images, Path(folder), compiled=False),
            "plain fp32": plain_fp32(plan, images),
            "reference": reference(plan, images),
        }
        how = {label: next(loop) for label, loop in loops.items()}
        if compiled:
            loops["ours, compiled"] = ours(plan, images, Path(folder), compiled=True)
            try:
                how["ours, compiled"] = next(loops["ours, compiled"])
            except RuntimeError as error:
                print(f"no compiled loop: {error}")
                del loops["ours, compiled"]
        timings: dict[str, list[float]] = {label: [] for label in loops}
        for turn in range(rounds):
            order = [*loops] if turn % 2 == 0 else [*reversed(loops)]
            for label in order:
                timings[label].append(seconds_per_step(loops[label], steps))
    speed = {label: batch / statistics.median(found) for label, found in timings.items()}
    print(f"\n{name}, {'x'.join(map(str, shape))}, batch {batch}, {rounds} rounds of {steps} steps")
    for label, value in speed.items():
        ratios = ", ".join(
            f"{value / speed[other]:.2f} x {other}" for other in ("plain fp32", "reference")
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
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {DEVICE}, {torch.get_num_threads()} threads", flush=True)
    if arguments.quick:
        sizes = [("DiT-Ti/2", (1, 28, 28), 16, 5, 2)]
    else:
        sizes = [("DiT-Ti/2", (1, 28, 28), 64, 5, 1), ("DiT-S/2", (3, 32, 32), 32, 3, 1)]
    for name, shape, batch, rounds, steps in sizes:
        compare(name, shape, batch, rounds=rounds, steps=steps, compiled=arguments.compile)
        gc.collect()
    if DEVICE.type == "cuda":
        with tempfile.TemporaryDirectory() as folder:
            utilisation(Path(folder))


if __name__ == "__main__":
    main()

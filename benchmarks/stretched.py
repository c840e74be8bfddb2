"""Does a base of small images spare steps on large ones, and do stretched positions matter?

All images of a data set, halved, train a DiT of 2 x 2 patches; it is the base of the same network
for the images as they are, four times as many patches. Four starts are compared, by the training
that sites run: by chance; from the base, with the positions that large images have by themselves,
which go on where the base's end; from the base, with the base's positions stretched over the image
(`-gridRxC`); and the last without any training. What is reported is the mean squared error of the
velocity at noised test images, in the same noise for every start.

    python benchmarks/stretched.py --data fashion_mnist.npz --out stretched

Every cell is written into OUT/cells.jsonl as it is found, and the same command goes on. With the
steps below some 25 CPU minutes.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from private_mixtures import load
from torch.nn.functional import avg_pool2d

from ddm_fed.flows import ClassCondition, interpolate, velocity
from ddm_fed.models import build_expert
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import read_plan_toml
from ddm_fed.storage.tensors import write_tensors
from ddm_fed.training import RunOptions, train_expert

PLAN = """
federation = "benchmark"
expires_at = 2036-01-01
[data]
channels = {channels}
height = {height}
width = {width}
conditioning = "class"
classes = [{classes}]
[expert]
architecture = "{architecture}"
{base}
[training]
steps = {steps}
batch_size = {batch}
learning_rate = 0.001
warmup_steps = {warmup}
ema_half_lives = [{half_life}]
[router]
kind = "prior"
epsilon = 1
[privacy]
max_epsilon = 1
"""
STARTS = ("chance", "base", "stretched")


class Study:
    """The images of both sizes, and what trains on them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        data = load(options.data)
        self.sets = {
            part: {"large": (x, labels), "small": (avg_pool2d(x, 2), labels)}
            for part, (x, labels) in data.items()
        }
        self.classes = int(data["train"][1].max()) + 1

    def base(self, positions: str, seed: int) -> dict[str, Any]:
        """Trains the base."""
        name = self.options.network + positions
        return self._train("small", name, self.options.base_steps, seed, None)

    def tuned(self, positions: str, start: str, steps: int, seed: int) -> dict[str, Any]:
        """Trains on large images."""
        file = None if start == "chance" else self._file("base", positions, seed)
        name = self.options.network + positions
        if start == "stretched":
            rows, columns = (side // 2 for side in self._shape("small")[1:])
            name += f"-grid{rows}x{columns}"
        return self._train("large", name, steps, seed, file)

    def _shape(self, size: str) -> tuple[int, ...]:
        return tuple(self.sets["train"][size][0].shape[1:])

    def _train(
        self, size: str, name: str, steps: int, seed: int, base: Path | None
    ) -> dict[str, Any]:
        """Trains, and judges on test images; with no steps, what it starts from is judged."""
        channels, height, width = self._shape(size)
        said = ""
        if base is not None:
            digest = hashlib.sha256(base.read_bytes()).hexdigest()
            said = f'base = {{ sha256 = "{digest}" }}'
        trained = max(1, steps)
        text = PLAN.format(
            channels=channels,
            height=height,
            width=width,
            classes=", ".join(f'"c{index}"' for index in range(self.classes)),
            architecture=name,
            base=said,
            steps=trained,
            batch=self.options.batch,
            # with no steps, one that moves next to nothing
            warmup=min(100, trained // 5) if steps else 10_000,
            half_life=max(1, min(200, trained // 8)),
        )
        plan = read_plan_toml(text)
        began = time.process_time()
        made = train_expert(
            Private(ImageSet(*self.sets["train"][size])),
            plan,
            hashlib.sha256(text.encode()).hexdigest(),
            self.options.out / "checkpoint",
            options=RunOptions(seed=seed, precision="float32", base=base),
        )
        took = time.process_time() - began
        (self.options.out / "checkpoint").unlink(missing_ok=True)
        if base is None and size == "small":
            write_tensors(
                self._file("base", name.removeprefix(self.options.network), seed), made.state
            )
        expert = build_expert(plan.data, plan.expert.default, made.state, None)
        return {"loss": self._loss(expert, size), "cpu_s": round(took)}

    @torch.inference_mode()
    def _loss(self, expert: Any, size: str) -> float:
        images, labels = (part[:2000] for part in self.sets["test"][size])
        generator = torch.Generator().manual_seed(5)
        eps = torch.randn(images.shape, generator=generator)
        t = (torch.arange(len(images)) + 0.5) / len(images)
        t = t[torch.randperm(len(images), generator=generator)]
        x_t, wanted = interpolate(images, eps, t), velocity(images, eps, t)
        losses = [
            (expert(x_t[some], t[some], ClassCondition(labels[some])) - wanted[some])
            .square()
            .flatten(1)
            .mean(1)
            for some in torch.arange(len(images)).split(250)
        ]
        return round(float(torch.cat(losses).mean()), 4)

    def _file(self, *words: object) -> Path:
        return self.options.out / ("_".join(map(str, words)) + ".safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("stretched"))
    parser.add_argument("--network", default="DiT-Nano/2")
    parser.add_argument("--positions", nargs="+", default=["-rope", ""], help="endings of names")
    parser.add_argument("--base-steps", type=int, default=2000)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 100, 500])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    file, study = options.out / "cells.jsonl", None
    cells: list[tuple[Any, ...]] = []
    for seed in options.seeds:
        for positions in options.positions:
            cells.append(("base", positions, seed))
            cells += [
                ("tuned", positions, start, steps, seed)
                for steps in options.steps
                for start in STARTS
            ]
    for cell in cells:
        lines = file.read_text().splitlines() if file.exists() else []
        if list(cell) in [json.loads(line)["cell"] for line in lines]:
            continue
        study = study or Study(options)
        row = json.dumps({"cell": cell, **getattr(study, cell[0])(*cell[1:])})
        with file.open("a") as target:
            target.write(row + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    main()

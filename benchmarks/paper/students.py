"""Is one network that an ensemble taught as good as one trained on all images?

Two students of the ensemble of equal_arithmetic.py, which see as many images as its one network
(`monolith`) saw, with the same network:

- `data`: the paper's. It learns from the training images; each datum's own expert teaches, which
  the router of all images tells;
- `samples-N`: from N samples of the ensemble and nothing else, each taught by the expert that drew
  it. Where experts are private, so is this student.

They begin with the weights of the island with the most images, or by chance (`--starts`).
What a student has not learnt yet is told from what its teachers do not know by better teachers
(`--steps`, `--student-steps`), and by one network in their place (`--islands 1`).

    python benchmarks/paper/students.py --data fashion_mnist.npz --out equal_arithmetic
OUT is a folder of equal_arithmetic.py, whose judge, experts, routers and monolith serve here. The
arithmetic of drawing, teaching and learning is counted. The same command goes on.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from cells import Cell, run_cells
from equal_arithmetic import GPU, Study, add_options
from scale import read_options, sampling_flops, together, training_flops
from torch import Tensor

from ddm_fed.distillation.lessons import GivenImages, digest_of
from ddm_fed.distillation.options import DistillOptions, StartName
from ddm_fed.distillation.train import Teachers, train_student, working
from ddm_fed.models import build_expert
from ddm_fed.models.machines import BACKWARD
from ddm_fed.router import PriorRouter
from ddm_fed.storage.tensors import write_tensors


class Students(Study):
    """The cells of students."""

    def student(
        self,
        division: str,
        count: int,
        steps: int,
        seed: int,
        source: str,
        start: StartName,
        own_steps: int,
        batch: int,
    ) -> dict[str, Any]:
        """Trains one student."""
        drawn = source != "data"
        plan = self.plan(1, own_steps)
        ensemble = self.ensemble(division, count, steps, seed, asks=not drawn and count > 1)
        totals = self.labels.bincount(minlength=self.classes).double()
        teachers = Teachers(
            plan=plan,
            ensemble=ensemble,
            designs=[plan.expert.default] * count,
            router="prior",
            class_units=totals,
            weights=totals,
            identity=f"{division}-{count}-{steps}-{seed}",
            sites=[f"island-{island}" for island in range(count)],
            read_expert=lambda island: self.weights(
                self._file("expert", division, count, steps, seed, island)
            ),
        )
        options = DistillOptions(
            samples=int(source.removeprefix("samples-")) if drawn else 1,
            start=start,
            batch_size=batch,
            seed=seed,
            precision=self.options.precision,
            devices=(self.options.device,),
        )
        given: GivenImages | None = None
        if not drawn:
            given = GivenImages(self.images, self.labels, digest_of(self.images))
        name = self._file("student", division, count, steps, seed, source, start, own_steps, batch)
        began, wall = time.process_time(), time.monotonic()
        with torch.enable_grad(), working(name) as work:
            taught = train_student(teachers, options, work, given=given)
            write_tensors(name, taught.weights)
        gigaflops = taught.distillation.gigaflops
        return {
            "start": taught.distillation.start,
            "gflop": {key: round(float(value)) for key, value in gigaflops.model_dump().items()},
            "cpu_s": round(time.process_time() - began),
            "wall_s": round(time.monotonic() - wall),
        }

    def judged_student(self, *words: Any) -> dict[str, Any]:
        """Samples a student, named as in `student` and then by its guidance, and judges it."""
        *named, w = words
        seed, plan = named[3], self.plan(1, 1)
        weights = self.weights(self._file("student", *named))
        expert = build_expert(plan.data, plan.expert.default, weights, None)
        everywhere: Tensor = torch.ones(1, self.classes)
        alone = together(self.options, [expert], PriorRouter(everywhere))
        return self._judged(alone, "sticky", seed, w)

    def flops_of(self, cell: Cell) -> float:
        """Returns the arithmetic of the networks of a cell, for the budget."""
        if cell[0] == "student":
            source, steps, batch = cell[5], cell[7], cell[8]
            taught = training_flops(self.cost, steps, batch)
            drawn, count = DistillOptions(), source.removeprefix("samples-")
            made = 0 if source == "data" else int(count)
            lessons = sampling_flops(self.cost, made, drawn.solver_steps)
            return taught * (1 + 1 / BACKWARD) + lessons
        if cell[0] == "judged_student":
            return super().flops_of(("judged", "all", 1, *cell[3:5], "sticky", cell[9]))
        return super().flops_of(cell)


def cells_of(options: argparse.Namespace) -> Iterator[Cell]:
    """Yields every cell in an order in which each finds what it needs."""
    yield ("judge",)
    for seed in options.seeds:
        for steps in options.steps:
            teachers = ("feature" if options.islands > 1 else "all", options.islands)
            for division, count in sorted({("all", 1), teachers}):
                for island in range(count):
                    yield ("expert", division, count, steps, seed, island)
                for w in options.guidance:
                    yield ("judged", division, count, steps, seed, "sticky", w)
            if options.islands > 1:
                yield ("router", *teachers, 0, seed)
            for source, start, batch in product(options.sources, options.starts, options.batches):
                own_steps = (options.student_steps or steps) * options.batch // batch
                words = (*teachers, steps, seed, source, start, own_steps, batch)
                yield ("student", *words)
                for w in options.guidance:
                    yield ("judged_student", *words, w)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--out", type=Path, default=Path("equal_arithmetic"))
    parser.add_argument("--islands", type=int, default=8)
    parser.add_argument("--sources", nargs="+", default=["samples-20000", "data"])
    parser.add_argument("--starts", nargs="+", choices=("expert", "chance"), default=["expert"])
    parser.add_argument("--batches", nargs="+", type=int, help="of students; by default --batch")
    parser.add_argument("--student-steps", type=int, help="of --batch images; by default --steps")
    options = read_options(parser, GPU)
    options.batches = options.batches or [options.batch]
    run_cells(options, cells_of(options), Students)


if __name__ == "__main__":
    main()

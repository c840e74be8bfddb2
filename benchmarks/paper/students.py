"""Is one network that an ensemble taught as good as one trained on all images?

Two students of the ensemble of equal_arithmetic.py, trained for as many steps of whole batches as
its one network (`monolith`), with the same network:

- `data`: the paper's. It learns from the training images; each datum's own expert teaches, which
  the router of all images tells;
- `samples-N`: from N samples of the ensemble and nothing else, each taught by the expert that drew
  it. Where experts are private, so is this student.

    python benchmarks/paper/students.py --data fashion_mnist.npz --out equal_arithmetic

OUT is a folder of equal_arithmetic.py, whose judge, experts, routers and monolith serve here. The
arithmetic of drawing, teaching and learning is counted. The same command goes on.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from equal_arithmetic import Cell, Study, add_options, run_cells
from torch import Tensor

from ddm_fed.distillation.lessons import GivenImages, digest_of
from ddm_fed.distillation.options import DistillOptions
from ddm_fed.distillation.train import Teachers, train_student, working
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.models import build_expert
from ddm_fed.router import PriorRouter
from ddm_fed.storage.tensors import write_tensors


class Students(Study):
    """The cells of students."""

    def student(
        self, division: str, count: int, steps: int, seed: int, source: str
    ) -> dict[str, Any]:
        """Trains one student."""
        drawn = source != "data"
        plan = self.plan(1, steps)
        ensemble = self.ensemble(division, count, steps, seed, asks=not drawn)
        totals = self.labels.bincount(minlength=self.classes).double()
        teachers = Teachers(
            plan=plan,
            ensemble=ensemble,
            designs=[plan.expert.default] * count,
            router="prior",
            class_units=totals,
            weights=totals,
            identity=f"{division}-{count}-{steps}-{seed}",
        )
        options = DistillOptions(
            samples=int(source.removeprefix("samples-")) if drawn else 1,
            seed=seed,
        )
        given: GivenImages | None = None
        if not drawn:
            given = GivenImages(self.images, self.labels, digest_of(self.images))
        name = self._file("student", division, count, steps, seed, source)
        began, wall = time.process_time(), time.monotonic()
        with torch.enable_grad(), working(name) as work:
            taught = train_student(teachers, options, work, given=given)
            write_tensors(name, taught.weights)
        gigaflops = taught.distillation.gigaflops
        return {
            "gflop": {key: round(float(value)) for key, value in gigaflops.model_dump().items()},
            "cpu_s": round(time.process_time() - began),
            "wall_s": round(time.monotonic() - wall),
        }

    def judged_student(
        self, division: str, count: int, steps: int, seed: int, source: str, w: float
    ) -> dict[str, Any]:
        """Samples a student and judges it."""
        plan = self.plan(1, steps)
        weights = self.weights(self._file("student", division, count, steps, seed, source))
        expert = build_expert(plan.data, plan.expert.default, weights, None)
        everywhere: Tensor = torch.ones(1, self.classes)
        return self._judged(Ensemble([expert], PriorRouter(everywhere)), "sticky", seed, w)


def cells_of(options: argparse.Namespace) -> Iterator[Cell]:
    """Yields every cell in an order in which each finds what it needs."""
    yield ("judge",)
    for seed in options.seeds:
        for steps in options.steps:
            for division, count in [("all", 1), ("feature", options.islands)]:
                for island in range(count):
                    yield ("expert", division, count, steps, seed, island)
                for w in options.guidance:
                    yield ("judged", division, count, steps, seed, "sticky", w)
            yield ("router", "feature", options.islands, 0, seed)
            for source in options.sources:
                words = ("feature", options.islands, steps, seed, source)
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
    options = parser.parse_args()
    run_cells(options, cells_of(options), Students)


if __name__ == "__main__":
    main()

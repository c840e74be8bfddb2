"""One message a site, rounds of averages, or nothing shared: from equal sites to disjoint ones.

A data set is divided among K sites: `iid`; by a Dirichlet distribution, `dirichlet-A`, the smaller
A the more uneven; or `disjoint`, where every class is at one site. All train the same network with
the same loss for the same steps of K-th parts of the batch:

- experts: each site trains one on its own images and sends it once; sampled by `sticky`, that is by
  the exact counts of each class;
- local-only: nothing is sent, and each expert alone is asked for all classes; shown are the mean
  of the sites and the site with the most images, which is chosen without a look at its figure;
- FedAvg through Flower: the app of examples/flower/fedavg in Flower's simulation, in R rounds; its
  last average is judged, and the average of its rounds, which is nearest to the experts' EMA;
- pooled: one network, trained on everybody's images with the whole batch.

Judged as equal_arithmetic.py does it. Cells of both are alike, so `--out` may be a folder of it,
and its judge and pooled network then serve here as well.

    python benchmarks/paper/federations.py --data fashion_mnist.npz --seeds 0 1 2

The same command goes on with the cells that are missing, and prints the table of those there are at
its end. Ray, which runs Flower's simulation, listens at every address: see docs/flower.md. With 5
sites the batch is 12 at each, so that all together take 60 images a step where the pooled network
takes 64; with 4 or 8 they are equal.

`--scale gpu` takes DiT-S/2, 10,000 steps of 256 images at 8 sites, and 10,000 samples: for all
splits and one seed on 28 x 28 pixels some 145 minutes of an H100 or H200, or 460 of an A100, by
arithmetic and a guessed utilisation; what is printed first counts the cells that are missing. Of
FedAvg `--cpus` sites share the GPU, in float32. No GPU has run it yet.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples/flower/fedavg"))

import torch
from cells import Cell, found_cells, run_cells
from ddm_fedavg.task import owners
from equal_arithmetic import Study, add_options
from fedavg import Settings, simulate
from safetensors.torch import load_file
from scale import read_options, together
from torch import Tensor

from ddm_fed.flows import Expert
from ddm_fed.models import build_expert
from ddm_fed.router import PriorRouter

Row = dict[str, Any]
POOLED = ("all", 1)
GPU = {
    "architecture": "DiT-S/2",
    "steps": [10_000],
    "samples": 10_000,
    "solver_steps": 50,
    "sites": 8,
    "cpus": 4,
}
METHODS = ("fedavg", "local-only")
KEPT = {"last": "the last", "average": "their average"}
COLUMNS = ("fid", "asked", "megabytes", "messages_per_site", "cpu_s", "wall_s", "gflop")
OBJECT_STORE = 256 << 20  # bytes; Ray would take a third of the memory, and weights are small


class Federations(Study):
    """The cells that only a federation has."""

    def islands(self, division: str, count: int, seed: int) -> Tensor:
        """Returns the site of every image, as the app of FedAvg divides them."""
        if count == 1:
            return super().islands(division, count, seed)
        return owners(division, self.labels, count, seed)

    def alone(
        self, division: str, count: int, steps: int, seed: int, island: int, w: float
    ) -> dict[str, Any]:
        """Judges what one site could sample without the others."""
        file = self._file("expert", division, count, steps, seed, island)
        return self._of_one(self._expert(self.plan(count, steps), file), seed, w)

    def fedavg(
        self, division: str, count: int, steps: int, seed: int, rounds: int
    ) -> dict[str, Any]:
        """Trains by FedAvg, under the plan that experts are trained under."""
        plan, out = self.plan(count, steps), self._averaged(division, count, steps, seed, rounds)
        plan_file = self.out / f"plan-{count}-{steps}.toml"
        plan_file.write_text(self.plan_text(count, steps))
        settings = Settings(
            split=division,
            sites=count,
            rounds=rounds,
            out=str(out.resolve()),
            data=str(self.options.data.resolve()),
            plan_file=str(plan_file.resolve()),
            seed=seed,
        )
        sharing = self.options.cpus if self.options.device == "cuda" else 0
        facts = simulate(
            settings,
            gpus=1 / sharing if sharing else 0.0,
            num_cpus=self.options.cpus,
            object_store_memory=OBJECT_STORE,
        )
        last = facts["losses"][max(facts["losses"], key=int)]
        return {
            "gflop": count * self.gflop(plan),
            "cpu_s": round(facts["cpu_s"]),
            "wall_s": round(facts["wall_s"]),
            "bytes": facts["bytes"],
            "messages_per_site": facts["messages_per_site"],
            "last_loss": round(last, 4),
        }

    def averaged(
        self, division: str, count: int, steps: int, seed: int, rounds: int, kept: str, w: float
    ) -> dict[str, Any]:
        """Judges the last average of FedAvg, or the average of its rounds."""
        plan, file = self.plan(count, steps), self._averaged(division, count, steps, seed, rounds)
        weights = load_file(file if kept == "last" else file.with_suffix(".average.safetensors"))
        return self._of_one(build_expert(plan.data, plan.expert.default, weights, None), seed, w)

    def _of_one(self, expert: Expert, seed: int, w: float) -> dict[str, Any]:
        everywhere = PriorRouter(torch.ones(1, self.classes))
        return self._judged(together(self.options, [expert], everywhere), "sticky", seed, w)

    def _averaged(self, *words: object) -> Path:
        return self._file("fedavg", *words)


def cells_of(options: argparse.Namespace) -> Iterator[Cell]:
    """Yields every cell in an order in which each finds what it needs."""
    yield ("judge",)
    for seed in options.seeds:
        for steps in options.steps:
            for split in options.splits:
                yield from _of_split(split, steps, seed, options)
    for seed in options.seeds:  # last, since equal_arithmetic.py may be at them
        for steps in options.steps:
            yield ("expert", *POOLED, steps, seed, 0)
            for w in options.guidance:
                yield ("judged", *POOLED, steps, seed, "sticky", w)


def _of_split(split: str, steps: int, seed: int, options: argparse.Namespace) -> Iterator[Cell]:
    words = (split, options.sites, steps, seed)
    for site in range(options.sites):
        yield ("expert", *words, site)
    for w in options.guidance:
        yield ("judged", *words, "sticky", w)
    for rounds in options.rounds if "fedavg" in options.methods else []:
        yield ("fedavg", *words, rounds)
        for kept in KEPT:
            for w in options.guidance:
                yield ("averaged", *words, rounds, kept, w)
    for site in range(options.sites) if "local-only" in options.methods else []:
        for w in options.guidance:
            yield ("alone", *words, site, w)


class Table:
    """What was found, a row for every split and method; means of the seeds, and their range."""

    def __init__(self, options: argparse.Namespace, study: Study) -> None:
        self._options, self._cells = options, found_cells(options.out)
        self._weights = study.cost.weights_bytes
        self._images = study.images.numel()  # a byte a pixel

    def show(self) -> None:
        """Prints it."""
        print(
            "\n| steps | guidance | split | method | FID | class asked | MB moved | "
            "messages of a site | CPU s | wall s | Gflop |\n" + "| --- " * 11 + "|"
        )
        for steps in self._options.steps:
            for w in self._options.guidance:
                self._row(steps, w, "-", "pooled (breaks isolation)", self._pooled)
                for split in self._options.splits:
                    self._rows(steps, w, split)

    def _rows(self, steps: int, w: float, split: str) -> None:
        self._row(steps, w, split, "experts, one message", self._experts, split)
        for name, choose in (("mean of the sites", _mean), ("largest site", _largest)):
            self._row(steps, w, split, f"local-only, {name}", self._alone, split, choose)
        for rounds in self._options.rounds:
            for kept, name in KEPT.items():
                method = f"FedAvg, {rounds} rounds, {name}"
                self._row(steps, w, split, method, self._fedavg, split, rounds, kept)

    def _row(
        self, steps: int, w: float, split: str, method: str, find: Callable[..., Row], *words: Any
    ) -> None:
        found = []
        for seed in self._options.seeds:
            with suppress(KeyError):  # a cell that is not there yet
                row = find(steps, seed, w, *words)
                found.append(row | {"megabytes": row["bytes"] / 1e6})
        if found:
            shown = [_spread([row[name] for row in found]) for name in COLUMNS]
            print(f"| {steps} | {w:g} | {split} | {method} | " + " | ".join(shown) + " |")

    def _pooled(self, steps: int, seed: int, w: float) -> Row:
        trained = self._trained(*POOLED, steps, seed)
        judged = self._cells["judged", *POOLED, steps, seed, "sticky", w]
        return judged | trained | {"bytes": self._images, "messages_per_site": 1}

    def _experts(self, steps: int, seed: int, w: float, split: str) -> Row:
        words = (split, self._options.sites, steps, seed)
        judged = self._cells["judged", *words, "sticky", w]
        moved = self._options.sites * self._weights
        return judged | self._trained(*words) | {"bytes": moved, "messages_per_site": 1}

    def _alone(
        self, steps: int, seed: int, w: float, split: str, choose: Callable[[list[Row]], Row]
    ) -> Row:
        words = (split, self._options.sites, steps, seed)
        sites = [
            self._cells["expert", *words, site] | self._cells["alone", *words, site, w]
            for site in range(self._options.sites)
        ]
        return choose(sites) | self._trained(*words) | {"bytes": 0, "messages_per_site": 0}

    def _fedavg(self, steps: int, seed: int, w: float, split: str, rounds: int, kept: str) -> Row:
        words = (split, self._options.sites, steps, seed, rounds)
        return self._cells["averaged", *words, kept, w] | self._cells["fedavg", *words]

    def _trained(self, split: str, count: int, steps: int, seed: int) -> Row:
        """Returns what the training of all cost, one after another."""
        cells = [self._cells["expert", split, count, steps, seed, site] for site in range(count)]
        names = ("gflop", "cpu_s", "wall_s")
        return {name: sum(cell.get(name, cell["cpu_s"]) for cell in cells) for name in names}


def _mean(sites: list[Row]) -> Row:
    return {name: mean(site[name] for site in sites) for name in ("fid", "asked")}


def _largest(sites: list[Row]) -> Row:
    return max(sites, key=lambda site: site["images"])


def _spread(values: list[float]) -> str:
    low, high = min(values), max(values)
    middle = f"{mean(values):.4g}"
    return middle if low == high else f"{middle} ({low:.4g} to {high:.4g})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--out", type=Path, default=Path("federations"))
    parser.add_argument("--sites", type=int, default=5)
    parser.add_argument(
        "--splits",
        nargs="+",
        default=["iid", "dirichlet-1", "dirichlet-0.3", "dirichlet-0.1", "disjoint"],
    )
    parser.add_argument(
        "--methods",
        nargs="*",
        default=list(METHODS),
        choices=METHODS,
        help="beside the experts and the pooled network",
    )
    parser.add_argument("--rounds", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--cpus", type=int, default=1, help="how many sites Flower runs at once")
    options = read_options(parser, GPU)
    if run_cells(options, cells_of(options), Federations, "sites", "cpus"):
        Table(options, Federations(options)).show()


if __name__ == "__main__":
    main()

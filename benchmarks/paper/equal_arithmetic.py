"""Does an ensemble beat one network at equal training arithmetic? The paper's first claim.

A data set is divided into K islands by clusters of features (k-means in two stages, as
`ddm-coord partition` does it) or by chance. Features are 64 cosines (`--divisions feature`) or what
a network says (`network`, with `--embedder timm:NETWORK --weights FILE`, as imagenet_network.py
makes one). Each island trains the same network for the same number
of steps on K-th parts of the batch, by the training that sites run; K = 1 is one network on all
images. Classes are known. Samples are drawn by each strategy with classes as even as they come, and
judged by their Frechet distance to all test images in the features of a classifier of training
images. `sticky` draws islands by the exact counts of each class: with clusters that are known this
is also the paper's oracle. The other strategies ask a router that learned the islands from all
images, as the paper's does.

    python benchmarks/paper/equal_arithmetic.py --data fashion_mnist.npz --seeds 0 1 2

Every cell (an expert, a router, a judgement) is written into `OUT/cells.jsonl` as it is found, and
the same command goes on with those that are missing; several at once share OUT with `--part I/N`,
each on a core of its own, and a last one without it judges. An expert of DiT-Nano/4 on 28 x 28
pixels takes some 250 CPU seconds for 3,000 steps of 64 images, and 64 / K images K-th parts of it.

`--scale gpu` takes DiT-S/2, 30,000 steps of 256 images and 10,000 samples instead. Its budget is
printed first: for all K, both divisions and one seed on 28 x 28 pixels some 130 minutes of an H100
or H200, or 410 of an A100, by arithmetic and a guessed utilisation. No GPU has run it yet.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import Cell, run_cells
from numpy.typing import NDArray
from scale import (
    at_once,
    plan_digest,
    read_options,
    run_options,
    sampling_flops,
    together,
    training_flops,
)
from torch import Tensor

from ddm_fed.embedding import dct_basis, open_embedder
from ddm_fed.ensemble.sampling import SamplingOptions, sample
from ddm_fed.ensemble.strategy import Strategy
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.evaluation import Classifier, frechet_distance, train_classifier_on
from ddm_fed.flows import ClassCondition, Expert
from ddm_fed.models import NetworkCost, build_expert, network_cost
from ddm_fed.partition import Describe, at_random, coarse_centres, cosines, nearest
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import Plan, RouterNetworkSpec, read_plan_toml
from ddm_fed.router import (
    ClassifierRouter,
    PriorRouter,
    Router,
    router_network,
    train_classifier,
)
from ddm_fed.storage.digests import sha256_of
from ddm_fed.storage.tensors import read_own_tensors, write_tensors
from ddm_fed.training import train_expert

GIGA, LEARNT_FROM = 1e9, 20_000
ROUTER_STEPS, ROUTER_BATCH = 3000, 256
GPU = {"architecture": "DiT-S/2", "steps": [30_000], "samples": 10_000, "solver_steps": 50}
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
[training]
steps = {steps}
batch_size = {batch}
learning_rate = {learning_rate:g}
warmup_steps = 100
ema_half_lives = [{half_life}]
[router]
kind = "prior"
epsilon = 1
[privacy]
max_epsilon = 1
"""


class Study:
    """The images, the options, and what is known already."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options: argparse.Namespace = options
        self.out: Path = options.out
        file = np.load(options.data, allow_pickle=False)
        self.images, self.labels = _read(file, "train")
        self.real, self.real_labels = _read(file, "test")
        self.classes = int(self.labels.max()) + 1
        _, channels, height, width = self.images.shape
        self.shape = (channels, height, width)

    def plan(self, islands: int, steps: int) -> Plan:
        """Returns the plan of one island of so many."""
        return read_plan_toml(self.plan_text(islands, steps))

    def plan_text(self, islands: int, steps: int) -> str:
        """Returns that plan as a file."""
        channels, height, width = self.shape
        return PLAN.format(
            channels=channels,
            height=height,
            width=width,
            classes=", ".join(f'"c{index}"' for index in range(self.classes)),
            architecture=self.options.architecture,
            steps=steps,
            batch=self.options.batch // islands,
            learning_rate=self.options.learning_rate,
            half_life=max(1, min(self.options.ema_half_life, steps // 8)),
        )

    @cache  # noqa: B019  one study a process
    def islands(self, division: str, count: int, seed: int) -> Tensor:
        """Returns the island of every image, `(N,)`."""
        if count == 1:
            return torch.zeros(len(self.images), dtype=torch.long)
        if division == "random":
            return torch.from_numpy(at_random(len(self.images), count, seed))
        seen = self.features(division)
        return torch.from_numpy(nearest(seen, coarse_centres(seen, count, seed)))

    @cache  # noqa: B019  one study a process
    def features(self, division: str) -> NDArray[np.float32]:
        """Returns what the clusters of `division` are clusters of, `(N, E)`."""
        describe, kept = self.describe(division), self._file("features", division)
        if not kept.exists():
            write_tensors(kept, {"features": described(describe, self.images)})
        return self.weights(kept)["features"].numpy()

    def describe(self, division: str) -> Describe:
        """Returns the way from images to features."""
        if division == "feature":
            return cosines(self.shape, 64)
        options = self.options
        return Describe.of(open_embedder(options.embedder, options.weights, options.weights_sha256))

    def counts(self, islands: Tensor, count: int) -> Tensor:
        """Returns the images of every island and class, `(K, G)`."""
        flat = islands * self.classes + self.labels
        return flat.bincount(minlength=count * self.classes).reshape(count, -1)

    def expert(
        self, division: str, count: int, steps: int, seed: int, island: int
    ) -> dict[str, Any]:
        """Trains one expert."""
        plan, own = self.plan(count, steps), self.islands(division, count, seed) == island
        name = self._file("expert", division, count, steps, seed, island)
        checkpoint = name.with_suffix(".checkpoint")
        digest = plan_digest(self.plan_text(count, steps), checkpoint)
        began, wall = time.process_time(), time.monotonic()
        trained = train_expert(
            Private(ImageSet(self.images[own], self.labels[own])),
            plan,
            digest,
            checkpoint,
            options=run_options(self.options, 1000 * seed + island),
        )
        write_tensors(name, trained.state)
        checkpoint.unlink(missing_ok=True)
        return {
            "images": int(own.sum()),
            "plan_sha256": digest,
            "gflop": self.gflop(plan),
            "cpu_s": round(time.process_time() - began),
            "wall_s": round(time.monotonic() - wall),
        }

    @property
    def cost(self) -> NetworkCost:
        """What the network costs."""
        return network_cost(self.options.architecture, self.shape, self.classes)

    def gflop(self, plan: Plan) -> int:
        """Returns the arithmetic of training one network under `plan`."""
        images = plan.training.steps * plan.training.batch_size
        return round(3 * self.cost.flops_per_image * images / GIGA)

    def flops_of(self, cell: Cell) -> float:
        """Returns the arithmetic of a cell's networks, at most."""
        kind, *words = cell
        options, w = self.options, cell[-1]
        drawn = (self.cost, options.samples, options.solver_steps)
        match kind, words:
            case "expert", [_, count, steps, _, _]:
                return training_flops(self.cost, steps, options.batch // count)
            case "fedavg", [_, count, steps, *_]:
                return count * training_flops(self.cost, steps, options.batch // count)
            case "judged", [_, count, _, _, strategy, _]:
                return sampling_flops(*drawn, strategy=strategy, experts=count, guidance=w)
            case (("alone" | "averaged"), _):
                return sampling_flops(*drawn, guidance=w)
        return 0.0

    def router(self, division: str, count: int, _: int, seed: int) -> dict[str, Any]:
        """Trains the router that strategies ask: a perceptron of all cosines, told the class."""
        islands, plan, spec = self.islands(division, count, seed), self.plan(count, 1), self.spec
        basis = dct_basis(self.shape, spec.frequencies).float()
        seen = self.images.flatten(1) @ basis.T
        began = time.process_time()
        network = router_network(plan.data, spec, count)
        shares = islands.bincount(minlength=count).double()
        train_classifier(
            network,
            [(seen[islands == k], self.labels[islands == k]) for k in range(count)],
            shares / shares.sum(),
            steps=ROUTER_STEPS,
            batch_size=ROUTER_BATCH,
            learning_rate=1e-3,
            generator=torch.Generator().manual_seed(seed),
        )
        write_tensors(self._file("router", division, count, 0, seed), network.state_dict())
        return {"cpu_s": round(time.process_time() - began)}

    @property
    def spec(self) -> RouterNetworkSpec:
        """The router's network."""
        return RouterNetworkSpec(frequencies=min(1024, self.shape[1] * self.shape[2]))

    def judge(self) -> dict[str, Any]:
        """Trains the classifier that judges."""
        rows = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(8))
        rows = rows[:LEARNT_FROM]
        made = train_classifier_on(
            self.images[rows],
            self.labels[rows],
            self.classes,
            epochs=6,
            generator=torch.Generator().manual_seed(9),
        )
        write_tensors(self._file("judge"), made.network.state_dict())
        rest = self.images[rows[: len(self.real)]]
        return {"held_out": made.held_out_accuracy, "fid_of_training_images": self._fid(rest)}

    def judged(
        self, division: str, count: int, steps: int, seed: int, strategy: str, w: float
    ) -> dict[str, Any]:
        """Samples one ensemble by one strategy, and judges it."""
        asks = Strategy.parse(strategy).asks_router and count > 1
        return self._judged(self.ensemble(division, count, steps, seed, asks), strategy, seed, w)

    def ensemble(self, division: str, count: int, steps: int, seed: int, asks: bool) -> Ensemble:
        """Returns experts and a router: by counts of islands and classes, or one that `asks`."""
        plan = self.plan(count, steps)
        experts = [
            self._expert(plan, self._file("expert", division, count, steps, seed, island))
            for island in range(count)
        ]
        islands = self.islands(division, count, seed)
        prior = PriorRouter(self.counts(islands, count).double())
        router: Router = prior
        if asks:
            network = router_network(plan.data, self.spec, count)
            network.load_state_dict(self.weights(self._file("router", division, count, 0, seed)))
            basis = dct_basis(self.shape, self.spec.frequencies)
            router = ClassifierRouter(network.eval().requires_grad_(False), basis, prior)
        return together(self.options, experts, router)

    @torch.inference_mode()
    def _judged(self, ensemble: Ensemble, strategy: str, seed: int, w: float) -> dict[str, Any]:
        """Samples an ensemble, asked for classes as even as they come, and judges it."""
        options = self.options
        labels = torch.arange(options.samples) % self.classes
        began = time.process_time()
        drawn = sample(
            ensemble,
            self.shape,
            options.samples,
            SamplingOptions(
                Strategy.parse(strategy),
                options.solver_steps,
                "heun",
                seed=6 + seed,
                guidance=w,
                **at_once(options),
            ),
            condition=ClassCondition(labels),
        )
        calls = sum(ensemble.experts.calls) / options.samples / options.solver_steps
        return {
            "fid": self._fid(drawn.images),
            "asked": round(self.read_judge().accuracy(drawn.images, labels), 3),
            "calls_per_step": round(calls, 2),
            "cpu_s": round(time.process_time() - began),
        }

    def _expert(self, plan: Plan, file: Path) -> Expert:
        return build_expert(plan.data, plan.expert.default, self.weights(file), None)

    def read_judge(self) -> Classifier:
        """Returns the classifier that judges."""
        network = Classifier(self.shape, self.classes).eval()
        network.load_state_dict(self.weights(self._file("judge")))
        return network

    def _fid(self, images: Tensor) -> float:
        judge = self.read_judge()
        sets = (judge.features(part).numpy() for part in (self.real, images))
        return round(float(frechet_distance(*sets)), 2)

    def _file(self, *words: object) -> Path:
        return self.out / ("-".join(map(str, words)) + ".safetensors")

    @staticmethod
    def weights(file: Path) -> dict[str, Tensor]:
        """Returns the tensors of a file."""
        return {name: torch.from_numpy(value) for name, value in read_own_tensors(file).items()}


def described(describe: Describe, images: Tensor) -> Tensor:
    """Returns the features of images, `(N, E)`."""
    return torch.cat([describe.images(part) for part in torch.split(images, 256)])


def _read(file: Any, part: str) -> tuple[Tensor, Tensor]:
    pixels, labels = file[f"{part}_images"], file[f"{part}_labels"].reshape(-1)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    images = torch.from_numpy(np.ascontiguousarray(pixels)).float() / 127.5 - 1
    return images, torch.from_numpy(labels.astype(np.int64))


def cells_of(options: argparse.Namespace) -> Iterator[Cell]:
    """Yields every cell in an order in which each finds what it needs."""
    yield ("judge",)
    groups = [("all", 1)] if 1 in options.islands else []
    groups += [(d, k) for d in options.divisions for k in options.islands if k > 1]
    for seed in options.seeds:
        for steps in options.steps:
            for division, count in groups:
                for island in range(count):
                    yield ("expert", division, count, steps, seed, island)
                asking = [s for s in options.strategies if s != "sticky" and count > 1]
                if asking:
                    yield ("router", division, count, 0, seed)
                for strategy in ["sticky", *asking]:
                    for w in options.guidance:
                        yield ("judged", division, count, steps, seed, strategy, w)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what every study of this folder is told."""
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[3000])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0])
    parser.add_argument("--architecture", default="DiT-Nano/4")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--solver-steps", type=int, default=25)
    parser.add_argument("--part", default="1/1", help="I/N: every N-th expert, and nothing else")


def add_divisions(parser: argparse.ArgumentParser, *default: str) -> None:
    """Adds by what images are divided among islands."""
    parser.add_argument("--divisions", nargs="+", default=list(default))
    parser.add_argument("--embedder", help="of --divisions network: timm:NETWORK or clip")
    parser.add_argument("--weights", type=Path, help="its weights, a safetensors file")


def of_embedder(options: argparse.Namespace) -> tuple[str, ...]:
    """Returns the names of options that cells of a network's clusters depend on."""
    given = (options.embedder is not None, options.weights is not None)
    if given != ("network" in options.divisions,) * 2:
        sys.exit("error: --divisions network, --embedder NAME and --weights FILE belong together")
    if options.weights is None:
        return ()
    options.weights_sha256 = sha256_of(options.weights)
    return ("embedder", "weights_sha256")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--out", type=Path, default=Path("equal_arithmetic"))
    parser.add_argument("--islands", type=int, nargs="+", default=[1, 2, 4, 8])
    add_divisions(parser, "feature", "random")
    parser.add_argument("--strategies", nargs="+", default=["sticky"])
    options = read_options(parser, GPU)
    run_cells(options, cells_of(options), Study, *of_embedder(options))


if __name__ == "__main__":
    main()

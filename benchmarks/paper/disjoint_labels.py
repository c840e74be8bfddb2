"""Is a classifier of samples as good as one of the pooled images, where no two sites share a class?

The setting of FederatedFactory (arXiv:2603.16370): labels are disjoint, every site sends its
generative model once, a classifier is trained on nothing but samples, and a site is removed by
leaving its model out. Classes go to the sites in turn. Experts are

- `network`: plain flow matching, without privacy,
- `residual`: the same network beside the closed form of its site's images, without privacy,
- `mixture-E`: the site's private release itself, at epsilon E.

Networks train by the training that sites run and are drawn by `sticky` with the classes of the
training images; mixtures are drawn by the shares and classes that the sites released. Beside the
accuracy of a classifier of samples on real test images stand those of classifiers of the pooled
images: all of them, and as many as there are samples. Their epoch is chosen on a held-out tenth of
what they learn from. `removed` takes the last site away: a classifier of what is left is judged on
the classes that are left, beside the pooled images of those.

    python benchmarks/paper/disjoint_labels.py --data pneumoniamnist.npz --experts network

Every cell is written into `OUT/cells.jsonl` as it is found, and the same command goes on.

`--scale gpu` takes DiT-S/2 and 10,000 steps of 256 images: for ten sites, both kinds of network and
one seed on 28 x 28 pixels some 120 minutes of an H100 or H200, or 375 of an A100, by arithmetic and
a guessed utilisation; what is printed first counts the cells that are missing. Mixtures and
classifiers stay on the processor. No GPU has run it yet.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from cells import find_cells, require_same_options
from private_mixtures import PLAN, accuracy, draw, learn, load, make_plan, public_guess, release
from scale import (
    at_once,
    plan_digest,
    read_options,
    run_options,
    sampling_flops,
    together,
    training_flops,
)

from ddm_fed.ensemble.sampling import SamplingOptions, sample
from ddm_fed.ensemble.strategy import Strategy
from ddm_fed.flows import ClassCondition, Expert
from ddm_fed.mixture import fit_image_mixtures, mixture_rule
from ddm_fed.models import NetworkCost, build_expert, network_cost
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import Plan, read_plan_toml
from ddm_fed.router import PriorRouter
from ddm_fed.storage.tensors import read_own_tensors, write_tensors
from ddm_fed.training import KnownVelocity, train_expert
from ddm_fed.training.known_velocity import released_velocity

NO_PRIVACY = {"epsilon": 1000, "frequencies": 100, "components": 8, "bands": 4}
GPU = {"network": "DiT-S/2", "training_steps": 10_000}
TRAINING = """steps = {steps}
batch_size = {batch}
learning_rate = {learning_rate:g}
ema_half_lives = [{half_life}]
warmup_steps = {warmup}
"""


class Study:
    """The images, and which class is whose."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options: argparse.Namespace = options
        data = load(options.data)
        (self.images, self.labels), (self.real, self.truth) = data["train"], data["test"]
        self.classes = int(self.labels.max()) + 1
        self.shape: tuple[int, int, int] = tuple(self.images.shape[1:])  # type: ignore[assignment]
        self.sites = min(options.sites or self.classes, self.classes)
        self.samples = min(options.samples, len(self.images))

    def rows(self, site: int) -> Tensor:
        """Returns which training images a site has, `(n,)`."""
        return (self.labels % self.sites == site).nonzero()[:, 0]

    def plan(self) -> Plan:
        """Returns the plan that sites train networks by."""
        return read_plan_toml(self.plan_text())

    def plan_text(self) -> str:
        """Returns that plan as a file."""
        channels, height, width = self.shape
        names, steps = (
            ", ".join(f'"c{k}"' for k in range(self.classes)),
            self.options.training_steps,
        )
        network, cell = self.options.network, NO_PRIVACY | {"centre": self.options.centre}
        text = PLAN.format(channels=channels, height=height, width=width, classes=names, **cell)
        text = text.replace(
            '"mixture"\n[training]', f'["{network}", "mixture+{network}"]\n[training]'
        )
        training = TRAINING.format(
            steps=steps,
            batch=self.options.batch,
            learning_rate=self.options.learning_rate,
            half_life=max(1, min(self.options.ema_half_life, steps // 8)),
            warmup=min(100, steps // 10),
        )
        return text.replace("steps = 1\nbatch_size = 1\n", training)

    @property
    def cost(self) -> NetworkCost:
        """What a network costs."""
        return network_cost(self.options.network, self.shape, self.classes)

    def flops_of(self, cell: tuple[Any, ...]) -> float:
        """Returns the arithmetic of a cell's networks, at most."""
        match cell:
            case "expert", *_:
                return training_flops(self.cost, self.options.training_steps, self.options.batch)
            case "of_samples", kind, _ if not kind.startswith("mixture-"):
                return sampling_flops(self.cost, self.samples, self.options.steps)
        return 0.0

    def expert(self, kind: str, seed: int, site: int) -> dict[str, Any]:
        """Trains one site's network, by itself or beside its release."""
        rows, plan = self.rows(site), self.plan()
        design, known = plan.expert.design(self._architecture(kind)), None
        began = time.process_time()
        if kind == "residual":
            made, _ = release(plan, self.images[rows], self.labels[rows])
            file = self._file("release", seed, site)
            write_tensors(file, made.vectors)
            known = KnownVelocity(released_velocity(file, plan), file)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "checkpoint"
            digest = plan_digest(self.plan_text(), checkpoint)
            trained = train_expert(
                Private(ImageSet(self.images[rows], self.labels[rows])),
                plan,
                digest,
                checkpoint,
                design=design,
                options=run_options(self.options, 1000 * seed + site),
                known=known,
            )
        write_tensors(self._file(kind, seed, site), trained.state)
        took = round(time.process_time() - began)
        return {"images": len(rows), "plan_sha256": digest, "cpu_s": took}

    def pooled(self, count: int, seed: int) -> dict[str, Any]:
        """Trains a classifier of the pooled images, and one of those the last site has not."""
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))
        images, labels = self.images[order[:count]], self.labels[order[:count]]
        return self._accuracies(images, labels, seed)

    def of_samples(self, kind: str, seed: int) -> dict[str, Any]:
        """Trains a classifier of samples, and one of those the last site did not make."""
        began, options, rest = time.process_time(), self.options, None
        if kind.startswith("mixture-"):
            (images, labels), rest = self._of_releases(float(kind.removeprefix("mixture-")), seed)
        else:
            plan, counts = self.plan(), torch.zeros(self.sites, self.classes, dtype=torch.double)
            counts.index_put_(
                (self.labels % self.sites, self.labels),
                torch.ones(len(self.labels), dtype=torch.double),
                accumulate=True,
            )
            order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))
            labels = self.labels[order[: self.samples]]
            experts = [self._built(plan, kind, seed, site) for site in range(self.sites)]
            with torch.inference_mode():
                images = sample(
                    together(options, experts, PriorRouter(counts)),
                    self.shape,
                    len(labels),
                    SamplingOptions(
                        Strategy.parse("sticky"),
                        options.steps,
                        "heun",
                        seed=seed,
                        **at_once(options),
                    ),
                    condition=ClassCondition(labels),
                ).images.clone()
        found = self._accuracies(images, labels, seed, rest)
        return found | {"cpu_s": round(time.process_time() - began)}

    def _accuracies(
        self,
        images: Tensor,
        labels: Tensor,
        seed: int,
        rest: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Any]:
        """Returns accuracies; `rest` is what there is without the last site, if no part of all."""
        options, found = self.options, {}
        for name, without in (("accuracy", None), ("removed", self.sites - 1)):
            kept = self._kept(self.truth, without)
            seen, told = rest if without is not None and rest is not None else (images, labels)
            left = self._kept(told, without)
            if len(told[left].unique()) < 2:
                continue  # a classifier of one class is never wrong
            learned = learn(
                options.judge, seen[left], told[left], self.classes, options.epochs, seed
            )
            found[name] = round(accuracy(learned, self.real[kept], self.truth[kept]), 4)
        return {"images": len(labels), **found}

    def _kept(self, labels: Tensor, without: int | None) -> Tensor:
        return (labels % self.sites != without) if without is not None else labels >= 0

    def _of_releases(
        self, epsilon: float, seed: int
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Returns samples of all releases, and of those without the last site's."""
        classes, (channels, height, width) = self.classes, self.shape
        guess = public_guess(len(self.images) / self.sites)
        rule = mixture_rule(
            epsilon, 1e-5, guess, classes, channels, pixels=height * width, sites=self.sites
        )
        cell = {
            "epsilon": epsilon,
            "frequencies": rule.frequencies,
            "components": rule.components,
            "bands": 0,
            "centre": self.options.centre,
        }
        plan = make_plan(self.shape, classes, cell)
        parts = [self.rows(site) for site in range(self.sites)]
        made = [release(plan, self.images[rows], self.labels[rows])[0] for rows in parts]
        images, labels, _ = draw(plan, fit_image_mixtures(plan, made), self.samples, seed)
        left, told, _ = draw(plan, fit_image_mixtures(plan, made[:-1]), self.samples, seed)
        return (images, labels), (left, told)

    def _architecture(self, kind: str) -> str:
        return f"mixture+{self.options.network}" if kind == "residual" else self.options.network

    def _built(self, plan: Plan, kind: str, seed: int, site: int) -> Expert:
        read = read_own_tensors(self._file(kind, seed, site))
        state = {name: torch.from_numpy(value) for name, value in read.items()}
        known = None
        if kind == "residual":
            known = released_velocity(self._file("release", seed, site), plan)
        return build_expert(plan.data, plan.expert.design(self._architecture(kind)), state, known)

    def _file(self, *words: object) -> Path:
        return self.options.out / ("-".join(map(str, words)) + ".safetensors")


def cells_of(options: argparse.Namespace, study: Study) -> Iterator[tuple[Any, ...]]:
    """Yields every cell in an order in which each finds what it needs."""
    for seed in options.seeds:
        for count in sorted({len(study.images), study.samples}):
            yield ("pooled", count, seed)
        for kind in options.experts:
            if not kind.startswith("mixture-"):
                for site in range(study.sites):
                    yield ("expert", kind, seed, site)
            yield ("of_samples", kind, seed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sites", type=int, help="by default one for every class")
    parser.add_argument("--experts", nargs="+", default=["network", "residual", "mixture-10"])
    parser.add_argument("--network", default="DiT-Nano/4")
    parser.add_argument("--training-steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--samples", type=int, default=20_000, help="at most")
    parser.add_argument("--steps", type=int, default=12, help="of the solver")
    parser.add_argument("--centre", type=float, default=-0.4)
    parser.add_argument("--judge", choices=("small", "resnet"), default="small")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("disjoint_labels"))
    options = read_options(parser, GPU)
    options.out.mkdir(parents=True, exist_ok=True)
    names = ("data", "sites", "network", "training_steps", "samples", "steps", "centre", "judge")
    more = ("epochs", "precision", "batch", "learning_rate", "ema_half_life")
    require_same_options(options, *names, *more)
    study = Study(options)
    find_cells(options, cells_of(options, study), lambda: study)


if __name__ == "__main__":
    main()

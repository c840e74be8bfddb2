"""Why may asking all experts (`full`) lose to asking the likeliest (`top-1`)? One thing at a time.

Theory says that `full` samples the mixture of the islands and `top-1` does not; experiments often
find the reverse. Here the truth is known: each island of Fashion-MNIST (clusters of features) and
class becomes one Gaussian, with the mean and covariance of its images. Then the velocity of every
island and the posterior of islands have closed forms, and samples of the truth cost nothing. So
each part can be exact or not, by itself:

- experts: exact, or networks that the training of sites made of samples of their island, for some
  numbers of steps;
- the router: exact, or a perceptron that learned from samples of all islands;
- the solver: its steps.

Exact is the router on noised images of the truth: at what other networks make of noise it judges
by the least of their faults. `fid` is the Frechet distance to samples of the truth in the features
of a classifier of real images; `share_error`, of exact experts only, the total variation of
islands as the exact posterior tells them. `errors`
are squared errors of a network's velocity per pixel at noised images of its own island, at those of
the others, and of what `full` makes of all networks by the exact posterior.

    python benchmarks/paper/full_against_top1.py --data fashion_mnist.npz --out truth

Every cell is written into `OUT/cells.jsonl` as it is found, and the same command goes on.

`--scale gpu` takes DiT-S/2, 3,000 and 30,000 steps of 256 images divided among the islands, and
10,000 samples: some 35 minutes of an H100 or H200, or 100 of an A100, by arithmetic and a guessed
utilisation; what is printed first counts the cells that are missing. Exact experts stay on the
processor, and come on top. No GPU has run it yet.
"""

import argparse
import math
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from cells import find_cells, require_same_options
from equal_arithmetic import Study
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

from ddm_fed.embedding import dct_basis
from ddm_fed.ensemble.sampling import SamplingOptions, sample
from ddm_fed.ensemble.strategy import Strategy
from ddm_fed.evaluation import frechet_distance
from ddm_fed.flows import ClassCondition, Expert
from ddm_fed.models import NetworkCost, build_expert
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.router import ClassifierRouter, PriorRouter, Router, router_network, train_classifier
from ddm_fed.storage.tensors import write_tensors
from ddm_fed.training import train_expert

BLOCK, LEAST_IMAGES, LEAST_VARIANCE = 100, 50, 1e-4
WIDE = 100.0  # these Gaussians reach beyond [-1, 1]; what is cut off would be no sample of them
ERROR_IMAGES = 1000
GPU = {"architecture": "DiT-S/2", "training_steps": [3000, 30_000], "samples": 10_000}
SAMPLES_OF_ISLAND, TIMES = 15_000, (0.1, 0.3, 0.5, 0.7, 0.9)


class Gaussian:
    """One island's images of one class, in cosines: a block of the lowest, and each other alone."""

    def __init__(self, seen: Tensor) -> None:
        self.mean = seen.mean(0)
        block = torch.cov(seen[:, :BLOCK].T)
        values, self.turn = torch.linalg.eigh(block)
        self.variances = torch.cat([values, seen[:, BLOCK:].var(0)]).clamp_min(LEAST_VARIANCE)

    def turned(self, away: Tensor) -> Tensor:
        """Returns what is uncorrelated of deviations from the mean, `(N, D)`."""
        return torch.cat([away[:, :BLOCK] @ self.turn, away[:, BLOCK:]], 1)

    def turned_back(self, values: Tensor) -> Tensor:
        """Undoes `turned`."""
        return torch.cat([values[:, :BLOCK] @ self.turn.T, values[:, BLOCK:]], 1)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Returns samples, `(count, D)`."""
        drawn = torch.randn((count, len(self.mean)), generator=generator)
        return self.mean + self.turned_back(drawn * self.variances.sqrt())

    def velocity(self, y_t: Tensor, t: Tensor) -> Tensor:
        """Returns E[noise - image | y_t]; `t` is `(N, 1)`."""
        spread = (1 - t).square() * self.variances + t.square()
        away = self.turned(y_t - (1 - t) * self.mean)
        return self.turned_back((t - (1 - t) * self.variances) / spread * away) - self.mean

    def log_density(self, y_t: Tensor, t: Tensor) -> Tensor:
        """Returns the log density of noised images up to what all Gaussians share, `(N,)`."""
        spread = ((1 - t).square() * self.variances + t.square()).double()
        away = self.turned(y_t - (1 - t) * self.mean).double()
        return -0.5 * (away.square() / spread + spread.log()).sum(1)


class World:
    """Islands whose images are known distributions, and what was trained on samples of them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options: argparse.Namespace = options
        self.study = study = Study(options)
        if study.shape[0] > 1 or math.prod(study.shape) > 1024:
            raise SystemExit("error: --data: this takes grey images of at most 1,024 pixels")
        self.count: int = options.islands
        self.basis = dct_basis(study.shape, math.prod(study.shape)).float()
        islands = study.islands("feature", self.count, options.seed)
        seen = study.images.flatten(1) @ self.basis.T
        self.counts = study.counts(islands, self.count).double()
        self.counts[self.counts < LEAST_IMAGES] = 0
        self.prior = PriorRouter(self.counts)
        self.gaussians = {
            (island, label): Gaussian(seen[(islands == island) & (study.labels == label)])
            for island, label in self.counts.nonzero().tolist()
        }

    def of_island(self, island: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Returns samples of an island, `(count, C, H, W)`, and their classes."""
        generator = torch.Generator().manual_seed(seed)
        labels = torch.multinomial(self.counts[island], count, True, generator=generator)
        return self._drawn(torch.full_like(labels, island), labels, generator), labels

    def truth(self, labels: Tensor, seed: int) -> Tensor:
        """Returns samples of the truth, of these classes."""
        generator = torch.Generator().manual_seed(seed)
        shares = self.prior.log_prior(ClassCondition(labels)).exp()
        islands = torch.multinomial(shares, 1, generator=generator)[:, 0]
        return self._drawn(islands, labels, generator)

    def _drawn(self, islands: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        found = torch.empty((len(labels), self.basis.shape[0]))
        for (island, label), gaussian in self.gaussians.items():
            rows = ((islands == island) & (labels == label)).nonzero()[:, 0]
            found[rows] = gaussian.draw(len(rows), generator)
        return (found @ self.basis).reshape(-1, *self.study.shape)

    def exact_expert(self, island: int) -> Expert:
        """Returns the exact velocity of an island."""

        @torch.autocast(self.basis.device.type, enabled=False)  # exact, whatever networks are
        def velocity(x_t: Tensor, t: Tensor, condition: ClassCondition) -> Tensor:
            asked_at, here = x_t.device, self.basis.device
            x_t, t, condition = x_t.to(here), t.to(here), condition.to(here)
            y_t, found = x_t.flatten(1) @ self.basis.T, torch.zeros_like(x_t).flatten(1)
            for label in condition.labels.unique().tolist():
                if (gaussian := self.gaussians.get((island, label))) is not None:
                    rows = condition.labels == label
                    found[rows] = gaussian.velocity(y_t[rows], t[rows, None]) @ self.basis
            return found.reshape(x_t.shape).to(asked_at)

        return Expert(velocity)

    def train(self, steps: int, island: int) -> dict[str, Any]:
        """Trains one network on samples of its island."""
        began, plan = time.process_time(), self.study.plan(self.count, steps)
        name = self._file("network", steps, island)
        checkpoint = name.with_suffix(".checkpoint")
        digest = plan_digest(self.study.plan_text(self.count, steps), checkpoint)
        images, labels = self.of_island(island, SAMPLES_OF_ISLAND, 100 + island)
        trained = train_expert(
            Private(ImageSet(images, labels, bound=float(images.abs().max()))),
            plan,
            digest,
            checkpoint,
            options=run_options(self.options, island),
        )
        write_tensors(name, trained.state)
        checkpoint.unlink(missing_ok=True)
        return {"plan_sha256": digest, "cpu_s": round(time.process_time() - began)}

    @property
    def cost(self) -> NetworkCost:
        """What a network costs."""
        return self.study.cost

    def flops_of(self, cell: tuple[Any, ...]) -> float:
        """Returns the arithmetic of a cell's networks, at most."""
        match cell:
            case "train", steps, _:
                return training_flops(self.cost, steps, self.options.batch // self.count)
            case "errors", _:
                return float(len(TIMES) * ERROR_IMAGES * self.count * self.cost.flops_per_image)
            case "sampled", experts, _, strategy, solver, steps if experts != "exact":
                return sampling_flops(
                    self.cost,
                    self.options.samples,
                    steps,
                    solver=solver,
                    strategy=strategy,
                    experts=self.count,
                )
        return 0.0

    def learn_router(self, steps: int) -> dict[str, Any]:
        """Trains the perceptron that tells islands apart."""
        began, plan, spec = time.process_time(), self.study.plan(self.count, 1), self.study.spec
        network = router_network(plan.data, spec, self.count)
        seen = [self.of_island(k, SAMPLES_OF_ISLAND, 200 + k) for k in range(self.count)]
        train_classifier(
            network,
            [(images.flatten(1) @ self.basis.T, labels) for images, labels in seen],
            self.counts.sum(1) / self.counts.sum(),
            steps=steps,
            batch_size=256,
            learning_rate=1e-3,
            generator=torch.Generator().manual_seed(3),
        )
        write_tensors(self._file("router", steps), network.state_dict())
        return {"cpu_s": round(time.process_time() - began)}

    @torch.inference_mode()
    def errors(self, steps: int) -> dict[str, Any]:
        """Says how wrong networks are at home, abroad, and together as `full` asks them."""
        labels = torch.arange(ERROR_IMAGES) % self.study.classes
        condition, generator = ClassCondition(labels), torch.Generator().manual_seed(4)
        islands = torch.multinomial(self.prior.log_prior(condition).exp(), 1, generator=generator)[
            :, 0
        ]
        images = self._drawn(islands, labels, generator)
        noise = torch.randn(images.shape, generator=generator)
        router, found = ExactRouter(self), {}
        pools = [
            together(self.options, self.experts(kind), self.prior).experts
            for kind in ("exact", f"network-{steps}")
        ]
        for time_ in TIMES:
            t = torch.full((len(labels),), time_)
            x_t = (1 - time_) * images + time_ * noise
            exact, learned = (
                torch.stack([pool.ask(k, x_t, t, condition) for k in range(self.count)])
                for pool in pools
            )  # (K, N, C, H, W)
            wrong = (learned - exact).square().mean((2, 3, 4)).T  # (N, K)
            own = torch.nn.functional.one_hot(islands, self.count).bool()
            there = self.counts[:, labels].T > 0  # an island without the class has no truth
            weights = (
                router.log_posterior(x_t, t, condition).exp().float().T[:, :, None, None, None]
            )
            both = [(weights * velocities).sum(0) for velocities in (learned, exact)]
            found[str(time_)] = [
                round(float(value), 4)
                for value in (
                    wrong[own].mean(),
                    wrong[~own & there].mean(),
                    (both[0] - both[1]).square().mean(),
                )
            ]
        return {"own, others, full": found}

    def sampled(
        self, experts: str, router: str, strategy: str, solver: str, steps: int
    ) -> dict[str, Any]:
        """Samples by one strategy, and judges."""
        began = time.process_time()
        labels = torch.arange(self.options.samples) % self.study.classes
        with torch.inference_mode():
            drawn = sample(
                together(self.options, self.experts(experts), self.router(router)),
                self.study.shape,
                len(labels),
                SamplingOptions(
                    Strategy.parse(strategy),
                    steps,
                    solver,  # type: ignore[arg-type]
                    seed=6,
                    **at_once(self.options),
                ),
                condition=ClassCondition(labels),
                bound=WIDE,
            ).images
        found = self._judged(drawn, labels)
        if experts != "exact":  # the posterior looks at what networks cannot learn in the highest
            del found["share_error"]
        return found | {"cpu_s": round(time.process_time() - began)}

    def chance(self) -> dict[str, Any]:
        """Judges as many samples of the truth itself."""
        labels = torch.arange(self.options.samples) % self.study.classes
        return self._judged(self.truth(labels, 7), labels)

    @torch.inference_mode()
    def _judged(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        judge = self.study.read_judge()
        features = [judge.features(part.clamp(-1, 1)).numpy() for part in (self._reference, images)]
        condition = ClassCondition(labels)
        told = ExactRouter(self).log_posterior(images, torch.full((len(labels),), 1e-2), condition)
        due = self.prior.log_prior(condition).exp().mean(0)
        return {
            "fid": round(float(frechet_distance(*features)), 2),
            "share_error": round(float((told.exp().mean(0) - due).abs().sum() / 2), 4),
        }

    @cached_property
    def _reference(self) -> Tensor:
        return self.truth(torch.arange(10_000) % self.study.classes, 8)

    def experts(self, kind: str) -> list[Expert]:
        """Returns the experts of a kind: `exact` or `network-STEPS`."""
        if kind == "exact":
            return [self.exact_expert(island) for island in range(self.count)]
        steps = int(kind.removeprefix("network-"))
        plan = self.study.plan(self.count, steps)
        return [
            build_expert(
                plan.data,
                plan.expert.default,
                self.study.weights(self._file("network", steps, island)),
                None,
            )
            for island in range(self.count)
        ]

    def router(self, kind: str) -> Router:
        """Returns the router of a kind: `exact` or `learned-STEPS`."""
        if kind == "exact":
            return ExactRouter(self)
        plan, spec = self.study.plan(self.count, 1), self.study.spec
        network = router_network(plan.data, spec, self.count)
        steps = int(kind.removeprefix("learned-"))
        network.load_state_dict(self.study.weights(self._file("router", steps)))
        return ClassifierRouter(
            network.eval().requires_grad_(False),
            dct_basis(self.study.shape, spec.frequencies),
            self.prior,
        )

    def judge(self) -> dict[str, Any]:
        """Trains the classifier that judges, on real images."""
        return self.study.judge()

    def _file(self, *words: object) -> Path:
        return self.options.out / ("-".join(map(str, words)) + ".safetensors")


class ExactRouter:
    """The posterior of islands, from their densities."""

    reads_state = True

    def __init__(self, world: World) -> None:
        self.world: World = world

    def log_prior(self, condition: Any) -> Tensor:
        """Returns the shares of islands for each class."""
        return self.world.prior.log_prior(condition)

    def log_posterior(self, x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        """Returns log p(k | x_t, t, c), `(B, K)`."""
        found = self.log_prior(condition).clone()
        y_t = x_t.flatten(1) @ self.world.basis.T
        for (island, label), gaussian in self.world.gaussians.items():
            rows = (condition.labels == label).nonzero()[:, 0]
            if len(rows):
                found[rows, island] += gaussian.log_density(y_t[rows], t[rows, None])
        return found.log_softmax(1)


def cells_of(options: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
    """Yields every cell in an order in which each finds what it needs."""
    yield ("judge",)
    yield ("chance",)
    for steps in options.training_steps:
        for island in range(options.islands):
            yield ("train", steps, island)
        yield ("errors", steps)
    for steps in options.router_steps:
        yield ("learn_router", steps)
    experts = ["exact", *(f"network-{steps}" for steps in options.training_steps)]
    routers = ["exact", *(f"learned-{steps}" for steps in options.router_steps)]
    for expert in experts:
        yield ("sampled", expert, "exact", "sticky", "heun", 25)
        for router in routers:
            for strategy in options.strategies:
                yield ("sampled", expert, router, strategy, "heun", 25)
    for solver, steps in (("euler", 25), ("heun", 8), ("heun", 75)):
        for strategy in ("sticky", *options.strategies):
            yield ("sampled", "exact", "exact", strategy, solver, steps)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("full_against_top1"))
    parser.add_argument("--islands", type=int, default=4)
    parser.add_argument("--training-steps", type=int, nargs="+", default=[500, 3000])
    parser.add_argument("--router-steps", type=int, nargs="+", default=[300, 3000])
    parser.add_argument("--strategies", nargs="+", default=["full", "top-1"])
    parser.add_argument("--architecture", default="DiT-Nano/4")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = read_options(parser, GPU)
    options.out.mkdir(parents=True, exist_ok=True)
    names = ("data", "islands", "seed", "architecture", "samples", "precision")
    require_same_options(options, *names, "batch", "learning_rate", "ema_half_life")
    find_cells(options, cells_of(options), lambda: World(options))


if __name__ == "__main__":
    main()

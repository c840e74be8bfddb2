"""One model averaged in rounds, or one expert a site and one message: quality, bytes, rounds.

FedAvg is the Flower app of examples/flower/fedavg, run by Flower's simulation; the experts are
trained by `train_expert`. Network, loss, batches, learning rate and the steps of every site are the
same. The model trained on everybody's images breaks isolation and is the upper bound.

Last answer: results/fedavg_digits_cpu_20261128.md.
"""

import argparse
import functools
import json
import os
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1] / "examples/flower/fedavg")
sys.path.insert(0, os.environ["PYTHONPATH"])  # the processes of the simulation need it as well

import numpy as np
import torch
from ddm_fedavg import client_app, server_app
from ddm_fedavg.task import Settings, all_images, images_of_site, new_weights
from flwr.simulation import run_simulation
from ladder import Images, releases_of
from safetensors.torch import load_file

from ddm_fed.ensemble.sampling import SamplingOptions, sample
from ddm_fed.ensemble.strategy import Strategy
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.evaluation import frechet_distance, measure_memorization, train_classifier_on
from ddm_fed.exchange.flower import FLWR_VERSION
from ddm_fed.flows import Expert
from ddm_fed.mixture import release_tensors
from ddm_fed.models import build_network
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.router import PriorRouter, build_router
from ddm_fed.training import RunOptions, train_expert

STEPS_OF_SOLVER = 20
ONE = PriorRouter(torch.ones(1, 1))
ON_LOOPBACK = {  # what Ray says; it listens at every address all the same, see docs/flower.md
    "init_args": {"_node_ip_address": "127.0.0.1", "include_dashboard": False},
    "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, nargs="+", default=[5, 30])
    parser.add_argument("--splits", nargs="+", default=["label-skew", "iid"])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--work", type=Path, default=Path("fedavg-run"))
    arguments = parser.parse_args()
    arguments.work.mkdir(exist_ok=True)
    judge = Judge(arguments.samples)
    rows = []
    for split in arguments.splits:
        settings = Settings(
            split=split,
            sites=arguments.sites,
            steps=arguments.steps,
            batch_size=arguments.batch_size,
        )
        rows += of_experts(settings, judge, arguments.work)
        for rounds in arguments.rounds:
            rows += of_fedavg(replace(settings, rounds=rounds), judge, arguments.work)
    show(rows, judge, arguments)


class Judge:
    """Measures samples against test images, with features of a classifier of real ones."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        train, test = all_images()
        generator = torch.Generator().manual_seed(9)
        found = train_classifier_on(train.images, train.labels, 10, epochs=12, generator=generator)
        self.network, self._train = found.network, train
        self._test = test
        self._real = self.network.features(test.images).numpy()
        self.of_real = self.fid(train.images[:samples])

    def fid(self, images: torch.Tensor) -> float:
        return frechet_distance(self._real, self.network.features(images).numpy())

    def digits(self, images: torch.Tensor) -> np.ndarray:
        """Fractions of the ten digits, as the classifier tells them."""
        told = self.network(images).argmax(1)
        return np.bincount(told.numpy(), minlength=10) / len(told)

    def imbalance(self, images: torch.Tensor) -> float:
        """Total variation of the digits' fractions from those of the training images."""
        true = np.bincount(self._train.labels.numpy(), minlength=10) / len(self._train)
        return 0.5 * float(np.abs(self.digits(images) - true).sum())

    def closer(self, images: torch.Tensor) -> float:
        """Share of samples nearer to a training image than to a test image; 0.5 by chance."""
        rows = [part.flatten(1).numpy() for part in (images, self._train.images, self._test.images)]
        found = measure_memorization(*rows, generator=np.random.default_rng(7))
        return found.closer.value

    def row(self, ensemble: Ensemble, strategy: str, **facts: object) -> dict:
        options = SamplingOptions(Strategy.parse(strategy), STEPS_OF_SOLVER, "dpm++2m", 3)
        images = sample(ensemble, (1, 8, 8), self.samples, options).images
        fid, tv, closer = self.fid(images), self.imbalance(images), self.closer(images)
        print(f"{time.strftime('%H:%M:%S')} {facts} {strategy}: {fid:.2f}", file=sys.stderr)
        return facts | {"strategy": strategy, "fid": fid, "tv": tv, "closer": closer}


def weights_bytes(weights: dict[str, torch.Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in weights.values())


def expert_of(settings: Settings, weights: dict[str, torch.Tensor]) -> Expert:
    plan = settings.plan()
    network = build_network(plan.data, plan.expert.default)
    network.load_state_dict(weights)
    return Expert(network.eval().requires_grad_(False))


def trained(settings: Settings, images: ImageSet, name: str, work: Path, seed: int) -> dict:
    """Weights of an expert; a checkpoint that is there is continued."""
    torch.set_num_threads(1)
    label = f"{name}-{settings.split}-{settings.steps}-{settings.batch_size}-{seed}.checkpoint"
    options = RunOptions(seed=seed, precision="float32")
    plan = settings.plan()
    found = train_expert(Private(images), plan, "0" * 64, work / label, options=options)
    return found.state


def of_experts(settings: Settings, judge: Judge, work: Path) -> list[dict]:
    plan = settings.plan()
    own = [images_of_site(settings.split, settings.sites, k) for k in range(settings.sites)]
    states = [trained(settings, images, "site", work, k) for k, images in enumerate(own)]
    experts = [expert_of(settings, state) for state in states]
    parts = [
        Images(images.images, images.labels, torch.full((len(images),), k))
        for k, images in enumerate(own)
    ]
    router = build_router(plan, "mixture", releases_of(parts, plan))
    floats = sum(int(np.prod(shape)) for _, shape in release_tensors(plan).values())
    moved = settings.sites * (weights_bytes(states[0]) + 4 * floats)
    facts = {"split": settings.split, "rounds": 1, "bytes": moved}
    rows = [
        judge.row(Ensemble(experts, router), strategy, method="experts, mixture eps 8", **facts)
        for strategy in ("sticky", "sticky-then-routed", "full")
    ]
    everything, _ = all_images()
    for steps in (settings.steps, settings.sites * settings.steps):
        known = replace(settings, split="all", steps=steps)
        pooled = expert_of(known, trained(known, everything, "pooled", work, 0))
        facts |= {"rounds": 0, "bytes": 0, "method": f"POOLED (breaks isolation), {steps} steps"}
        rows.append(judge.row(Ensemble([pooled], ONE), "sticky", **facts))
    return rows


def simulate(settings: Settings, *, gpus: float = 0.0, **ray: object) -> dict:
    """Runs the app, unless it has written what it ends with, and returns its facts.

    Args:
        settings: What is agreed; `out` is an absolute path.
        gpus: The part of a GPU that a site has; without, it trains on the processor.
        ray: Further arguments of `ray.init`.
    """
    if not Path(settings.out).with_suffix(".json").exists():
        settings_of = functools.partial(client_app.given, settings)
        run_simulation(
            server_app=server_app.make_app(settings_of),
            client_app=client_app.make_app(settings_of),
            num_supernodes=settings.sites,
            backend_config={
                "init_args": {**ON_LOOPBACK["init_args"], **ray},
                "client_resources": {**ON_LOOPBACK["client_resources"], "num_gpus": gpus},
            },
        )
    return json.loads(Path(settings.out).with_suffix(".json").read_text())


def of_fedavg(settings: Settings, judge: Judge, work: Path) -> list[dict]:
    name = f"fedavg-{settings.split}-{settings.rounds}-{settings.steps}.safetensors"
    settings = replace(settings, out=str((work / name).resolve()))
    facts = simulate(settings)
    rows = []
    for method, suffix in (("FedAvg", ""), ("FedAvg, average of rounds", ".average")):
        weights = load_file(Path(settings.out).with_suffix(f"{suffix}.safetensors"))
        rows.append(
            judge.row(
                Ensemble([expert_of(settings, weights)], ONE),
                "sticky",
                split=settings.split,
                method=method,
                rounds=settings.rounds,
                bytes=facts["bytes"],
            )
        )
    return rows


def show(rows: list[dict], judge: Judge, arguments: argparse.Namespace) -> None:
    size = weights_bytes(new_weights(Settings().plan()))
    print(
        f"`python benchmarks/fedavg.py {' '.join(sys.argv[1:])}`: {platform.machine()}, "
        f"{os.cpu_count()} cores, torch {torch.__version__}, flwr {FLWR_VERSION}.\n"
    )
    print(
        f"Digits 8x8, {arguments.sites} sites, DiT-Nano/2 ({size} bytes), {arguments.steps} steps "
        f"of {arguments.batch_size} images at every site, {arguments.samples} samples of dpm++2m, "
        f"{STEPS_OF_SOLVER} steps. FID of {arguments.samples} real training images: "
        f"{judge.of_real:.2f}. Digits' error: total variation from the training images' digits, as "
        "a classifier tells them. Near training: share of samples nearer to a training image than "
        "to a test image, 0.5 by chance.\n"
    )
    print(
        "| split | method | strategy | rounds | MB moved | FID | of experts, sticky | "
        "digits' error | near training |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    base = {row["split"]: row["fid"] for row in reversed(rows) if row["strategy"] == "sticky"}
    for row in rows:
        moved = f"{row['bytes'] / 1e6:.1f}" if row["bytes"] else "all images"
        ratio = row["fid"] / base[row["split"]]
        print(
            f"| {row['split']} | {row['method']} | {row['strategy']} | {row['rounds'] or '-'} | "
            f"{moved} | {row['fid']:.2f} | {ratio:.2f} | {row['tv']:.3f} | {row['closer']:.2f} |"
        )


if __name__ == "__main__":
    main()

"""Which network should a learned router be: a perceptron of cosines, or a transformer of patches?

Six sites share a data set by Dirichlet draws of its classes (strength .3). Every router learns from
the sites' real images, as `pooled` does: what `replay` learns from samples of the experts is at
best this. It is told no classes, and has `--budgets` CPU seconds of training. A tenth of the images
of every site is held back, and judges: mean -log p(true site) in nats, and expected calibration
error, at five times, before and after calibration on another tenth. Beside them are the shares
alone, and the mixture that the sites release at epsilon 8.

    python benchmarks/router_networks.py --data fashion_mnist.npz
    python benchmarks/router_networks.py --data mednist_32.npz --pixels 64
    python benchmarks/router_networks.py --data mednist_32.npz --pixels 64 --latents autoencoder

With `--latents` everything is in latents of that autoencoder. Each result is written as it is
found, and the same command goes on with those that are missing. Use one core.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from private_mixtures import deal, load, release
from torch import Tensor
from torch.nn import functional

from ddm_fed.autoencoders import open_autoencoder, read_folder
from ddm_fed.autoencoders.scale import latent_toml, measure_latents
from ddm_fed.records import (
    LearnedNetworkSpec,
    Plan,
    RouterNetworkSpec,
    RouterTransformerSpec,
    read_plan_toml,
)
from ddm_fed.router import (
    CalibratedRouter,
    ClassifierRouter,
    LearnedNetwork,
    PriorRouter,
    Router,
    basis_read,
    build_router,
    fit_calibration,
    posterior_quality,
    router_network,
    train_classifier,
)

PLAN = """
federation = "benchmark"
expires_at = 2036-01-01
[data]
channels = {channels}
height = {height}
width = {width}
{latent}
[expert]
architecture = "DiT-Nano/2"
[training]
steps = 1
batch_size = 1
[privacy]
max_epsilon = 8
[router]
kind = "mixture"
epsilon = 8
frequencies = {frequencies}
components = {components}
"""
SITES, SKEW, HELD, TIMES, TRIED = 6, 0.3, 0.1, (0.1, 0.3, 0.5, 0.7, 0.9), 20
PERCEPTRON = "perceptron"


class World:
    """The images of all sites as routers see them: `own` trains, `held` judges."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        images, labels = load(options.data)["train"]
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        order = order[: options.images]
        images, labels = images[order], labels[order]
        size = options.pixels or images.shape[-1]
        if size != images.shape[-1]:
            images = torch.cat(
                [
                    functional.interpolate(part, (size, size), mode="bilinear").clamp(-1, 1)
                    for part in torch.split(images, 512)
                ]
            )
        latent = ""
        if options.latents is not None:
            opened = read_folder(options.latents)
            found = measure_latents(opened.config, opened.network, images[:256])
            latent = latent_toml(opened.config, opened.sha256, found.scale, found.shift)
        channels, height, width = images.shape[1:]
        self.plan = read_plan_toml(
            PLAN.format(
                channels=channels,
                height=height,
                width=width,
                latent=latent,
                frequencies=options.frequencies,
                components=options.components,
            )
        )
        coder = open_autoencoder(options.latents, self.plan.data)
        if coder is not None:
            images = torch.cat([coder.encode(part)[0] for part in torch.split(images, 64)])
        self.own, self.held, self.other = [], [], []
        for dealt in deal(labels, SITES, SKEW, seed):
            part = dealt[torch.randperm(len(dealt), generator=_drawing(seed))]  # by class
            cut = max(1, round(HELD * len(part)))
            self.held.append(images[part[:cut]])
            self.other.append(images[part[cut : 2 * cut]])
            self.own.append(images[part[2 * cut :]])
        sizes = torch.tensor([len(part) for part in self.own], dtype=torch.float64)
        self.shares = sizes / sizes.sum()

    def judged(self, router: Router, seed: int) -> dict[str, Any]:
        images, sites = _joined(self.held)
        began = time.process_time()
        found = posterior_quality(router, images, sites, None, TIMES, _drawing(seed))
        took = (time.process_time() - began) / (len(TIMES) * len(images))
        fitted = fit_calibration(router, *_joined(self.other), None, _drawing(seed + 1))
        calibrated = CalibratedRouter(router, fitted)
        after = posterior_quality(calibrated, images, sites, None, TIMES, _drawing(seed))
        return {
            "nll": [round(at.nll, 3) for at in found],
            "ece": [round(at.ece, 3) for at in found],
            "nll_calibrated": [round(at.nll, 3) for at in after],
            "ece_calibrated": [round(at.ece, 3) for at in after],
            "ms_per_64": round(64_000 * took, 1),
        }

    def learned(self, spec: LearnedNetworkSpec, seconds: float, seed: int) -> dict[str, Any]:
        """Trains one network for `seconds` of this core, and judges it."""
        data, basis = self.plan.data, basis_read(self.plan.data, spec)
        sets: list[tuple[Tensor, Tensor | None]] = []
        for part in self.own:
            read = part if basis is None else (part.flatten(1) @ basis.float().T)
            sets.append((read, None))
        prior = PriorRouter(self.shares[:, None])
        began = time.process_time()

        def trained(steps: int) -> LearnedNetwork:
            network = router_network(data, spec, SITES)
            train_classifier(
                network,
                sets,
                self.shares,
                steps=steps,
                batch_size=spec.batch_size,
                learning_rate=float(spec.learning_rate),
                generator=torch.Generator().manual_seed(seed),
            )
            return network

        trained(TRIED)  # only to know how long a step takes
        per_step = (time.process_time() - began) / TRIED
        began, steps = time.process_time(), max(1, round(seconds / per_step))
        network = trained(steps)
        found = self.judged(ClassifierRouter(network, basis, prior), seed)
        return {"steps": steps, "ms_per_step": round(1000 * per_step, 1), **found}

    def mixture(self, seed: int) -> dict[str, Any]:
        """Judges the router that releases make."""
        releases = [release(self.plan, part, None, None)[0] for part in self.own]
        return self.judged(build_router(self.plan, "mixture", releases), seed)


def _joined(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor([len(part) for part in parts])
    return torch.cat(parts), torch.arange(len(parts)).repeat_interleave(sizes)


def _drawing(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(100 + seed)


def spec_of(name: str, plan: Plan) -> LearnedNetworkSpec:
    if name == PERCEPTRON:
        _, height, width = plan.data.shape
        return RouterNetworkSpec(frequencies=min(height * width, 1024))
    return RouterTransformerSpec(architecture=name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pixels", type=int, help="Make images this large first.")
    parser.add_argument("--latents", type=Path, help="Folder of a public autoencoder.")
    parser.add_argument("--images", type=int, default=12_000, help="Of all sites, at most.")
    parser.add_argument("--networks", nargs="+", default=[PERCEPTRON, "DiT-Nano/4", "DiT-Nano/8"])
    parser.add_argument("--budgets", type=float, nargs="+", default=[30.0, 120.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--frequencies", type=int, default=36)
    parser.add_argument("--components", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("router_networks.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    name = options.data.stem + (f" {options.pixels}" if options.pixels else "")
    name += " latents" if options.latents else ""
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    known = {tuple(json.loads(line)["cell"]) for line in lines}
    for seed in options.seeds:
        cells: list[tuple[Any, ...]] = [(name, "shares", 0, seed), (name, "mixture", 0, seed)]
        cells += [(name, net, cpu, seed) for cpu in options.budgets for net in options.networks]
        world = None
        for cell in cells:
            if cell in known:
                continue
            world = world or World(options, seed)
            _, network, seconds, _ = cell
            if network == "shares":
                found = world.judged(PriorRouter(world.shares[:, None]), seed)
            elif network == "mixture":
                found = world.mixture(seed)
            else:
                found = world.learned(spec_of(network, world.plan), seconds, seed)
            row = json.dumps({"cell": cell, **found})
            with options.out.open("a") as file:
                file.write(row + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()

"""How well do routers made of noisy statistics know the sites of real images they never saw?

Three seeds, each with a division of the data and releases of its own. The noise cannot be seeded,
so `--keep` writes every release into a folder: another version of the fit, given the same folder,
reads the very same noise. One JSON line per cell, written as the cell ends.

Three plans over the same sites: `none`, without classes; `asked`, with classes and the router told
the class of the image; `unasked`, with classes and the router not told.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from ladder import SPLITS, Federation, Images, load_federation, releases_of

from ddm_fed.embedding import dct_basis
from ddm_fed.mixture import SiteRelease, fit_mixtures, released_weights
from ddm_fed.mixture.fit_shared import fit_shared
from ddm_fed.records import Plan
from ddm_fed.router import PriorRouter, build_router, posterior_quality

TIMES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
TRAINING = "steps = 1\nbatch_size = 1"
ROUTER = """
kind = "mixture"
epsilon = {epsilon:g}
frequencies = {frequencies}
centre = -0.4
radius = {radius}
covariance = "{covariance}"
"""


def generator(seed: int) -> torch.Generator:
    """Returns a generator."""
    return torch.Generator().manual_seed(seed)


def plan_of(federation: Federation, epsilon: float, arguments: argparse.Namespace, *, classes):
    """Returns the plan; digits have fewer frequencies and a smaller radius."""
    small = federation.train.images.shape[-1] <= 8
    lines = ROUTER.format(
        epsilon=epsilon,
        frequencies=36 if small else 64,
        radius=7 if small else 24,
        covariance=arguments.covariance,
    )
    return federation.plan(TRAINING, "DiT-Nano/4", lines, classes=classes)


def kept_releases(folder: Path | None, name: str, own: list[Images], plan: Plan):
    """Returns the releases that `folder` keeps under `name`; makes them where it has none."""
    file = None if folder is None else folder / f"{name}.npz"
    if file is not None and file.exists():
        found = np.load(file, allow_pickle=False)
        return [
            SiteRelease(
                {key: found[f"{site}.{key}"] for key in ("location", "shape")},
                {key: float(found[f"{site}.{key}.noise"]) for key in ("location", "shape")},
            )
            for site in range(len(own))
        ]
    releases = releases_of(own, plan)
    if file is not None:
        arrays = {}
        for site, released in enumerate(releases):
            for key, vector in released.vectors.items():
                arrays[f"{site}.{key}"] = vector
                arrays[f"{site}.{key}.noise"] = np.array(released.noise_multipliers[key])
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **arrays)
    return releases


def true_trace(own: Images, plan: Plan) -> float:
    """Returns the trace of the covariance of coefficients within the cells of a site."""
    basis = dct_basis(plan.data.shape, plan.router.frequencies)
    y = (own.images.flatten(1).double() - float(plan.router.centre)) @ basis.T
    cells = own.labels if plan.data.classes else torch.zeros_like(own.labels)
    within = 0.0
    for cell in cells.unique():
        rows = y[cells == cell]
        within += float((rows - rows.mean(0)).square().sum())
    return within / len(y)


def component_trace(mixtures) -> list[float]:
    """Returns the mean trace of every site's components, by their mass; floor included."""
    traces = mixtures.variances.sum(2)  # (K, J)
    return ((mixtures.weights * traces).sum(1) / mixtures.weights.sum(1)).tolist()


def cell(federation: Federation, epsilon: float, seed: int, arguments, *, classes: bool):
    """Yields what one release of all sites says, asked in every way."""
    own = []
    for site in range(federation.sites):
        images = federation.train.of_site(site)
        kept = torch.randperm(len(images), generator=generator(100 * seed + site))
        own.append(images.rows(kept[: max(1, round(len(images) * arguments.fraction))]))
    plan = plan_of(federation, epsilon, arguments, classes=classes)
    name = f"{federation.name.replace(' ', '-').replace(',', '')}-{arguments.fraction:g}-"
    name += f"{arguments.covariance}-{classes}-{epsilon:g}-{seed}"
    releases = kept_releases(arguments.keep, name, own, plan)
    mixtures = fit_mixtures(plan, releases)
    traces = fit_shared(plan, releases).traces.tolist()
    judge = federation.test
    order = torch.randperm(len(judge), generator=generator(seed))[: arguments.judge]
    judge = judge.rows(order)
    routers = {
        "mixture": build_router(plan, "mixture", releases),
        "released prior": PriorRouter(released_weights(plan, releases)),
    }
    counts = torch.stack([image.labels.bincount(minlength=10) for image in own]).double()
    exact = counts if classes else counts.sum(1, keepdim=True)
    routers["exact prior"] = PriorRouter(exact + 1e-9)
    for asked in (True, False) if classes else (False,):
        for kind, router in routers.items():
            labels = judge.labels if asked else None
            times = TIMES if kind == "mixture" else TIMES[:1]
            found = posterior_quality(
                router, judge.images, judge.sites, labels, times, generator(13)
            )
            yield {
                "data": federation.name,
                "fraction": arguments.fraction,
                "sizes": [len(images) for images in own],
                "plan": ("asked" if asked else "unasked") if classes else "none",
                "covariance": arguments.covariance,
                "epsilon": epsilon,
                "seed": seed,
                "router": kind,
                "times": list(times),
                "nll": [at.nll if math.isfinite(at.nll) else None for at in found],
                "ece": [at.ece for at in found],
                "trace": traces,
                "component_trace": component_trace(mixtures),
                "true_trace": [true_trace(images, plan) for images in own],
            }


def main() -> None:
    """Prints the cells."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help=".npz with MedMNIST's keys; default: digits")
    parser.add_argument("--split", default="label-skew", choices=SPLITS)
    parser.add_argument("--fraction", type=float, default=1.0, help="of every site's images")
    parser.add_argument("--judge", type=int, default=1000, help="most images that judge")
    parser.add_argument("--covariance", default="full", choices=["full", "diagonal"])
    parser.add_argument("--epsilons", type=float, nargs="*", default=[0.5, 1, 2, 8])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--keep", type=Path, help="folder of releases, made or read")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for seed in arguments.seeds:
        federation = load_federation(arguments.data, arguments.split, seed)
        for epsilon in arguments.epsilons:
            for classes in (False, True):
                for line in cell(federation, epsilon, seed, arguments, classes=classes):
                    print(json.dumps(line), flush=True)
        print(f"seed {seed} done", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

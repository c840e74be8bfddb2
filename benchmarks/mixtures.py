"""Which covariance, and how many components, for sites whose images have no labels?

Sites of skewed labels release their statistics without labels; the NLL of the true site of test
images, in nats, says how well the mixtures know them. Anchors come from test images that judge
nothing and stand in for public ones. Noise cannot be seeded: figures are medians over releases.
Low-rank fits read the very releases that the full ones read.
"""

import argparse
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ladder import Federation, load_federation, releases_of

from ddm_fed.embedding import dct_basis
from ddm_fed.mixture import release_tensors
from ddm_fed.mixture.anchors import find_anchors
from ddm_fed.records import Plan
from ddm_fed.router import (
    ClassifierRouter,
    CoefficientNetwork,
    PriorRouter,
    Router,
    build_router,
    posterior_quality,
    train_classifier,
)

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
DRAWS = 4  # of the noise on every test image
TRAINING = "steps = 1\nbatch_size = 1"
ROUTER = """
kind = "mixture"
epsilon = {epsilon:g}
frequencies = {frequencies}
centre = {centre}
radius = {radius}
"""


class Setting:
    """Sites, images that judge, images that are public, and the plans over them."""

    def __init__(self, federation: Federation, arguments: argparse.Namespace) -> None:
        self.arguments, self.federation = arguments, federation
        self.own = []
        for site in range(federation.sites):
            own = federation.train.of_site(site)
            kept = torch.randperm(len(own), generator=generator(site))
            self.own.append(own.rows(kept[: max(1, round(len(own) * arguments.fraction))]))
        order = torch.randperm(len(federation.test), generator=generator(100))
        half = len(order) // 2
        self.public = federation.test.images[order[:half][: arguments.public]]
        self.judge = federation.test.rows(order[half:][: arguments.judge])
        small = federation.train.images.shape[-1] <= 8
        self.frequencies = arguments.frequencies or 36
        self.radius = arguments.radius or (5 if small else 17)
        self._anchors: dict[int, str] = {1: ""}

    @property
    def counts(self) -> list[int]:
        return [len(own) for own in self.own]

    def plan(self, epsilon: float, components: int, covariance: str) -> Plan:
        """Returns a plan; `covariance` is full, diagonal, low-rank and its rank, or own and C.

        `own C` divides a site by its released axes into C Gaussians with a covariance each, where
        `components` divide it by public anchors, and share one.
        """
        lines = ROUTER.format(
            epsilon=epsilon,
            frequencies=self.frequencies,
            centre=self.arguments.centre,
            radius=self.radius,
        )
        kind, _, rank = covariance.partition(" ")
        if kind == "own":
            return self._written(lines + f"components = {rank}\n")
        lines += f'covariance = "{kind}"\n' + (f"rank = {rank}\n" if rank else "")
        if components not in self._anchors:
            bare = self._written(lines)
            self._anchors[components] = find_anchors(self.public, bare, components).toml()
        return self._written(lines + self._anchors[components])

    def _written(self, router: str) -> Plan:
        return self.federation.plan(TRAINING, "DiT-Nano/4", router, classes=False)

    def nll(self, router: Router) -> list[float]:
        """Returns the NLL at each of TIMES."""
        found = [
            posterior_quality(
                router, self.judge.images, self.judge.sites, None, TIMES, generator(draw)
            )
            for draw in range(DRAWS)
        ]
        return [float(np.mean([draw[at].nll for draw in found])) for at in range(len(TIMES))]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pooled(setting: Setting, basis: torch.Tensor, steps: int) -> Router:
    """The paper's router: a classifier on everybody's images, which breaks their isolation."""
    rows = [((own.images.flatten(1).double() @ basis.T).float(), None) for own in setting.own]
    counts = torch.tensor(setting.counts, dtype=torch.float64)
    network = CoefficientNetwork(len(basis), len(rows), 0)
    train_classifier(
        network,
        rows,
        counts / counts.sum(),
        steps=steps,
        batch_size=256,
        learning_rate=1e-3,
        generator=generator(70),
    )
    return ClassifierRouter(network, basis, PriorRouter(counts[:, None]))


def row(name: Sequence[object], found: np.ndarray) -> None:
    """Prints the median over releases by time, and mean and range of the mean over times."""
    middle, means = np.median(found, axis=0), found.mean(axis=1)
    cells = [*map(str, name), *(f"{value:.3f}" for value in middle)]
    spread = f"{np.median(means):.3f} ({means.min():.3f} to {means.max():.3f})"
    print("| " + " | ".join([*cells, spread]) + " |", flush=True)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help=".npz with MedMNIST's keys; default: digits")
    parser.add_argument("--split", default="label-skew")
    parser.add_argument("--fraction", type=float, default=1.0, help="of every site's images")
    parser.add_argument("--public", type=int, default=2000, help="most images for anchors")
    parser.add_argument("--judge", type=int, default=2000, help="most images that judge")
    parser.add_argument("--frequencies", type=int, default=0)
    parser.add_argument("--centre", type=float, default=-0.4)
    parser.add_argument("--radius", type=float, default=0.0)
    parser.add_argument("--components", type=int, nargs="*", default=[1, 5, 10])
    parser.add_argument(
        "--covariances", nargs="*", default=["full", "low-rank 4", "low-rank 8", "diagonal"]
    )
    parser.add_argument("--epsilons", type=float, nargs="*", default=[0.5, 1, 2, 8, 1000])
    parser.add_argument("--releases", type=int, default=3)
    parser.add_argument("--router-steps", type=int, default=2000, help="0: no pooled classifier")
    arguments = parser.parse_args()
    started = time.monotonic()
    setting = Setting(load_federation(arguments.data, arguments.split), arguments)
    print(
        f"# {setting.federation.name}: sites of {setting.counts} images, no labels; "
        f"{len(setting.judge)} judge, {len(setting.public)} are public\n"
    )
    shown = {name: value for name, value in vars(arguments).items() if name != "data"}
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads;")
    print(", ".join(f"{name} {value}" for name, value in sorted(shown.items())) + "\n")
    times = " | ".join(f"t = {t:g}" for t in TIMES)
    print(f"| epsilon | components | covariance | integers | {times} | mean (range) |")
    print("| --- " * (len(TIMES) + 5) + "|")
    references(setting)
    for epsilon in arguments.epsilons:
        for components in arguments.components:
            by_covariance(setting, epsilon, components)
    print(f"\n{(time.monotonic() - started) / 60:.1f} minutes")


def references(setting: Setting) -> None:
    """Prints what no router should be worse than, and what none will beat."""
    counts = torch.tensor(setting.counts, dtype=torch.float64)
    row(["none", "", "prior", ""], np.array([setting.nll(PriorRouter(counts[:, None]))]))
    if setting.arguments.router_steps:
        basis = dct_basis(setting.federation.train.images.shape[1:], setting.frequencies)
        steps = setting.arguments.router_steps
        found = setting.nll(pooled(setting, basis, steps))
        row(["none", "", "pooled classifier", ""], np.array([found]))


def by_covariance(setting: Setting, epsilon: float, components: int) -> None:
    """Prints a row for each covariance."""
    found: dict[str, list[list[float]]] = {}
    sizes = {}
    for _ in range(setting.arguments.releases):
        released = {}
        for covariance in setting.arguments.covariances:
            plan = setting.plan(epsilon, components, covariance)
            sent = "full" if covariance.startswith(("full", "low-rank")) else covariance
            if sent not in released:
                released[sent] = releases_of(setting.own, plan)
            router = build_router(plan, "mixture", released[sent])
            found.setdefault(covariance, []).append(setting.nll(router))
            sizes[covariance] = sum(shape[0] for _, shape in release_tensors(plan).values())
    for covariance, measured in found.items():
        row([f"{epsilon:g}", components, covariance, sizes[covariance]], np.array(measured))


if __name__ == "__main__":
    main()

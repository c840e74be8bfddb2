"""What do strategies and guidance do to the shares of sites, and to what a router cannot see?

    python benchmarks/strategies.py --work strategies-run
    python benchmarks/strategies.py --work strategies-run --data fashion_mnist.npz

Two sites hold images of the same classes, 60 and 40 of 100, alike but for their texture: one adds
the highest frequency of the basis to every image, the other takes it away. The `mixture` router
sees the lowest frequencies and none of that; `all frequencies` is a network that was trained, as
`replay` is, on images drawn from the experts, and sees everything. Each sample is told by the sign
of its highest frequency: of which site it is (share), how strong its texture is beside that of real
images (strength, 1 is right), and how often it is below half of that (blurred: what no site has).
FID is of features of a classifier of real images, textures and all, against test images of the same
classes in the same number; `real` are training images in the place of samples.

The 8 x 8 digits, or an .npz of train_images, train_labels, test_images, test_labels of 28 x 28,
whose 2 x 2 means are padded to 16 x 16. Class c is thinned to .85 to the power of c of its images.
Experts, and every finished cell, are kept in --work: the same command goes on where it was killed.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from ladder import Federation, Images, releases_of, train_experts

from ddm_fed.embedding import dct_basis
from ddm_fed.ensemble.sampling import SamplingOptions, apportioned, sample
from ddm_fed.ensemble.strategy import Strategy
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.evaluation import frechet_distance, train_classifier_on
from ddm_fed.flows import ClassCondition
from ddm_fed.router import (
    ClassifierRouter,
    CoefficientNetwork,
    PriorRouter,
    build_router,
    train_classifier,
)

SHARE, THINNED, ROOM = 0.6, 0.85, 0.7  # ROOM leaves a texture place between black and white
STRATEGIES = ("sticky", "sticky-then-routed", "full", "top-1")
PLAN = "steps = {steps}\nbatch_size = 64\nlearning_rate = 0.002\nema_half_lives = [{half_life}]"
RELEASE = 'kind = "mixture"\nepsilon = 8\nfrequencies = 36\ncentre = -0.3\nradius = {radius}'


def pixels(source: Path | None) -> dict[str, tuple[torch.Tensor, np.ndarray]]:
    """Returns images `(N, 1, S, S)` in [-ROOM, ROOM] and labels, by part."""
    if source is None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = ROOM * (torch.from_numpy(digits.images).float()[:, None] / 8 - 1)
        held = np.arange(len(images)) % 5 == 4
        rows = {"train": ~held, "test": held}
        return {name: (images[keep], digits.target[keep]) for name, keep in rows.items()}
    file, found = np.load(source, allow_pickle=False), {}
    for part, most in (("train", 4000), ("test", 2000)):
        images = torch.from_numpy(file[f"{part}_images"][:most]).float()[:, None] / 127.5 - 1
        small = torch.nn.functional.avg_pool2d(images, 2)
        small = ROOM * torch.nn.functional.pad(small, (1, 1, 1, 1), value=-1)
        found[part] = small, file[f"{part}_labels"][:most].astype(np.int64)
    return found


def divide(source: Path | None, seed: int) -> tuple[Federation, torch.Tensor, float]:
    """Returns the federation, the direction of the texture `(N,)` and its strength."""
    parts, rng = pixels(source), np.random.default_rng(seed)
    shape = tuple(parts["train"][0].shape[1:])
    texture = dct_basis(shape, shape[1] * shape[2])[-1].float()  # unit norm
    strength = 0.25 * shape[1]  # a quarter of the way from grey to white in every pixel
    found = []
    for images, labels in parts.values():
        kept = rng.random(len(labels)) < THINNED**labels
        images, labels = images[kept], labels[kept]
        dealt = rng.permutation(len(labels)) >= SHARE * len(labels)
        sites = torch.from_numpy(dealt.astype(np.int64))
        sign = torch.where(sites == 0, -1.0, 1.0)[:, None]
        textured = (images.flatten(1) + sign * strength * texture).reshape(images.shape)
        found.append(Images(textured.clamp(-1, 1), torch.from_numpy(labels), sites))
    name = "digits 8x8" if source is None else f"{source.stem} 16x16"
    classes = tuple(f"c{index}" for index in range(10))
    return Federation(f"{name}, seed {seed}", *found, classes), texture, strength


class Cell:
    """One data set and seed: experts, routers, judge."""

    def __init__(self, source: Path | None, seed: int, arguments: argparse.Namespace) -> None:
        self.seed, self.arguments = seed, arguments
        self.federation, self.texture, self.strength = divide(source, seed)
        steps = arguments.training_steps
        architecture = "DiT-Nano/2" if source is None else "DiT-Nano/4"
        plan = self.federation.plan(
            PLAN.format(steps=steps, half_life=max(20, steps // 10)),
            architecture,
            RELEASE.format(radius=6 if source is None else 12),
            classes=True,
        )
        self.shape = plan.data.shape
        self.experts = train_experts(self.federation, plan, arguments.work, workers=1)
        own = [self.federation.train.of_site(site) for site in range(2)]
        self.prior = PriorRouter(self.federation.counts)
        self.routers = {
            "36 frequencies": build_router(plan, "mixture", releases_of(own, plan)),
            "all frequencies": self.seeing(own),
        }
        self.totals = self.federation.counts.sum(0)
        train, test = self.federation.train, self.federation.test
        generator = torch.Generator().manual_seed(seed)
        judge = train_classifier_on(train.images, train.labels, 10, epochs=20, generator=generator)
        self.judge, self.labels = judge.network, apportioned(self.totals, arguments.samples)
        real = test.rows(matching(test.labels, self.labels))
        self.real = self.judge.features(real.images).numpy()
        self.of_real = self.row(train.images[matching(train.labels, self.labels)])

    def seeing(self, own: list[Images]) -> ClassifierRouter:
        """Returns a router that learned from 500 samples of each expert, in all frequencies."""
        basis, sets = dct_basis(self.shape, self.shape[1] * self.shape[2]), []
        for site, images in enumerate(own):
            labels = apportioned(images.labels.bincount(minlength=10), 500)
            alone = Ensemble([self.experts[site]], PriorRouter(torch.ones(1, 10)))
            drawn = self.draw(alone, "sticky", 1.0, labels, 1000 + site)
            sets.append(((drawn.flatten(1).double() @ basis.T).float(), labels))
        network = CoefficientNetwork(len(basis), 2, 10, width=128)
        train_classifier(
            network,
            sets,
            self.federation.shares,
            steps=self.arguments.router_steps,
            batch_size=256,
            learning_rate=1e-3,
            generator=torch.Generator().manual_seed(self.seed),
        )
        return ClassifierRouter(network, basis, self.prior)

    def draw(
        self, ensemble: Ensemble, strategy: str, guidance: float, labels: torch.Tensor, seed: int
    ) -> torch.Tensor:
        options = SamplingOptions(
            Strategy.parse(strategy), self.arguments.steps, "heun", seed, guidance
        )
        condition = ClassCondition(labels)
        return sample(ensemble, self.shape, len(labels), options, condition=condition).images

    def row(self, images: torch.Tensor) -> dict[str, float]:
        """Returns what is measured of some images of the classes `self.labels`."""
        along = images.flatten(1) @ self.texture
        return {
            "share": float((along < 0).float().mean()),
            "strength": float(along.abs().mean()) / self.strength,
            "blurred": float((along.abs() < self.strength / 2).float().mean()),
            "fid": frechet_distance(self.real, self.judge.features(images).numpy()),
        }


def matching(labels: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """Returns rows of `labels` with the class shares of `asked`, as many as there are."""
    wanted, there = asked.bincount(minlength=10), labels.bincount(minlength=10)
    held = wanted > 0
    scale = float((there[held] / wanted[held]).min())
    chosen = [(labels == c).nonzero()[: int(scale * wanted[c]), 0] for c in range(10)]
    return torch.cat(chosen)


def measured(arguments: argparse.Namespace) -> list[dict]:
    """Returns all rows; finished ones come from the file in --work."""
    kept = arguments.work / "strategies.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    name = "digits 8x8" if arguments.data is None else f"{arguments.data.stem} 16x16"
    settings = [arguments.training_steps, arguments.router_steps, arguments.samples]
    key_of = ("data", "settings", "seed", "router", "strategy", "guidance")
    done = {json.dumps([row[k] for k in key_of]) for row in rows}

    def keep(row: dict) -> None:
        rows.append(row)
        with kept.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{time.strftime('%H:%M:%S')} {row}", file=sys.stderr, flush=True)

    for seed in range(arguments.seeds):
        wanted = [("", "real", 1.0)]
        for guidance in arguments.guidance:
            wanted.append(("none", "sticky", guidance))
            for router in ("36 frequencies", "all frequencies"):
                wanted += [(router, strategy, guidance) for strategy in STRATEGIES[1:]]
        missing = [each for each in wanted if json.dumps([name, settings, seed, *each]) not in done]
        if not missing:
            continue
        cell = Cell(arguments.data, seed, arguments)
        for router, strategy, guidance in missing:
            facts = dict(
                zip(key_of, (name, settings, seed, router, strategy, guidance), strict=True)
            )
            if strategy == "real":
                keep(facts | cell.of_real)
                continue
            ensemble = Ensemble(cell.experts, cell.routers.get(router, cell.prior))
            keep(facts | cell.row(cell.draw(ensemble, strategy, guidance, cell.labels, seed)))
    return [row for row in rows if row["data"] == name and row["settings"] == settings]


def show(rows: list[dict]) -> None:
    print("| router sees | strategy | guidance | share of site 0 | strength | blurred | FID |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["guidance"], row["router"], row["strategy"]), []).append(row)
    for (guidance, router, strategy), found in groups.items():
        cells = [router, strategy, f"{guidance:g}"]
        for name, digits in (("share", 3), ("strength", 2), ("blurred", 2), ("fid", 2)):
            values = [row[name] for row in found]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}")
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help=".npz of 28 x 28; the digits by default")
    parser.add_argument("--work", type=Path, default=Path("strategies-run"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--training-steps", type=int, default=1200)
    parser.add_argument("--router-steps", type=int, default=600)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--steps", type=int, default=10, help="of the solver")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0, 4.0])
    arguments = parser.parse_args()
    if arguments.data is not None and not arguments.data.exists():
        print(f"{arguments.data} is not here: nothing is measured", file=sys.stderr)
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = measured(arguments)
    print(
        f"`python benchmarks/strategies.py {' '.join(sys.argv[1:])}`: {platform.machine()}, torch "
        f"{torch.__version__}.\n\n{rows[0]['data']}, {arguments.seeds} seeds, mean ± deviation; "
        f"two sites, {SHARE:g} and {1 - SHARE:g} of the images.\n"
    )
    show(rows)


if __name__ == "__main__":
    main()

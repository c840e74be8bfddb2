"""Do centroids of real features tell sites apart better than the mixture of cosines does?

Six sites share a data set by Dirichlet draws of its classes (strength .3), so that they differ in
what they show. Each releases by the real path, once for a plan with `kind = "mixture"` and once for
one with `kind = "centroid"`, at the same epsilon. The embedder is EfficientNet-Lite0 as trained on
ImageNet (`imagenet_network.py` makes the file). Anchors are found among images that no site has.
Both routers then say of held-back images of every site whose they are: clean for the centroids, as
an expert's estimate late in sampling would be at best; at t = .02 and .1 for the mixture. Plans
know no classes. Beside them: what the shares alone say, and the mixture that classes would give
(`mixture, classes`: every image is told with its class).

    python benchmarks/router_features.py --data mednist_32.npz --weights lite0.safetensors

Every answer is calibrated by one number, fitted to half of the held-back images; the rest judge it.
NLL in nats, expected calibration error, and half of the summed difference between the mean answer
and the true shares. One core: about a tenth of a second for each image, once; embeddings are kept.
Each result is written as it is found, and the same command goes on with those that are missing.
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from private_mixtures import deal, load, release
from torch import Tensor

from ddm_fed.embedding import Embedder, open_embedder
from ddm_fed.flows import ClassCondition
from ddm_fed.mixture import (
    EmbeddedImages,
    anchor_lines,
    planned_anchors,
    public_anchors,
)
from ddm_fed.records import read_plan_toml
from ddm_fed.router import build_router, planned_centroid_router
from ddm_fed.router.calibration import calibration_error

PLAN = """
federation = "benchmark"
expires_at = 2036-01-01
[data]
channels = {channels}
height = {height}
width = {width}
{classes}
[expert]
architecture = "DiT-Nano/4"
[training]
steps = 1
batch_size = 1
[privacy]
max_epsilon = {epsilon}
[router]
epsilon = {epsilon}
"""
MIXTURE = 'kind = "mixture"\nfrequencies = {frequencies}\ncentre = {centre}\ncomponents = 1\n'
SITES, SKEW, ANCHORS, DIMENSIONS, PUBLIC, HELD = 6, 0.3, 16, 32, 400, 600
POWERS = [2.0**power for power in range(-8, 3)]


class Kept:
    """An embedder that embeds an image once, in batches, and keeps the result in a file."""

    def __init__(self, inside: Embedder, file: Path) -> None:
        self._inside, self._file = inside, file
        self.name, self.dimension, self.digest = inside.name, inside.dimension, inside.digest
        kept = dict(np.load(file)) if file.exists() else {}
        self._known = {name: torch.from_numpy(value) for name, value in kept.items()}

    def learn(self, images: Tensor) -> None:
        for part in images.split(64):
            missing = [row for row in range(len(part)) if _key(part[row]) not in self._known]
            if missing:
                found = self._inside.images(part[missing])
                self._known |= {_key(part[row]): found[at] for at, row in enumerate(missing)}
        np.savez(self._file, **{name: value.numpy() for name, value in self._known.items()})

    def images(self, images: Tensor) -> Tensor:
        return torch.stack([self._known[_key(image)] for image in images])


def _key(image: Tensor) -> str:
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()


def judged(scores: Tensor, sites: Tensor, shares: Tensor) -> dict[str, float]:
    """Returns how good `log p(site)`, `(N, K)`, is on every second image.

    One number by which it is multiplied first is fitted to the other images: routers are calibrated
    before they are used, on samples, which this does as well as it can be done.
    """
    scores, mine = scores.double(), torch.arange(len(sites)) % 2 == 0
    prior = shares.log()
    choices = [(torch.log_softmax(prior + power * (scores - prior), 1), power) for power in POWERS]
    scores, power = min(
        choices, key=lambda one: float(-one[0][~mine].gather(1, sites[~mine, None]).mean())
    )
    scores, sites = scores[mine], sites[mine]
    confidence, choice = scores.exp().max(1)
    right = (choice == sites).double()
    return {
        "nll": round(float(-scores[torch.arange(len(sites)), sites].mean()), 3),
        "power": power,
        "right": round(float(right.mean()), 3),
        "ece": round(float(calibration_error(confidence, right)), 3),
        "share_error": round(float((scores.exp().mean(0) - shares).abs().sum() / 2), 3),
    }


def measure(options, data, embedder: Kept, epsilon: float, seed: int) -> dict[str, dict]:
    images, labels = data["train"]
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    cut = PUBLIC + HELD + options.images
    public, rest = order[:PUBLIC], order[PUBLIC:cut]
    parts = deal(labels[rest], SITES, SKEW, seed)
    split = [part[torch.from_numpy(np.random.default_rng(seed).permutation(len(part)))]
             for part in parts]  # fmt: skip
    held = [part[: max(1, round(len(part) * HELD / len(rest)))] for part in split]
    own = [rest[part[len(first) :]] for part, first in zip(split, held, strict=True)]
    tests = [rest[part] for part in held]
    embedder.learn(images[order[:cut]])
    shape, count = images.shape[1:], int(labels.max()) + 1
    sizes = dict(zip(("channels", "height", "width"), shape, strict=True))
    names = ", ".join(f'"c{index}"' for index in range(count))
    settings = MIXTURE.format(frequencies=options.frequencies, centre=options.centre)
    plain = PLAN.format(classes="", epsilon=epsilon, **sizes)
    told = PLAN.format(
        classes=f'conditioning = "class"\nclasses = [{names}]', epsilon=epsilon, **sizes
    )
    anchors = public_anchors(embedder.images(images[public]), ANCHORS, 0, dimensions=DIMENSIONS)
    lines = anchor_lines(anchors, embedder)
    plans = {
        "mixture": read_plan_toml(plain + settings),
        "mixture, classes": read_plan_toml(told + settings),
        "centroid": read_plan_toml(plain + 'kind = "centroid"\n' + lines),
    }
    test, sites = (
        torch.cat(tests),
        torch.cat([torch.full((len(part),), site) for site, part in enumerate(tests)]),
    )
    shares = torch.tensor([len(part) for part in own], dtype=torch.float64)
    shares = shares / shares.sum()
    x, found = images[test], {"shares": judged(shares.log().expand(len(test), -1), sites, shares)}
    generator = torch.Generator().manual_seed(seed)
    for name, plan in plans.items():
        directions = None
        if plan.centroids is not None:
            directions = EmbeddedImages(embedder, planned_anchors(plan.centroids))
        releases = [
            release(plan, images[rows], labels[rows] if plan.data.classes else None, directions)[0]
            for rows in own
        ]
        if directions is not None:
            router = planned_centroid_router(plan, releases, embedder)
            t = torch.full((len(x),), 0.1)
            scores = router.log_posterior_given(x, t, None, x)
            found[name] = judged(scores, sites, shares)
            continue
        router = build_router(plan, "mixture", releases)
        condition = ClassCondition(labels[test]) if plan.data.classes else None
        for time in (0.02, 0.1):
            noise = torch.randn(x.shape, generator=generator)
            t = torch.full((len(x),), time)
            scores = router.log_posterior((1 - time) * x + time * noise, t, condition)
            found[f"{name}, t = {time}"] = judged(scores, sites, shares)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--network", default="timm:tf_efficientnet_lite0")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 8.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, default=2400, help="Of all sites together.")
    parser.add_argument("--frequencies", type=int, default=25)
    parser.add_argument("--centre", type=float, default=-0.4)
    parser.add_argument("--out", type=Path, default=Path("router_features.jsonl"))
    options = parser.parse_args()
    digest = hashlib.sha256(options.weights.read_bytes()).hexdigest()
    kept = options.out.with_name(f"{options.data.stem}.embeddings.npz")
    embedder = Kept(open_embedder(options.network, options.weights, digest), kept)
    data, done = load(options.data), set()
    if options.out.exists():
        lines = [json.loads(line) for line in options.out.read_text().splitlines()]
        done = {(line["data"], line["epsilon"], line["seed"]) for line in lines}
    for seed in options.seeds:
        for epsilon in options.epsilon:
            if (options.data.stem, epsilon, seed) in done:
                continue
            found = measure(options, data, embedder, epsilon, seed)
            line = {"data": options.data.stem, "epsilon": epsilon, "seed": seed, **found}
            with options.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

"""Which of a site's noisy centroids should a router believe?

    python benchmarks/centroids.py            (about two minutes on two cores)

Six simulated sites have images of the same eight kinds, each site in a style of its own: embeddings
of 512 numbers in a narrow cone, released at 24 public anchors in 64 public axes. Three ways to read
the release: leave out anchors whose sum is shorter than 3 times its noise, or than the noise, and
call their images uniform on the sphere; or, as `decode_centroids` does, shrink every direction
towards its public anchor. Each cell: accuracy of the site of new images, and the mean of
-log p(true site), which is 1.79 by chance. Last answer: see docs/routers.md.
"""

import argparse
import math
import statistics

import numpy as np
import torch
from torch.nn.functional import normalize

from ddm_fed.mixture import (
    centroid_message,
    centroid_statistic,
    decode_centroids,
    public_anchors,
)
from ddm_fed.privacy import gaussian_events
from ddm_fed.router import CentroidRouter, centroid_router
from ddm_fed.router.sphere import concentration_of

SITES, KINDS, WIDTH, ANCHORS, DIMENSIONS = 6, 8, 512, 24, 64
CONE, STYLE, DELTA, SEEDS = 2.0, 0.3, 1e-5, 3
COUNTS, EPSILONS, PUBLIC, NEW = (400, 2000), (0.5, 1.0, 2.0, 8.0), 200, 200


class World:
    """The sites, and how their images are drawn."""

    def __init__(self, seed):
        self._generator = torch.Generator().manual_seed(seed)
        self._cone = CONE * normalize(self._normal(WIDTH), dim=0)
        self._kinds = self._normal(KINDS, WIDTH) / math.sqrt(WIDTH)
        self._styles = STYLE * self._normal(SITES, KINDS, WIDTH) / math.sqrt(WIDTH)

    def _normal(self, *shape):
        return torch.randn(shape, generator=self._generator, dtype=torch.float64)

    def draw(self, site, count):
        """Returns embeddings of one site, `(count, E)`."""
        kind = torch.randint(0, KINDS, (count,), generator=self._generator)
        noise = self._normal(count, WIDTH) / math.sqrt(WIDTH)
        return normalize(self._cone + self._kinds[kind] + self._styles[site][kind] + noise, dim=1)


def left_out(anchors, vectors, multiplier, least_snr):
    """Returns the router that trusts a direction fully or not at all."""
    message = centroid_message(*anchors.points.shape)
    weights, directions, lengths, counts = [], [], [], []
    for vector in vectors:
        parts = {name: torch.from_numpy(part) for name, part in message.decode(vector).items()}
        count, sums = parts["anchor_count"], parts["anchor_sum"].reshape(anchors.points.shape)
        noise = message.noise_std("anchor_sum", multiplier) * math.sqrt(DIMENSIONS)
        length = (sums.square().sum(1) - noise**2).clamp(min=0).sqrt()
        enough = count > 4 * message.noise_std("anchor_count", multiplier)
        weights.append(torch.where(enough & (length > least_snr * noise), count, 0.0))
        directions.append(normalize(sums, dim=1))
        lengths.append(torch.where(weights[-1] > 0, length, 0.0).sum())
        counts.append(count.sum().clamp(min=1))
    mass = torch.stack(weights)
    mean = float(sum(lengths) / mass.sum().clamp(min=1))
    rest = (torch.stack(counts) - mass.sum(1)).clamp(min=1)
    kappa = float(concentration_of(np.array(mean), DIMENSIONS))
    return CentroidRouter(torch.stack(directions), mass, kappa, anchors.directions, rest=rest)


def measure(seed, count, epsilon):
    """Returns {way: (accuracy, NLL)} of one draw of everything."""
    world = World(seed)
    public = torch.cat([world.draw(site, PUBLIC) for site in range(SITES)])
    anchors = public_anchors(public, ANCHORS, seed, dimensions=DIMENSIONS)
    multiplier = float(gaussian_events(epsilon, DELTA, [1.0])[0].noise_multiplier)
    # continuous noise in place of the exact discrete one: nothing private is here, and it is fast
    scale = multiplier * centroid_message(*anchors.points.shape).l2_sensitivity
    rng = np.random.default_rng(seed)
    vectors = []
    for site in range(SITES):
        exact = centroid_statistic(anchors.directions(world.draw(site, count)).numpy(), anchors)
        vectors.append(exact + np.rint(rng.normal(size=len(exact)) * scale).astype(np.int64))
    routers = {f"SNR below {snr} left out": left_out(anchors, vectors, multiplier, snr)
               for snr in (3, 1)}  # fmt: skip
    sites = [decode_centroids(anchors, vector, multiplier) for vector in vectors]
    routers["shrunk"] = centroid_router(sites, anchors.directions)
    new = torch.cat([world.draw(site, NEW) for site in range(SITES)])
    truth = torch.arange(SITES).repeat_interleave(NEW)
    found = {}
    for way, router in routers.items():
        scores = router.log_posterior_of_images(new)
        nll = -scores[torch.arange(len(truth)), truth].mean()
        found[way] = (float((scores.argmax(1) == truth).double().mean()), float(nll))
    return found


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    for count in COUNTS:
        print(f"\n{count} images per site, {SEEDS} seeds\n")
        for index, epsilon in enumerate(EPSILONS):
            runs = [measure(seed, count, epsilon) for seed in range(SEEDS)]
            if index == 0:
                print("| ε |", " | ".join(runs[0]), "|")
                print("| --- |", " | ".join("---" for _ in runs[0]), "|")
            cells = [
                ", ".join(f"{statistics.mean(run[way][i] for run in runs):.2f}" for i in (0, 1))
                for way in runs[0]
            ]
            print(f"| {epsilon:g} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()

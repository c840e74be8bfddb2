"""How far is the radius that a small site releases from the norms of its images?

Some images of a data set are a site; its histogram of norms gets the noise that a release has
(rounded normal noise of the same deviation), and the radius read off it is compared with the 95th
percentile of the norms, in octaves. Beside the rule in use (`ddm_fed/mixture/radius.py`) stands the
former one: the bin below which 95 % of the counts lie that stand out of the noise.

    python benchmarks/radius.py --data bccd_cells_32.npz --centre 0.4 --units 80 300 1000

Seconds on one core.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from private_mixtures import load, make_plan

from ddm_fed.mixture import message_named, router_events
from ddm_fed.mixture.coefficients import read_images
from ddm_fed.mixture.messages import NORMS
from ddm_fed.mixture.radius import RADIUS_QUANTILE, longest_norm, norm_edges, radius_of
from ddm_fed.mixture.statistics import norms_statistic
from ddm_fed.privacy import ImageSet
from ddm_fed.records import Plan

OF_IMAGES = 0.95
STANDS_OUT = 2.0  # deviations of the noise


def former(plan: Plan, vector) -> float:
    """Returns the upper edge of the bin that single bins which stand out say."""
    message, event = message_named(plan, NORMS), router_events(plan)[NORMS]
    counts = message.decode(vector)["norm_count"]
    noise = message.noise_std("norm_count", float(event.noise_multiplier))
    kept = np.where(counts > STANDS_OUT * noise, counts, 0.0).cumsum()
    if kept[-1] <= 0:
        return longest_norm(plan) / 2
    return float(norm_edges(plan)[np.flatnonzero(kept >= OF_IMAGES * kept[-1])[0]])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--centre", type=float, default=-0.4)
    parser.add_argument("--units", type=int, nargs="+", default=[80, 300, 1000])
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--releases", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = load(options.data)["train"]
    classes = int(labels.max()) + 1
    print(f"{options.data.stem}, {options.releases} releases, quantile {RADIUS_QUANTILE}\n")
    print("| epsilon | images | rule | root mean square | from | to |")
    print("| --- | --- | --- | --- | --- | --- |")
    for level in options.epsilon:
        cell = {"epsilon": level, "frequencies": 16, "components": 1, "bands": 0}
        plan = make_plan(tuple(images.shape[1:]), classes, cell | {"centre": options.centre})
        message, event = message_named(plan, NORMS), router_events(plan)[NORMS]
        scale = message.l2_sensitivity * float(event.noise_multiplier)
        for units in options.units:
            rng, off = np.random.default_rng(0), {"former": [], "in use": []}
            for _ in range(options.releases):
                rows = rng.permutation(len(images))[:units]
                own = read_images(ImageSet(images[rows], labels[rows]), plan)
                true = np.quantile(np.linalg.norm(own.y, axis=1), OF_IMAGES)
                noise = np.rint(rng.normal(0, scale, size=message.size)).astype(np.int64)
                vector = norms_statistic(own, plan) + noise
                off["former"].append(np.log2(former(plan, vector) / true))
                off["in use"].append(np.log2(radius_of(plan, vector) / true))
            for rule, found in off.items():
                spread = np.sqrt(np.mean(np.square(found)))
                print(
                    f"| {level:g} | {units} | {rule} | {spread:.2f} | {min(found):+.2f} | "
                    f"{max(found):+.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()

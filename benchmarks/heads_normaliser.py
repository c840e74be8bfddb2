"""Do heads gain from being normalised against the public reference?

    python benchmarks/heads_normaliser.py            (about five minutes on one core)

A head says log p_t(x | k, c) - log r_t(x | c), so its exponential has mean one over draws of the
reference r. A trained head misses that by a factor Z_k(t, c), which anybody who has the reference
can measure, and take off. Here that is done at the very times that are judged, on many draws, and
asked with and without the class: no stored table could do better. NLL of the site of real test
images in nats, mean and range over seeds; each seed has its own division, release and heads.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from ladder import load_federation, releases_of

from ddm_fed.embedding import dct_basis
from ddm_fed.flows import NO_CLASS, ClassCondition
from ddm_fed.mixture import fit_mixtures, released_weights
from ddm_fed.router import CoefficientNetwork, PooledReference, PriorRouter, train_head

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
DRAWS = 4000
ROUTER = """
kind = "mixture"
epsilon = {epsilon:g}
frequencies = {frequencies}
centre = -0.4
radius = {radius}
"""


def generator(seed: int) -> torch.Generator:
    """Returns a generator."""
    return torch.Generator().manual_seed(seed)


def measure(arguments: argparse.Namespace, epsilon: float, seed: int) -> dict[str, list[float]]:
    """Returns the NLL by time of heads as they are and normalised, told the class or not."""
    federation = load_federation(arguments.data, "label-skew", seed)
    small = federation.train.images.shape[-1] <= 8
    router = ROUTER.format(
        epsilon=epsilon, frequencies=36 if small else 64, radius=7 if small else 24
    )
    plan = federation.plan("steps = 1\nbatch_size = 1", "DiT-Nano/4", router, classes=True)
    own = [federation.train.of_site(site) for site in range(federation.sites)]
    own = [site.rows(torch.arange(len(site))[:: arguments.every]) for site in own]
    releases = releases_of(own, plan)
    basis = dct_basis(plan.data.shape, plan.router.frequencies)
    reference = PooledReference(
        fit_mixtures(plan, releases),
        float(plan.router.centre) * basis.sum(1),
        cells_are_classes=True,
    )
    classes, prior = len(plan.data.classes), PriorRouter(released_weights(plan, releases))
    heads = []
    for site, images in enumerate(own):
        y = (images.images.flatten(1).double() @ basis.T).float()
        heads.append(CoefficientNetwork(len(basis), 1, classes, width=128))
        train_head(
            heads[-1],
            (y, images.labels),
            reference,
            steps=arguments.steps,
            batch_size=128,
            learning_rate=1e-3,
            generator=generator(100 * seed + site),
        )
    test = federation.test.rows(
        torch.randperm(len(federation.test), generator=generator(seed))[:1000]
    )
    y = (test.images.flatten(1).double() @ basis.T).float()
    found: dict[str, list[float]] = {}
    rows = torch.arange(len(test))
    for time in TIMES:
        y_t = (1 - time) * y + time * torch.randn(y.shape, generator=generator(13))
        t = torch.full((len(y),), time)
        for asked in (True, False):
            condition = ClassCondition(test.labels) if asked else None
            ratios = torch.cat([head(y_t, t, condition) for head in heads], 1).double()
            shares = prior.log_prior(condition)
            normaliser = log_normalisers(heads, reference, time, classes if asked else 0)
            taken = normaliser[test.labels] if asked else normaliser[0]
            for name, scores in (("as it is", ratios), ("normalised", ratios - taken)):
                log_p = (shares + scores).log_softmax(1)
                key = f"{name}, {'asked' if asked else 'not asked'}"
                found.setdefault(key, []).append(-float(log_p[rows, test.sites].mean()))
            key = f"shares, {'asked' if asked else 'not asked'}"
            log_p = shares.expand(len(y), -1)
            found.setdefault(key, []).append(-float(log_p[rows, test.sites].mean()))
    return found


@torch.no_grad()
def log_normalisers(heads, reference, time: float, classes: int) -> torch.Tensor:
    """Returns log Z_k(t, c), `(G, K)`, or `(1, K)` without classes."""
    found = []
    for kind in range(classes) if classes else (NO_CLASS,):
        labels = torch.full((DRAWS,), kind)
        draws = reference.sample(DRAWS, generator(5), labels)
        y_t = (1 - time) * draws + time * torch.randn(draws.shape, generator=generator(6))
        t = torch.full((DRAWS,), time)
        scores = [head(y_t, t, ClassCondition(labels))[:, 0].double() for head in heads]
        found.append(torch.stack([score.logsumexp(0) for score in scores]) - np.log(DRAWS))
    return torch.stack(found)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help=".npz with MedMNIST's keys; default: digits")
    parser.add_argument("--every", type=int, default=1, help="keep one image in so many")
    parser.add_argument("--epsilons", type=float, nargs="*", default=[1, 8])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=800)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| epsilon | heads | " + " | ".join(f"t = {time:g}" for time in TIMES) + " |")
    print("| --- " * (len(TIMES) + 2) + "|")
    for epsilon in arguments.epsilons:
        runs = [measure(arguments, epsilon, seed) for seed in arguments.seeds]
        for name in runs[0]:
            values = np.array([run[name] for run in runs])
            cells = (
                f"{column.mean():.3f} ({column.min():.3f} to {column.max():.3f})"
                for column in values.T
            )
            print(f"| {epsilon:g} | {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

"""What does a perfect sampler score that draws classes in turn, where real ones have a prevalence?

    python benchmarks/prevalence.py
    python benchmarks/prevalence.py --data fashion_mnist.npz

The "samples" are real images that nobody else holds, so each figure should be that of real images.
Class c is thinned to .75 to the power of c. Three ways: classes in turn, compared with all real
images, as `evaluate` did; classes in turn, compared with real images of the same classes in the
same proportion, as `evaluate` does; and classes in proportion to the training images, as `sample`
draws. Beside them, as many training images in the place of samples. FID and C2ST are of features
of a classifier of the training images. The 8 x 8 digits, or an .npz of train_images, train_labels,
test_images, test_labels. Last answers: results/prevalence_*.
"""

import argparse
import platform
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

from ddm_fed.ensemble.sampling import apportioned
from ddm_fed.evaluation import (
    frechet_distance,
    matched_by_class,
    train_classifier_on,
    two_sample_test,
)

THINNED = 0.75


def load(source: Path | None, most: int) -> tuple[torch.Tensor, np.ndarray]:
    """Returns images in [-1, 1] and labels."""
    if source is None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        return torch.from_numpy(digits.images).float()[:, None] / 8 - 1, digits.target
    file = np.load(source, allow_pickle=False)
    images = torch.from_numpy(file["train_images"][:most]).float()[:, None] / 127.5 - 1
    return images, file["train_labels"][:most].astype(np.int64)


def of_classes(labels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns the first rows of `labels` that hold each class as often as `wanted` does."""
    counts = np.bincount(wanted)
    return np.concatenate([np.flatnonzero(labels == c)[:n] for c, n in enumerate(counts)])


def one_seed(images: torch.Tensor, labels: np.ndarray, seed: int) -> dict[str, tuple[float, float]]:
    """Returns FID and the p-value of C2ST of every way."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    kept = order[rng.random(len(order)) < THINNED ** labels[order]]
    train, held, own = np.array_split(kept, 3)
    spare = np.setdiff1d(order, kept)
    spare = np.concatenate([own, rng.permutation(spare)])  # a perfect sampler has all it needs
    judge = train_classifier_on(
        images[train],
        torch.from_numpy(labels[train]),
        10,
        epochs=30 if len(train) < 1000 else 8,
        generator=torch.Generator().manual_seed(seed),
    ).network
    features = judge.features(images).double().numpy()
    count = len(held)
    turn = of_classes(labels[spare], np.arange(count) % 10)
    share = apportioned(torch.from_numpy(np.bincount(labels[train], minlength=10)), count).numpy()
    kinds = {"in turn": spare[turn], "by shares": spare[of_classes(labels[spare], share)]}

    def judged(drawn: np.ndarray, real: np.ndarray) -> tuple[float, float]:
        test = two_sample_test(features[real], features[drawn], generator=rng)
        return frechet_distance(features[real], features[drawn]), test.p_value

    found = {"in turn, beside all real images": judged(kinds["in turn"], held)}
    for name, title in (("in turn", "in turn"), ("by shares", "in released proportion")):
        match = matched_by_class(labels[held], labels[kinds[name]], generator=rng)
        real, drawn = held[match.real], kinds[name][match.drawn]
        found[f"{title}, beside the same classes"] = judged(drawn, real)
        rows = matched_by_class(labels[train], labels[drawn], generator=rng, most=1).real
        found[f"{title}, training images for samples"] = judged(train[rows], real)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help=".npz of 28 x 28; the digits by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--most", type=int, default=20_000, help="images that are read")
    arguments = parser.parse_args()
    if arguments.data is not None and not arguments.data.exists():
        print(f"{arguments.data} is not here: nothing is measured", file=sys.stderr)
        return
    images, labels = load(arguments.data, arguments.most)
    rows = [one_seed(images, labels, seed) for seed in range(arguments.seeds)]
    print(
        f"`python benchmarks/prevalence.py {' '.join(sys.argv[1:])}`: {platform.machine()}, torch "
        f"{torch.__version__}, {arguments.seeds} seeds.\n"
    )
    print("| samples | FID | p of C2ST, each seed |\n| --- | --- | --- |")
    for name in rows[0]:
        fids, tests = zip(*(row[name] for row in rows), strict=True)
        spread = statistics.stdev(fids) if len(fids) > 1 else 0.0
        shown = ", ".join(f"{p:.3f}" for p in tests)
        print(f"| {name} | {statistics.mean(fids):.2f} ± {spread:.2f} | {shown} |")


if __name__ == "__main__":
    main()

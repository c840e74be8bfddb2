"""By how many clip norms does one unit fewer move the clipped sum of a step, with a known secret?

At most one, if what a unit shows does not depend on who else is there. Units are images of digits
or of Fashion-MNIST (`--data fashion_mnist.npz`), the network is DiT-Nano with its weights stirred,
and the clip norm is far below any gradient: what others show anew would move the sum by more.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from ddm_fed.flows import ClassCondition, denoising_loss
from ddm_fed.models import network_named
from ddm_fed.privacy import FunctionalGradients, ImageSet, Randomness
from ddm_fed.records import TrainingSpec
from ddm_fed.training import UnitDraws

UNITS, DRAWS, CLIP_NORM = 33, 4, 0.01


def load(path: str | None):
    if path is None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        return digits.images[:, None] / 8 - 1, digits.target
    archive = np.load(Path(path))
    return archive["train_images"][:, None] / 127.5 - 1, archive["train_labels"]


def row_loss(network, x_0, eps, t, labels):
    return denoising_loss(network, x_0, eps, t, ClassCondition(labels))


def draws_of(images: ImageSet, spec: TrainingSpec, seed: int) -> UnitDraws:
    randomness = Randomness.for_tests(seed)
    return UnitDraws(images, spec, conditional=True, randomness=randomness, draws=DRAWS)


def moved(pixels, labels, seed: int, draws=draws_of) -> float:
    """Returns the largest move over some steps, the last of the units being left out."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(pixels), generator=generator)[:UNITS].numpy()
    images = torch.from_numpy(pixels[rows]).float()
    classes = torch.from_numpy(labels[rows].astype(np.int64))
    shape = tuple(images.shape[1:])
    network = network_named("DiT-Nano/4", shape, 10)
    network.reset_parameters(generator)
    with torch.no_grad():
        for value in network.parameters():
            value += 0.02 * torch.randn(value.shape, generator=generator)
    weights, engine = dict(network.named_parameters()), FunctionalGradients(network, row_loss)
    spec = TrainingSpec(steps=10, batch_size=8)
    sums = {}
    for count in (UNITS, UNITS - 1):
        drawn = draws(ImageSet(images[:count], classes[:count]), spec, seed)
        for step in range(3):
            total: dict[str, torch.Tensor] = {}
            for block in drawn.blocks(step, torch.arange(count)):
                for name, value in engine.clipped_sum(weights, block, CLIP_NORM).total.items():
                    total[name] = value + total.get(name, 0)
            sums[count, step] = torch.cat([value.flatten().double() for value in total.values()])
    return max(
        float((sums[UNITS, step] - sums[UNITS - 1, step]).norm()) / CLIP_NORM for step in range(3)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="an .npz with train_images and train_labels; else digits")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    pixels, labels = load(options.data)
    for seed in range(options.seeds):
        print(f"seed {seed}: {moved(pixels, labels, seed):.4f} clip norms", flush=True)


if __name__ == "__main__":
    sys.exit(main())

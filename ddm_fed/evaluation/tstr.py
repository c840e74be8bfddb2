"""How useful samples are: train on synthetic images, test on real ones."""

from typing import NamedTuple

import torch
from torch import Tensor

from ddm_fed.evaluation.classifier import TrainedClassifier, train_classifier_on
from ddm_fed.evaluation.intervals import Proportion, proportion

STEPS, BATCH = 2000, 128


class Usefulness(NamedTuple):
    """Accuracy on real test images of a classifier that saw `trained_on` other images.

    `held_out_accuracy` is on the part of those other images that chose the epoch.
    """

    accuracy: Proportion
    held_out_accuracy: float
    trained_on: int
    epochs: int


def epochs_for(count: int, *, steps: int = STEPS) -> int:
    """Returns the passes over `count` images that make about `steps` steps, at most 200."""
    return max(1, min(200, round(steps / -(-count // BATCH))))


def accuracy_of(trained: TrainedClassifier, images: Tensor, labels: Tensor) -> Proportion:
    """Returns how often a classifier names the true class."""
    right = round(trained.network.accuracy(images, labels) * len(images))
    return proportion(right, len(images))


def usefulness(
    images: Tensor,
    labels: Tensor,
    real_images: Tensor,
    real_labels: Tensor,
    *,
    classes: int,
    generator: torch.Generator,
    steps: int = STEPS,
) -> Usefulness:
    """Returns how well a classifier trained on `images` does on real images it never saw.

    Given samples this is TSTR. Given real training images it is what to compare TSTR with.

    Args:
        images: `(N, C, H, W)` in [-1, 1]; a tenth of them chooses the epoch.
        labels: `(N,)`.
        real_images: `(M, C, H, W)`; measured on once, after everything is chosen.
        real_labels: `(M,)`.
        classes: Number of classes.
        generator: Decides weights, split and order.
        steps: About how many steps, whatever N is.

    Source: Esteban et al. 2017, arXiv:1706.02633.
    """
    epochs = epochs_for(len(images), steps=steps)
    trained = train_classifier_on(images, labels, classes, epochs=epochs, generator=generator)
    return Usefulness(
        accuracy=accuracy_of(trained, real_images, real_labels),
        held_out_accuracy=trained.held_out_accuracy,
        trained_on=len(images),
        epochs=epochs,
    )

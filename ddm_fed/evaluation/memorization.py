"""Whether samples are nearer to the images that were trained on than to other real images."""

from typing import NamedTuple

import numpy as np

from ddm_fed.evaluation.distances import Nearest, Rows, nearest
from ddm_fed.evaluation.intervals import Proportion, proportion

NEAR_COPY = 1 / 3


class Memorization(NamedTuple):
    """How samples lie between training images and control images.

    `closer`: share of samples nearer to a training image than to a control image, of as many
    images each; 0.5 is expected of samples that know no more of the one than of the other, and a
    tie counts as half. `near_copies`: share of samples whose distance to the nearest of all
    training images is below `threshold` times that to the nearest control image. `near_controls`:
    the same with the two exchanged, among as many images each. `near_by_chance`: the most that
    chance is expected to make of `near_copies`. Of more images the nearest is nearer: where there
    are b times as many training images, it is b times `near_controls`, once for every part of them
    that is no larger than the controls.
    """

    closer: Proportion
    near_copies: Proportion
    near_controls: Proportion
    near_by_chance: float
    median_ratio: float
    threshold: float
    compared: int
    trained: int
    controls: int


def measure_memorization(
    samples: Rows,
    trained: Rows,
    controls: Rows,
    *,
    generator: np.random.Generator,
    threshold: float = NEAR_COPY,
) -> Memorization:
    """Returns how near samples are to training images, measured by images not trained on.

    Args:
        samples: `(N, F)` pixels or features.
        trained: `(T, F)` of images that were trained on.
        controls: `(C, F)` of images from the same source that were not.
        generator: Chooses as many of the larger set as the smaller has: the nearest of more images
            is nearer.
        threshold: Ratio of distances below which a sample is a near copy.

    The intervals are of the samples' number alone: which images are in the two sets is taken as
    given. One of Yoon's criteria compares with the second nearest training image, which misses
    images that were copied twice; a control image does not.

    Raises:
        ValueError: a set is empty.

    Source: ratio and threshold as in Yoon et al. 2023, "Diffusion Probabilistic Models Generalize
    when They Fail to Memorize".
    """
    if not (len(samples) and len(trained) and len(controls)):
        raise ValueError("needs samples, training images and control images")
    size = min(len(trained), len(controls))
    rows_t = np.sort(generator.permutation(len(trained))[:size])
    rows_c = np.sort(generator.permutation(len(controls))[:size])
    to_all, to_equal = nearest(samples, trained), nearest(samples, controls[rows_c])
    to_trained = to_all if size == len(trained) else nearest(samples, trained[rows_t])
    ratio = _ratio(to_trained, to_equal)
    ties = int((ratio == 1).sum())

    def below(near: Nearest, far: Nearest) -> Proportion:
        return proportion(int((_ratio(near, far) < threshold).sum()), len(samples))

    exchanged = below(to_equal, to_trained)
    return Memorization(
        closer=proportion(int((ratio < 1).sum()) + ties // 2, len(samples)),
        near_copies=below(to_all, to_equal),
        near_controls=exchanged,
        near_by_chance=min(1.0, -(-len(trained) // size) * exchanged.value),
        median_ratio=float(np.median(ratio)),
        threshold=threshold,
        compared=size,
        trained=len(trained),
        controls=len(controls),
    )


def _ratio(near: Nearest, far: Nearest) -> Rows:
    """Returns the ratio of two distances; 1 where both are zero, for an image in both sets."""
    both = (near.distance == 0) & (far.distance == 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Rows = np.where(both, 1.0, near.distance / far.distance)
    return found

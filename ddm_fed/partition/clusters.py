"""Clusters of features in two stages, and the control: a division by chance.

Fine clusters first, so that the coarse ones rest on what many images share and not on where most
images are; then the centres of the fine ones are clustered, each counting as its images do, and an
image belongs to the coarse centre nearest to it. Memory does not grow with the number of images.

Shapes: N images, E numbers each, F fine and K coarse clusters.
"""

import numpy as np
from numpy.typing import NDArray

from ddm_fed.errors import DataError

FINE = 1024
IMAGES_PER_FINE = 8  # fewer images than this for a centre make it one of chance
ROWS_AT_ONCE = 65_536
Features = NDArray[np.float32]


def coarse_centres(features: Features, coarse: int, seed: int, fine: int = FINE) -> Features:
    """Returns the centres of `coarse` clusters, `(K, E)`.

    Args:
        features: `(N, E)`; may be mapped from a file.
        coarse: K.
        seed: Decides where both stages start.
        fine: F, at most; fewer of few images.

    Raises:
        DataError: there are fewer images that differ than clusters.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans

    first = min(fine, max(coarse, len(features) // IMAGES_PER_FINE))
    sample = features[:: max(1, len(features) // ROWS_AT_ONCE)]
    if len(np.unique(sample, axis=0)) < coarse:
        raise DataError(
            f"there are fewer than {coarse} images that differ", hint="choose fewer --islands"
        )
    small = MiniBatchKMeans(
        min(first, len(features)),
        batch_size=4096,
        n_init=3,
        random_state=seed,
        compute_labels=False,
    ).fit(features)
    centres = small.cluster_centers_
    weight = np.bincount(nearest(features, centres), minlength=len(centres)).astype(float)
    large = KMeans(coarse, n_init=10, random_state=seed).fit(centres, sample_weight=weight)
    return np.asarray(large.cluster_centers_, np.float32)


def nearest(features: Features, centres: Features) -> NDArray[np.int64]:
    """Returns the index of the centre nearest to every row of `features`, `(N,)`."""
    from sklearn.metrics import pairwise_distances_argmin

    parts = [
        pairwise_distances_argmin(np.asarray(features[start : start + ROWS_AT_ONCE]), centres)
        for start in range(0, len(features), ROWS_AT_ONCE)
    ]
    return np.concatenate(parts).astype(np.int64)


def at_random(images: int, clusters: int, seed: int) -> NDArray[np.int64]:
    """Returns a cluster for every image, `(N,)`: equal sizes, by chance."""
    return np.random.default_rng(seed).permutation(np.arange(images) % clusters)


def whole_units(clusters: NDArray[np.int64], units: NDArray[np.generic]) -> NDArray[np.int64]:
    """Returns clusters that keep every unit of privacy whole: where most of its images are.

    Args:
        clusters: One for every image, `(N,)`.
        units: The unit of every image, `(N,)`; of equal ones the first cluster wins.
    """
    _, unit = np.unique(units, return_inverse=True)
    counts = np.zeros((unit.max() + 1, clusters.max() + 1), np.int64)
    np.add.at(counts, (unit, clusters), 1)
    return np.asarray(counts.argmax(1)[unit], np.int64)

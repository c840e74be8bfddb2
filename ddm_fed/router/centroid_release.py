"""What a site releases of its embeddings: at every public anchor a noisy count and a noisy sum.

Every image becomes a direction u, `(D,)` of norm 1, and belongs to the nearest of J public anchors.
One message leaves: how many images belong to each anchor, and the sum of their directions. One
image touches one row of each, so the joint L2 sensitivity is known without clipping. Public anchors
are what keeps this cheap: clusters found in private data would cost privacy in every round.

Shapes: N images, E of an embedding, D of a direction, J anchors.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddm_fed.embedding import Embedder
from ddm_fed.mixture.noisy_vector import GRID, Message, Part
from ddm_fed.privacy import BoundedStatistic, ImageSet, Private, Release, Spend, release
from ddm_fed.records import GaussianEvent
from ddm_fed.router.anchors import Anchors

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CENTROIDS = "centroids"
CENTROID_PURPOSE = "router-centroids"
# a direction needs no count, so the counts, which are the prior, take the smaller part
CENTROID_SHARES = {"anchor_count": 0.1, "anchor_sum": 0.9}
LEAST_COUNT = 4.0  # standard deviations of the noise that a count must exceed


@dataclass(frozen=True)
class Centroids:
    """What a release says of its site, after the noise.

    Attributes:
        count: Number of images, at least 1.
        weights: Images at each anchor, `(J,)`. Those of anchors that drowned in the noise share
            what the others leave of `count`.
        directions: Mean direction at each anchor, `(J, D)` of norm 1, shrunk towards the anchor by
            the known noise; the anchor itself where it drowned.
        resultants: Length of the mean of the directions at each anchor, `(J,)`, in [0, 1]; zero
            where it drowned.
    """

    count: float
    weights: Tensor
    directions: Tensor
    resultants: Tensor


def centroid_message(anchors: Anchors) -> Message:
    """Returns the message of a site: its parts, in order, and their joint sensitivity."""
    count, dimensions = anchors.points.shape
    sizes = {"anchor_count": count, "anchor_sum": count * dimensions}
    return Message(
        CENTROIDS,
        tuple(
            Part(name, sizes[name], 1.0, GRID * math.sqrt(share))
            for name, share in CENTROID_SHARES.items()
        ),
        1.0,
    )


def embed_images(images: ImageSet, embedder: Embedder) -> Tensor:
    """Returns the embedding of every image, `(N, E)`, each computed from its image alone.

    One image at a time: in a batch, the rounding of one row may change when another image joins,
    and the bound on what one image can change would not hold to the bit. An image that is not
    finite counts as the grey one: the bound must hold for any image.
    """
    found = torch.zeros((len(images), embedder.dimension))
    for row in range(len(images)):
        image = images.batch(slice(row, row + 1)).clone()  # in memory of its own, for its alignment
        if not bool(torch.isfinite(image).all()):
            image = torch.zeros_like(image)
        found[row] = embedder.images(image)[0]
    return found


def centroid_statistic(embeddings: Tensor, anchors: Anchors) -> Ints:
    """Returns the integers of the message, without noise.

    Args:
        embeddings: `(N, E)`; row i depends on image i alone, as those of `embed_images` do.
        anchors: Public.
    """
    message = centroid_message(anchors)
    count_weight, sum_weight = (part.weight for part in message.parts)
    points = anchors.points.double().numpy()
    counts = np.zeros(len(points), dtype=np.int64)
    sums = np.zeros(points.shape, dtype=np.int64)
    for direction in anchors.directions(embeddings).numpy():
        nearest = int(np.argmax(points @ direction))
        counts[nearest] += math.trunc(count_weight)
        # towards zero, which cannot lengthen it; sums of integers know no order
        sums[nearest] += np.trunc(direction * sum_weight).astype(np.int64)
    return np.concatenate([counts, sums.ravel()])


def release_centroids(
    data: Private[ImageSet],
    embedder: Embedder,
    anchors: Anchors,
    event: GaussianEvent,
    spend: Spend,
) -> Release:
    """Returns the release of one site.

    Args:
        data: The site's images.
        embedder: Public.
        anchors: Public, of the same embedder.
        event: How much noise; `gaussian_events` makes one of an epsilon.
        spend: Writes the ledger entry before the noise is drawn; may refuse.

    Raises:
        BudgetError: from `spend`; then nothing was released.

    Guarantees:
        rho-zCDP with rho = 1 / (2 noise_multiplier^2) under add-or-remove-one image.
    """
    statistic = data.map(lambda images: centroid_statistic(embed_images(images, embedder), anchors))
    sensitivity = centroid_message(anchors).l2_sensitivity
    return release(BoundedStatistic(statistic, sensitivity, CENTROID_PURPOSE), event, spend)


def decode_centroids(anchors: Anchors, vector: Ints, noise_multiplier: float) -> Centroids:
    """Returns what the message `vector` of a site says. Post-processing: costs no privacy.

    An anchor whose count is within LEAST_COUNT deviations of the noise is dropped: what it says of
    this site is noise, and the public anchor stands for it. Of a sum, the part along the anchor is
    one number and known well; of the part across it, James and Stein's factor keeps what the noise
    cannot explain. So a direction fades into that of the anchor instead of into the noise's.
    """
    message = centroid_message(anchors)
    parts = {name: torch.from_numpy(part) for name, part in message.decode(vector).items()}
    counts, points = parts["anchor_count"], anchors.points.double()  # (J,), (J, D)
    sums = parts["anchor_sum"].reshape(points.shape)
    known = counts > LEAST_COUNT * message.noise_std("anchor_count", noise_multiplier)
    noise_power = message.noise_std("anchor_sum", noise_multiplier) ** 2  # of one coordinate
    along = (sums * points).sum(1, keepdim=True)  # (J, 1)
    across = sums - along * points
    across_power = across.square().sum(1, keepdim=True).clamp(min=1e-12)
    kept = (1 - (points.shape[1] - 1) * noise_power / across_power).clamp(min=0)
    means = along.clamp(min=1e-9) * points + kept * across
    directions = torch.nn.functional.normalize(torch.where(known[:, None], means, points), dim=1)
    # noise lengthens a sum, on average by its own square
    lengths = ((along**2 - noise_power).clamp(min=0) + kept * across_power)[:, 0].sqrt()
    count = max(1.0, float(counts.sum()))
    left = max(0.0, count - float(counts[known].sum()))
    weights = torch.where(known, counts, left / max(1, int((~known).sum())))
    resultants = torch.where(known, (lengths / counts.clamp(min=1)).clamp(max=1), 0.0)
    return Centroids(count, weights, directions, resultants)

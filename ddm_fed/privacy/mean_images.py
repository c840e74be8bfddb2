"""Sums of units' mean images: what a noisy mean image is made of.

A unit brings the mean of its images about a public pixel value, as one vector over all classes: an
image of class c among the unit's m counts for 1/m in the c-th place. The vector is clipped as a
gradient is, so that a unit moves the sum by at most the radius, whatever classes its images are of.
`PrivateStep` draws the units and adds the noise, as it does for gradients.

Source: Li et al. 2025, "From easy to hard: building a shortcut for differentially private image
synthesis" (DP-FETA), whose first training is on such images.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ddm_fed.privacy.dpsgd import Adding, Clipped, Weights
from ddm_fed.privacy.private_value import ImageSet

SUM = "sum"  # the name that the sum has among a step's tensors
BLOCK_BYTES = 1 << 25


class MeanImages:
    """Clipped sums of vectors, as a private step asks for them: no network, nothing to derive."""

    name = "means"

    def clipped_sum(self, weights: Weights, rows: Sequence[Tensor], clip_norm: float) -> Clipped:
        """Returns the sum of the units' vectors, each clipped; see `Gradients`.

        Args:
            weights: `SUM`, of the shape of a vector, float64.
            rows: The vectors, `(U, 1, J, C, H, W)`.
            clip_norm: Most that a unit moves the sum.
        """
        (vectors,) = rows
        adding = Adding(weights, clip_norm)
        own = vectors[:, 0].to(weights[SUM].dtype)
        adding.add({SUM: own}, torch.zeros(len(own)))
        return adding.result()


class UnitMeans:
    """The vectors of units, some units at a time.

    Args:
        images: The site's images.
        classes: J, the number of classes; images without labels are all of one.
        centre: Pixel value about which means are taken.
    """

    def __init__(self, images: ImageSet, classes: int, centre: float) -> None:
        self._images, self._classes, self._centre = images, classes, centre
        units = images.units if images.units is not None else torch.arange(len(images))
        self._order = units.argsort(stable=True)
        self._sizes = units.bincount()
        self._starts = self._sizes.cumsum(0) - self._sizes

    def __len__(self) -> int:
        """Returns the number of units. It is private."""
        return len(self._sizes)

    def blocks(self, _step: int, units: Tensor, /) -> Iterator[tuple[Tensor]]:
        """Yields the vectors of `units (U,)`, each `(u, 1, J, C, H, W)` float64; in every step."""
        channels, height, width = self._images.shape
        size = max(1, BLOCK_BYTES // (8 * self._classes * channels * height * width))
        for block in torch.split(units, size):
            yield (self._vectors(block)[:, None],)

    def _vectors(self, units: Tensor) -> Tensor:
        sizes = self._sizes[units]
        owner = torch.arange(len(units)).repeat_interleave(sizes)
        within = torch.arange(len(owner)) - (sizes.cumsum(0) - sizes)[owner]
        rows = self._order[self._starts[units][owner] + within]
        labels = self._images.labels
        kinds = torch.zeros_like(rows) if labels is None or self._classes == 1 else labels[rows]
        pixels = self._images.batch(rows).double() - self._centre
        found = torch.zeros((len(units), self._classes, *self._images.shape), dtype=torch.float64)
        weighted = pixels / sizes[owner][:, None, None, None]
        return found.index_put_((owner, kinds), weighted, accumulate=True)

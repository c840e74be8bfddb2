"""The reference that every site's head is trained against: the pool of the released mixtures.

It is post-processing of releases, so it may be published, and it lies where the images lie.
"""

import torch
from torch import Tensor

from ddm_fed.flows import NO_CLASS
from ddm_fed.mixture import GaussianMixtures


class PooledReference:
    """r_t(y | c), the mass-weighted pool of all sites' Gaussian mixtures over coefficients.

    Args:
        mixtures: What the sites released, fitted; about a public centre.
        offset: Coefficients of the constant image of that centre, `(D,)`.
        cells_are_classes: Cell j holds the images of class j.
    """

    def __init__(
        self, mixtures: GaussianMixtures, offset: Tensor, *, cells_are_classes: bool
    ) -> None:
        self._weights, self._each = mixtures.weights, mixtures.each  # (K, M)
        self._means = mixtures.means + offset  # (K, M, D)
        self._variances = mixtures.variances  # (K, M, D)
        self._axes = mixtures.axes.expand(-1, self._weights.shape[1], -1, -1)
        self._per_class = cells_are_classes

    def sample(
        self, count: int, generator: torch.Generator, labels: Tensor | None = None
    ) -> Tensor:
        """Returns draws of the reference, `(count, D)` float32.

        Args:
            count: How many.
            generator: Decides them.
            labels: Class of every draw `(count,)`; `NO_CLASS` or None is any, by its mass.
        """
        place = torch.rand(count, generator=generator, dtype=torch.float64)
        noise = torch.randn((count, self._means.shape[2]), generator=generator)
        return self.at(place, noise, labels)

    def at(self, place: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns the draws that these random numbers make, `(B, D)` float32; each by its own.

        Args:
            place: In [0, 1): chooses the component, `(B,)` float64.
            noise: Standard normal, `(B, D)`.
            labels: As for `sample`.
        """
        k, j = self._components(place, labels)
        scaled = noise.double() * self._variances[k, j].sqrt()  # (count, D)
        spread = torch.empty_like(scaled)
        sites, components = self._weights.shape
        for cell in range(sites * components):  # far fewer than draws: no (count, D, D) is made
            rows = (k * components + j == cell).nonzero()[:, 0]
            if len(rows):
                axes = self._axes[cell // components, cell % components]
                spread[rows] = scaled[rows] @ axes.T
        return (self._means[k, j] + spread).float()

    def log_density(self, y_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns log r_t(y_t | c) at times `t (B,)`, exactly, `(B,)` float64.

        Args:
            y_t: Coefficients of noised images, `(B, D)`.
            t: Their times.
            labels: As for `sample`.
        """
        y_t, t = y_t.double(), t.double()[:, None, None, None]  # (B, 1, 1, 1)
        variances = (1 - t) ** 2 * self._variances + t**2  # (B, K, M, D)
        centred = y_t[:, None, None] - (1 - t) * self._means
        along = torch.einsum("bkjd,kjde->bkje", centred, self._axes)
        logs = -0.5 * (along**2 / variances + (2 * torch.pi * variances).log()).sum(3)
        mass = self._masses(len(y_t), labels)  # (B, K, M)
        return (logs + mass.log()).flatten(1).logsumexp(1) - mass.flatten(1).sum(1).log()

    def _components(self, place: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        below = self._masses(len(place), labels).flatten(1).cumsum(1)  # (B, K J)
        aimed = (place * below[:, -1])[:, None]
        # above the last bound that is passed: a component without mass is never chosen
        cell = torch.searchsorted(below, aimed, right=True)[:, 0]
        components = self._weights.shape[1]
        return cell // components, cell % components

    def _masses(self, count: int, labels: Tensor | None) -> Tensor:
        """Returns the mass of every component for every row, `(count, K, M)`."""
        mass = self._weights.expand(count, -1, -1)
        if labels is None or not self._per_class:
            return mass
        cells = torch.arange(mass.shape[2]) // self._each  # (M,)
        kept = cells == labels[:, None]  # (count, M)
        kept = kept | (labels == NO_CLASS)[:, None]
        return mass * kept[:, None]

"""Gaussian mixtures of several sites, as plain tensors: what routers and closed-form experts read.

Shapes: K sites, M components of a site, D coefficients.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class GaussianMixtures:
    """One Gaussian mixture per site, over coefficients about a public centre; float64.

    Attributes:
        weights: Mass of each component, `(K, M)`; not normalised, zero drops a component.
        means: `(K, M, D)`.
        variances: Eigenvalues of the covariances, `(K, M, D)`, positive.
        axes: Eigenvectors as columns, `(K, M, D, D)`; `(K, 1, D, D)` where a site's components
            share theirs, so that an image is turned once per site.
        each: Components of a cell: those of cell j are the rows from j * each on.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    axes: Tensor
    each: int = 1

    @property
    def cell_weights(self) -> Tensor:
        """Mass of each cell, `(K, J)`."""
        return self.weights.reshape(len(self.weights), -1, self.each).sum(2)

"""The closed-form Bayes router of Gaussian mixtures, exact at every noise level.

If P x_0 of a component is N(mu, Sigma) with orthonormal rows P, then at time t
P x_t ~ N((1 - t) mu, (1 - t)^2 Sigma + t^2 I), because x_t = (1 - t) x_0 + t eps. One
eigendecomposition of Sigma serves every t. No training, no data: the statistics are the router.

Shapes: B batch, K sites, J components per site, D coefficients, N = C H W pixels.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddm_fed.flows import NO_CLASS, Condition
from ddm_fed.router.prior import PriorRouter


@dataclass(frozen=True)
class GaussianMixtures:
    """One Gaussian mixture per site, over coefficients about a public centre; float64.

    Attributes:
        weights: Mass of each component, `(K, J)`; not normalised, zero drops a component.
        means: `(K, J, D)`.
        variances: Eigenvalues of the covariances, `(K, J, D)`, positive.
        axes: Eigenvectors as columns, `(K, J, D, D)`; `(K, 1, D, D)` where a site's components
            share theirs, so that an image is turned once per site.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    axes: Tensor


class MixtureRouter:
    """p(k | x_t, t, c) by Bayes' rule on the sites' mixtures.

    Args:
        mixtures: What the sites released, fitted.
        basis: Orthonormal rows P, `(D, N)`.
        centre: The public pixel value the coefficients are about.
        components_are_classes: Component j holds the images of class j. Then a condition selects
            it, and the posterior is exactly conditional.

    Example:
        >>> means = torch.tensor([[[-1.0]], [[1.0]]]).double()  # two sites
        >>> spread = torch.full((2, 1, 1), 0.25).double()
        >>> axes = torch.ones(2, 1, 1, 1).double()
        >>> found = GaussianMixtures(torch.ones(2, 1), means, spread, axes)
        >>> router = MixtureRouter(found, torch.eye(1), centre=0.0, components_are_classes=False)
        >>> x_t, t = torch.ones(2, 1, 1, 1), torch.tensor([0.0, 1.0])  # an image, and pure noise
        >>> router.log_posterior(x_t, t, None).exp().round(decimals=3).tolist()
        [[0.0, 1.0], [0.5, 0.5]]
    """

    def __init__(
        self,
        mixtures: GaussianMixtures,
        basis: Tensor,
        *,
        centre: float,
        components_are_classes: bool,
    ) -> None:
        self._mixtures = mixtures
        self._basis = basis.double()
        self._offset = centre * self._basis.sum(1)  # (D,): coefficients of the constant image
        self._per_class = components_are_classes
        self._prior = PriorRouter(
            mixtures.weights if components_are_classes else mixtures.weights.sum(1, keepdim=True)
        )
        self._axis_means = torch.einsum("kjde,kjd->kje", mixtures.axes, mixtures.means)

    @property
    def reads_state(self) -> bool:
        """True; see `Router`."""
        return True

    def log_prior(self, condition: Condition | None) -> Tensor:
        """Returns log pi_k(c), `(K,)` or `(B, K)`; see `Router`."""
        return self._prior.log_prior(condition)

    def log_posterior(self, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """Returns log p(k | x_t, t, c), `(B, K)`; see `Router`."""
        scores = self._log_joint(x_t, t)  # (B, K, J)
        if condition is None or not self._per_class:
            site_scores = scores.logsumexp(2)  # (B, K)
        else:
            rows = torch.arange(len(scores), device=scores.device)
            any_class = condition.labels == NO_CLASS  # (B,); as an index it would be the last class
            asked = scores[rows, :, condition.labels.masked_fill(any_class, 0)]  # (B, K)
            site_scores = torch.where(any_class[:, None], scores.logsumexp(2), asked)
        return site_scores.log_softmax(1)

    def _log_joint(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Returns log w_kj + log N(P x_t; ...) up to a constant of the row, `(B, K, J)`."""
        t = t.double()[:, None]
        remaining = 1 - t  # (B, 1)
        z = x_t.flatten(1).double() @ self._basis.T - remaining * self._offset  # (B, D)
        along = torch.einsum("bd,kjde->bkje", z, self._mixtures.axes)
        difference = along - remaining[:, None, None] * self._axis_means  # (B, K, J, D)
        variance = (
            remaining[:, None, None] ** 2 * self._mixtures.variances + t[:, None, None] ** 2
        )  # (B, K, J, D)
        log_density = -0.5 * (difference**2 / variance + variance.log() + math.log(2 * math.pi))
        return self._mixtures.weights.log() + log_density.sum(3)

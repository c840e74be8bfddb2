"""The closed-form Bayes router of Gaussian mixtures, exact at every noise level.

If P x_0 of a component is N(mu, Sigma) with orthonormal rows P, then at time t
P x_t ~ N((1 - t) mu, (1 - t)^2 Sigma + t^2 I), because x_t = (1 - t) x_0 + t eps. One
eigendecomposition of Sigma serves every t. No training, no data: the statistics are the router.

Shapes: B batch, K sites, J cells of a site, M components in all of them, D coefficients, N pixels.
"""

import math

import torch
from torch import Tensor

from ddm_fed.flows import NO_CLASS, Condition
from ddm_fed.mixture import GaussianMixtures
from ddm_fed.router.prior import PriorRouter

ROWS_AT_ONCE = 256  # bounds memory: a row has K M D numbers


class MixtureRouter:
    """p(k | x_t, t, c) by Bayes' rule on the sites' mixtures.

    Args:
        mixtures: What the sites released, fitted.
        basis: Orthonormal rows P, `(D, N)`.
        centre: The public pixel value the coefficients are about.
        cells_are_classes: Cell j holds the images of class j. Then a condition selects its
            components, and the posterior is exactly conditional.

    Example:
        >>> means = torch.tensor([[[-1.0]], [[1.0]]]).double()  # two sites
        >>> spread = torch.full((2, 1, 1), 0.25).double()
        >>> axes = torch.ones(2, 1, 1, 1).double()
        >>> found = GaussianMixtures(torch.ones(2, 1), means, spread, axes)
        >>> router = MixtureRouter(found, torch.eye(1), centre=0.0, cells_are_classes=False)
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
        cells_are_classes: bool,
    ) -> None:
        self._mixtures = mixtures
        self._basis = basis.double()
        self._offset = centre * self._basis.sum(1)  # (D,): coefficients of the constant image
        self._per_class = cells_are_classes
        self._prior = PriorRouter(
            mixtures.cell_weights if cells_are_classes else mixtures.weights.sum(1, keepdim=True)
        )
        self._axis_means = torch.einsum("kmde,kmd->kme", mixtures.axes, mixtures.means)

    @property
    def reads_state(self) -> bool:
        """True; see `Router`."""
        return True

    def log_prior(self, condition: Condition | None) -> Tensor:
        """Returns log pi_k(c), `(K,)` or `(B, K)`; see `Router`."""
        return self._prior.log_prior(condition)

    def log_posterior(self, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """Returns log p(k | x_t, t, c), `(B, K)`; see `Router`."""
        scores = torch.cat(
            [
                self._log_joint(*part)
                for part in zip(
                    torch.split(x_t, ROWS_AT_ONCE), torch.split(t, ROWS_AT_ONCE), strict=True
                )
            ]
        )  # (B, K, J)
        if condition is None or not self._per_class:
            site_scores = scores.logsumexp(2)  # (B, K)
        else:
            rows = torch.arange(len(scores), device=scores.device)
            any_class = condition.labels == NO_CLASS  # (B,); as an index it would be the last class
            asked = scores[rows, :, condition.labels.masked_fill(any_class, 0)]  # (B, K)
            site_scores = torch.where(any_class[:, None], scores.logsumexp(2), asked)
        return site_scores.log_softmax(1)

    def _log_joint(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Returns log of mass times density of P x_t in each cell, `(B, K, J)`."""
        t = t.double()[:, None]
        remaining = 1 - t  # (B, 1)
        z = x_t.flatten(1).double() @ self._basis.T - remaining * self._offset  # (B, D)
        along = torch.einsum("bd,kmde->bkme", z, self._mixtures.axes)
        difference = along - remaining[:, None, None] * self._axis_means  # (B, K, M, D)
        variance = (
            remaining[:, None, None] ** 2 * self._mixtures.variances + t[:, None, None] ** 2
        )  # (B, K, M, D)
        log_density = -0.5 * (difference**2 / variance + variance.log() + math.log(2 * math.pi))
        joint = self._mixtures.weights.log() + log_density.sum(3)  # (B, K, M)
        return joint.reshape(*joint.shape[:2], -1, self._mixtures.each).logsumexp(3)

"""Routers whose posterior a network learned: one for all sites, or one head for each.

`ClassifierRouter` was trained on images of all sites, real ones (`pooled`, which only benchmarks
may) or drawn from the experts (`replay`). `HeadsRouter` composes networks that never met: head k
knows log p_t(y | k, c) - log r_t(y | c) against a reference r that all sites share, and r cancels
in Bayes' rule, p(k | y, t, c) = softmax_k(log pi_k(c) + h_k(y, t, c)).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddm_fed.flows import Condition
from ddm_fed.router.prior import PriorRouter

Scores = Callable[[Tensor, Tensor, Condition | None], Tensor]
"""`(y_t (B, D), t (B,), condition) -> (B, outputs)`, in the precision of y_t or in its own.

Networks of whole images take x_t `(B, C, H, W)` in place of y_t.
"""


class ClassifierRouter:
    """p(k | x_t, t, c) as one classifier says it; it learned the prior with the rest.

    Args:
        network: Scores of all sites, `(B, K)`.
        basis: Orthonormal rows P, `(D, N)`; None for a network that reads whole images.
        prior: The shares to draw sites by.
    """

    def __init__(self, network: Scores, basis: Tensor | None, prior: PriorRouter) -> None:
        self._network, self._prior = network, prior
        self._basis = None if basis is None else basis.float()

    @property
    def reads_state(self) -> bool:
        """True; see `Router`."""
        return True

    def log_prior(self, condition: Condition | None) -> Tensor:
        """Returns log pi_k(c), `(K,)` or `(B, K)`; see `Router`."""
        return self._prior.log_prior(condition)

    @torch.no_grad()
    def log_posterior(self, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """Returns log p(k | x_t, t, c), `(B, K)`; see `Router`."""
        read = x_t.float()
        if self._basis is not None:
            read = read.flatten(1) @ self._basis.T
        return self._network(read, t.float(), condition).double().log_softmax(1)


class HeadsRouter:
    """p(k | x_t, t, c) of heads that were trained apart. A site is a row: no other changes with it.

    Args:
        heads: One network of one score per site, in the ensemble's order.
        basis: Orthonormal rows P, `(D, N)`, the one the heads were trained with.
        prior: The released shares.
    """

    def __init__(self, heads: Sequence[Scores], basis: Tensor, prior: PriorRouter) -> None:
        self._heads, self._basis, self._prior = tuple(heads), basis.float(), prior

    @property
    def reads_state(self) -> bool:
        """True; see `Router`."""
        return True

    def log_prior(self, condition: Condition | None) -> Tensor:
        """Returns log pi_k(c), `(K,)` or `(B, K)`; see `Router`."""
        return self._prior.log_prior(condition)

    def log_ratios(self, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """Returns log p_t(x | k, c) - log r_t(x | c) of every site, `(B, K)` float64."""
        y_t = x_t.flatten(1).float() @ self._basis.T
        with torch.no_grad():
            rows = [head(y_t, t.float(), condition)[:, 0] for head in self._heads]
        return torch.stack(rows, dim=1).double()

    def log_posterior(self, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """Returns log p(k | x_t, t, c), `(B, K)`; see `Router`."""
        return (self.log_prior(condition) + self.log_ratios(x_t, t, condition)).log_softmax(1)

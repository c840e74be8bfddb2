"""The router that looks at nothing: every site by its share."""

import torch
from torch import Tensor


class PriorRouter:
    """p(k | x_t, t, c) = pi_k(c).

    Args:
        counts: Released counts, `(K, G)` with G classes, or `(K, 1)` without.
    """

    def __init__(self, counts: Tensor) -> None:
        self._log_prior = _normalised_log(counts.double().sum(1))  # (K,)
        self._log_class_prior = _normalised_log(counts.double().T)  # (G, K)

    def log_prior(self, label: Tensor | None) -> Tensor:
        """Returns log pi_k(c), `(K,)` or `(B, K)`; see `Router`."""
        return self._log_prior if label is None else self._log_class_prior[label]

    def log_posterior(self, x_t: Tensor, t: Tensor, label: Tensor | None) -> Tensor:  # noqa: ARG002
        """Returns the prior for every row, `(B, K)`; see `Router`."""
        prior = self.log_prior(label)
        return prior if label is not None else prior.expand(len(x_t), -1)


def _normalised_log(weights: Tensor) -> Tensor:
    return torch.log(weights / weights.sum(-1, keepdim=True))

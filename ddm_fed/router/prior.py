"""The router that looks at nothing: every site by its share."""

import torch
from torch import Tensor

from ddm_fed.flows import NO_CLASS, Condition


class PriorRouter:
    """p(k | x_t, t, c) = pi_k(c).

    Args:
        counts: Released counts, `(K, G)` with G classes, or `(K, 1)` without.
    """

    def __init__(self, counts: Tensor) -> None:
        self._log_prior = _normalised_log(counts.double().sum(1))  # (K,)
        self._log_class_prior = _normalised_log(counts.double().T)  # (G, K)

    @property
    def reads_state(self) -> bool:
        """False; see `Router`."""
        return False

    def log_prior(self, condition: Condition | None) -> Tensor:
        """Returns log pi_k(c), `(K,)` or `(B, K)`; see `Router`."""
        if condition is None:
            return self._log_prior
        any_class = condition.labels == NO_CLASS  # (B,); as an index it would be the last class
        asked = self._log_class_prior[condition.labels.masked_fill(any_class, 0)]
        return torch.where(any_class[:, None], self._log_prior, asked)

    def log_posterior(self, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:  # noqa: ARG002
        """Returns the prior for every row, `(B, K)`; see `Router`."""
        prior = self.log_prior(condition)
        return prior if condition is not None else prior.expand(len(x_t), -1)


def _normalised_log(weights: Tensor) -> Tensor:
    return torch.log(weights / weights.sum(-1, keepdim=True))

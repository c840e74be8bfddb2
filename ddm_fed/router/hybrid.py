"""One router where noise dominates, another where the image shows.

Closed forms are near the oracle at high noise and over-confident at low noise; learned routers are
the reverse: their samples are few and their training budget is spread over all times.
"""

import torch
from torch import Tensor

from ddm_fed.flows import Condition, rows_of
from ddm_fed.router.base import Router


class HybridRouter:
    """`high` from the time `switch` up, `low` below it. Shares are those of `high`."""

    def __init__(self, high: Router, low: Router, switch: float) -> None:
        self._high, self._low, self._switch = high, low, switch

    @property
    def reads_state(self) -> bool:
        """True; see `Router`."""
        return True

    def log_prior(self, condition: Condition | None) -> Tensor:
        """Returns log pi_k(c), `(K,)` or `(B, K)`; see `Router`."""
        return self._high.log_prior(condition)

    def log_posterior(self, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """Returns log p(k | x_t, t, c), `(B, K)`; every router sees its own rows only."""
        high = t >= self._switch
        if bool(high.all()):
            return self._high.log_posterior(x_t, t, condition)
        if not bool(high.any()):
            return self._low.log_posterior(x_t, t, condition)
        out: Tensor | None = None
        for router, mask in ((self._high, high), (self._low, ~high)):
            rows = mask.nonzero()[:, 0]
            part = router.log_posterior(x_t[rows], t[rows], rows_of(condition, rows))
            if out is None:
                out = torch.empty((len(x_t), part.shape[1]), dtype=torch.float64)
            out[rows] = part
        if out is None:
            raise ValueError("a batch without rows has no posterior")
        return out

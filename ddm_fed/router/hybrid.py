"""One router where noise dominates, another where the image shows.

Closed forms are near the oracle at high noise and over-confident at low noise; learned routers are
the reverse: their samples are few and their training budget is spread over all times.
"""

import torch
from torch import Tensor

from ddm_fed.flows import Condition, rows_of
from ddm_fed.router.base import Router, log_posterior_of, reads_estimate, sees_until

BELOW = 1 - 1e-6  # at the switch itself the upper router answers


class HybridRouter:
    """`high` from the time `switch` up, `low` below it. Shares are those of `high`."""

    def __init__(self, high: Router, low: Router, switch: float) -> None:
        self._high, self._low, self._switch = high, low, switch

    @property
    def reads_state(self) -> bool:
        """Whether both do; see `Router`."""
        return self._high.reads_state and self._low.reads_state

    @property
    def reads_estimate(self) -> bool:
        """Whether one of the two does; see `EstimateRouter`."""
        return reads_estimate(self._high) or reads_estimate(self._low)

    @property
    def sees_until(self) -> float:
        """That of `low`, and of `high` too if nothing lies between; see `EstimateRouter`."""
        below = BELOW * self._switch
        if sees_until(self._low) < below:
            return sees_until(self._low)
        above = sees_until(self._high)
        return above if above >= self._switch else below

    def log_prior(self, condition: Condition | None) -> Tensor:
        """Returns log pi_k(c), `(K,)` or `(B, K)`; see `Router`."""
        return self._high.log_prior(condition)

    def log_posterior(self, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """Returns log p(k | x_t, t, c), `(B, K)`; every router sees its own rows only."""
        return self._log_posterior(x_t, t, condition, None)

    def log_posterior_given(
        self, x_t: Tensor, t: Tensor, condition: Condition | None, estimate: Tensor
    ) -> Tensor:
        """Returns log p(k | x_t, t, c), `(B, K)`; see `EstimateRouter`."""
        return self._log_posterior(x_t, t, condition, estimate)

    def _log_posterior(
        self, x_t: Tensor, t: Tensor, condition: Condition | None, estimate: Tensor | None
    ) -> Tensor:
        high = t >= self._switch
        if bool(high.all()):
            return log_posterior_of(self._high, x_t, t, condition, estimate)
        if not bool(high.any()):
            return log_posterior_of(self._low, x_t, t, condition, estimate)
        out: Tensor | None = None
        for router, mask in ((self._high, high), (self._low, ~high)):
            rows = mask.nonzero()[:, 0]
            seen = None if estimate is None else estimate[rows]
            part = log_posterior_of(router, x_t[rows], t[rows], rows_of(condition, rows), seen)
            if out is None:
                out = torch.empty((len(x_t), part.shape[1]), dtype=torch.float64)
            out[rows] = part
        if out is None:
            raise ValueError("a batch without rows has no posterior")
        return out

"""What every router is: log p(site | x_t, t, class), from what the sites released."""

from typing import Protocol

from torch import Tensor

from ddm_fed.flows import Condition


class Router(Protocol):
    """Scores the K sites of an ensemble, in the ensemble's order."""

    @property
    def reads_state(self) -> bool:
        """Whether the posterior depends on x_t; without, sites must not be redrawn on the way."""
        ...

    def log_prior(self, condition: Condition | None) -> Tensor:
        """Returns log pi_k(c).

        Args:
            condition: What the images are asked to be, or None.

        Returns:
            `(K,)` without and `(B, K)` with a condition, float64; exponentials sum to 1 over K.
        """
        ...

    def log_posterior(self, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """Returns log p(k | x_t, t, c).

        Args:
            x_t: Noised images, `(B, C, H, W)`.
            t: Times in [0, 1], `(B,)`.
            condition: What the images are asked to be, or None.

        Returns:
            `(B, K)`, float64; exponentials sum to 1 over K.
        """
        ...

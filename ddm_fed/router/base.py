"""What every router is: log p(site | x_t, t, class), from what the sites released."""

from typing import Protocol

from torch import Tensor


class Router(Protocol):
    """Scores the K sites of an ensemble, in the ensemble's order."""

    def log_prior(self, label: Tensor | None) -> Tensor:
        """Returns log pi_k(c).

        Args:
            label: Class indices `(B,)`, or None for no condition.

        Returns:
            `(K,)` without and `(B, K)` with labels, float64; exponentials sum to 1 over K.
        """
        ...

    def log_posterior(self, x_t: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        """Returns log p(k | x_t, t, c).

        Args:
            x_t: Noised images, `(B, C, H, W)`.
            t: Times in [0, 1], `(B,)`.
            label: Class indices `(B,)`, or None.

        Returns:
            `(B, K)`, float64; exponentials sum to 1 over K.
        """
        ...

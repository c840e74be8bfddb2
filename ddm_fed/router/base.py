"""What every router is: log p(site | x_t, t, class), from what the sites released."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from ddm_fed.flows import Condition


class Router(Protocol):
    """Scores the K sites of an ensemble, in the ensemble's order."""

    @property
    def reads_state(self) -> bool:
        """Whether the posterior depends on x_t; without, sites must not be redrawn on the way.

        On how much of x_t is another matter: `ddm_fed.ensemble.load.frequencies_seen`.
        """
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


@runtime_checkable
class EstimateRouter(Router, Protocol):
    """A router that may also look at the image estimate x̂_0 of the step before.

    Who has no estimate, or does not know of them, calls `log_posterior`, and `reads_state` speaks
    of that call alone. So such a caller never redraws sites from an answer that saw nothing.
    """

    @property
    def reads_estimate(self) -> bool:
        """Whether an estimate changes the answer at any time; without, none need be kept."""
        ...

    @property
    def sees_until(self) -> float:
        """The largest time up to which, given an estimate, the posterior depends on the image."""
        ...

    def log_posterior_given(
        self, x_t: Tensor, t: Tensor, condition: Condition | None, estimate: Tensor
    ) -> Tensor:
        """Returns log p(k | x_t, t, c), as `log_posterior`.

        Args:
            x_t: Noised images, `(B, C, H, W)`.
            t: Times in [0, 1], `(B,)`.
            condition: What the images are asked to be, or None.
            estimate: x̂_0 of every row, made one step before, `(B, C, H, W)`.
        """
        ...


def reads_estimate(router: Router) -> bool:
    """Returns whether `router` answers otherwise if it is given an image estimate."""
    return isinstance(router, EstimateRouter) and router.reads_estimate


def sees_until(router: Router) -> float:
    """Returns the time up to which `router` sees the image, so that sites may be redrawn; or 0."""
    if isinstance(router, EstimateRouter):
        return router.sees_until
    return 1.0 if router.reads_state else 0.0


def log_posterior_of(
    router: Router,
    x_t: Tensor,
    t: Tensor,
    condition: Condition | None,
    estimate: Tensor | None,
) -> Tensor:
    """Returns log p(k | x_t, t, c) `(B, K)`, with the `estimate` if there is one and it is read."""
    if estimate is not None and isinstance(router, EstimateRouter):
        return router.log_posterior_given(x_t, t, condition, estimate)
    return router.log_posterior(x_t, t, condition)

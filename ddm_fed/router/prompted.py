"""A router that also judges sites by what was asked for.

A prompt is evidence about the site beside the image. Given the site, the two are taken to be
independent, as centroids take images and classes to be, so that p(k | x_t, t, c) is p(k | x_t, t)
times p(c | k), normalised.
"""

from collections.abc import Callable

from torch import Tensor

from ddm_fed.flows import Condition, TextCondition
from ddm_fed.router.base import Router, log_posterior_of, reads_estimate, sees_until

Likelihood = Callable[[Tensor], Tensor]
"""`pooled vectors of captions (B, P) -> log p(caption | site) + const (B, K)`."""


class PromptedRouter:
    """`router` with pi_k(c) of captions in place of its shares; without a caption they are its own.

    Args:
        router: Reads no caption itself.
        likelihood: Of captions at the sites.
    """

    def __init__(self, router: Router, likelihood: Likelihood) -> None:
        self._router, self._likelihood = router, likelihood

    @property
    def reads_state(self) -> bool:
        """As of the router inside; see `Router`."""
        return self._router.reads_state

    @property
    def reads_estimate(self) -> bool:
        """As of the router inside; see `EstimateRouter`."""
        return reads_estimate(self._router)

    @property
    def sees_until(self) -> float:
        """As of the router inside; see `EstimateRouter`."""
        return sees_until(self._router)

    def log_prior(self, condition: Condition | None) -> Tensor:
        """Returns log pi_k(c), `(K,)` or `(B, K)`; see `Router`."""
        return self._asked(self._router.log_prior(condition), condition)

    def log_posterior(self, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """Returns log p(k | x_t, t, c), `(B, K)`; see `Router`."""
        return self._asked(self._router.log_posterior(x_t, t, condition), condition)

    def log_posterior_given(
        self, x_t: Tensor, t: Tensor, condition: Condition | None, estimate: Tensor
    ) -> Tensor:
        """Returns log p(k | x_t, t, c), `(B, K)`; see `EstimateRouter`."""
        found = log_posterior_of(self._router, x_t, t, condition, estimate)
        return self._asked(found, condition)

    def _asked(self, found: Tensor, condition: Condition | None) -> Tensor:
        if not isinstance(condition, TextCondition):
            return found
        told = condition.mask.any(1, keepdim=True)  # (B, 1); the others have no caption
        scores = self._likelihood(condition.pooled)
        return (found + scores.where(told, scores.new_zeros(()))).log_softmax(1)

"""Experts and router as one velocity: u(x_t, t, c) = sum_k p(k | x_t, t, c) v_k(x_t, t, c).

The identity holds for any sites, overlapping or not. A strategy decides which experts are asked:

| strategy             | asked per sample and call                          | shares of the sites  |
| -------------------- | -------------------------------------------------- | -------------------- |
| sticky, the default  | 1, drawn once from pi(c)                           | exact, by the draw   |
| full                 | all, weighted by the posterior                     | exact if P x_t tells |
| per-step             | 1, drawn anew from the posterior in every step     | exact if P x_t tells |
| sticky-then-routed-T | 1, as sticky above time T and as per-step below it | exact if P x_t tells |
| threshold-W          | those of at least weight W, renormalised           | small sites may fade |
| nucleus-P            | the fewest that weigh P together, renormalised     | small sites may fade |
| top-K                | K, renormalised                                    | biased, K = 1 worst  |
| sample-K             | K, drawn anew from the posterior in every step     | biased for K > 1     |
|                      | without replacement, renormalised                  |                      |

The last five are those of the paper; it calls per-step "sample-1". A router temperature T takes
the posterior to the power 1 / T first: exact at 1 only.

Why drawing is exact: let (x_t, k) be a joint draw, x_t of the noised images of the pool and k of
their sites. Given k, x_t is a noised image of site k, and the ODE (or SDE) of expert k keeps it
one, so (x_s, k) is a joint draw at the next time s. Drawing k anew from p(k | x_s, s, c) leaves
the joint law as it is. Top-1 replaces the draw by its most probable value, and no such argument
holds.

But routers know p(k | P x_t, t, c): they look at some low frequencies P x_t. A redraw from that
keeps the law of (P x_t, k) and forgets what the rest of x_t says of k, and `full` weights experts
that the rest would rule out. Both are exact only where P x_t suffices: where, given it, the rest of
x_t says nothing more of the site. What sites differ in beyond it is mixed, more in every step: with
exact experts of two sites whose images differ in one coefficient outside P alone, its deviation
was .401 under sticky, .168 under sticky-then-routed, .043 under full, and .403 in truth. Sticky
asks no router, so it is the default (docs/adr/0024). The prior router sees nothing of x_t: the
strategies that redraw refuse it.

"Exact" is up to the errors of experts, router and solver, and without guidance.

Classifier-free guidance: u = u_null + w (u_cond - u_null). Weighted strategies use the posterior
of each branch; where a site was drawn, by the conditional posterior, it answers both branches.
Guided states are no noised images of any site, so that the argument above does not hold: redraws
and weights then favour some sites. Sticky's draw of the site is untouched.

Source: McAllister et al. 2025, arXiv:2501.05450, eq. 4 to 7; Ho and Salimans 2022,
arXiv:2207.12598, eq. 6 (guidance); the bias of top-k: docs/adr/0005.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ddm_fed.ensemble.pool import ExpertPool
from ddm_fed.ensemble.strategy import STICKY_UNTIL, Strategy
from ddm_fed.flows import Condition, VelocityModel, rows_of
from ddm_fed.router import Router, log_posterior_of, reads_estimate, sees_until


class Ensemble:
    """The experts of K sites under one router.

    Args:
        experts: One velocity network per site, or a pool of them.
        router: Scores the same sites in the same order. It runs on the processor.

    Example:
        >>> from ddm_fed.router import PriorRouter
        >>> one, three = (lambda x, t, c, v=v: torch.full_like(x, v) for v in (1.0, 3.0))
        >>> ensemble = Ensemble([one, three], PriorRouter(torch.tensor([[3.0], [1.0]])))
        >>> x, t = torch.zeros(1, 1, 1, 2), torch.ones(1)
        >>> ensemble.velocity(x, t, None, strategy=Strategy.parse("full")).flatten().tolist()
        [1.5, 1.5]
    """

    def __init__(self, experts: Sequence[VelocityModel] | ExpertPool, router: Router) -> None:
        self.experts = experts if isinstance(experts, ExpertPool) else ExpertPool.of(experts)
        self.router = router

    @property
    def sees_until(self) -> float:
        """The time up to which the router sees the image, so that sites may be redrawn; or 0."""
        return sees_until(self.router)

    @property
    def reads_estimate(self) -> bool:
        """Whether the router answers otherwise if it is given an image estimate."""
        return reads_estimate(self.router)

    def require(self, strategy: Strategy) -> None:
        """Refuses a strategy that would switch sites blindly.

        Raises:
            ValueError: it redraws sites at times at which the router does not look at the image.
        """
        seen = self.sees_until
        if not strategy.draws_sites or strategy.sticky_until <= seen:
            return
        if seen <= 0:
            raise ValueError(
                f"strategy {strategy} draws sites by what x_t looks like, and this router does not "
                "look at it; use sticky, or another router"
            )
        routed = Strategy("sticky-then-routed", level=min(STICKY_UNTIL, seen))
        raise ValueError(
            f"strategy {strategy} draws sites by what x_t looks like up to t = "
            f"{strategy.sticky_until:g}, and this router looks at it up to {seen:g} only; use "
            f"sticky, {routed}, or another router"
        )

    def log_prior(self, count: int, condition: Condition | None) -> Tensor:
        """Returns log pi_k(c) of `count` samples, `(count, K)` float64, on the processor."""
        if condition is None:
            return self.router.log_prior(None).expand(count, -1)
        return self.router.log_prior(condition.to(torch.device("cpu")))

    def log_posterior(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Condition | None,
        estimate: Tensor | None = None,
    ) -> Tensor:
        """Returns log p(k | x_t, t, c), `(B, K)` float64, on the processor.

        Args:
            x_t: States, `(B, C, H, W)`.
            t: Times, `(B,)`.
            condition: What the images are asked to be, or None.
            estimate: x̂_0 of the step before, `(B, C, H, W)`, for a router that reads it; or None.
        """
        here = torch.device("cpu")
        asked = None if condition is None else condition.to(here)
        seen = None if estimate is None else estimate.to(here)
        return log_posterior_of(self.router, x_t.to(here), t.to(here), asked, seen)

    def weights(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Condition | None,
        strategy: Strategy,
        sites: Tensor | None = None,
        estimate: Tensor | None = None,
        noise: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Returns the weight of every expert for every sample, `(B, K)` float64; rows sum to 1.

        Args:
            x_t: States, `(B, C, H, W)`.
            t: Times, `(B,)`.
            condition: What the images are asked to be, or None.
            strategy: Which experts are asked.
            sites: The drawn site of every sample `(B,)`, for strategies that draw one.
            estimate: As for `log_posterior`.
            noise: Standard Gumbel draws, `(B, K)` float64, for a strategy that draws several.
            temperature: Of the posterior, which is taken to the power 1 / T.

        Raises:
            ValueError: a strategy that draws was given no draws.
        """
        if strategy.draws_sites:
            if sites is None:
                raise ValueError(f"strategy {strategy} needs the drawn sites")
            return torch.nn.functional.one_hot(sites, len(self.experts)).double()
        log_posterior = self.log_posterior(x_t, t, condition, estimate)
        if temperature != 1:
            log_posterior = (log_posterior / temperature).log_softmax(1)
        if strategy.draws_several:
            if noise is None:
                raise ValueError(f"strategy {strategy} needs noise to draw sites by")
            drawn = log_posterior + noise
            kept = drawn.topk(min(strategy.k, len(self.experts)), dim=1).indices
            log_posterior = _only(log_posterior, kept)
        elif strategy.kind == "nucleus":
            log_posterior = _nucleus(log_posterior, strategy.level)
        elif strategy.kind == "top-k":
            kept = log_posterior.topk(min(strategy.k, len(self.experts)), dim=1).indices
            log_posterior = _only(log_posterior, kept)
        elif strategy.kind == "threshold":
            kept = log_posterior.argmax(1, keepdim=True)
            heavy = log_posterior.exp() >= strategy.level
            log_posterior = torch.where(heavy, log_posterior, _only(log_posterior, kept))
        return log_posterior.softmax(1)

    def site_velocity(
        self,
        site: int,
        x_t: Tensor,
        t: Tensor,
        condition: Condition | None,
        *,
        guidance: float = 1.0,
    ) -> Tensor:
        """Returns what one expert says of every row, `(B, C, H, W)`; guided by itself."""
        v = self.experts.ask(site, x_t, t, condition)
        if guidance == 1.0:
            return v
        v_null = self.experts.ask(site, x_t, t, None)
        return v_null + guidance * (v - v_null)

    def velocity(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Condition | None = None,
        *,
        strategy: Strategy,
        sites: Tensor | None = None,
        estimate: Tensor | None = None,
        noise: Tensor | None = None,
        temperature: float = 1.0,
        guidance: float = 1.0,
        batch_size: int | None = None,
        descending: bool = False,
    ) -> Tensor:
        """Returns u(x_t, t, c), `(B, C, H, W)`.

        Every expert runs once, on the rows of the batch that give it weight.

        Args:
            x_t: As for `weights`, and so are the next three.
            t: Times.
            condition: What the images are asked to be, or None.
            strategy: Which experts are asked.
            sites: The drawn sites.
            estimate: As for `log_posterior`.
            noise: As for `weights`, and so is the next.
            temperature: Of the posterior.
            guidance: The factor w; 1 leaves the condition as strong as it was trained.
            batch_size: The most rows an expert is given at once.
            descending: Ask the experts in this order, to begin with the one asked last.

        Raises:
            ValueError: guidance without a condition.
        """
        require_condition(guidance, condition)
        branches = [(condition, guidance)]
        if guidance != 1.0:
            branches.append((None, 1 - guidance))
        weights = [
            self.weights(x_t, t, asked, strategy, sites, estimate, noise, temperature)
            for asked, _ in branches
        ]
        total = torch.zeros_like(x_t)
        tasks, parts = list[tuple[int, Callable[[], Tensor]]](), list[tuple[Tensor, Tensor]]()
        for k in sorted(range(len(self.experts)), reverse=descending):
            for (asked, factor), weight in zip(branches, weights, strict=True):
                for rows in torch.split(weight[:, k].nonzero()[:, 0], batch_size or len(x_t)):
                    if len(rows) == 0:
                        continue
                    here = rows.to(x_t.device)
                    tasks.append((k, partial(self._ask_rows, k, x_t, t, asked, here)))
                    parts.append((here, (factor * weight[rows, k]).to(x_t)))
        for (here, scale), v in zip(parts, self.experts.gather(tasks), strict=True):
            total[here] += scale.reshape(-1, *(1,) * (x_t.ndim - 1)) * v
        return total

    def _ask_rows(
        self, site: int, x_t: Tensor, t: Tensor, condition: Condition | None, rows: Tensor
    ) -> Tensor:
        return self.experts.ask(site, x_t[rows], t[rows], rows_of(condition, rows))


def require_condition(guidance: float, condition: Condition | None) -> None:
    """Refuses guidance without a condition: it has nowhere to lead.

    Raises:
        ValueError: there is none.
    """
    if guidance != 1.0 and condition is None:
        raise ValueError(f"guidance {guidance:g} needs a condition; without one it has to be 1")


def _nucleus(log_posterior: Tensor, mass: float) -> Tensor:
    """Returns `log_posterior (B, K)` with all but the fewest sites that weigh `mass` impossible.

    Source: Holtzman et al. 2020, arXiv:1904.09751, section 3.1.
    """
    ordered, places = log_posterior.exp().sort(dim=1, descending=True)
    # what weighs enough without this one ends it; .4 + .3 + .2 is .9, however it is rounded
    needed = ordered.cumsum(1) - ordered < mass - 1e-9
    kept = torch.zeros_like(needed).scatter(1, places, needed)
    return log_posterior.masked_fill(~kept, -torch.inf)


def _only(log_posterior: Tensor, kept: Tensor) -> Tensor:
    """Returns `log_posterior (B, K)` with every site but `kept (B, k)` impossible."""
    return log_posterior + torch.full_like(log_posterior, -torch.inf).scatter(1, kept, 0.0)

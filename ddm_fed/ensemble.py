"""Experts and router as one velocity: u(x_t, t, c) = sum_k p(k | x_t, t, c) v_k(x_t, t, c).

The identity holds for any sites, overlapping or not. A strategy decides which experts are asked:

| strategy | experts per sample and call | shares of the sites                                  |
| -------- | --------------------------- | ---------------------------------------------------- |
| full     | all                         | exact, up to router and solver                       |
| top-k    | k, weights renormalised     | biased: small sites fade, k = 1 all but deletes them |
| sticky   | 1, drawn once from pi(c)    | exact by construction; needs no router               |

Source: McAllister et al. 2025, arXiv:2501.05450, eq. 4 to 7; the bias of top-k: docs/adr/0005.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from ddm_fed.flows import VelocityModel
from ddm_fed.router import Router


@dataclass(frozen=True)
class Strategy:
    """Which experts answer. `k` counts them for `top-k` and is 0 otherwise."""

    kind: Literal["full", "top-k", "sticky"]
    k: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Returns the strategy called `full`, `sticky`, or `top-1`, `top-2`, ...

        Raises:
            ValueError: naming what is allowed.
        """
        if text in ("full", "sticky"):
            return cls(kind=text)  # type: ignore[arg-type]
        prefix, _, k = text.partition("-")
        if prefix == "top" and k.isdecimal() and int(k) >= 1:
            return cls(kind="top-k", k=int(k))
        raise ValueError(f"unknown strategy `{text}`; use full, sticky, or top-K such as top-2")

    def __str__(self) -> str:
        return f"top-{self.k}" if self.kind == "top-k" else self.kind


class Ensemble:
    """The experts of K sites under one router.

    Args:
        experts: One velocity network per site.
        router: Scores the same sites in the same order.
    """

    def __init__(self, experts: Sequence[VelocityModel], router: Router) -> None:
        self.experts = tuple(experts)
        self.router = router

    def draw_sites(self, count: int, label: Tensor | None, generator: torch.Generator) -> Tensor:
        """Returns a site for each sample, drawn from pi(c), `(count,)`; for `sticky`."""
        prior = self.router.log_prior(label).exp()
        if label is None:
            return torch.multinomial(prior, count, replacement=True, generator=generator)
        return torch.multinomial(prior, 1, generator=generator)[:, 0]

    def weights(
        self, x_t: Tensor, t: Tensor, label: Tensor | None, strategy: Strategy, sites: Tensor | None
    ) -> Tensor:
        """Returns the weight of every expert for every sample, `(B, K)` float64; rows sum to 1.

        Args:
            x_t: States, `(B, C, H, W)`.
            t: Times, `(B,)`.
            label: Class indices `(B,)`, or None.
            strategy: Which experts are asked.
            sites: The drawn site of every sample `(B,)`; for `sticky` only.
        """
        if strategy.kind == "sticky":
            if sites is None:
                raise ValueError("sticky sampling needs the drawn sites")
            return torch.nn.functional.one_hot(sites, len(self.experts)).double()
        log_posterior = self.router.log_posterior(x_t, t, label)
        if strategy.kind == "top-k":
            kept = log_posterior.topk(min(strategy.k, len(self.experts)), dim=1).indices
            mask = torch.full_like(log_posterior, -torch.inf).scatter(1, kept, 0.0)
            log_posterior = log_posterior + mask
        return log_posterior.softmax(1)

    def velocity(
        self,
        x_t: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        *,
        strategy: Strategy,
        sites: Tensor | None = None,
    ) -> Tensor:
        """Returns u(x_t, t, c), `(B, C, H, W)`.

        Every expert runs once, on the rows of the batch that give it weight. Arguments are those
        of `weights`.
        """
        weights = self.weights(x_t, t, label, strategy, sites)
        total = torch.zeros_like(x_t)
        for k, expert in enumerate(self.experts):
            rows = weights[:, k].nonzero()[:, 0]
            if len(rows) == 0:
                continue
            v = expert(x_t[rows], t[rows], None if label is None else label[rows])
            weight = weights[rows, k].to(x_t.dtype)
            total[rows] += weight.reshape(-1, *(1,) * (x_t.ndim - 1)) * v
        return total

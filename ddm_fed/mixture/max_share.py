"""The most one member may weigh, whatever it says it has: `router.max_share` of a plan."""

import torch
from torch import Tensor

from ddm_fed.records import Plan


def capped(plan: Plan, weights: Tensor) -> Tensor:
    """Returns `weights` of which no site has more than the plan's share.

    All cells of a site are scaled alike. The others keep their weights, and so their proportions.
    Where the plan's share is too small for so few sites, all weigh the same.

    Args:
        plan: Gives the share.
        weights: Mass of every cell at every site, `(K, J)`.
    """
    most, masses = float(plan.router.max_share), weights.sum(1)  # (K,)
    held = torch.zeros_like(masses, dtype=torch.bool)  # those at the cap
    for _ in range(len(masses) + 1):
        # m of all = m of the others / (1 - what those at the cap have)
        free = 1 - most * int(held.sum())
        if free <= 0 or not bool((~held & (masses > 0)).any()):
            return weights * torch.where(masses > 0, masses.mean() / masses, 0.0)[:, None]
        total = masses[~held].sum() / free
        above = ~held & (masses > most * total)
        if not bool(above.any()):
            limit = torch.where(held, most * total / masses, 1.0)
            return weights * limit[:, None] if bool(held.any()) else weights
        held |= above
    raise ArithmeticError("a share can be capped once for each site")

"""The means of all cells of all sites, drawn together."""

from collections.abc import Sequence

import torch

from ddm_fed.mixture.location import Location
from ddm_fed.mixture.shrinkage import Estimates, draw_together, weighted_means


def fit_means(locations: Sequence[Location]) -> Estimates:
    """Returns the means of all cells, and the variance of their errors; see `fit_shared`.

    A mean is taken as that of its cell, plus what its site differs in from the others in all cells
    alike (its scanner, say), plus something of its own; all three are drawn together. If no cell of
    any site is known, all have the mean of all images.
    """
    plain = torch.stack([location.plain_means for location in locations])  # (K, J, D)
    variance = torch.stack([location.plain_variance for location in locations])  # (K, J)
    known = variance.isfinite()
    if not bool(known.any()):
        mass = torch.tensor([location.mass for location in locations], dtype=torch.float64)
        middle = mass @ torch.stack([location.site_mean for location in locations]) / mass.sum()
        return Estimates(middle.expand_as(plain), torch.zeros_like(variance))
    if plain.shape[1] == 1:
        return draw_together(plain, variance)
    common, _ = weighted_means(plain, variance)  # (J, D)
    residual = (plain - common).transpose(0, 1)  # (J, K, D)
    apart, precision = weighted_means(residual, variance.T)  # (K, D), (K,)
    of_site = draw_together(apart[:, None], 1 / precision[:, None])
    cells = draw_together(plain - of_site.values, variance)
    return Estimates(
        cells.values + of_site.values,
        # where a mean is known, so is what its site adds to it
        torch.where(known, cells.variances, cells.variances + of_site.variances),
    )

"""What noisy numbers say of true ones, where the noise is known. Reads released numbers alone.

Source: random effects by moments: DerSimonian and Laird 1986; the empirical Bayes reading of James
and Stein's estimator: Efron and Morris 1973; its risk: Stein 1981.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

LEAST_NOISE = 1e-12  # variance; keeps releases without noise, which tests make, finite


def positive_mean(value: float, deviation: float) -> float:
    """Returns the number expected behind `value`, a number known not to be negative plus noise.

    With no preference among positive numbers, the true one is a normal about `value` cut off at 0.
    Its mean is positive however far below 0 `value` lies, and is `value` where that is far above.

    Args:
        value: The noisy number.
        deviation: Of its noise; 0 just cuts.
    """
    if deviation <= 0:
        return max(value, 0.0)
    z = value / deviation
    if z < -100:  # where the next line would cancel; the tail of a normal is exponential there
        return deviation / -z
    below = torch.special.erfcx(torch.tensor(-z / math.sqrt(2), dtype=torch.float64))
    return value + deviation * math.sqrt(2 / math.pi) / float(below)


def shrunk_error(
    offset: Tensor, kept: Tensor, own: Tensor, common: Tensor, crossed: Tensor
) -> Tensor:
    """Returns the squared error to be expected of means that were shrunk, `(J,)`; Stein's estimate.

    A cell's plain mean x is its true mean mu plus noise of variance `own` in each of D coordinates;
    the site's mean m has noise of variance `common`, and their noises have covariance `crossed`.
    The shrunk mean is m + k (x - m) with k = 1 - D own / |x - m|^2, or 0 where that is negative.

    The offset X = x - m has noise of variance v = own - 2 crossed + common, and covariance
    c = crossed - common with the noise of m. By Stein's lemma the error |m + k X - mu|^2 is
    expected to be

        D v + (1 - k)^2 |X|^2 - 2 v q + D common + 2 c (D - q)

    with -q the divergence of (k - 1) X: q = (1 - k) (D - 2), or D where k is 0. So it is neither
    that of the plain means, D own, which shrinking has made smaller, nor nothing. With one cell
    k = 0 and X = 0, which leaves D common: that of m.

    Args:
        offset: X, `(J, D)`.
        kept: k, `(J,)`.
        own: `(J,)`.
        common: `()`.
        crossed: `(J,)`.

    Source: Stein 1981, theorem 1.
    """
    d = offset.shape[1]
    noise = own - 2 * crossed + common
    shorter = torch.where(kept > 0, (1 - kept) * (d - 2), float(d))
    of_offset = d * noise + (1 - kept) ** 2 * offset.square().sum(1) - 2 * noise * shorter
    return of_offset + d * common + 2 * (crossed - common) * (d - shorter)


class Estimates(NamedTuple):
    """Expected true values `(K, J, D)`, and the variance left in each coordinate, `(K, J)`."""

    values: Tensor
    variances: Tensor


def draw_together(values: Tensor, variances: Tensor) -> Estimates:
    """Returns what `values` say of the true ones, which sites have in common up to a spread.

    In group j the true value of site k is N(c_j, s^2 I), and `values[k, j]` is that plus noise of
    variance v_kj. The common values c_j are means weighted by precision, and s^2, one for all
    groups, is what the distances from them show beyond the noise (by moments). Then by Bayes' rule,
    with the part kept a = s^2 / (s^2 + v),

        value: c + a (x - c)            variance: a v + (1 - a)^2 var(c)

    which is x where the noise is small beside the differences between sites, and c where it is
    large or where nothing is known. So a site that drowned is like the others, not unlike all.

    Args:
        values: `(K, J, D)` of K sites in J groups.
        variances: Of the noise in each coordinate, `(K, J)`; infinite where nothing is known. What
            comes back of a group of which no site knows anything is 0, and the variance s^2.
    """
    known = variances.isfinite()
    noise = torch.where(known, variances.clamp(min=LEAST_NOISE), 0.0)  # (K, J)
    x = torch.where(known[:, :, None], values, 0.0)
    common, total = weighted_means(values, variances)
    distance = (x - common).square().mean(2)  # (K, J)
    freedom = (known.sum(0) - 1).clamp(min=0).sum()
    precision = torch.where(known, 1 / variances.clamp(min=LEAST_NOISE), 0.0)
    lever = (total - precision.square().sum(0) / total.clamp(min=LEAST_NOISE)).sum()
    excess = (precision * distance).sum() - freedom
    between = (excess / lever).clamp(min=0) if lever > 0 else torch.zeros_like(excess)
    common, total = weighted_means(values, variances + between)
    spread = torch.where(known.any(0), 1 / total, math.inf)  # (J,)
    if len(spread) > 1:  # what groups have in common says something of those that are hardly known
        groups = draw_together(common[:, None], spread[:, None])
        common, spread = groups.values[:, 0], groups.variances[:, 0]
    spread = torch.where(spread.isfinite(), spread, 0.0)
    kept = torch.where(known, between / (between + noise), 0.0)  # (K, J)
    left = torch.where(known, kept * noise, between) + (1 - kept) ** 2 * spread
    return Estimates(common + kept[:, :, None] * (x - common), left)


def weighted_means(values: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Returns means over sites by precision `(J, D)`, and the precision of each `(J,)`.

    Both are zero in a group of which no site knows anything. Arguments as for `draw_together`.
    """
    precision = torch.where(variances.isfinite(), 1 / variances.clamp(min=LEAST_NOISE), 0.0)
    x = torch.where(variances.isfinite()[:, :, None], values, 0.0)
    total = precision.sum(0)
    sums = torch.einsum("kj,kjd->jd", precision, x)
    return sums / torch.where(total > 0, total, 1.0)[:, None], total

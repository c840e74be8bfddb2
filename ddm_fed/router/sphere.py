"""Von Mises-Fisher distributions: what is Gaussian about directions.

On the unit sphere of R^d the density is C_d(kappa) exp(kappa mu.u), with
C_d(kappa) = kappa^(d/2 - 1) / ((2 pi)^(d/2) I_(d/2 - 1)(kappa)). kappa = 0 is the uniform density.

Source: Banerjee et al. 2005, Journal of Machine Learning Research 6, 1345-1382, section 2 and
eq. 4.4.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
UNDERFLOW = 1e-250  # of the scaled Bessel function: below it, digits go missing
MOST_RESULTANT = 0.99  # 1 would be a distribution at a point, which noise alone can pretend


def log_normaliser(dimension: int, concentration: Floats) -> Floats:
    """Returns log C_d(kappa) of every `concentration`, of the same shape.

    Args:
        dimension: d, at least 2.
        concentration: kappa, finite and not negative.
    """
    if dimension < 2 or not (np.isfinite(concentration) & (concentration >= 0)).all():
        raise ValueError("a direction has two dimensions or more, a concentration is 0 or more")
    order = dimension / 2 - 1
    out = np.empty(concentration.shape)
    scaled = special.ive(order, concentration)  # exp(-kappa) I(kappa), which cannot overflow
    plain = (scaled > UNDERFLOW) & (concentration > 0)
    kappa = concentration[plain]
    out[plain] = order * np.log(kappa) - np.log(scaled[plain]) - kappa
    out[~plain] = [_log_power_over_bessel(order, kappa) for kappa in concentration[~plain]]
    return out - dimension / 2 * math.log(2 * math.pi)


def concentration_of(resultant: Floats, dimension: int) -> Floats:
    """Returns the kappa at which the mean of directions has about the length `resultant`.

    kappa = r (d - r^2) / (1 - r^2), an approximation to the maximum of the likelihood.

    Args:
        resultant: Lengths of means of unit vectors, in [0, 1]; cut at MOST_RESULTANT.
        dimension: d.
    """
    r = np.clip(resultant, 0.0, MOST_RESULTANT)
    found: Floats = r * (dimension - r**2) / (1 - r**2)
    return found


def _log_power_over_bessel(order: float, kappa: float) -> float:
    """Returns log(kappa^order / I_order(kappa)) from the series of I, whose terms are positive.

    Its terms (kappa / 2)^(order + 2m) / (m! Gamma(order + m + 1)) share a factor kappa^order, so
    nothing is singular at 0. They are largest at `peak` and fall off on both sides of it.
    """
    peak = (math.hypot(order, kappa) - order) / 2
    m = np.arange(math.ceil(peak + 12 * math.sqrt(peak + 1) + 40))
    logs = special.xlogy(m, kappa**2 / 4) - special.gammaln(m + 1) - special.gammaln(order + m + 1)
    return order * math.log(2) - float(special.logsumexp(logs))

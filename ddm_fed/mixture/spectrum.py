"""From noisy directions to a covariance: the noise taken out of eigenvalues, and the shape undone.

Two things stand between the matrix that a site releases and the covariance of its images. Noise of
known size spreads the eigenvalues apart; and directions of length 1 say less of the long axes than
the images themselves would.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

LEAST_PART = 0.01  # of the mean eigenvalue: nothing is taken to be flatter
QUADRATURE, ROUNDS = 96, 60


class Spectrum(NamedTuple):
    """Eigenvalues `(..., D)`, positive and rising, and eigenvectors as columns `(..., D, D)`."""

    values: Tensor
    axes: Tensor


def denoised(matrices: Tensor, deviations: Tensor) -> Spectrum:
    """Returns the spectrum behind symmetric `matrices` of trace 1 that are known up to noise.

    The noise is normal, of deviation s on the diagonal and s / sqrt(2) off it. Of all estimates
    that keep the noisy eigenvectors, the one of least expected square error replaces eigenvalue x
    by

        x - 2 v Re g(x),    g(x) = mean over eigenvalues y of 1 / (x - y),    v = D s^2 / 2

    where D is large: it pulls eigenvalues towards where the others are dense, all of a spectrum
    that noise alone would show to one value, and leaves alone those that noise cannot explain.

    Args:
        matrices: `(..., D, D)`.
        deviations: s, `(...)`.

    Source: Bun, Allez, Bouchaud and Potters 2016, arXiv:1502.06736, section on additive noise.
    """
    d = matrices.shape[-1]
    values, axes = torch.linalg.eigh(matrices)
    power = (d * deviations.square() / 2)[..., None]  # (..., 1)
    apart = values[..., :, None] - values[..., None, :]  # (..., D, D)
    width = (2 * power.sqrt() / math.sqrt(d))[..., None].clamp(min=1e-12)
    transform = (apart / (apart.square() + width.square())).mean(-1)  # (..., D)
    clean = (values - 2 * power * transform).clamp(min=LEAST_PART / d)
    # the largest stay with their axes: order is what eigenvectors were sorted by
    clean = clean.cummax(-1).values
    return Spectrum(clean / clean.sum(-1, keepdim=True), axes)


def of_covariance(signs: Tensor) -> Tensor:
    """Returns the eigenvalues `(..., D)`, of sum 1, whose normal has sign covariance `signs`.

    The direction of a normal with eigenvalues l has, along axis i, the mean square

        s_i = E[l_i z_i^2 / sum_j l_j z_j^2] = integral over u > 0 of
              l_i / (1 + 2 l_i u) prod_j (1 + 2 l_j u)^(-1/2) du

    which is less than l_i / sum l where l_i is large. Solved by l <- l s / s(l).

    Args:
        signs: Eigenvalues of a sign covariance, `(..., D)`, positive, of sum 1.

    Source: Duerre, Tyler and Vogel 2016, arXiv:1602.04025 (the eigenvalues of the sign covariance).
    """
    target, found = signs, signs.clone()
    # u = x / (1 - x) / 2 puts all of the integral on (0, 1), where Gauss and Legendre take it
    nodes, weights = _legendre(QUADRATURE)
    u = nodes / (1 - nodes) / 2
    measure = weights / (2 * (1 - nodes) ** 2)  # (Q,)
    for _ in range(ROUNDS):
        # (..., Q, D); eigenvalues of sum 1 times D are about 1, and u then of the right size
        grown = 1 + 2 * found[..., None, :] * u[:, None]
        inner = torch.exp(-0.5 * grown.log().sum(-1)) * measure  # (..., Q)
        shown = found * torch.einsum("...q,...qd->...d", inner, 1 / grown)
        found = found * target / shown
        found = found / found.sum(-1, keepdim=True)
    return found


def _legendre(count: int) -> tuple[Tensor, Tensor]:
    """Returns nodes and weights of Gauss and Legendre on (0, 1), `(count,)` each."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(count)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)

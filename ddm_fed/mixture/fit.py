"""From released statistics to Gaussian mixtures. Post-processing: it reads noise, never images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddm_fed.mixture.fit_own import fit_own
from ddm_fed.mixture.fit_shared import fit_shared, low_rank
from ddm_fed.mixture.gaussians import GaussianMixtures
from ddm_fed.mixture.max_share import capped
from ddm_fed.mixture.messages import cell_count, component_count, own_covariances
from ddm_fed.mixture.released import SiteRelease, require_distinct
from ddm_fed.records import Plan, StatisticsSpec

FLOOR_FACTOR = 0.5  # of the noise's spectral edge; measured in docs/adr/0006
LEAST_VARIANCE = 0.1  # coefficients are not Gaussian: keeps low t from over-confidence
SMALLEST_VARIANCE = 1e-4  # of a closed-form expert: below what 8 bits of a pixel tell apart


def fit_mixtures(plan: Plan, releases: Sequence[SiteRelease]) -> GaussianMixtures:
    """Returns the Gaussian mixtures that the releases describe, as a router reads them.

    Component j of site k is N(m_kj, W_k + V_kj I): an image differs from the estimated mean m by
    the spread within its cell, and by the error of m, whose variance is V. W is trace times
    directions (`fit_shared`), its eigenvalues raised to a floor: half the edge of the spectrum
    that noise alone shows, THE SAME FOR ALL SITES. A floor of its own would let a noisier site win
    by its determinant alone. The floor is a choice, not an estimate: images are no Gaussians, and a
    fit that is broader than its trace keeps low t from over-confidence. See docs/adr/0025. Where
    every component has its own W, the noise is out of its eigenvalues already (`fit_own`).

    Raises:
        ReplayError: two releases are the same.
    """
    require_distinct(releases)
    if own_covariances(plan):
        own = fit_own(plan, releases)
        return GaussianMixtures(
            weights=capped(plan, own.weights),
            means=own.means,
            variances=own.variances.clamp(min=LEAST_VARIANCE) + own.mean_variances[:, :, None],
            axes=own.axes,
            each=component_count(plan),
        )
    moments = fit_shared(plan, releases)
    floor = max(LEAST_VARIANCE, float((FLOOR_FACTOR * moments.traces * moments.edges).max()))
    rank = plan.router.rank if isinstance(plan.router, StatisticsSpec) else None
    variances, axes = [], []
    for trace, directions, edge in zip(
        moments.traces, moments.directions, moments.edges, strict=True
    ):
        values, vectors = torch.linalg.eigh(trace * directions)
        if rank is not None:
            values = low_rank(values, rank, float(trace), float(trace * edge))
        variances.append(values.clamp(min=floor))
        axes.append(vectors[None])
    return GaussianMixtures(
        weights=capped(plan, moments.weights),
        means=moments.means,
        variances=torch.stack(variances)[:, None] + moments.mean_variances[:, :, None],
        axes=torch.stack(axes),
    )


@dataclass(frozen=True)
class ImageMixture:
    """One site's images as a Gaussian mixture: what a closed-form expert is made of; float64.

    The coefficients above the plan's `frequencies` are independent of the others and of each other,
    about 0.

    Attributes:
        weights: Mass of every component, `(J, C)`.
        means: Of coefficients about the plan's centre, `(J, C, D)`.
        variances: Eigenvalues of the covariances, `(J, C, D)`, positive.
        axes: Eigenvectors as columns, `(J, C, D, D)`.
        bands: Variance of each frequency of a band, `(J, B)`; B is 0 where none were released.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    axes: Tensor
    bands: Tensor


def fit_image_mixtures(plan: Plan, releases: Sequence[SiteRelease]) -> list[ImageMixture]:
    """Returns the images of every site as a mixture, in the order of `releases`.

    Unlike a router's, no floor keeps eigenvalues up and no error of a mean is added: a router must
    not be too sure, a sample should look like an image. What one site's mixture is may depend on
    the releases of the others, which are drawn together; on nothing else.

    Raises:
        ReplayError: two releases are the same.
    """
    require_distinct(releases)
    cells, each = cell_count(plan), component_count(plan)
    if own_covariances(plan):
        own = fit_own(plan, releases)
        weights, means, variances, axes = own.weights, own.means, own.variances, own.axes
        bands = own.bands
    else:
        shared = fit_shared(plan, releases)
        weights, means = shared.weights, shared.means
        values, vectors = torch.linalg.eigh(shared.traces[:, None, None] * shared.directions)
        variances = values[:, None].expand(-1, cells, -1)
        axes = vectors[:, None].expand(-1, cells, -1, -1)
        bands = torch.zeros((len(releases), cells, 0), dtype=torch.float64)
    d = means.shape[2]
    return [
        ImageMixture(
            weights[k].reshape(cells, each),
            means[k].reshape(cells, each, -1),
            variances[k].clamp(min=SMALLEST_VARIANCE).reshape(cells, each, -1),
            axes[k].reshape(cells, each, d, d),
            bands[k].clamp(min=SMALLEST_VARIANCE),
        )
        for k in range(len(releases))
    ]

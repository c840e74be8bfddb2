"""Moments where every Gaussian has a covariance of its own. Reads releases, never images.

Where a cell is one Gaussian, the cells of all sites are drawn together: sites that resemble one
another lend each other what their noise hides, and sites that do not, do not. Where a cell has
several, they are the site's own, divided along axes of its own, and only those of one cell are
drawn together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddm_fed.mixture.coefficients import band_sizes
from ddm_fed.mixture.components import component_radii, decode_components, symmetric
from ddm_fed.mixture.location import Location
from ddm_fed.mixture.means import fit_means
from ddm_fed.mixture.messages import (
    COMPONENT_LOCATION,
    COMPONENT_SHAPE,
    NORMS,
    SHAPE,
    component_count,
    message_named,
)
from ddm_fed.mixture.radius import radius_of
from ddm_fed.mixture.released import SiteRelease, location_of
from ddm_fed.mixture.shrinkage import Estimates, draw_together, positive_mean
from ddm_fed.mixture.spectrum import denoised, of_covariance
from ddm_fed.records import Plan, StatisticsSpec

LEAST_TRACE = 1e-3  # of the squared radius: no cell is a point


@dataclass(frozen=True)
class OwnMoments:
    """What releases say of their sites' Gaussians; M = J C of each site, cell after cell.

    Attributes:
        weights: `(K, M)`, positive.
        means: `(K, M, D)`.
        mean_variances: Of the error left in each coordinate of a mean, `(K, M)`.
        variances: Eigenvalues of the covariances, `(K, M, D)`, positive.
        axes: Eigenvectors as columns, `(K, M, D, D)`.
        bands: Variance of each frequency of a band, `(K, J, B)`; B is 0 without bands.
    """

    weights: Tensor
    means: Tensor
    mean_variances: Tensor
    variances: Tensor
    axes: Tensor
    bands: Tensor


@dataclass(frozen=True)
class _Spread:
    """The second moments of some Gaussians as released, and the noise in them; `(K, M, ...)`."""

    traces: Tensor
    trace_variances: Tensor
    directions: Tensor
    direction_variances: Tensor
    longest: Tensor  # squared radius: what no trace exceeds


def fit_own(plan: Plan, releases: Sequence[SiteRelease]) -> OwnMoments:
    """Returns the moments behind the releases.

    * Means are drawn together over sites (`fit_means`), or are those of a site's own components.
    * A trace is the mean square about the released mean, less what the error of that mean is
      expected to add, drawn together, and between 0 and the squared radius it was bounded by.
    * Directions are drawn together in the coordinates they are sent in, the noise that is left is
      taken out of their eigenvalues (`denoised`), and the eigenvalues of the covariance found whose
      directions they are (`of_covariance`).
    """
    locations = [location_of(plan, site) for site in releases]
    bands = _bands(plan, releases, locations)
    if component_count(plan) == 1:
        weights = torch.stack([location.weights for location in locations])
        means = fit_means(locations)
        # a mean of vectors that were clipped is no longer than they are
        longest = torch.stack(
            [_radii(plan, site, at) for site, at in zip(releases, locations, strict=True)]
        )[:, :, None]
        length = means.values.norm(dim=2, keepdim=True).clamp(min=1e-12)
        values = means.values * (longest / length).clamp(max=1.0)
        about = torch.stack([location.means for location in locations])  # (K, J, D)
        known = torch.stack([location.known for location in locations])
        error = torch.where(
            known,
            torch.stack([location.mean_errors for location in locations]),
            (about - values).square().sum(2) + about.shape[2] * means.variances,
        )
        spreads = [
            _spread(
                plan, SHAPE, site, location.weights, _radii(plan, site, location), location.known
            )
            for site, location in zip(releases, locations, strict=True)
        ]
        variances, axes = _covariances(plan, _stacked(spreads), error)
        return OwnMoments(weights, values, means.variances, variances, axes, bands)
    found = [
        _components_of(plan, site, location)
        for site, location in zip(releases, locations, strict=True)
    ]
    weights, centres, errors, variances, axes = (
        torch.stack(parts) for parts in zip(*found, strict=True)
    )
    return OwnMoments(weights, centres, errors, variances, axes, bands)


def _components_of(
    plan: Plan, site: SiteRelease, location: Location
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns what `OwnMoments` holds of one site but its bands, `(M, ...)` each."""
    radii = component_radii(plan, site.vectors, location, site.noise_multipliers[SHAPE])
    components = decode_components(
        plan,
        site.vectors[COMPONENT_LOCATION],
        site.noise_multipliers[COMPONENT_LOCATION],
        location,
        radii,
    )
    cells, each, d = components.means.shape
    spread = _spread(
        plan,
        COMPONENT_SHAPE,
        site,
        components.weights.flatten(),
        torch.from_numpy(radii).repeat_interleave(each),
        components.known.flatten(),
    )
    by_cell = _Spread(
        *(part.reshape(cells, each, *part.shape[1:]) for part in vars(spread).values())
    )
    variances, axes = [], []
    for cell in range(cells):  # the components of a cell are to each other what sites are
        own = _Spread(*(part[cell][:, None] for part in vars(by_cell).values()))
        error = components.mean_errors[cell][:, None]
        error = torch.where(error.isfinite(), error, 0.0)
        values, vectors = _covariances(plan, own, error)
        variances.append(values[:, 0])
        axes.append(vectors[:, 0])
    errors = components.mean_errors / d
    # of a component that drowned, the mean is its cell's: how far off says the cell's own spread
    wide = torch.stack(variances).mean(2)
    return (
        components.weights.flatten(),
        components.means.flatten(0, 1),
        torch.where(errors.isfinite(), errors, wide).flatten(),
        torch.cat(variances),
        torch.cat(axes),
    )


def _radii(plan: Plan, site: SiteRelease, location: Location) -> Tensor:
    """Returns what bounds every cell in `shape`: the radius of all coefficients, `(J,)`."""
    radius = radius_of(plan, site.vectors.get(NORMS))
    return torch.full_like(location.weights, radius)


def _spread(
    plan: Plan, name: str, site: SiteRelease, weights: Tensor, radii: Tensor, known: Tensor
) -> _Spread:
    """Returns the traces `(M,)` and directions `(M, D (D + 1) / 2)` that a message of a site says.

    Variances are infinite where a Gaussian drowned.
    """
    message, multiplier = message_named(plan, name), site.noise_multipliers[name]
    parts = message.decode(site.vectors[name])
    traces = torch.from_numpy(parts["trace"]) * radii**2 / weights
    directions = torch.from_numpy(parts["sign"]).reshape(len(weights), -1) / weights[:, None]
    noise = message.noise_std("trace", multiplier) * radii**2 / weights
    spread = message.noise_std("sign", multiplier) / weights
    return _Spread(
        traces,
        torch.where(known, noise.square(), torch.inf),
        directions,
        torch.where(known, spread.square(), torch.inf),
        radii**2,
    )


def _stacked(spreads: Sequence[_Spread]) -> _Spread:
    return _Spread(
        *(
            torch.stack(parts)
            for parts in zip(*(vars(one).values() for one in spreads), strict=True)
        )
    )


def _covariances(plan: Plan, spread: _Spread, error: Tensor) -> tuple[Tensor, Tensor]:
    """Returns eigenvalues `(K, J, D)` and axes `(K, J, D, D)` of K sites' J Gaussians.

    Args:
        plan: Gives D.
        spread: As released, `(K, J, ...)`.
        error: What the error of the released mean adds to each trace, `(K, J)`.
    """
    d = plan.data.shape[0] * plan.router.frequencies  # type: ignore[union-attr]
    seen = spread.traces - error
    noise = spread.trace_variances + 2 / d * error.square()
    traces = _positive(draw_together(seen[:, :, None], noise))
    traces = traces.clamp(min=LEAST_TRACE * spread.longest, max=spread.longest)
    directions = draw_together(spread.directions, spread.direction_variances)
    matrices = symmetric(directions.values, d)
    # a direction has length 1, whatever the noise made of their number
    lacking = (1 - matrices.diagonal(dim1=2, dim2=3).sum(2)) / d
    matrices = matrices + lacking[:, :, None, None] * torch.eye(d, dtype=torch.float64)
    parts, axes = denoised(matrices, directions.variances.sqrt())
    return traces[:, :, None] * of_covariance(parts), axes


def _bands(plan: Plan, releases: Sequence[SiteRelease], locations: Sequence[Location]) -> Tensor:
    """Returns the variance of every frequency of each band, `(K, J, B)`."""
    spec = plan.router
    if not isinstance(spec, StatisticsSpec) or not spec.bands:
        return torch.zeros((len(releases), len(locations[0].weights), 0), dtype=torch.float64)
    message, sizes = message_named(plan, SHAPE), torch.tensor(band_sizes(plan)).double()
    values, noise, longest = [], [], []
    for site, location in zip(releases, locations, strict=True):
        most = _radii(plan, site, location)[:, None] ** 2 / sizes  # (J, B)
        longest.append(most)
        scale = most / location.weights[:, None]
        energy = torch.from_numpy(message.decode(site.vectors[SHAPE])["band"])
        values.append(scale * energy.reshape(len(scale), -1))
        noise.append((scale * message.noise_std("band", site.noise_multipliers[SHAPE])).square())
    together = [
        _positive(draw_together(of_band[:, :, None], variance))
        for of_band, variance in zip(
            torch.stack(values).unbind(2), torch.stack(noise).unbind(2), strict=True
        )
    ]
    return torch.stack(together, dim=2).minimum(torch.stack(longest))


def _positive(found: Estimates) -> Tensor:
    """Returns what is expected behind values that cannot be negative, `(K, J)`."""
    values, deviations = found.values[:, :, 0], found.variances.sqrt()
    flat = [
        positive_mean(value, deviation)
        for value, deviation in zip(
            values.flatten().tolist(), deviations.flatten().tolist(), strict=True
        )
    ]
    return torch.tensor(flat, dtype=torch.float64).reshape(values.shape)

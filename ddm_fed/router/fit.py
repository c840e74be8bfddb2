"""From released statistics to a router. Post-processing: it reads noise, never images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from ddm_fed.embedding import dct_basis
from ddm_fed.errors import StateError
from ddm_fed.records import Plan, StatisticsSpec
from ddm_fed.router.base import Router
from ddm_fed.router.mixture import GaussianMixtures, MixtureRouter
from ddm_fed.router.prior import PriorRouter
from ddm_fed.router.statistics import LOCATION, SHAPE, Ints, Location, decode_location, messages

FLOOR_FACTOR = 0.5  # of the noise's spectral edge; measured in docs/adr/0006
LEAST_VARIANCE = 0.1  # coefficients are not Gaussian: keeps low t from over-confidence
PRESENT = 2.0  # deviations of the noise by which the count of a class that is there stands out
ClosedForm = Literal["prior", "mixture"]  # those that are computed from releases alone


@dataclass(frozen=True)
class SiteRelease:
    """The released vectors of one site, and the noise multiplier of each, by message name."""

    vectors: dict[str, Ints]
    noise_multipliers: dict[str, float]


def build_router(plan: Plan, kind: ClosedForm, releases: Sequence[SiteRelease]) -> Router:
    """Returns the router over the sites of `releases`, in their order.

    Args:
        plan: What was released, and about which centre.
        kind: A `mixture` release also serves a `prior` router.
        releases: One per site.

    Raises:
        StateError: `mixture` was asked for, but the plan releases counts only; or no site
            released a usable count.
    """
    if kind == "prior":
        return PriorRouter(released_weights(plan, releases))
    spec = plan.router
    if not isinstance(spec, StatisticsSpec):
        raise StateError(
            "the plan's sites release counts only, which cannot make a mixture router",
            hint='assemble with --router prior, or publish a plan with router.kind = "mixture"',
        )
    return MixtureRouter(
        fit_mixtures(plan, releases),
        dct_basis(plan.data.shape, spec.frequencies),
        centre=float(spec.centre),
        components_are_classes=bool(plan.data.classes),
    )


def released_weights(plan: Plan, releases: Sequence[SiteRelease]) -> Tensor:
    """Returns the mass of every class at every site as released, `(K, G)`, or `(K, 1)` without."""
    weights = _cover(plan, torch.stack([_location(plan, site).weights for site in releases]))
    return weights if plan.data.classes else weights.sum(1, keepdim=True)


def released_totals(plan: Plan, releases: Sequence[SiteRelease]) -> Tensor:
    """Returns how many units of every class all sites hold, as released, `(G,)`; 0 where none.

    The sum of the noisy counts is without bias, so classes that are small at every site keep their
    part. But of a class that nobody has, noise makes a count too: a class counts as held if its sum
    stands out of the noise by two deviations, or its count at one site by as much for the largest
    of as many sites. Of a class that no site holds that is said in 5 of 100 releases; one whose
    units drown everywhere can not be told from it.

    Args:
        plan: Has classes.
        releases: One per site.
    """
    message = messages(plan)[0]
    part = "cell_count" if len(plan.data.classes) > 1 else "count"
    counts = torch.stack(
        [torch.from_numpy(message.decode(site.vectors[LOCATION])[part]) for site in releases]
    )  # (K, G)
    noise = torch.tensor(
        [message.noise_std(part, site.noise_multipliers[LOCATION]) for site in releases],
        dtype=torch.float64,
    )
    totals = counts.sum(0)
    normal = NormalDist()
    largest = normal.inv_cdf(1 - (1 - normal.cdf(PRESENT)) / len(releases))
    held = totals > PRESENT * noise.square().sum().sqrt()
    held |= (counts > largest * noise[:, None]).any(0)
    return torch.where(held, totals.clamp(min=1.0), 0.0)


def fit_mixtures(plan: Plan, releases: Sequence[SiteRelease]) -> GaussianMixtures:
    """Returns the Gaussian mixtures that the releases describe.

    The cells of a site share one covariance, its trace times its sign covariance. Eigenvalues are
    raised to a floor that follows from the known noise and is THE SAME FOR ALL SITES: a floor of
    its own would let a noisier site win by its determinant alone.
    """
    fits = [_fit_site(plan, site) for site in releases]
    floor = max(LEAST_VARIANCE, *(FLOOR_FACTOR * fit.noise_edge for fit in fits))
    rank = plan.router.rank if isinstance(plan.router, StatisticsSpec) else None
    variances, axes = [], []
    for fit in fits:
        values, vectors = torch.linalg.eigh(fit.covariance)
        if rank is not None:
            values = _low_rank(values, rank, fit.trace, fit.noise_edge)
        variances.append(values.clamp(min=floor)[None] + fit.mean_variance[:, None])
        axes.append(vectors[None])
    return GaussianMixtures(
        weights=_cover(plan, torch.stack([fit.weights for fit in fits])),
        means=torch.stack([fit.means for fit in fits]),
        variances=torch.stack(variances),
        axes=torch.stack(axes),
    )


@dataclass(frozen=True)
class _SiteFit:
    weights: Tensor  # (J,)
    means: Tensor  # (J, D)
    mean_variance: Tensor  # (J,)
    trace: float
    covariance: Tensor  # (D, D)
    noise_edge: float  # largest eigenvalue that noise alone is expected to show


def _fit_site(plan: Plan, site: SiteRelease) -> _SiteFit:
    location = _location(plan, site)
    message = messages(plan)[1]
    multiplier = site.noise_multipliers[SHAPE]
    parts = {
        name: torch.from_numpy(part) for name, part in message.decode(site.vectors[SHAPE]).items()
    }
    d = location.means.shape[1]
    radius_squared = message.parts[0].sensitivity
    mean_noise = (location.weights * location.mean_variance).sum() / location.weights.sum().clamp(1)
    trace = float(parts["trace"]) / location.count - d * float(mean_noise)
    trace = min(max(trace, 0.1 * radius_squared), radius_squared)
    scale = trace / location.count
    if "square" in parts:
        sign = torch.diag(parts["square"])
        edge = largest_normal(d) * message.noise_std("square", multiplier)
    else:
        row, column = torch.triu_indices(d, d)
        upper = parts["sign"] / torch.where(row == column, 1.0, math.sqrt(2.0)).double()
        sign = torch.zeros((d, d), dtype=torch.float64)
        sign[row, column] = upper
        sign[column, row] = upper
        # symmetric Gaussian noise of deviation s, and s / sqrt(2) off the diagonal
        edge = math.sqrt(2 * d) * message.noise_std("sign", multiplier)
    return _SiteFit(
        location.weights,
        location.means,
        location.mean_variance,
        trace,
        scale * sign,
        scale * edge,
    )


def largest_normal(count: int) -> float:
    """Returns what the largest of `count` independent standard normals is expected to be.

    Blom's approximation by a quantile, within 2 % of the integral for all counts from 2 on; one
    normal alone counts as two, since its sign is not known.
    """
    count = max(count, 2)
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25))


def _low_rank(values: Tensor, rank: int, trace: float, edge: float) -> Tensor:
    """Returns eigenvalues `(D,)`, ascending, of which at most `rank` stand out of the others.

    The others become equal, and keep the trace. It is known far better than any of them: it has a
    budget of its own and needs no D^2 / 2 numbers. Of a flat spectrum, noise alone shows
    eigenvalues up to `edge` above its level; those up to there are not kept.
    """

    def level(kept: int) -> float:
        return (trace - float(values[len(values) - kept :].sum())) / (len(values) - kept)

    stand_out = (kept for kept in range(rank, 0, -1) if values[-kept] > level(kept) + edge)
    rest = len(values) - next(stand_out, 0)
    flat = torch.full((rest,), level(len(values) - rest), dtype=values.dtype)
    return torch.cat([flat, values[rest:]])


def _cover(plan: Plan, weights: Tensor) -> Tensor:
    """Returns `weights (K, J)`, where a class that drowned in every site's noise is anyone's."""
    if not plan.data.classes:  # nobody asks for one cell alone
        return weights
    return torch.where(weights.sum(0, keepdim=True) > 0, weights, 1.0)


def _location(plan: Plan, site: SiteRelease) -> Location:
    return decode_location(plan, site.vectors[LOCATION], site.noise_multipliers[LOCATION])

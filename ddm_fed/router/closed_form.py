"""From released statistics to a router. Post-processing: it reads noise, never images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from ddm_fed.embedding import dct_basis
from ddm_fed.errors import OptionError
from ddm_fed.records import Plan, StatisticsSpec
from ddm_fed.router.base import Router
from ddm_fed.router.max_share import capped
from ddm_fed.router.mixture import GaussianMixtures, MixtureRouter
from ddm_fed.router.noisy_vector import Ints
from ddm_fed.router.prior import PriorRouter
from ddm_fed.router.shrinkage import Estimates, draw_together, positive_mean, weighted_means
from ddm_fed.router.statistics import LOCATION, SHAPE, Location, decode_location, messages

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
        OptionError: `mixture` was asked for, but the plan releases counts only.
        StateError: no site released a usable count.

    Example:
        With a plan and the releases of three sites:

        >>> router = build_router(plan, "prior", releases)
        >>> shares = router.log_prior(None).exp()
        >>> len(shares), round(shares.sum().item(), 6)
        (3, 1.0)
    """
    if kind == "prior":
        return PriorRouter(released_weights(plan, releases))
    spec = plan.router
    if not isinstance(spec, StatisticsSpec):
        raise OptionError(
            "--router mixture: the plan's sites release counts only, which cannot make a mixture",
            hint='assemble with --router prior, or publish a plan with router.kind = "mixture"',
        )
    return MixtureRouter(
        fit_mixtures(plan, releases),
        dct_basis(plan.data.shape, spec.frequencies),
        centre=float(spec.centre),
        components_are_classes=bool(plan.data.classes),
    )


def released_weights(plan: Plan, releases: Sequence[SiteRelease]) -> Tensor:
    """Returns the mass of every class at every site as released, `(K, G)`, or `(K, 1)` without.

    All are positive: a class that drowned in a site's noise has part of what the known ones leave.
    No site has more of it all than the plan's `router.max_share`.
    """
    weights = capped(plan, torch.stack([_location(plan, site).weights for site in releases]))
    return weights if plan.data.classes else weights.sum(1, keepdim=True)


@dataclass(frozen=True)
class Moments:
    """What releases say of their sites' images, the noise undone as far as it is known.

    Attributes:
        weights: Mass of every cell, `(K, J)`.
        means: `(K, J, D)`.
        mean_variances: Of the error left in each coordinate of a mean, `(K, J)`.
        traces: Of the covariance within cells, `(K,)`.
        directions: Sign covariances of trace 1, `(K, D, D)`.
        edges: The largest eigenvalue that the noise left in `directions` shows alone, `(K,)`.
    """

    weights: Tensor
    means: Tensor
    mean_variances: Tensor
    traces: Tensor
    directions: Tensor
    edges: Tensor


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

    Component j of site k is N(m_kj, W_k + V_kj I): an image differs from the estimated mean m by
    the spread within its cell, and by the error of m, whose variance is V. W is trace times
    directions (`fit_moments`), its eigenvalues raised to a floor: half the edge of the spectrum
    that noise alone shows, THE SAME FOR ALL SITES. A floor of its own would let a noisier site win
    by its determinant alone. The floor is a choice, not an estimate: images are no Gaussians, and a
    fit that is broader than its trace keeps low t from over-confidence. See docs/adr/0025.
    """
    moments = fit_moments(plan, releases)
    floor = max(LEAST_VARIANCE, float((FLOOR_FACTOR * moments.traces * moments.edges).max()))
    rank = plan.router.rank if isinstance(plan.router, StatisticsSpec) else None
    variances, axes = [], []
    for trace, directions, edge in zip(
        moments.traces, moments.directions, moments.edges, strict=True
    ):
        values, vectors = torch.linalg.eigh(trace * directions)
        if rank is not None:
            values = _low_rank(values, rank, float(trace), float(trace * edge))
        variances.append(values.clamp(min=floor))
        axes.append(vectors[None])
    return GaussianMixtures(
        weights=capped(plan, moments.weights),
        means=moments.means,
        variances=torch.stack(variances)[:, None] + moments.mean_variances[:, :, None],
        axes=torch.stack(axes),
    )


def fit_moments(plan: Plan, releases: Sequence[SiteRelease]) -> Moments:
    """Returns the moments behind the releases. Images of site k and cell j are taken as (mu, W_k).

    * Means. A plain cell mean is mu_kj plus noise of known variance. Sites resemble one another,
      so the means are drawn together, which leaves an estimate m_kj and the variance V_kj in each
      of its D coordinates. A cell that drowned takes the mean that other sites know.
    * Trace. The `shape` message is not about mu but about l_kj, the means as `decode_location`
      shrinks them. Its mean square is tr W + |mu - l|^2, and what is expected of the second term is
      subtracted, cell by cell in proportion to their masses. That is Stein's estimate for means
      that were shrunk (`shrunk_error`), not the noise they had before; for a cell that drowned,
      whose l is the site's mean, it is |m - l|^2 + D V. One |mu - l|^2 strays from what is expected
      by a part sqrt(2 / D) of it, which joins the noise of the trace. Traces are drawn together,
      and a trace is positive (`positive_mean`): that is all that stands for a floor.
    * Directions. A sign covariance has trace 1, and its noise is white in the coordinates it is
      sent in; those of all sites are drawn together there.
    """
    locations = [_location(plan, site) for site in releases]
    weights = torch.stack([location.weights for location in locations])  # (K, J)
    means = _means(locations)
    about = torch.stack([location.means for location in locations])  # (K, J, D)
    d = about.shape[2]
    error = torch.where(
        torch.stack([location.known for location in locations]),
        torch.stack([location.mean_errors for location in locations]),
        (about - means.values).square().sum(2) + d * means.variances,
    )  # (K, J)
    error = ((weights * error).sum(1) / weights.sum(1)).clamp(min=0)  # (K,)
    shapes = [
        _read_shape(plan, site, location)
        for site, location in zip(releases, locations, strict=True)
    ]
    traces = _traces(plan, shapes, error, d)
    return Moments(weights, means.values, means.variances, traces, *_directions(plan, shapes, d))


def _means(locations: Sequence[Location]) -> Estimates:
    """Returns the means of all cells, and the variance of their errors; see `fit_moments`.

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


@dataclass(frozen=True)
class _Shape:
    trace: float  # mean square about the released means
    trace_deviation: float
    directions: Tensor  # sign covariance in the coordinates it is sent in
    variance: float  # of the noise in each of these


def _read_shape(plan: Plan, site: SiteRelease, location: Location) -> _Shape:
    message, multiplier = messages(plan)[1], site.noise_multipliers[SHAPE]
    trace, directions = message.parts
    parts = message.decode(site.vectors[SHAPE])
    return _Shape(
        float(parts[trace.name][0]) / location.mass,
        message.noise_std(trace.name, multiplier) / location.mass,
        torch.from_numpy(parts[directions.name]) / location.mass,
        (message.noise_std(directions.name, multiplier) / location.mass) ** 2,
    )


def _traces(plan: Plan, shapes: Sequence[_Shape], error: Tensor, d: int) -> Tensor:
    """Returns the trace of every W, `(K,)`, given the expected |mu - l|^2 of every site."""
    largest = messages(plan)[1].parts[0].sensitivity
    seen = torch.tensor([shape.trace for shape in shapes], dtype=torch.float64) - error
    noise = torch.tensor([shape.trace_deviation for shape in shapes], dtype=torch.float64)
    variance = noise**2 + 2 / d * error**2
    found = draw_together(seen[:, None, None], variance[:, None])
    values, deviations = found.values[:, 0, 0], found.variances[:, 0].sqrt()
    traces = [
        positive_mean(value, deviation)
        for value, deviation in zip(values.tolist(), deviations.tolist(), strict=True)
    ]
    return torch.tensor(traces, dtype=torch.float64).clamp(max=largest)


def _directions(plan: Plan, shapes: Sequence[_Shape], d: int) -> tuple[Tensor, Tensor]:
    """Returns sign covariances of trace 1, `(K, D, D)`, and their noise's spectral edge, `(K,)`."""
    found = draw_together(
        torch.stack([shape.directions for shape in shapes])[:, None],
        torch.tensor([[shape.variance] for shape in shapes], dtype=torch.float64),
    )
    values, deviations = found.values[:, 0], found.variances[:, 0].sqrt()
    if messages(plan)[1].parts[1].name == "square":
        signs, edges = torch.diag_embed(values), largest_normal(d) * deviations
    else:
        row, column = torch.triu_indices(d, d)
        upper = values / torch.where(row == column, 1.0, math.sqrt(2.0)).double()
        signs = torch.zeros((len(values), d, d), dtype=torch.float64)
        signs[:, row, column] = upper
        signs[:, column, row] = upper
        # symmetric Gaussian noise of deviation s, and s / sqrt(2) off the diagonal
        edges = math.sqrt(2 * d) * deviations
    lacking = (1 - signs.diagonal(dim1=1, dim2=2).sum(1)) / d
    return signs + lacking[:, None, None] * torch.eye(d, dtype=torch.float64), edges


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


def _location(plan: Plan, site: SiteRelease) -> Location:
    return decode_location(plan, site.vectors[LOCATION], site.noise_multipliers[LOCATION])

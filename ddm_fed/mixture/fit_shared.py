"""Moments where all cells of a site share one covariance. Reads releases, never images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from ddm_fed.mixture.components import symmetric
from ddm_fed.mixture.location import Location
from ddm_fed.mixture.means import fit_means
from ddm_fed.mixture.messages import SHAPE, message_named
from ddm_fed.mixture.released import SiteRelease, location_of
from ddm_fed.mixture.shrinkage import draw_together, positive_mean
from ddm_fed.records import Plan


@dataclass(frozen=True)
class SharedMoments:
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


def fit_shared(plan: Plan, releases: Sequence[SiteRelease]) -> SharedMoments:
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
    locations = [location_of(plan, site) for site in releases]
    weights = torch.stack([location.weights for location in locations])  # (K, J)
    means = fit_means(locations)
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
    return SharedMoments(
        weights, means.values, means.variances, traces, *_directions(plan, shapes, d)
    )


@dataclass(frozen=True)
class _Shape:
    trace: float  # mean square about the released means
    trace_deviation: float
    directions: Tensor  # sign covariance in the coordinates it is sent in
    variance: float  # of the noise in each of these


def _read_shape(plan: Plan, site: SiteRelease, location: Location) -> _Shape:
    message, multiplier = message_named(plan, SHAPE), site.noise_multipliers[SHAPE]
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
    largest = message_named(plan, SHAPE).parts[0].sensitivity
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
    if message_named(plan, SHAPE).parts[1].name == "square":
        signs, edges = torch.diag_embed(values), largest_normal(d) * deviations
    else:
        signs = symmetric(values, d)
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


def low_rank(values: Tensor, rank: int, trace: float, edge: float) -> Tensor:
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

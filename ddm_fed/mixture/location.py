"""What a `location` message says of its site: how many units, in which cells, about which means.

Post-processing: it reads released numbers alone, and costs no privacy.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddm_fed.mixture.messages import (
    LOCATION,
    message_named,
    own_covariances,
)
from ddm_fed.mixture.noisy_vector import Ints, Message
from ddm_fed.mixture.radius import radius_of
from ddm_fed.mixture.shrinkage import positive_mean, shrunk_error
from ddm_fed.records import Plan, StatisticsSpec

LEAST_COUNT = 2.0  # deviations of the noise; below, a cell is not told from an empty one


@dataclass(frozen=True)
class Location:
    """What a `location` message says of its site, after the noise.

    Attributes:
        count: Number of units (images, or patients) as released, at least 1.
        mass: The number of units to be expected behind it; positive.
        weights: Mass of every cell, `(J,)`, positive. Cells that drown in the noise share what the
            others leave of the site's number: which of them it is in cannot be known, that it is
            somewhere can. Cells of anchors sum to `mass`, since a site's mass must not depend on
            how many of them drown.
        known: Whether a cell stands out of the noise, `(J,)`.
        means: Mean of every cell, `(J, D)`, shrunk towards the site's mean by the known noise: what
            the `shape` message is about.
        mean_errors: Squared distance to be expected between these and the true means, `(J,)`;
            anything where a cell is not known.
        plain_means: Those of the message, not shrunk, `(J, D)`; anything where a cell is not known.
        plain_variance: Variance of the noise in each coordinate of a plain mean, `(J,)`; infinite
            where a cell is not known.
        site_mean: Mean of all images, `(D,)`.
        site_variance: Variance of the noise in each coordinate of it.
    """

    count: float
    mass: float
    weights: Tensor
    known: Tensor
    means: Tensor
    mean_errors: Tensor
    plain_means: Tensor
    plain_variance: Tensor
    site_mean: Tensor
    site_variance: float


def decode_location(
    plan: Plan, vector: Ints, noise_multiplier: float, norms: Ints | None = None
) -> Location:
    """Returns what the `location` vector of a site says. Post-processing: costs no privacy.

    Args:
        plan: What was released.
        vector: The integers.
        noise_multiplier: Of their noise.
        norms: The vector of the `norms` message, where the plan has one.
    """
    message = message_named(plan, LOCATION)
    parts = {name: torch.from_numpy(part) for name, part in message.decode(vector).items()}
    count = max(1.0, float(parts["count"]))
    mass = positive_mean(float(parts["count"]), message.noise_std("count", noise_multiplier))
    weights, known = _masses(plan, message, parts, mass, noise_multiplier)
    sums, deviation = torch.zeros((len(weights), 0), dtype=torch.float64), 0.0
    if "cell_sum" in parts:
        unit = radius_of(plan, norms) if own_covariances(plan) else 1.0
        sums = unit * parts["cell_sum"].reshape(len(weights), -1)  # (J, D)
        deviation = unit * message.noise_std("cell_sum", noise_multiplier)
    site_mean = sums.sum(0) / count
    counts = parts["cell_count"] if "cell_count" in parts else torch.tensor([count]).double()
    sizes = torch.where(known, counts, 0.0).clamp(min=1.0)[:, None]
    plain = sums / sizes
    offset = plain - site_mean
    # James-Stein: keep of a cell's own offset what its noise cannot explain. The site and whoever
    # reads its release must agree on these means to the bit, for the shape is about them.
    noise_power = sums.shape[1] * (deviation / sizes) ** 2  # (J, 1)
    power = offset.square().sum(1, keepdim=True).clamp(min=1e-12)
    kept = torch.where(known[:, None], (1 - noise_power / power).clamp(min=0.0), 0.0)
    means = site_mean + kept * offset
    if own_covariances(plan) and means.shape[1]:
        # a mean of vectors that were clipped is no longer than they are
        norm = means.norm(dim=1, keepdim=True).clamp(min=1e-12)
        means = means * (radius_of(plan, norms) / norm).clamp(max=1.0)
    own = (deviation / sizes[:, 0]) ** 2
    common = torch.tensor(len(weights) * (deviation / count) ** 2, dtype=torch.float64)
    crossed = deviation**2 / (sizes[:, 0] * count)
    return Location(
        count=count,
        mass=mass,
        weights=weights,
        known=known,
        means=means,
        mean_errors=shrunk_error(offset, kept[:, 0], own, common, crossed),
        plain_means=plain,
        plain_variance=torch.where(known, own, math.inf),
        site_mean=site_mean,
        site_variance=float(common),
    )


def _masses(
    plan: Plan, message: Message, parts: dict[str, Tensor], mass: float, noise_multiplier: float
) -> tuple[Tensor, Tensor]:
    """Returns the mass of every cell `(J,)`, and whether it stands out of the noise `(J,)`."""
    if "cell_count" not in parts:
        return torch.tensor([mass], dtype=torch.float64), torch.ones(1, dtype=torch.bool)
    counts, noise = parts["cell_count"], message.noise_std("cell_count", noise_multiplier)
    known = counts > LEAST_COUNT * noise
    weights, drowned = torch.where(known, counts, 0.0), int((~known).sum())
    if drowned:
        # never zero: a cell whose count was lost may still have images, and a mass of zero would
        # make them impossible, at every noise level
        deviation = math.hypot(
            message.noise_std("count", noise_multiplier), noise * math.sqrt(len(known) - drowned)
        )
        left = positive_mean(float(parts["count"]) - float(weights.sum()), deviation)
        weights = torch.where(known, counts, left / drowned)
    if isinstance(plan.router, StatisticsSpec) and plan.router.anchors:
        weights = weights * (mass / weights.sum())
    return weights, known

"""What one site released, and how many units of which class that makes."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from ddm_fed.errors import ReplayError
from ddm_fed.mixture.location import Location, decode_location
from ddm_fed.mixture.max_share import capped
from ddm_fed.mixture.messages import LOCATION, NORMS, message_named
from ddm_fed.mixture.noisy_vector import Ints
from ddm_fed.records import Plan

PRESENT = 2.0  # deviations of the noise by which the count of a class that is there stands out


@dataclass(frozen=True)
class SiteRelease:
    """The released vectors of one site, and the noise multiplier of each, by message name."""

    vectors: Mapping[str, Ints]
    noise_multipliers: Mapping[str, float]


def require_distinct(releases: Sequence[SiteRelease]) -> None:
    """Refuses two releases of the same numbers: one site would count twice among the others.

    Noise of many numbers is never the same twice, whatever the images are.

    Raises:
        ReplayError: naming the places of both, from 0.
    """
    places: dict[bytes, int] = {}
    for place, site in enumerate(releases):
        digest = hashlib.sha256()  # a release may have hundreds of megabytes
        for name in sorted(site.vectors):
            digest.update(site.vectors[name].tobytes())
        first = places.setdefault(digest.digest(), place)
        if first != place:
            raise ReplayError(
                f"the sites at {first} and {place} released the same numbers: one site is counted "
                "twice",
                hint="a release was copied, or is pooled twice: leave one of them out, and ask the "
                "people of both",
            )


def location_of(plan: Plan, site: SiteRelease) -> Location:
    """Returns what the `location` message of a site says."""
    return decode_location(
        plan,
        site.vectors[LOCATION],
        site.noise_multipliers[LOCATION],
        site.vectors.get(NORMS),
    )


def released_weights(plan: Plan, releases: Sequence[SiteRelease]) -> Tensor:
    """Returns the mass of every class at every site as released, `(K, G)`, or `(K, 1)` without.

    All are positive: a class that drowned in a site's noise has part of what the known ones leave.
    No site has more of it all than the plan's `router.max_share`.
    """
    weights = capped(plan, torch.stack([location_of(plan, site).weights for site in releases]))
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
    message = message_named(plan, LOCATION)
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

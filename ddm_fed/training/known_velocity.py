"""What a site's release says of the velocity of its images, of which only the rest is learned.

It costs nothing because it follows from the release. Made of the images, it would put numbers
into the training that nobody paid for, and no test of a step would show it. So it is made again
from the file of the release, where no images are at hand: before a training, and for its proof.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ddm_fed.errors import MechanismError
from ddm_fed.flows import NO_CLASS, ClassCondition, VelocityModel
from ddm_fed.mixture import MixtureVelocity, SiteRelease, fit_image_mixtures, router_events
from ddm_fed.records import Plan
from ddm_fed.storage.files import open_regular
from ddm_fed.storage.tensors import read_own_tensors

ASKED = 64
CLOSE = 1e-4  # of the largest value: two processors may round differently


@dataclass(frozen=True)
class KnownVelocity:
    """A velocity that is known already, and the release that it follows from.

    Attributes:
        velocity: Of the release's mixture.
        release: The file of the router's statistics, as it leaves.
        sha256: Digest of the release, by which a checkpoint knows it again.
    """

    velocity: VelocityModel
    release: Path
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        with open_regular(self.release) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        object.__setattr__(self, "sha256", digest)


def released_velocity(release: Path, plan: Plan) -> MixtureVelocity:
    """Returns what the file of a release says of the velocity, for a network to add to."""
    noise = {name: float(event.noise_multiplier) for name, event in router_events(plan).items()}
    (mixture,) = fit_image_mixtures(plan, [SiteRelease(read_own_tensors(release), noise)])
    return MixtureVelocity(plan, mixture, alone=False)


@torch.no_grad()
def require_released(known: KnownVelocity, plan: Plan) -> None:
    """Refuses a known velocity that is not what its release says.

    Args:
        known: As it will be learned beside.
        plan: What was released.

    Raises:
        MechanismError: it was made of something else.
    """
    said = released_velocity(known.release, plan)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((ASKED, *plan.data.shape), generator=generator)
    t = torch.rand(ASKED, generator=generator)
    condition = None
    if plan.data.classes:
        labels = torch.arange(ASKED) % (len(plan.data.classes) + 1)
        condition = ClassCondition(torch.where(labels < len(plan.data.classes), labels, NO_CLASS))
    expected, found = said(x, t, condition), known.velocity(x, t, condition)
    if not torch.allclose(found, expected, rtol=0, atol=CLOSE * float(expected.abs().max())):
        raise MechanismError(
            "the known velocity that a network would add to is not what the release says: it was "
            "made of something that was not paid for",
            hint="nothing was trained; please report it with the plan's [router] and [expert]",
        )

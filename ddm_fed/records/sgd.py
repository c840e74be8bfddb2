"""`[privacy.sgd]` of a plan: how experts and heads are trained with noise."""

from decimal import ROUND_FLOOR, Decimal
from typing import Annotated

from pydantic import Field, StringConstraints

from ddm_fed.records.base import Count, Epsilon, Number, Positive, Record

Trainable = Annotated[str, StringConstraints(pattern=r"^(all|last-[1-9][0-9]?|lora-[1-9][0-9]?)$")]


class HeadSgdSpec(Record):
    """How much of the total a head takes, as if alone, and how its gradients are clipped."""

    epsilon: Epsilon
    clip_norm: Positive = Decimal(1)
    draws: Annotated[int, Field(ge=1, le=64)] = 4


class CentralSpec(Record):
    """Noisy means of a site's images, class by class, on which an expert is trained first.

    In each of `images` rounds, every unit is seen with the probability `batch_size / units`, and
    brings the mean of its images about the pixel value `centre`, no longer than `radius`. The
    expert then takes `steps` steps on what came of it, without noise, before DP-SGD goes on.
    """

    epsilon: Epsilon
    batch_size: Count
    images: Annotated[int, Field(ge=1, le=64)] = 1
    centre: Annotated[Number, Field(ge=-1, le=1)] = Decimal(0)
    radius: Positive
    steps: Annotated[int, Field(ge=1, le=100_000)] = 200


class SgdSpec(Record):
    """How experts, and heads, are trained with noise (DP-SGD).

    `epsilon` is what a site spends under this plan on everything together: the router's release,
    the head, the central images, and the expert, whose noise follows from what the others leave.
    `units` is a public guess of how many units a site has: in a step, each unit of any site is seen
    with the probability `training.batch_size / units`. Nothing here may depend on a site's images.
    """

    epsilon: Epsilon
    units: Count
    clip_norm: Positive
    clip_norm_end: Positive | None = None
    draws: Annotated[int, Field(ge=1, le=256)] = 8
    trainable: Trainable = "all"
    head: HeadSgdSpec | None = None
    central: CentralSpec | None = None

    def sampling_rate(self, batch_size: int) -> Decimal:
        """Returns the probability that a unit is in a step, rounded down to six places."""
        return (Decimal(batch_size) / self.units).quantize(Decimal("0.000001"), ROUND_FLOOR)

"""Whether an expert denoises the images it was trained on better than others.

The attack compares an image's denoising loss with a threshold. Losses are taken at small times,
where x_t is nearly the image and only the details are asked for that a network cannot know unless
it has seen them; at large times all images are alike. Every image is tried with the same times and
the same noise, so that draws which are harder than others are so for all. A reference, another
expert that was not trained on the images, says how hard an image is by itself.

What comes out is a statistic of private images without any noise: it stays at the site. It depends
on which members and controls were at hand, and no coin decided who became a member, so there is no
bound of epsilon in it. A low score means that this attack fails, not that the expert is private.

Source: Yeom et al. 2018, arXiv:1709.01604 (threshold on the loss); Matsumoto et al. 2023,
arXiv:2302.03262 (of a diffusion model, by time); rates at few false alarms: Carlini et al. 2022,
arXiv:2112.03570.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from torch import Tensor

from ddm_fed.auditing.rates import Rate, clopper_pearson
from ddm_fed.evaluation import Proportion
from ddm_fed.flows import ClassCondition, Condition, VelocityModel, denoising_loss, rows_of

TIMES = (0.15, 0.25)  # t = 0 is the image
DRAWS_PER_TIME = 8
FALSE_POSITIVE_RATE = 0.01
ROWS_AT_ONCE = 256  # bounds memory
NORMAL_QUANTILE = 1.959963984540054  # of 95 %, two-sided
TINY = 1e-12

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Draws:
    """Times and noise at which every image is tried.

    Attributes:
        times: `(J,)`, each in (0, 1].
        noise: Standard normal, `(J, C, H, W)`.
    """

    times: Tensor
    noise: Tensor

    @classmethod
    def at(
        cls,
        shape: tuple[int, int, int],
        generator: torch.Generator,
        *,
        times: tuple[float, ...] = TIMES,
        per_time: int = DRAWS_PER_TIME,
    ) -> Self:
        """Returns `per_time` draws at each of `times` for images of `shape`."""
        chosen = torch.tensor(times).repeat_interleave(per_time)
        return cls(chosen, torch.randn(len(chosen), *shape, generator=generator))


@dataclass(frozen=True)
class LabelledImages:
    """Images that an expert may have seen.

    Attributes:
        images: In [-1, 1], `(N, C, H, W)`.
        labels: Classes the expert is asked for, `(N,)`, or None.
        condition: What it is asked for instead, N rows, where that are no classes.
    """

    images: Tensor
    labels: Tensor | None = None
    condition: Condition | None = None


class Area(NamedTuple):
    """How probable a random member's score is above a random control's, with an interval."""

    value: float
    low: float
    high: float


class Membership(NamedTuple):
    """How well the attack tells members from controls.

    `true_positives`: share of members above a threshold that at most `false_positive_rate` of the
    controls exceed, with a Clopper-Pearson interval that takes the threshold as given;
    `false_positives` counts the controls that do. `calibrated`: by a reference.
    """

    area: Area
    true_positives: Proportion
    false_positives: int
    false_positive_rate: float
    members: int
    controls: int
    draws: int
    calibrated: bool


def measure_membership(
    expert: VelocityModel,
    members: LabelledImages,
    controls: LabelledImages,
    draws: Draws,
    *,
    reference: VelocityModel | None = None,
) -> Membership:
    """Returns how well images an expert was trained on are told from others by their loss.

    Args:
        expert: As a velocity of the linear path.
        members: That it was trained on.
        controls: That it was not, from the same source.
        draws: Shared by all images.
        reference: Was trained on neither; then the score is the ratio of both losses.

    Raises:
        ValueError: no members, or no controls.
    """
    scores = [
        membership_scores(expert, images, draws, reference=reference)
        for images in (members, controls)
    ]
    return compare(*scores, draws=len(draws.times), calibrated=reference is not None)


@torch.no_grad()
def membership_scores(
    expert: VelocityModel,
    images: LabelledImages,
    draws: Draws,
    *,
    reference: VelocityModel | None = None,
) -> Floats:
    """Returns a score per image, `(N,)`, that is higher for what was probably trained on.

    It is the logarithm of one over the mean loss, in units of the reference's loss.

    Args:
        expert: As a velocity of the linear path.
        images: To score.
        draws: Shared by all images.
        reference: Says how hard an image is by itself.
    """
    score = -_log_losses(expert, images, draws)
    return score if reference is None else score + _log_losses(reference, images, draws)


def _log_losses(expert: VelocityModel, images: LabelledImages, draws: Draws) -> Floats:
    told = images.condition
    if told is None and images.labels is not None:
        told = ClassCondition(images.labels)
    blocks = []
    for start in range(0, len(images.images), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        x_0 = images.images[rows]
        condition = rows_of(told, rows)
        total = torch.zeros(len(x_0), dtype=torch.float64)
        for time, noise in zip(draws.times, draws.noise, strict=True):
            t = time.to(x_0).expand(len(x_0))
            eps = noise.to(x_0).expand_as(x_0)
            total += denoising_loss(expert, x_0, eps, t, condition).double().cpu()
        blocks.append((total / len(draws.times)).clamp(min=TINY).log())
    return torch.cat(blocks).numpy() if blocks else np.zeros(0)


def compare(
    members: Floats,
    controls: Floats,
    *,
    draws: int,
    calibrated: bool,
    false_positive_rate: float = FALSE_POSITIVE_RATE,
) -> Membership:
    """Returns how well scores tell members from controls.

    Args:
        members: Scores of what was trained on, `(M,)`.
        controls: Scores of what was not, `(N,)`.
        draws: How many were averaged.
        calibrated: Whether by a reference.
        false_positive_rate: Share of the controls that may exceed the threshold.

    Raises:
        ValueError: no members, or no controls.
    """
    if not (len(members) and len(controls)):
        raise ValueError("needs images that were trained on and images that were not")
    allowed = math.floor(false_positive_rate * len(controls))
    threshold = np.sort(controls)[::-1][allowed]
    hits = int((members > threshold).sum())
    return Membership(
        area=area_under_curve(members, controls),
        true_positives=clopper_pearson(Rate(hits, len(members))),
        false_positives=int((controls > threshold).sum()),
        false_positive_rate=false_positive_rate,
        members=len(members),
        controls=len(controls),
        draws=draws,
        calibrated=calibrated,
    )


def area_under_curve(positive: Floats, negative: Floats) -> Area:
    """Returns the probability that a positive exceeds a negative, and its 95 % interval.

    A tie counts as half. With A the estimate, the interval holds every A' for which (A - A')^2 is
    at most z^2 times the variance that Hanley and McNeil give for A', both of whose numbers are
    replaced by their mean. Unlike one about A it does not vanish where A is 0 or 1.

    Args:
        positive: Scores, `(M,)`.
        negative: Scores, `(N,)`.

    Source: Newcombe 2006, doi:10.1002/sim.2324; Hanley and McNeil 1982,
    doi:10.1148/radiology.143.1.7063747.
    """
    ordered, count = np.sort(negative), len(positive) * len(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    value = float(below.sum()) / (2 * count)
    others = (len(positive) + len(negative)) / 2 - 1

    def excess(true: float) -> float:
        spread = 1 + others * ((1 - true) / (2 - true) + true / (1 + true))
        return (value - true) ** 2 - NORMAL_QUANTILE**2 * true * (1 - true) * spread / count

    # 0 and 1 solve the equation as well, where they are the estimate
    low = brentq(excess, 0.0, min(value, 1 - TINY)) if value > 0 else 0.0
    high = brentq(excess, max(value, TINY), 1.0) if value < 1 else 1.0
    return Area(value, float(low), float(high))

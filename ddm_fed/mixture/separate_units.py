"""Whether a message is a sum of what single units add, each of bounded length, and nothing else.

A sensitivity is proved of sums whose terms depend on one unit each and on what was released before.
A cell, a component or a radius that follows from the images without noise breaks this, and noise
does not show it. Here the real images are asked: what two halves make adds up to what both make
together, and so does what single units make, to the last bit, since it is integers; and no unit
alone adds more than the sensitivity.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from ddm_fed.errors import MechanismError
from ddm_fed.mixture.noisy_vector import Ints, Message
from ddm_fed.privacy import Finding, ImageSet, Private

MOST_UNITS = 400  # that are divided into halves: a choice made from images shows with fewer
LONE_UNITS = 8

Exact = Callable[[ImageSet], Ints]
"""`images -> statistic` of a message without noise, about the vectors that were released before."""


def require_separate_units(
    data: Private[ImageSet],
    statistic: Private[Ints],
    again: Private[Ints],
    message: Message,
    exact: Exact,
) -> None:
    """Refuses to release a message whose sensitivity does not hold.

    Args:
        data: The site's images.
        statistic: That noise is to be added to, `(n,)`.
        again: The same about what was released before, made once more.
        message: What is released.
        exact: Makes the statistic of other images.

    Raises:
        MechanismError: it is about something that was not released, or is no sum of what single
            units add.
    """
    findings = [
        Finding(
            "what the message is about",
            bool(np.array_equal(statistic.reveal(), again.reveal())),
            "another statistic than about the vectors released before",
            "the vectors released before, and nothing else",
        ),
        *examine_units(data, message, exact),
    ]
    for finding in findings:
        if not finding.passed:
            raise MechanismError(
                f"the release `{message.name}` does not keep its promise: {finding.name}: found "
                f"{finding.found}, expected {finding.expected}",
                hint="nothing was spent on it and it was not released; please report it with the "
                "plan's [router]",
            )


def examine_units(data: Private[ImageSet], message: Message, exact: Exact) -> list[Finding]:
    """Returns what tests of some of the site's units find about a message.

    Args:
        data: The site's images.
        message: What is released.
        exact: Makes its statistic of some images.
    """
    images = data.reveal()
    drawn = np.random.default_rng().permutation(images.unit_count)
    chosen = torch.from_numpy(drawn[:MOST_UNITS])

    def of(units: torch.Tensor) -> Ints:
        return exact(images.of_units(units))

    few = chosen[:LONE_UNITS]
    lone = [of(unit) for unit in torch.split(few, 1)]
    halves = [of(half) for half in torch.tensor_split(chosen, 2)]
    adds_up = all(
        np.array_equal(of(together), np.sum(apart, axis=0))
        for together, apart in ((few, lone), (chosen, halves))
        if len(together)
    )
    longest = max(map(_norm, lone), default=0.0)
    bound = message.l2_sensitivity
    return [
        Finding(
            f"sum of single units: {message.name}",
            adds_up,
            "the sum of its parts" if adds_up else "something else than the sum of its parts",
            "the sum of its parts",
        ),
        Finding(
            f"length of single units: {message.name}",
            longest <= bound,
            f"{longest / bound:.4f} of the sensitivity" if longest > bound else "within the bound",
            "at most the sensitivity",
        ),
    ]


def _norm(vector: Ints) -> float:
    return math.sqrt(sum(value**2 for value in vector.tolist()))

"""Intervals of counted things."""

import math
from typing import NamedTuple

LEVEL = 0.95
NORMAL_QUANTILE = 1.959963984540054  # of LEVEL, two-sided


class Proportion(NamedTuple):
    """`hits` of `total`, with the Wilson interval of what they estimate."""

    value: float
    low: float
    high: float
    hits: int
    total: int


def proportion(hits: int, total: int, *, quantile: float = NORMAL_QUANTILE) -> Proportion:
    """Returns the proportion and its Wilson interval, by default of 95 %.

    Unlike the textbook interval it stays in [0, 1] and does not vanish at 0 or `total` hits.

    Raises:
        ValueError: nothing was counted, or more hits than things.

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    if not 0 <= hits <= total or total == 0:
        raise ValueError(f"{hits} of {total} is no proportion")
    value, square = hits / total, quantile**2
    centre = (value + square / (2 * total)) / (1 + square / total)
    half = (
        quantile
        / (1 + square / total)
        * math.sqrt(value * (1 - value) / total + square / (4 * total**2))
    )
    return Proportion(value, max(0.0, centre - half), min(1.0, centre + half), hits, total)

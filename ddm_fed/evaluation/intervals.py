"""Intervals of counted things, by SciPy."""

from typing import NamedTuple

LEVEL = 0.95


class Proportion(NamedTuple):
    """`hits` of `total`, with the Wilson interval of what they estimate."""

    value: float
    low: float
    high: float
    hits: int
    total: int


def proportion(hits: int, total: int, *, level: float = LEVEL) -> Proportion:
    """Returns the proportion and its Wilson interval, by default of 95 %.

    Unlike the textbook interval it stays in [0, 1] and does not vanish at 0 or `total` hits.

    Raises:
        ValueError: nothing was counted, or more hits than things.

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    from scipy.stats import binomtest

    found = binomtest(hits, total).proportion_ci(level, method="wilson")
    return Proportion(hits / total, float(found.low), float(found.high), hits, total)

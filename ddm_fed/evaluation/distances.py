"""Euclidean distances between many rows, a block at a time."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Rows = NDArray[np.floating | np.integer]
ROWS_AT_ONCE = 1024


class Nearest(NamedTuple):
    """Distance to the nearest row and which it is, for each of some rows."""

    distance: Floats
    row: NDArray[np.integer]


def distances(a: Rows, b: Rows) -> Floats:
    """Returns distances between the rows of `a`, `(N, F)`, and of `b`, `(M, F)`, as `(N, M)`.

    In float64: the difference of large squares would lose what tells near copies apart.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    squared = np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T
    found: Floats = np.sqrt(squared.clip(min=0))
    return found


def nearest(a: Rows, b: Rows) -> Nearest:
    """Returns the nearest row of `b`, `(M, F)`, to each row of `a`, `(N, F)`."""
    found = Nearest(np.full(len(a), np.inf), np.zeros(len(a), np.int64))
    for top in range(0, len(a), ROWS_AT_ONCE):
        rows = slice(top, top + ROWS_AT_ONCE)
        for left in range(0, len(b), ROWS_AT_ONCE):
            far = distances(a[rows], b[left : left + ROWS_AT_ONCE])
            index = far.argmin(1)
            least = far[np.arange(len(far)), index]
            closer = least < found.distance[rows]
            found.distance[rows][closer] = least[closer]
            found.row[rows][closer] = left + index[closer]
    return found

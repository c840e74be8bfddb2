"""Euclidean distances between many rows, by scikit-learn, which needs memory for a block only."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Rows = NDArray[np.floating | np.integer]


class Nearest(NamedTuple):
    """Distance to the nearest row and which it is, for each of some rows."""

    distance: Floats
    row: NDArray[np.integer]


def nearest(a: Rows, b: Rows) -> Nearest:
    """Returns the nearest row of `b`, `(M, F)`, to each row of `a`, `(N, F)`.

    Distances are computed in float64 whatever the rows are: the difference of large squares would
    lose what tells near copies apart.
    """
    from sklearn.metrics import pairwise_distances_argmin_min

    row, distance = pairwise_distances_argmin_min(_floats(a), _floats(b))
    return Nearest(distance, row)


def _floats(rows: Rows) -> Floats:
    """Returns rows that scikit-learn takes as they are; bytes would become float64 as a whole."""
    floats: Floats = rows.astype(np.result_type(rows.dtype, np.float16), copy=False)
    return floats

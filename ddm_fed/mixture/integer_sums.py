"""Exact sums of what images add to a message, as integers: no order and no block changes them."""

from collections.abc import Callable

import numpy as np

from ddm_fed.mixture.noisy_vector import Floats, Ints, Message

ROWS_AT_ONCE = 1024  # bounds memory


def integer_sum(
    message: Message,
    count: int,
    contribution: Callable[[slice], dict[str, Floats]],
    weights: Floats | None,
) -> Ints:
    """Returns the exact sum over images of their weighted contributions, rounded towards zero."""
    total = np.zeros(message.size, dtype=np.int64)
    for start in range(0, count, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        values = contribution(rows)
        weighted = np.concatenate(
            [values[part.name] * part.weight for part in message.parts], axis=1
        )
        total += truncated(weighted, None if weights is None else weights[rows]).sum(axis=0)
    return total


def truncated(weighted: Floats, weights: Floats | None) -> Ints:
    """Returns integer contributions of images, `(n, m)`: `weighted` times weights, cut towards 0.

    Of a patient with contributions c_1 to c_m, which `weights` multiply by w = fl(1/m), each image
    adds trunc(fl(w c_i)). Truncation lengthens no coordinate, so the triangle inequality gives

        |sum trunc(fl(w c_i))| <= sum |fl(w c_i)| <= m (1 + u) w max |c_i| <= (1 + u)^2 max |c_i|

    with u = 2^-53, because w <= (1 + u) / m. (Where fl(w c_i) underflows it is cut to 0.) One image
    alone has |c_i| <= GRID up to float error, and the two roundings add less than 2^-31 of a step:
    the one step of `l2_sensitivity` covers both. Integers are summed exactly, so blocks and order
    do not matter. Truncation takes less than one step off an image whatever its weight: together
    less than N steps, as without weights; the noise is in the order of GRID steps.
    """
    if weights is not None:
        weighted = weighted * weights[:, None]
    return np.trunc(weighted).astype(np.int64)

"""Images of two sets with classes in the same proportion, so that the mix of classes is not judged.

Which classes are drawn is decided by whoever draws; how well each is drawn is what figures are to
tell. A perfect sampler that draws every class alike is far from real images that have a prevalence.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]


class Matched(NamedTuple):
    """Rows of two sets, ascending, whose classes are in proportion.

    `apart`: total variation between the class shares of the whole sets, in [0, 1]. `unmatched`:
    classes of the drawn set of which there is no real image, whose rows are left out.
    """

    real: NDArray[np.int64]
    drawn: NDArray[np.int64]
    apart: float
    unmatched: tuple[int, ...]


def matched_by_class(
    real: Labels, drawn: Labels, *, generator: np.random.Generator, most: float = float("inf")
) -> Matched:
    """Returns rows of real and of drawn images that hold classes in the same proportion.

    Where there are at least as many real images of every class, all drawn ones are kept, and as
    many times that number of real ones as every class allows. Elsewhere both sides keep as many of
    each class as the poorer one has.

    Args:
        real: Classes of real images, `(N,)`.
        drawn: Classes of samples, `(M,)`.
        generator: Chooses the rows.
        most: The most real images per drawn one; 1 takes as many as are drawn.

    Raises:
        ValueError: a set is empty.
    """
    if not (len(real) and len(drawn)):
        raise ValueError("needs real and drawn images")
    size = int(max(real.max(), drawn.max())) + 1
    there, wanted = (np.bincount(each, minlength=size) for each in (real, drawn))
    both = (there > 0) & (wanted > 0)
    scale = min(most, float((there[both] / wanted[both]).min())) if both.any() else 0.0
    if scale >= 1:
        of_drawn, of_real = np.where(both, wanted, 0), np.where(both, scale * wanted + 1e-9, 0)
    else:
        of_drawn = of_real = np.minimum(there, wanted)
    return Matched(
        _rows(real, of_real.astype(np.int64), generator),
        _rows(drawn, of_drawn, generator),
        0.5 * float(np.abs(there / len(real) - wanted / len(drawn)).sum()),
        tuple(np.flatnonzero((there == 0) & (wanted > 0)).tolist()),
    )


def _rows(
    labels: Labels, counts: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.int64]:
    chosen = [
        generator.permutation(np.flatnonzero(labels == kind))[:count]
        for kind, count in enumerate(counts.tolist())
    ]
    return np.sort(np.concatenate(chosen))

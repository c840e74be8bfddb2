"""AnchorRows of a mixture router, from public images: the centres of their clusters."""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ddm_fed.embedding import dct_basis
from ddm_fed.errors import DataError, StateError
from ddm_fed.mixture.radius import longest_norm
from ddm_fed.records import Plan, StatisticsSpec

MIN_IMAGES_PER_ANCHOR = 2
DIGITS_BELOW_RADIUS = 3  # rounding moves a border between cells by a thousandth of the radius


@dataclass(frozen=True)
class AnchorRows:
    """Rows to paste into a plan, as decimals, and how many public images are nearest to each."""

    rows: list[list[str]]
    counts: list[int]

    def toml(self) -> str:
        """Returns the lines that belong into `[router]`."""
        lines = [f"  [{', '.join(row)}]," for row in self.rows]
        return "\n".join(["anchors = [", *lines, "]"])


def find_anchors(
    images: Tensor, plan: Plan, components: int, frequencies: int | None = None, seed: int = 0
) -> AnchorRows:
    """Returns the centres of `components` clusters of public images, the largest cluster first.

    Args:
        images: PUBLIC images in [-1, 1], `(N, C, H, W)`.
        plan: Gives the coefficients and their centre.
        components: How many.
        frequencies: Lowest of each channel that an anchor holds; all of the plan's by default.
        seed: Decides where k-means starts; the best of ten starts is taken.

    Raises:
        StateError: the plan's router has no place for anchors.
        DataError: there are too few images that differ.
    """
    from sklearn.cluster import KMeans

    spec = plan.router
    if not isinstance(spec, StatisticsSpec) or plan.data.classes:
        found = f"a {spec.kind} router" + (" and classes" if plan.data.classes else "")
        raise StateError(
            f"the plan has {found}: it has no place for anchors",
            hint="anchors divide the images of a mixture or heads router where no classes do",
        )
    each = min(frequencies or spec.frequencies, spec.frequencies)
    basis = dct_basis(plan.data.shape, each)  # the lowest: a basis of fewer is part of the larger
    y = ((images.flatten(1).double() - float(spec.centre)) @ basis.T).numpy()  # (N, E)
    distinct, wanted = len(np.unique(y, axis=0)), components * MIN_IMAGES_PER_ANCHOR
    if distinct < wanted:
        raise DataError(
            f"{distinct} different images are too few for {components} anchors",
            hint=f"give at least {wanted}, better a hundred for each anchor",
        )
    fitted = KMeans(components, n_init=10, random_state=seed).fit(y)
    counts = np.bincount(fitted.labels_, minlength=components)
    order = np.argsort(-counts, kind="stable")
    places = max(
        0,
        DIGITS_BELOW_RADIUS - 1 - math.floor(math.log10(float(spec.radius or longest_norm(plan)))),
    )
    rows = [[f"{value:.{places}f}" for value in row] for row in fitted.cluster_centers_[order]]
    return AnchorRows(rows, counts[order].tolist())

"""How close samples are to real images, in a space of features.

All figures are of finite samples: compare only those of equal counts and equal features.

Shapes: N real images, M samples, F features.
"""

from typing import NamedTuple

import numpy as np

from ddm_fed.evaluation.distances import Floats

NEIGHBOURS = 5
BLOCK_MIB = 64  # of distances at a time
SUBSETS, SUBSET_SIZE = 100, 1000


class Manifold(NamedTuple):
    """Precision, recall, density and coverage of samples, from balls about nearest neighbours."""

    precision: float
    recall: float
    density: float
    coverage: float


class KernelDistance(NamedTuple):
    """Mean and deviation of the unbiased squared MMD over random subsets (KID)."""

    mean: float
    deviation: float
    subsets: int
    subset_size: int


class Fidelity(NamedTuple):
    """How close samples are to real images, with the counts on which every figure depends."""

    frechet: float
    kernel: KernelDistance
    manifold: Manifold
    neighbours: int
    real: int
    drawn: int
    features: int


def measure_fidelity(
    real: Floats,
    drawn: Floats,
    *,
    generator: np.random.Generator,
    neighbours: int = NEIGHBOURS,
) -> Fidelity:
    """Returns every figure of this module.

    Args:
        real: `(N, F)`.
        drawn: `(M, F)`.
        generator: Chooses the subsets.
        neighbours: The k of precision, recall, density and coverage.

    Raises:
        ValueError: not more rows than `neighbours`.
    """
    return Fidelity(
        frechet=frechet_distance(real, drawn),
        kernel=kernel_distance_of_subsets(real, drawn, generator=generator),
        manifold=manifold_scores(real, drawn, neighbours=neighbours),
        neighbours=neighbours,
        real=len(real),
        drawn=len(drawn),
        features=real.shape[1],
    )


def frechet_distance(real: Floats, drawn: Floats) -> float:
    """Returns the squared Frechet distance of two Gaussians fitted to features (FID).

    Args:
        real: `(N, F)`.
        drawn: `(M, F)`.

    Raises:
        ValueError: fewer than two rows.

    Source: Heusel et al. 2017, arXiv:1706.08500, eq. 6.
    """
    _require_rows(real, drawn, least=2)
    (mean_r, root_r), (mean_d, cov_d) = _moments(real, root=True), _moments(drawn, root=False)
    # tr (R D)^(1/2) by the eigenvalues of the symmetric R^(1/2) D R^(1/2): no complex square root
    values = np.linalg.eigvalsh(root_r @ cov_d @ root_r).clip(min=0)
    trace = np.square(root_r).sum() + np.trace(cov_d) - 2 * np.sqrt(values).sum()
    return float(np.square(mean_r - mean_d).sum() + trace)


def kernel_distance(real: Floats, drawn: Floats) -> float:
    """Returns the unbiased squared MMD under the kernel (x y / F + 1)^3 (KID).

    Arguments as for `frechet_distance`. Unlike FID its mean does not depend on the counts.

    Source: Binkowski et al. 2018, arXiv:1801.01401, section 4.
    """
    _require_rows(real, drawn, least=2)
    x, y = real.astype(np.float64), drawn.astype(np.float64)

    def kernel(a: Floats, b: Floats) -> Floats:
        product: Floats = (a @ b.T / a.shape[1] + 1) ** 3
        return product

    def within(a: Floats) -> float:
        k, n = kernel(a, a), len(a)
        return float((k.sum() - np.trace(k)) / (n * (n - 1)))

    return within(x) + within(y) - 2 * float(kernel(x, y).mean())


def kernel_distance_of_subsets(
    real: Floats,
    drawn: Floats,
    *,
    generator: np.random.Generator,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
) -> KernelDistance:
    """Returns mean and deviation of `kernel_distance` over random subsets.

    A subset has `subset_size` images of each kind, or half of the smaller kind, where those are
    fewer: subsets of all images would not differ.

    Source: Binkowski et al. 2018, arXiv:1801.01401, section 4.
    """
    _require_rows(real, drawn, least=4)
    size = min(subset_size, len(real) // 2, len(drawn) // 2)
    found = [
        kernel_distance(
            real[generator.choice(len(real), size, replace=False)],
            drawn[generator.choice(len(drawn), size, replace=False)],
        )
        for _ in range(subsets)
    ]
    return KernelDistance(float(np.mean(found)), float(np.std(found)), subsets, size)


def manifold_scores(real: Floats, drawn: Floats, *, neighbours: int = NEIGHBOURS) -> Manifold:
    """Returns how much of each set lies within the other's reach.

    A real image reaches as far as its `neighbours`-th nearest other real image, a sample likewise.
    Precision and density: samples within the reach of real images. Recall: real images within the
    reach of samples. Coverage: real images with a sample within their own reach.

    Source: Kynkaanniemi et al. 2019, arXiv:1904.06991; Naeem et al. 2020, arXiv:2002.09797.
    """
    from sklearn.metrics import pairwise_distances_chunked

    _require_rows(real, drawn, least=neighbours + 1)
    real, drawn = real.astype(np.float64), drawn.astype(np.float64)
    reach_r, reach_d = _reach(real, neighbours), _reach(drawn, neighbours)
    inside = np.zeros(len(drawn))
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    start = 0
    for far in pairwise_distances_chunked(real, drawn, working_memory=BLOCK_MIB):
        rows = slice(start, start + len(far))
        within = far <= reach_r[rows, None]
        inside += within.sum(0)
        covered[rows] = within.any(1)
        recalled[rows] = (far <= reach_d[None]).any(1)
        start += len(far)
    return Manifold(
        precision=float((inside > 0).mean()),
        recall=float(recalled.mean()),
        density=float(inside.mean() / neighbours),
        coverage=float(covered.mean()),
    )


def _moments(features: Floats, *, root: bool) -> tuple[Floats, Floats]:
    """Returns mean `(F,)` and covariance, or its symmetric square root, `(F, F)` float64."""
    x = features.astype(np.float64)
    covariance = np.atleast_2d(np.cov(x, rowvar=False))
    if not root:
        return x.mean(0), covariance
    values, axes = np.linalg.eigh(covariance)
    return x.mean(0), (axes * np.sqrt(values.clip(min=0))) @ axes.T


def _reach(features: Floats, neighbours: int) -> Floats:
    """Returns the distance of every row to its `neighbours`-th nearest other row."""
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(features)
    reach: Floats = found.kneighbors()[0][:, -1]  # of rows without themselves
    return reach


def _require_rows(real: Floats, drawn: Floats, *, least: int) -> None:
    if min(len(real), len(drawn)) < least:
        raise ValueError(
            f"needs at least {least} images of each kind, got {len(real)} real and {len(drawn)}"
        )

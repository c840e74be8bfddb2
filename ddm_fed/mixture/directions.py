"""Public points on the sphere of embeddings, at which every site counts its own.

Embeddings of a network lie in a narrow cone: most of a cosine says only that both are embeddings.
The public mean is therefore subtracted. And noise grows with the number of coordinates it is added
to, so directions are taken in the public images' few principal axes.

Shapes: E of an embedding, D of a direction, J anchors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddm_fed.embedding import Embedder, TextEmbedder
from ddm_fed.records import CentroidSpec, pack_row, unpack_row

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Anchors:
    """Where directions are measured, and the anchors there. All of it is public.

    Attributes:
        mean: What is subtracted from an embedding, `(E,)`.
        axes: Orthonormal rows, `(D, E)`.
        points: Unit vectors, `(J, D)`.
    """

    mean: Tensor
    axes: Tensor
    points: Tensor

    def __post_init__(self) -> None:
        (width,), (dimensions, columns) = self.mean.shape, self.axes.shape
        if columns != width or self.points.shape[1] != dimensions or len(self.points) == 0:
            raise ValueError("anchors take mean (E,), axes (D, E) and points (J, D) with J >= 1")

    def directions(self, embeddings: Tensor, *, mean: Tensor | None = None) -> Tensor:
        """Returns the directions of `embeddings (B, E)`, `(B, D)` float64 of norm 1.

        An embedding that has none, because it is the mean or not finite, becomes zero.

        Args:
            embeddings: As their network gives them.
            mean: What to subtract instead; text has a cone of its own.
        """
        found = torch.empty((len(embeddings), len(self.axes)), dtype=torch.float64)
        about = self.mean if mean is None else mean
        axes, centre = self.axes.double().numpy(), about.double().numpy()
        # one row at a time: see `embed_images`
        for row, embedding in enumerate(embeddings.detach().cpu().double().numpy()):
            found[row] = torch.from_numpy(_direction(axes, embedding - centre))
        return found


def planned_anchors(spec: CentroidSpec) -> Anchors:
    """Returns the anchors of a plan. Axes of 16 bits are orthonormal but for their rounding."""
    mean, axes, points = (
        torch.tensor([unpack_row(row) for row in rows], dtype=torch.float64)
        for rows in ((spec.mean,), spec.axes, spec.anchors)
    )
    return Anchors(mean[0], axes, torch.nn.functional.normalize(points, dim=1))


def anchor_lines(anchors: Anchors, embedder: Embedder) -> str:
    """Returns the lines of a plan that `planned_anchors` reads."""
    rows = {
        name: [f'  "{pack_row(row)}",' for row in values.double().tolist()]
        for name, values in (("axes", anchors.axes), ("anchors", anchors.points))
    }
    lines = [
        "[router.centroids]",
        f'embedder = "{embedder.name}"',
        f'weights_sha256 = "{embedder.digest}"',
        f'mean = "{pack_row(anchors.mean.double().tolist())}"',
    ]
    for name, found in rows.items():
        lines += [f"{name} = [", *found, "]"]
    return "\n".join(lines)


def public_anchors(
    embeddings: Tensor, count: int, seed: int, *, dimensions: int | None = 64
) -> Anchors:
    """Returns anchors at the cluster centres of `embeddings`, by k-means of their directions.

    Args:
        embeddings: Of PUBLIC images, `(N, E)`: nothing here is private, and no noise is added.
        count: J, at most N.
        seed: Decides where k-means begins.
        dimensions: D, the principal axes that are kept; None keeps as many as there are.
    """
    from sklearn.cluster import KMeans

    embeddings = embeddings.detach().cpu().double()
    mean = embeddings.mean(0)
    _, spread, rows = torch.linalg.svd(embeddings - mean, full_matrices=False)
    rank = int((spread > 1e-9 * spread[0]).sum())
    axes = rows[: min(rank, dimensions or rank)]
    # what is saved and sent are 32 bits, so clusters are found with these
    space = Anchors(mean.float(), axes.float(), torch.ones((1, len(axes))))
    clusters = KMeans(n_clusters=count, n_init=4, random_state=seed)
    centres = clusters.fit(space.directions(embeddings).numpy()).cluster_centers_
    points = torch.nn.functional.normalize(torch.from_numpy(centres), dim=1)
    return Anchors(space.mean, space.axes, points.float())


def image_directions(embedder: Embedder, anchors: Anchors) -> Callable[[Tensor], Tensor]:
    """Returns the function of images `(B, C, H, W)` in [-1, 1] to their directions, `(B, D)`."""
    return lambda images: anchors.directions(embedder.images(images))


def prompt_directions(
    embedder: TextEmbedder, anchors: Anchors, public_prompts: Sequence[str]
) -> Callable[[Tensor], Tensor]:
    """Returns the function of embeddings of texts `(B, E)` to directions among images, `(B, D)`.

    Text lies in a cone of its own, apart from that of images, so the mean of `public_prompts` is
    subtracted from it. They should be such as will be asked, of everything that may be asked.
    """
    mean = embedder.texts(public_prompts).double().mean(0)
    return lambda embeddings: anchors.directions(embeddings, mean=mean)


def _direction(axes: Floats, difference: Floats) -> Floats:
    """Returns `axes @ difference` at norm 1, or zero where it has no direction. Never longer."""
    largest = np.abs(difference).max()
    if not np.isfinite(largest) or largest == 0:
        return np.zeros(len(axes))
    projected = axes @ (difference / largest)  # so that squares neither overflow nor vanish
    length = float(np.linalg.norm(projected))
    found: Floats = projected / length if length > 1e-12 else np.zeros(len(axes))
    return found

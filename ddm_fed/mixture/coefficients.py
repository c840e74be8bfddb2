"""From images to what statistics are made of: low-frequency coefficients, cells, and weights.

Everything here is taken one image at a time, so that no image's row depends on another image: the
bound on what one unit can change would not hold to the bit otherwise.
"""

import itertools
from typing import NamedTuple

import numpy as np
import torch

from ddm_fed.embedding import dct_basis, dct_matrices, frequency_order
from ddm_fed.errors import DataError
from ddm_fed.mixture.noisy_vector import Floats, Ints
from ddm_fed.privacy import ImageSet
from ddm_fed.records import Plan, StatisticsSpec

ROWS_AT_ONCE, VALUES_AT_ONCE = 1024, 1 << 22  # bound memory


class Read(NamedTuple):
    """What the messages are made of: coefficients, cells, what each image counts for, and bands."""

    y: Floats  # (N, D)
    cells: Ints  # (N,)
    weights: Floats | None  # (N,)
    bands: Floats | None = None  # (N, B): energy in each band of the other frequencies
    directions: Floats | None = None  # (N, D'): of embeddings, where the plan has centroids


def read_images(images: ImageSet, plan: Plan) -> Read:
    """Returns what the statistics of `images` under `plan` are made of.

    Raises:
        DataError: the plan protects patients, and nothing says which images belong to one.
    """
    y, cells = coefficients(images, plan)
    return Read(y, cells, image_weights(images, plan), band_energies(images, plan))


def coefficients(images: ImageSet, plan: Plan) -> tuple[Floats, Ints]:
    """Returns y `(N, D)` and the cell of every image `(N,)`."""
    cells = np.zeros(len(images), dtype=np.int64)
    if plan.data.classes and images.labels is not None:
        cells = images.labels.numpy()
    if not isinstance(plan.router, StatisticsSpec):
        return np.zeros((len(images), 0)), cells
    basis = dct_basis(plan.data.shape, plan.router.frequencies).numpy()
    y = np.empty((len(images), len(basis)))
    for start in range(0, len(images), ROWS_AT_ONCE):
        block = images.batch(slice(start, start + ROWS_AT_ONCE)).flatten(1)
        pixels = block.double().numpy() - float(plan.router.centre)
        # the bound must hold for any image: one that is not finite counts as the constant image
        pixels[~np.isfinite(pixels).all(axis=1)] = 0.0
        # One image at a time: in a product of matrices, the rounding of one image's row may change
        # when another image joins, and the bound on what one image can change would not hold to
        # the bit.
        for row, image in enumerate(pixels, start=start):
            y[row] = basis @ image
    return y, nearest_anchors(y, plan.router, plan.data.shape[0]) if plan.router.anchors else cells


def band_edges(plan: Plan) -> list[int]:
    """Returns where the bands of the other frequencies begin and the last ends, `(B + 1,)`.

    Frequencies of a channel are counted from the lowest. Bands grow geometrically; where that would
    leave one without a frequency, each has at least one.
    """
    if not isinstance(plan.router, StatisticsSpec):
        raise TypeError("only a mixture router has bands")
    (_, height, width), bands = plan.data.shape, plan.router.bands
    pixels = height * width
    edges = [plan.router.frequencies]
    for number, edge in enumerate(np.geomspace(edges[0], pixels, bands + 1)[1:], start=1):
        edges.append(min(max(round(edge), edges[-1] + 1), pixels - (bands - number)))
    return edges


def band_sizes(plan: Plan) -> list[int]:
    """Returns how many coefficients an image has in each band, all channels together, `(B,)`."""
    edges = band_edges(plan)
    return [plan.data.shape[0] * (end - start) for start, end in itertools.pairwise(edges)]


def band_energies(images: ImageSet, plan: Plan) -> Floats | None:
    """Returns the energy of every image in each band of the other frequencies, `(N, B)`.

    None where the plan has no bands. Of colour images, a band has all channels.
    """
    if not isinstance(plan.router, StatisticsSpec) or not plan.router.bands:
        return None
    channels, height, width = plan.data.shape
    rows, columns = (matrix.numpy() for matrix in dct_matrices(height, width))
    order = frequency_order(height, width).numpy()
    starts = band_edges(plan)[:-1]
    found = np.empty((len(images), plan.router.bands))
    at_once = max(1, min(ROWS_AT_ONCE, VALUES_AT_ONCE // (channels * height * width)))
    for start in range(0, len(images), at_once):
        block = images.batch(slice(start, start + at_once)).to(torch.float64, copy=True).numpy()
        block[~np.isfinite(block).all(axis=(1, 2, 3))] = 0.0
        for image in block:  # one at a time, as above
            image[:] = rows @ image @ columns.T
        energies = np.square(block, out=block).reshape(len(block), channels, -1).sum(1)
        found[start : start + len(block)] = np.add.reduceat(energies[:, order], starts, axis=1)
    return found


def image_weights(images: ImageSet, plan: Plan) -> Floats | None:
    """Returns what each image counts for, `(N,)`: 1/m among m images of one patient.

    None if images are the units of the plan, and each counts for 1. A weight depends on the images
    of its own unit alone, so that adding another unit changes none.

    Raises:
        DataError: the plan protects patients, and nothing says which images belong to one.
    """
    if plan.privacy.unit == "image":
        return None
    if images.units is None:
        raise DataError(
            "nothing says which images belong to one patient; the plan protects patients "
            '(privacy.unit = "patient")',
            hint="load the images with their unit ids",
        )
    units = images.units.numpy()
    weights: Floats = 1.0 / np.bincount(units)[units]
    return weights


def nearest_anchors(y: Floats, spec: StatisticsSpec, channels: int) -> Ints:
    """Returns the row of `spec.anchors` nearest to each image, the first of equals, `(N,)`.

    Args:
        y: Coefficients about the centre, `(N, D)`.
        spec: Has anchors. Those of fewer numbers speak of the lowest frequencies of each channel.
        channels: Of an image.
    """
    anchors = np.array(spec.anchors, dtype=np.float64)  # (J, E)
    each = anchors.shape[1] // channels
    kept = np.arange(channels)[:, None] * spec.frequencies + np.arange(each)
    lowest = y[:, kept.ravel()]  # (N, E)
    # One image at a time, as above: rounding that depends on its neighbours could move an image
    # that lies between two anchors from one cell to the other, and its whole influence with it.
    found = [((anchors - row) ** 2).sum(axis=1).argmin() for row in lowest]
    return np.array(found, dtype=np.int64)

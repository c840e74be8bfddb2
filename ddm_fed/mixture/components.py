"""How the images of a cell are divided into components, and what was released about those.

A cell's noisy directions have principal axes. An image is in the component that the signs of
u = y - m along the first b of them spell, so that a cell has 2^b components. Axes and means are
released numbers, so the division costs no privacy; and as the images of a component are alike in
the ways in which images differ most, a Gaussian describes them far better than all of the cell.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddm_fed.mixture.location import LEAST_COUNT, Location
from ddm_fed.mixture.messages import (
    COMPONENT_LOCATION,
    NORMS,
    SHAPE,
    component_count,
    message_named,
)
from ddm_fed.mixture.noisy_vector import Floats, Ints
from ddm_fed.mixture.radius import radius_of
from ddm_fed.mixture.shrinkage import positive_mean
from ddm_fed.records import Plan

# of the root mean square distance from the released mean: images beyond it are pulled in
RADIUS_OF_SPREAD = 2.0
LEAST_RADIUS = 1 / 64  # of the radius of all coefficients


def symmetric(upper: Tensor, d: int) -> Tensor:
    """Returns matrices `(..., D, D)` from the upper halves that directions are sent as."""
    row, column = torch.triu_indices(d, d)
    values = upper / torch.where(row == column, 1.0, math.sqrt(2.0)).double()
    found = torch.zeros((*upper.shape[:-1], d, d), dtype=torch.float64)
    found[..., row, column] = values
    found[..., column, row] = values
    return found


def axes_of_cells(plan: Plan, shape: Ints) -> Floats:
    """Returns the axes that divide every cell, `(J, b, D)`, by the released `shape` message."""
    signs = torch.from_numpy(message_named(plan, SHAPE).decode(shape)["sign"])
    d = plan.data.shape[0] * plan.router.frequencies  # type: ignore[union-attr]
    matrices = symmetric(signs.reshape(-1, d * (d + 1) // 2), d)
    dividing = component_count(plan).bit_length() - 1
    _, vectors = torch.linalg.eigh(matrices)  # rising eigenvalues, eigenvectors as columns
    found: Floats = vectors.flip(2)[:, :, :dividing].transpose(1, 2).contiguous().numpy()
    return found


def component_of_images(
    y: Floats, cells: Ints, plan: Plan, before: Mapping[str, Ints], means: Floats
) -> Ints:
    """Returns the component of every image, `(N,)`, counted through all cells.

    Args:
        y: Coefficients, `(N, D)`.
        cells: Cell of every image, `(N,)`.
        plan: Says how many components a cell has.
        before: The released messages.
        means: Released mean of every cell, `(J, D)`.
    """
    axes, each = axes_of_cells(plan, before[SHAPE]), component_count(plan)
    place = 1 << np.arange(axes.shape[1])
    above = np.zeros((len(y), axes.shape[1]), dtype=bool)
    # One image at a time, as coefficients are: rounding that depends on its neighbours could move
    # an image that lies on a border to the other component, and its whole influence with it.
    for number, (row, cell) in enumerate(zip(y, cells, strict=True)):
        above[number] = axes[cell] @ (row - means[cell]) > 0
    found: Ints = cells * each + (above * place).sum(axis=1)
    return found


def component_radii(
    plan: Plan, vectors: Mapping[str, Ints], location: Location, noise_multiplier: float
) -> Floats:
    """Returns what bounds the distance of a component's images from the mean of their cell, `(J,)`.

    A multiple of the spread that `shape` released, so that no more has to be guessed or paid for.

    Args:
        plan: What was released.
        vectors: Has the messages before the components'.
        location: What `location` said.
        noise_multiplier: Of the `shape` message.
    """
    message, radius = message_named(plan, SHAPE), radius_of(plan, vectors.get(NORMS))
    traces = message.decode(vectors[SHAPE])["trace"]
    deviation = message.noise_std("trace", noise_multiplier)
    spreads = [
        math.sqrt(positive_mean(float(trace) / mass, deviation / mass))
        for trace, mass in zip(traces, location.weights.tolist(), strict=True)
    ]
    found: Floats = radius * (RADIUS_OF_SPREAD * np.array(spreads)).clip(LEAST_RADIUS, 1.0)
    return found


@dataclass(frozen=True)
class Components:
    """What a `component_location` message says of the components of every cell.

    Attributes:
        weights: Mass of every component, `(J, C)`; those of a cell sum to the mass of the cell.
        known: Whether it stands out of the noise, `(J, C)`.
        means: `(J, C, D)`: what the `component_shape` message is about.
        mean_errors: Squared distance to be expected between these and the true ones, `(J, C)`.
    """

    weights: Tensor
    known: Tensor
    means: Tensor
    mean_errors: Tensor


def decode_components(
    plan: Plan, vector: Ints, noise_multiplier: float, location: Location, radii: Floats
) -> Components:
    """Returns what the `component_location` vector of a site says. Costs no privacy.

    Args:
        plan: What was released.
        vector: The integers.
        noise_multiplier: Of their noise.
        location: What `location` said of the same site.
        radii: As `component_radii` returns them, `(J,)`.
    """
    message, each = message_named(plan, COMPONENT_LOCATION), component_count(plan)
    parts = {name: torch.from_numpy(part) for name, part in message.decode(vector).items()}
    cells, d = location.means.shape
    counts = parts["component_count"].reshape(cells, each)
    noise = message.noise_std("component_count", noise_multiplier)
    known = counts > LEAST_COUNT * noise  # (J, C)
    positive = torch.tensor(
        [[positive_mean(count, noise) for count in row] for row in counts.tolist()],
        dtype=torch.float64,
    )
    weights = positive * (location.weights / positive.sum(1))[:, None]
    unit = torch.from_numpy(radii)[:, None, None]  # (J, 1, 1)
    sums = unit * parts["component_sum"].reshape(cells, each, d)
    sizes = torch.where(known, counts, 1.0).clamp(min=1.0)[:, :, None]
    offset = sums / sizes
    # a mean of vectors that were clipped is no longer than they are
    length = offset.norm(dim=2, keepdim=True).clamp(min=1e-12)
    offset = offset * (unit / length).clamp(max=1.0)
    variance = (unit * message.noise_std("component_sum", noise_multiplier) / sizes).square()
    # James-Stein towards the mean of the cell; see `decode_location`
    power = offset.square().sum(2, keepdim=True).clamp(min=1e-12)
    kept = torch.where(known[:, :, None], (1 - d * variance / power).clamp(min=0.0), 0.0)
    shorter = torch.where(kept > 0, (1 - kept) * (d - 2), float(d))
    error = d * variance + (1 - kept).square() * power - 2 * variance * shorter  # Stein's estimate
    return Components(
        weights=weights,
        known=known,
        means=location.means[:, None] + kept * offset,
        mean_errors=torch.where(known, error[:, :, 0].clamp(min=0.0), torch.inf),
    )

"""What a site releases for the router: two noisy sums of low-frequency coefficients.

Every image becomes y, the DCT coefficients of x_0 about the plan's centre, `(D,)`, and belongs to
the cell of its class, or of the plan's anchor nearest to it, or to the only cell. Two messages
leave, the second built on the first:

* `location`: the number of images, the number in each cell, and the sum of y in each cell, with y
  clipped to the plan's radius R.
* `shape`: about the released mean of its cell, u = y - m: the sum of min(|u|, R)^2, and the sum of
  v v^T for the direction v = u / |u|. This is the spatial sign covariance: bounded by 1 whatever
  the image, so it needs no second radius. Trace and directions together give the covariance. Under
  a diagonal covariance only the diagonal of v v^T is sent: D squares, whose norm is at most that of
  v, since sum v_i^4 <= (sum v_i^2)^2 = 1.

Where the plan protects patients (`privacy.unit`), "number of images" above reads "number of
patients": every image counts for 1/m, where m is the number of images its patient has, in every sum
alike. A patient then counts as the mean of its images, with the bounded influence of one image.

`prior` routers send only the counts. Each message is one vector of integers, its parts weighted so
that the parts share the privacy as SHARES says, with a joint L2 sensitivity known beforehand.

Source: spatial sign covariance: Visuri, Koivunen and Oja 2000. The shares, the floor and the two
rounds were chosen by measurement, see docs/adr/0006.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddm_fed.embedding import dct_basis
from ddm_fed.errors import DataError
from ddm_fed.privacy import (
    BoundedStatistic,
    ImageSet,
    Private,
    Release,
    Spend,
    gaussian_events,
    release,
)
from ddm_fed.records import Plan, StatisticsSpec
from ddm_fed.router.noisy_vector import GRID, Ints, Message, Part
from ddm_fed.router.shrinkage import positive_mean, shrunk_error
from ddm_fed.storage.tensors import TensorTable

Floats = NDArray[np.float64]

LOCATION, SHAPE = "location", "shape"
ROUTER_PURPOSES = {LOCATION: "router-location", SHAPE: "router-shape"}
SHARES = {
    "count": 0.05,
    "cell_count": 0.05,
    "cell_sum": 0.20,
    "trace": 0.05,
    "sign": 0.70,
    "square": 0.70,
}
LEAST_COUNT = 2.0  # deviations of the noise; below, a cell is not told from an empty one
ROWS_AT_ONCE = 1024  # bounds memory: a row of `sign` has D (D + 1) / 2 values


def cell_count(plan: Plan) -> int:
    """Returns J, the number of cells: one per class or anchor, one where there are neither."""
    anchors = plan.router.anchors if isinstance(plan.router, StatisticsSpec) else ()
    return max(1, len(plan.data.classes), len(anchors))


def messages(plan: Plan) -> tuple[Message, ...]:
    """Returns the messages a site releases under `plan`, in order."""
    router, cells = plan.router, cell_count(plan)
    location = [("count", 1, 1.0)]
    if cells > 1:
        location.append(("cell_count", cells, 1.0))
    if not isinstance(router, StatisticsSpec):
        return (_message(LOCATION, location),)
    d, radius = plan.data.channels * router.frequencies, float(router.radius)
    location.append(("cell_sum", cells * d, radius))
    directions = ("sign", d * (d + 1) // 2, 1.0)
    if router.covariance == "diagonal":
        directions = ("square", d, 1.0)
    shape = [("trace", 1, radius**2), directions]
    return (_message(LOCATION, location), _message(SHAPE, shape))


def _message(name: str, parts: list[tuple[str, int, float]]) -> Message:
    total = sum(SHARES[part] for part, _, _ in parts)
    weighted = tuple(
        Part(part, size, sensitivity, GRID * math.sqrt(SHARES[part] / total) / sensitivity)
        for part, size, sensitivity in parts
    )
    return Message(name, weighted, total)


def release_tensors(plan: Plan) -> TensorTable:
    """Returns the tensors of `router.safetensors` under `plan`."""
    return {message.name: ("I64", (message.size,)) for message in messages(plan)}


def router_shares(plan: Plan) -> list[float]:
    """Returns the share of the router's privacy that each message takes, in order."""
    return [message.share for message in messages(plan)]


class _Read(NamedTuple):
    """What the messages are made of: coefficients, cells, and what each image counts for."""

    y: Floats  # (N, D)
    cells: Ints  # (N,)
    weights: Floats | None  # (N,)


def release_statistics(data: Private[ImageSet], plan: Plan, spend: Spend) -> dict[str, Release]:
    """Returns the releases of one site by message name.

    Args:
        data: The site's images.
        plan: What is released and at what price.
        spend: Writes each ledger entry before its noise is drawn; may refuse.

    Raises:
        DataError: the plan protects patients, and nothing says which images belong to one.
        BudgetError: from `spend`. What was released before it stands in the ledger.

    Guarantees:
        All messages together are (router.epsilon, delta)-DP under adding or removing one unit: an
        image, or a patient with all images, as `privacy.unit` says.
    """
    todo = messages(plan)
    events = gaussian_events(
        float(plan.router.epsilon), float(plan.privacy.delta), router_shares(plan)
    )
    read = data.map(lambda images: _Read(*_coefficients(images, plan), image_weights(images, plan)))
    released: dict[str, Release] = {}
    for message, event in zip(todo, events, strict=True):
        if message.name == LOCATION:
            statistic = read.map(
                lambda own: location_statistic(own.y, own.cells, plan, own.weights)
            )
        else:
            location = decode_location(
                plan, released[LOCATION].value, float(events[0].noise_multiplier)
            )
            about = functools.partial(_shape_about, means=location.means.numpy(), plan=plan)
            statistic = read.map(about)
        bounded = BoundedStatistic(statistic, message.l2_sensitivity, ROUTER_PURPOSES[message.name])
        released[message.name] = release(bounded, event, spend)
    return released


def exact_statistics(
    data: Private[ImageSet], plan: Plan, released: dict[str, Ints]
) -> dict[str, Private[Ints]]:
    """Returns what `released` would be without noise, by message name. Private, for audits.

    Args:
        data: The site's images.
        plan: What was released.
        released: The noisy vectors; the second message is about the first one's means.
    """
    first = gaussian_events(
        float(plan.router.epsilon), float(plan.privacy.delta), router_shares(plan)
    )[0]
    read = data.map(lambda images: _Read(*_coefficients(images, plan), image_weights(images, plan)))
    found: dict[str, Private[Ints]] = {}
    for message in messages(plan):
        if message.name == LOCATION:
            found[LOCATION] = read.map(
                lambda own: location_statistic(own.y, own.cells, plan, own.weights)
            )
        else:
            location = decode_location(plan, released[LOCATION], float(first.noise_multiplier))
            about = functools.partial(_shape_about, means=location.means.numpy(), plan=plan)
            found[message.name] = read.map(about)
    return found


@dataclass(frozen=True)
class Location:
    """What a `location` message says of its site, after the noise.

    Attributes:
        count: Number of units (images, or patients) as released, at least 1.
        mass: The number of units to be expected behind it; positive.
        weights: Mass of every cell, `(J,)`, positive. Cells that drown in the noise share what the
            others leave of the site's number: which of them it is in cannot be known, that it is
            somewhere can. Cells of anchors sum to `mass`, since a site's mass must not depend on
            how many of them drown.
        known: Whether a cell stands out of the noise, `(J,)`.
        means: Mean of every cell, `(J, D)`, shrunk towards the site's mean by the known noise: what
            the `shape` message is about.
        mean_errors: Squared distance to be expected between these and the true means, `(J,)`;
            anything where a cell is not known.
        plain_means: Those of the message, not shrunk, `(J, D)`; anything where a cell is not known.
        plain_variance: Variance of the noise in each coordinate of a plain mean, `(J,)`; infinite
            where a cell is not known.
        site_mean: Mean of all images, `(D,)`.
        site_variance: Variance of the noise in each coordinate of it.
    """

    count: float
    mass: float
    weights: Tensor
    known: Tensor
    means: Tensor
    mean_errors: Tensor
    plain_means: Tensor
    plain_variance: Tensor
    site_mean: Tensor
    site_variance: float


def decode_location(plan: Plan, vector: Ints, noise_multiplier: float) -> Location:
    """Returns what the `location` vector of a site says. Post-processing: costs no privacy."""
    message = messages(plan)[0]
    parts = {name: torch.from_numpy(part) for name, part in message.decode(vector).items()}
    count = max(1.0, float(parts["count"]))
    mass = positive_mean(float(parts["count"]), message.noise_std("count", noise_multiplier))
    weights, known = _masses(plan, message, parts, mass, noise_multiplier)
    sums, deviation = torch.zeros((len(weights), 0), dtype=torch.float64), 0.0
    if "cell_sum" in parts:
        sums = parts["cell_sum"].reshape(len(weights), -1)  # (J, D)
        deviation = message.noise_std("cell_sum", noise_multiplier)
    site_mean = sums.sum(0) / count
    counts = parts["cell_count"] if "cell_count" in parts else torch.tensor([count]).double()
    sizes = torch.where(known, counts, 0.0).clamp(min=1.0)[:, None]
    plain = sums / sizes
    offset = plain - site_mean
    # James-Stein: keep of a cell's own offset what its noise cannot explain. The site and whoever
    # reads its release must agree on these means to the bit, for the shape is about them.
    noise_power = sums.shape[1] * (deviation / sizes) ** 2  # (J, 1)
    power = offset.square().sum(1, keepdim=True).clamp(min=1e-12)
    kept = torch.where(known[:, None], (1 - noise_power / power).clamp(min=0.0), 0.0)
    own = (deviation / sizes[:, 0]) ** 2
    common = torch.tensor(len(weights) * (deviation / count) ** 2, dtype=torch.float64)
    crossed = deviation**2 / (sizes[:, 0] * count)
    return Location(
        count=count,
        mass=mass,
        weights=weights,
        known=known,
        means=site_mean + kept * offset,
        mean_errors=shrunk_error(offset, kept[:, 0], own, common, crossed),
        plain_means=plain,
        plain_variance=torch.where(known, own, math.inf),
        site_mean=site_mean,
        site_variance=float(common),
    )


def _masses(
    plan: Plan, message: Message, parts: dict[str, Tensor], mass: float, noise_multiplier: float
) -> tuple[Tensor, Tensor]:
    """Returns the mass of every cell `(J,)`, and whether it stands out of the noise `(J,)`."""
    if "cell_count" not in parts:
        return torch.tensor([mass], dtype=torch.float64), torch.ones(1, dtype=torch.bool)
    counts, noise = parts["cell_count"], message.noise_std("cell_count", noise_multiplier)
    known = counts > LEAST_COUNT * noise
    weights, drowned = torch.where(known, counts, 0.0), int((~known).sum())
    if drowned:
        # never zero: a cell whose count was lost may still have images, and a mass of zero would
        # make them impossible, at every noise level
        deviation = math.hypot(
            message.noise_std("count", noise_multiplier), noise * math.sqrt(len(known) - drowned)
        )
        left = positive_mean(float(parts["count"]) - float(weights.sum()), deviation)
        weights = torch.where(known, counts, left / drowned)
    if isinstance(plan.router, StatisticsSpec) and plan.router.anchors:
        weights = weights * (mass / weights.sum())
    return weights, known


def _coefficients(images: ImageSet, plan: Plan) -> tuple[Floats, Ints]:
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
    return y, nearest_anchors(y, plan.router, plan.data.channels) if plan.router.anchors else cells


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


def location_statistic(y: Floats, cells: Ints, plan: Plan, weights: Floats | None = None) -> Ints:
    """Returns the integers of the `location` message, without noise.

    Args:
        y: Coefficients, `(N, D)`.
        cells: Cell of every image, `(N,)`.
        plan: Gives parts and radius.
        weights: What each image counts for, `(N,)`, as `image_weights` says; None means 1.
    """
    count = cell_count(plan)

    def contribution(rows: slice) -> dict[str, Floats]:
        ones = np.ones((len(y[rows]), 1))
        member = np.eye(count)[cells[rows]]  # (n, J)
        parts = {"count": ones, "cell_count": member}
        if isinstance(plan.router, StatisticsSpec):
            clipped = _clip(y[rows], float(plan.router.radius))
            parts["cell_sum"] = (member[:, :, None] * clipped[:, None]).reshape(len(ones), -1)
        return parts

    return _integer_sum(messages(plan)[0], len(y), contribution, weights)


def shape_statistic(
    y: Floats, cells: Ints, means: Floats, plan: Plan, weights: Floats | None = None
) -> Ints:
    """Returns the integers of the `shape` message about the released `means`, without noise.

    Args:
        y: Coefficients, `(N, D)`.
        cells: Cell of every image, `(N,)`.
        means: Released mean of every cell, `(J, D)`.
        plan: Gives parts and radius.
        weights: What each image counts for, `(N,)`, as `image_weights` says; None means 1.
    """
    if not isinstance(plan.router, StatisticsSpec):
        raise TypeError("only a mixture router has a shape")
    radius, diagonal = float(plan.router.radius), plan.router.covariance == "diagonal"
    row, column = np.triu_indices(y.shape[1])
    # sqrt(2) off the diagonal makes the vector's norm the Frobenius norm of v v^T, which is 1
    scale = np.where(row == column, 1.0, math.sqrt(2))

    def contribution(rows: slice) -> dict[str, Floats]:
        u = y[rows] - means[cells[rows]]
        norm = np.linalg.norm(u, axis=1, keepdims=True)  # (n, 1)
        v = u / np.maximum(norm, 1e-12)
        parts = {"trace": np.minimum(norm, radius) ** 2}
        if diagonal:
            return parts | {"square": v * v}  # (n, D)
        return parts | {"sign": v[:, row] * v[:, column] * scale}  # (n, D (D + 1) / 2)

    return _integer_sum(messages(plan)[1], len(y), contribution, weights)


def _shape_about(own: _Read, means: Floats, plan: Plan) -> Ints:
    return shape_statistic(own.y, own.cells, means, plan, own.weights)


def _integer_sum(
    message: Message,
    count: int,
    contribution: Callable[[slice], dict[str, Floats]],
    weights: Floats | None,
) -> Ints:
    """Returns the exact sum over images of their weighted contributions, rounded towards zero.

    Of a patient with contributions c_1 to c_m, which `weights` multiply by w = fl(1/m), each image
    adds trunc(fl(w c_i)). Truncation lengthens no coordinate, so the triangle inequality gives

        |sum trunc(fl(w c_i))| <= sum |fl(w c_i)| <= m (1 + u) w max |c_i| <= (1 + u)^2 max |c_i|

    with u = 2^-53, because w <= (1 + u) / m. (Where fl(w c_i) underflows it is cut to 0.) One image
    alone has |c_i| <= GRID up to float error, and the two roundings add less than 2^-31 of a step:
    the one step of `l2_sensitivity` covers both. Integers are summed exactly, so blocks and order
    do not matter. Truncation takes less than one step off an image whatever its weight: together
    less than N steps, as without weights; the noise is in the order of GRID steps.
    """
    total = np.zeros(message.size, dtype=np.int64)
    for start in range(0, count, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        values = contribution(rows)
        weighted = np.concatenate(
            [values[part.name] * part.weight for part in message.parts], axis=1
        )
        if weights is not None:
            weighted *= weights[rows, None]
        total += np.trunc(weighted).astype(np.int64).sum(axis=0)
    return total


def _clip(y: Floats, radius: float) -> Floats:
    """Returns the rows of `y`, the longer ones shortened to the norm `radius`."""
    norm = np.linalg.norm(y, axis=1, keepdims=True)
    clipped: Floats = y * np.minimum(1.0, radius / np.maximum(norm, 1e-12))
    return clipped

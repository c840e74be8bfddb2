"""What a site releases about its images: noisy sums of low-frequency coefficients.

Every image becomes y, the DCT coefficients of x_0 about the plan's centre, `(D,)`, and belongs to
the cell of its class, or of the plan's anchor nearest to it, or to the only cell. Two messages
leave, the second built on the first:

* `location`: the number of images, the number in each cell, and the sum of y in each cell, with y
  clipped to the radius R.
* `shape`: about the released mean of its cell, u = y - m: the sum of min(|u|, R)^2, and the sum of
  v v^T for the direction v = u / |u|. This is the spatial sign covariance: bounded by 1 whatever
  the image, so it needs no second radius. Trace and directions together give the covariance. Under
  a diagonal covariance only the diagonal of v v^T is sent: D squares, whose norm is at most that of
  v, since sum v_i^4 <= (sum v_i^2)^2 = 1.

Where the plan says `components`, spread and directions are sums of each cell, so that every class
has a covariance of its own. With two or more components, the first principal axes of a cell's noisy
directions divide it, by the signs of u along them, and two more messages say the same of the
components: `component_location` about the cell's mean, `component_shape` about the component's.
The axes are released, so dividing by them costs nothing; and an image is in one component, so all
of them together cost what one costs. `norms` is a histogram of |y| from which R is taken where the
plan has none, and `shape` may add the energy that images have in bands of the other frequencies.

Where the plan protects patients (`privacy.unit`), "number of images" above reads "number of
patients": every image counts for 1/m, where m is the number of images its patient has, in every sum
alike. A patient then counts as the mean of its images, with the bounded influence of one image.

`prior` routers send only the counts. Each message is one vector of integers; see `messages`.

Source: spatial sign covariance: Visuri, Koivunen and Oja 2000. The shares, the floor and the two
rounds were chosen by measurement, see docs/adr/0006 and docs/adr/0035.
"""

import math
from collections.abc import Mapping
from functools import partial

import numpy as np

from ddm_fed.errors import StateError
from ddm_fed.mixture.centroids import Directions, centroid_statistic
from ddm_fed.mixture.coefficients import Read, read_images
from ddm_fed.mixture.components import component_of_images, component_radii, decode_components
from ddm_fed.mixture.directions import planned_anchors
from ddm_fed.mixture.integer_sums import integer_sum, truncated
from ddm_fed.mixture.location import decode_location
from ddm_fed.mixture.messages import (
    CENTROIDS,
    COMPONENT_LOCATION,
    COMPONENT_SHAPE,
    LOCATION,
    NORMS,
    ROUTER_PURPOSES,
    SHAPE,
    cell_count,
    component_count,
    message_named,
    messages,
    own_covariances,
    router_events,
)
from ddm_fed.mixture.noisy_vector import Floats, Ints, Message
from ddm_fed.mixture.radius import norm_edges, radius_of
from ddm_fed.mixture.separate_units import Exact, examine_units, require_separate_units
from ddm_fed.privacy import BoundedStatistic, Finding, ImageSet, Private, Release, Spend, release
from ddm_fed.records import Plan, StatisticsSpec

VALUES_AT_ONCE = 1 << 18


def release_statistics(
    data: Private[ImageSet], plan: Plan, spend: Spend, directions: Directions | None = None
) -> dict[str, Release]:
    """Returns the releases of one site by message name.

    Args:
        data: The site's images.
        plan: What is released and at what price.
        spend: Writes each ledger entry before its noise is drawn; may refuse.
        directions: Of images' embeddings, where the plan has `router.centroids`.

    Raises:
        StateError: the plan has centroids, and there are no directions; nothing was spent.
        DataError: the plan protects patients, and nothing says which images belong to one.
        BudgetError: from `spend`. What was released before it stands in the ledger.
        MechanismError: a message is about something that was not released, or is not a sum of what
            single units add; nothing was spent on it.

    Guarantees:
        All messages together are (router.epsilon, delta)-DP under adding or removing one unit: an
        image, or a patient with all images, as `privacy.unit` says.
    """
    read = data.map(lambda images: _read(images, plan, directions))
    released: dict[str, Release] = {}
    for name, event in router_events(plan).items():
        before = {earlier: made.value for earlier, made in released.items()}
        statistic = read.map(partial(_statistic, name, plan, before))
        left = {earlier: made.value for earlier, made in released.items()}
        again = read.map(partial(_statistic, name, plan, left))
        exact = _exact(name, plan, left, directions)
        require_separate_units(data, statistic, again, message_named(plan, name), exact)
        bounded = BoundedStatistic(
            statistic, message_named(plan, name).l2_sensitivity, ROUTER_PURPOSES[name]
        )
        released[name] = release(bounded, event, spend)
    return released


def exact_statistics(
    data: Private[ImageSet],
    plan: Plan,
    released: Mapping[str, Ints],
    directions: Directions | None = None,
) -> dict[str, Private[Ints]]:
    """Returns what `released` would be without noise, by message name. Private, for audits.

    Args:
        data: The site's images.
        plan: What was released.
        released: The noisy vectors; every message is about those before it.
        directions: As for `release_statistics`.
    """
    read = data.map(lambda images: _read(images, plan, directions))
    return {
        message.name: read.map(partial(_statistic, message.name, plan, released))
        for message in messages(plan)
    }


def examine_messages(
    data: Private[ImageSet],
    plan: Plan,
    released: Mapping[str, Ints],
    directions: Directions | None = None,
) -> list[Finding]:
    """Returns whether every message is a sum of what single units add, on some of the site's units.

    Args:
        data: The site's images.
        plan: What was released.
        released: The noisy vectors; every message is about those before it.
        directions: As for `release_statistics`.
    """
    return [
        finding
        for message in messages(plan)
        for finding in examine_units(
            data, message, _exact(message.name, plan, released, directions)
        )
    ]


def _exact(
    name: str, plan: Plan, before: Mapping[str, Ints], directions: Directions | None
) -> Exact:
    """Returns what makes the message `name` of images, without noise."""
    if name == CENTROIDS:
        return lambda images: _statistic(name, plan, before, _read(images, plan, directions))
    return lambda images: _statistic(name, plan, before, read_images(images, plan))


def _read(images: ImageSet, plan: Plan, directions: Directions | None) -> Read:
    """Returns what all messages are made of.

    Raises:
        StateError: the plan has centroids, and nothing embeds images.
    """
    if plan.centroids is None:
        return read_images(images, plan)
    if directions is None:
        raise StateError(
            "the plan's `router.centroids` take the weights of its embedder",
            hint="give --embedder-weights FILE",
        )
    return read_images(images, plan)._replace(directions=directions(images))


def _statistic(name: str, plan: Plan, before: Mapping[str, Ints], own: Read) -> Ints:
    """Returns the integers of the message `name`, without noise, `(n,)`.

    Args:
        name: Of the message.
        plan: Gives parts and bounds.
        before: The noisy vectors of the messages before it. Nothing else decides what an image of
            given coefficients adds, so that the sensitivity holds whatever they are.
        own: What it is made of.
    """
    if name == CENTROIDS:
        if plan.centroids is None or own.directions is None:
            raise TypeError("centroids are made of directions")
        return centroid_statistic(own.directions, planned_anchors(plan.centroids), own.weights)
    norms = before.get(NORMS)
    if name == NORMS:
        return norms_statistic(own, plan)
    if name == LOCATION:
        return location_statistic(own.y, own.cells, plan, own.weights, norms)
    noise = {made: float(event.noise_multiplier) for made, event in router_events(plan).items()}
    location = decode_location(plan, before[LOCATION], noise[LOCATION], norms)
    means = location.means.numpy()
    if name == SHAPE:
        return shape_statistic(own.y, own.cells, means, plan, own.weights, own.bands, norms)
    parts = component_of_images(own.y, own.cells, plan, before, means)
    radii = component_radii(plan, before, location, noise[SHAPE])
    if name == COMPONENT_LOCATION:
        return component_location_statistic(own, parts, means, radii, plan)
    if name == COMPONENT_SHAPE:
        found = decode_components(
            plan, before[COMPONENT_LOCATION], noise[COMPONENT_LOCATION], location, radii
        )
        return component_shape_statistic(own, parts, found.means.numpy(), radii, plan)
    raise ValueError(f"no message is named {name}")


def norms_statistic(own: Read, plan: Plan) -> Ints:
    """Returns the integers of the `norms` message, without noise: a histogram of |y|."""
    edges = norm_edges(plan)

    def contribution(rows: slice) -> dict[str, Floats]:
        norm = np.linalg.norm(own.y[rows], axis=1)
        place = np.searchsorted(edges, norm).clip(max=len(edges) - 1)
        return {"norm_count": np.eye(len(edges))[place]}

    return integer_sum(message_named(plan, NORMS), len(own.y), contribution, own.weights)


def location_statistic(
    y: Floats,
    cells: Ints,
    plan: Plan,
    weights: Floats | None = None,
    norms: Ints | None = None,
) -> Ints:
    """Returns the integers of the `location` message, without noise.

    Args:
        y: Coefficients, `(N, D)`.
        cells: Cell of every image, `(N,)`.
        plan: Gives parts and radius.
        weights: What each image counts for, `(N,)`, as `image_weights` says; None means 1.
        norms: The released `norms`, where the plan has no radius.
    """
    count = cell_count(plan)

    def contribution(rows: slice) -> dict[str, Floats]:
        ones = np.ones((len(y[rows]), 1))
        member = np.eye(count)[cells[rows]]  # (n, J)
        parts = {"count": ones, "cell_count": member}
        if isinstance(plan.router, StatisticsSpec):
            radius = radius_of(plan, norms)
            clipped = _clip(y[rows], radius)
            if own_covariances(plan):
                clipped = clipped / radius
            parts["cell_sum"] = (member[:, :, None] * clipped[:, None]).reshape(len(ones), -1)
        return parts

    return integer_sum(message_named(plan, LOCATION), len(y), contribution, weights)


def shape_statistic(
    y: Floats,
    cells: Ints,
    means: Floats,
    plan: Plan,
    weights: Floats | None = None,
    bands: Floats | None = None,
    norms: Ints | None = None,
) -> Ints:
    """Returns the integers of the `shape` message about the released `means`, without noise.

    Args:
        y: Coefficients, `(N, D)`.
        cells: Cell of every image, `(N,)`.
        means: Released mean of every cell, `(J, D)`.
        plan: Gives parts and radius.
        weights: What each image counts for, `(N,)`, as `image_weights` says; None means 1.
        bands: Energy of every image in each band, `(N, B)`, where the plan has bands.
        norms: The released `norms`, where the plan has no radius.
    """
    if not isinstance(plan.router, StatisticsSpec):
        raise TypeError("only a mixture router has a shape")
    radius, message = radius_of(plan, norms), message_named(plan, SHAPE)
    if own_covariances(plan):
        return _spreads(y, cells, means, np.full(len(means), radius), message, weights, bands)
    diagonal = plan.router.covariance == "diagonal"
    row, column, scale = _upper(y.shape[1])

    def contribution(rows: slice) -> dict[str, Floats]:
        u = y[rows] - means[cells[rows]]
        norm = np.linalg.norm(u, axis=1, keepdims=True)  # (n, 1)
        v = u / np.maximum(norm, 1e-12)
        parts = {"trace": np.minimum(norm, radius) ** 2}
        if diagonal:
            return parts | {"square": v * v}  # (n, D)
        return parts | {"sign": v[:, row] * v[:, column] * scale}  # (n, D (D + 1) / 2)

    return integer_sum(message, len(y), contribution, weights)


def component_location_statistic(
    own: Read, parts: Ints, means: Floats, radii: Floats, plan: Plan
) -> Ints:
    """Returns the integers of the `component_location` message, without noise.

    Args:
        own: What it is made of.
        parts: Component of every image, `(N,)`, counted through all cells.
        means: Released mean of every cell, `(J, D)`.
        radii: What bounds a component's images about the mean of their cell, `(J,)`.
        plan: Gives the parts.
    """
    message = message_named(plan, COMPONENT_LOCATION)
    counts, sums = message.parts
    total = np.zeros(message.size, dtype=np.int64)
    for component in range(counts.size):
        mine = np.flatnonzero(parts == component)
        cell = component // component_count(plan)
        u = _clip(own.y[mine] - means[cell], radii[cell]) / radii[cell]
        ones = np.ones((len(mine), 1)) * counts.weight
        weights = None if own.weights is None else own.weights[mine]
        total[component] = truncated(ones, weights).sum()
        start = counts.size + component * u.shape[1]
        total[start : start + u.shape[1]] = truncated(u * sums.weight, weights).sum(axis=0)
    return total


def component_shape_statistic(
    own: Read, parts: Ints, means: Floats, radii: Floats, plan: Plan
) -> Ints:
    """Returns the integers of the `component_shape` message, without noise.

    Args:
        own: What it is made of.
        parts: Component of every image, `(N,)`, counted through all cells.
        means: Released mean of every component, `(J, C, D)`.
        radii: As for `component_location_statistic`.
        plan: Gives the parts.
    """
    each = component_count(plan)
    return _spreads(
        own.y,
        parts,
        means.reshape(len(means) * each, -1),
        np.repeat(radii, each),
        message_named(plan, COMPONENT_SHAPE),
        own.weights,
        None,
    )


def _spreads(
    y: Floats,
    cells: Ints,
    means: Floats,
    radii: Floats,
    message: Message,
    weights: Floats | None,
    bands: Floats | None,
) -> Ints:
    """Returns trace, directions and bands of every cell, `(n,)` integers: one cell after another.

    An image adds to its own cell alone: min(|u|, R)^2 / R^2, the upper half of v v^T, and the
    energies of its bands over R^2, shortened together to 1 at most. A cell's images are summed by
    themselves, so that no vector of all cells is made for an image.
    """
    row, column, scale = _upper(y.shape[1])
    at_once = max(16, VALUES_AT_ONCE // len(row))  # what a processor keeps near to itself
    named = {part.name: part for part in message.parts}
    totals = {
        part.name: np.zeros((len(means), part.size // len(means)), dtype=np.int64)
        for part in message.parts
    }
    for cell, (mean, radius) in enumerate(zip(means, radii, strict=True)):
        mine = np.flatnonzero(cells == cell)
        for start in range(0, len(mine), at_once):
            rows = mine[start : start + at_once]
            u = y[rows] - mean
            norm = np.linalg.norm(u, axis=1, keepdims=True)  # (n, 1)
            v = u / np.maximum(norm, 1e-12)
            found = {
                "trace": np.minimum(norm / radius, 1.0) ** 2,
                "sign": v[:, row] * v[:, column] * scale,
            }
            if bands is not None:
                found["band"] = _clip(bands[rows] / radius**2, 1.0)
            own = None if weights is None else weights[rows]
            for name, values in found.items():
                weighted = truncated(values * named[name].weight, own)
                totals[name][cell] += weighted.sum(axis=0)
    return np.concatenate([totals[part.name].ravel() for part in message.parts])


def _upper(d: int) -> tuple[Ints, Ints, Floats]:
    """Returns row, column and scale of the upper half of a symmetric matrix, `(D (D + 1) / 2,)`.

    sqrt(2) off the diagonal makes the vector's norm the Frobenius norm of v v^T, which is 1.
    """
    row, column = np.triu_indices(d)
    return row, column, np.where(row == column, 1.0, math.sqrt(2))


def _clip(y: Floats, radius: float) -> Floats:
    """Returns the rows of `y`, the longer ones shortened to the norm `radius`."""
    norm = np.linalg.norm(y, axis=1, keepdims=True)
    clipped: Floats = y * np.minimum(1.0, radius / np.maximum(norm, 1e-12))
    return clipped

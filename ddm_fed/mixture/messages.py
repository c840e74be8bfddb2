"""What a site releases under a plan: which noisy vectors, of which parts, at which price.

| message              | parts                      | where                            |
| -------------------- | -------------------------- | -------------------------------- |
| `norms`              | a histogram of the norms   | the plan has no `router.radius`  |
| `location`           | counts, and sums of cells  | always; a `prior` has no sums    |
| `shape`              | spread and directions      | the router is a mixture          |
| `component_location` | counts, sums of components | `router.components` is 2 or more |
| `component_shape`    | spread and directions      | `router.components` is 2 or more |
| `centroids`          | counts, sums of directions | the plan has `router.centroids`  |

Every message is one vector of integers, released in this order; it may depend on those before it.
Its parts are weighted so that they share its privacy as SHARES and `_own_shares` say, with a joint
L2 sensitivity known beforehand. Cells and components divide the images, so a sum in each costs what
one sum costs.
"""

import math
from functools import lru_cache

from ddm_fed.mixture.noisy_vector import GRID, Message, Part
from ddm_fed.privacy import gaussian_events
from ddm_fed.records import GaussianEvent, Plan, StatisticsSpec
from ddm_fed.storage.tensors import TensorTable

NORMS, LOCATION, SHAPE = "norms", "location", "shape"
COMPONENT_LOCATION, COMPONENT_SHAPE = "component_location", "component_shape"
CENTROIDS, CENTROID_PURPOSE = "centroids", "router-centroids"
ROUTER_PURPOSES = {
    NORMS: "router-norms",
    LOCATION: "router-location",
    SHAPE: "router-shape",
    COMPONENT_LOCATION: "router-component-location",
    COMPONENT_SHAPE: "router-component-shape",
    CENTROIDS: CENTROID_PURPOSE,
}
SHARES = {  # where the cells of a site share one covariance
    "count": 0.05,
    "cell_count": 0.05,
    "cell_sum": 0.20,
    "trace": 0.05,
    "sign": 0.70,
    "square": 0.70,
}
# where each has its own; the second row is what the sums of components take of the whole
COUNTS, SUMS, SPREAD, DIRECTIONS = 0.05, 0.25, 0.05, 0.65
FIRST_ROUND = 0.25  # of the privacy, where a second one divides cells into components
NORM_BINS, NORM_SHARE = 18, 0.03
BAND_SHARE = 0.03
# a direction needs no count, so the counts, which are the prior, take the smaller part
CENTROID_SHARES = {"anchor_count": 0.1, "anchor_sum": 0.9}


def cell_count(plan: Plan) -> int:
    """Returns J, the number of cells: one per class or anchor, one where there are neither."""
    anchors = plan.router.anchors if isinstance(plan.router, StatisticsSpec) else ()
    return max(1, len(plan.data.classes), len(anchors))


def component_count(plan: Plan) -> int:
    """Returns C, the number of Gaussians in each cell of a site."""
    spec = plan.router
    return (spec.components or 1) if isinstance(spec, StatisticsSpec) else 1


def own_covariances(plan: Plan) -> bool:
    """Returns whether every Gaussian has a covariance of its own, not one with all of its site."""
    return isinstance(plan.router, StatisticsSpec) and plan.router.components is not None


@lru_cache(maxsize=16)
def messages(plan: Plan) -> tuple[Message, ...]:
    """Returns the messages a site releases under `plan`, in order."""
    found, spec = _of_coefficients(plan), plan.centroids
    if spec is None:
        return found
    part = float(spec.part)
    share = sum(message.share for message in found) * part / (1 - part)
    return (*found, centroid_message(len(spec.anchors), len(spec.axes), share))


def centroid_message(anchors: int, dimensions: int, share: float = 1.0) -> Message:
    """Returns the message about embeddings at so many anchors in so many axes.

    An image is at one anchor, and its direction has norm 1, so nothing has to be clipped.
    """
    sizes = {"anchor_count": anchors, "anchor_sum": anchors * dimensions}
    return Message(
        CENTROIDS,
        tuple(
            Part(name, sizes[name], 1.0, GRID * math.sqrt(of_it))
            for name, of_it in CENTROID_SHARES.items()
        ),
        share,
    )


def _of_coefficients(plan: Plan) -> tuple[Message, ...]:
    """Returns the messages about counts and coefficients."""
    router, cells = plan.router, cell_count(plan)
    counts = [("count", 1, 1.0)]
    if cells > 1:
        counts.append(("cell_count", cells, 1.0))
    if not isinstance(router, StatisticsSpec):
        return (_message(LOCATION, counts, SHARES),)
    if router.components is not None:
        return _with_own_covariances(plan, router)
    d, radius = plan.data.shape[0] * router.frequencies, float(router.radius or 0)
    location = [*counts, ("cell_sum", cells * d, radius)]
    directions = ("sign", d * (d + 1) // 2, 1.0)
    if router.covariance == "diagonal":
        directions = ("square", d, 1.0)
    shape = [("trace", 1, radius**2), directions]
    return (_message(LOCATION, location, SHARES), _message(SHAPE, shape, SHARES))


def _with_own_covariances(plan: Plan, router: StatisticsSpec) -> tuple[Message, ...]:
    """Returns the messages where every Gaussian has its own covariance.

    Their sums are in units of the radius that bounds them, so that they are bounded by 1 whatever
    the radius turns out to be.
    """
    cells, d = cell_count(plan), plan.data.shape[0] * router.frequencies
    each = component_count(plan)
    first, second = (FIRST_ROUND, 1 - FIRST_ROUND) if each > 1 else (1.0, 0.0)
    square = d * (d + 1) // 2
    norms = [("norm_count", NORM_BINS, 1.0)] if router.radius is None else []
    location = [("count", 1, 1.0), ("cell_sum", cells * d, 1.0)]
    if cells > 1:
        location.insert(1, ("cell_count", cells, 1.0))
    shape = [("trace", cells, 1.0), ("sign", cells * square, 1.0)]
    if router.bands:
        shape.append(("band", cells * router.bands, 1.0))
    found = [
        (NORMS, norms, {"norm_count": NORM_SHARE}),
        (LOCATION, location, _own_shares(first, cells)),
        (SHAPE, shape, _own_shares(first, cells)),
    ]
    if each > 1:
        parts = cells * each
        found += [
            (
                COMPONENT_LOCATION,
                [("component_count", parts, 1.0), ("component_sum", parts * d, 1.0)],
                {"component_count": second * COUNTS, "component_sum": second * SUMS},
            ),
            (
                COMPONENT_SHAPE,
                [("trace", parts, 1.0), ("sign", parts * square, 1.0)],
                {"trace": second * SPREAD, "sign": second * DIRECTIONS},
            ),
        ]
    return tuple(_message(name, parts, shares) for name, parts, shares in found if parts)


def _own_shares(part: float, cells: int) -> dict[str, float]:
    """Returns the shares of the parts about cells, which together take `part` of the privacy."""
    of_site = 0.4 * COUNTS if cells > 1 else COUNTS
    return {
        "count": part * of_site,
        "cell_count": part * (COUNTS - of_site),
        "cell_sum": part * SUMS,
        "trace": part * SPREAD,
        "sign": part * DIRECTIONS,
        "band": BAND_SHARE,
    }


def _message(name: str, parts: list[tuple[str, int, float]], shares: dict[str, float]) -> Message:
    total = sum(shares[part] for part, _, _ in parts)
    weighted = tuple(
        Part(part, size, sensitivity, GRID * math.sqrt(shares[part] / total) / sensitivity)
        for part, size, sensitivity in parts
    )
    return Message(name, weighted, total)


def message_named(plan: Plan, name: str) -> Message:
    """Returns one message of `plan` by its name.

    Raises:
        KeyError: the plan has no such message.
    """
    for message in messages(plan):
        if message.name == name:
            return message
    raise KeyError(name)


def release_tensors(plan: Plan) -> TensorTable:
    """Returns the tensors of `router.safetensors` under `plan`."""
    return {message.name: ("I64", (message.size,)) for message in messages(plan)}


def router_shares(plan: Plan) -> list[float]:
    """Returns the share of the router's privacy that each message takes, in order."""
    return [message.share for message in messages(plan)]


def router_events(plan: Plan) -> dict[str, GaussianEvent]:
    """Returns what each message costs, by its name and in order; together `router.epsilon`."""
    names = [message.name for message in messages(plan)]
    return dict(zip(names, _events(plan), strict=True))


@lru_cache(maxsize=16)  # a search for a root, which every message asks for again
def _events(plan: Plan) -> tuple[GaussianEvent, ...]:
    shares = router_shares(plan)
    return tuple(gaussian_events(float(plan.router.epsilon), float(plan.privacy.delta), shares))

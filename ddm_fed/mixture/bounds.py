"""What clipping and noise allow a release to hold: integers beyond it were not made by the program.

Of n units, each part of a message is a sum of n contributions whose norm the plan bounds, plus
noise of a known scale. n is not known, but the noisy count says it up to the same noise, and all
parts speak of the same n. So a member that multiplies its integers, or writes some by hand, is
found out unless it makes up a whole release of a larger site; against that a plan has
`router.max_share`, and a coordinator is shown counts that jump.

A discrete Gaussian of scale s is s-subgaussian, and so are sums of independent ones. With
x = log(K / p) and K statements, all of them hold for an honest release but for a chance p:

    one coordinate          |z| <= s sqrt(2 x)
    the sum of m            |sum z| <= s sqrt(2 m x)
    the norm of m           |z| <= s sqrt(m + 2 sqrt(m x) + 2 x)

Source: Canonne, Kamath and Steinke 2020, arXiv:2004.00010, corollary 17 (subgaussian); Hsu, Kakade
and Zhang 2012, arXiv:1110.2842, theorem 1 (norm).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ddm_fed.errors import ValuesError
from ddm_fed.mixture.messages import (
    CENTROIDS,
    COMPONENT_LOCATION,
    COMPONENT_SHAPE,
    LOCATION,
    NORM_BINS,
    NORMS,
    SHAPE,
    cell_count,
    component_count,
    message_named,
    messages,
    own_covariances,
    router_events,
)
from ddm_fed.mixture.noisy_vector import GRID, Floats, Ints, Message
from ddm_fed.mixture.radius import longest_norm
from ddm_fed.records import Plan, StatisticsSpec

FALSE_ALARM = 1e-9  # chance that an honest release is refused
MOST_UNITS = 10**9  # images or patients: no site has more
MOST_IMAGES_OF_A_UNIT = 10_000  # each may lose an integer step of a patient's contribution
SLACK = 1e-9  # relative; of sums and norms in float64


@dataclass(frozen=True)
class _Noise:
    """The noise of one message, in integer steps, and how far it goes."""

    scale: float
    x: float

    @property
    def one(self) -> float:
        return self.scale * math.sqrt(2 * self.x)

    def sum_of(self, count: int) -> float:
        return self.scale * math.sqrt(2 * count * self.x)

    def norm_of(self, count: int) -> float:
        return self.scale * math.sqrt(count + 2 * math.sqrt(count * self.x) + 2 * self.x)


@dataclass(frozen=True)
class _Units:
    """How many units a site can have, by its noisy count: at least `low`, at most `high`."""

    low: float
    high: float


def require_plausible(plan: Plan, vectors: Mapping[str, Ints], *, what: str) -> None:
    """Refuses a release that the plan's clipping and noise cannot have made.

    An honest release is refused with a probability of at most `FALSE_ALARM`.

    Args:
        plan: What is released, how it is clipped, and with how much noise.
        vectors: The integers of every message, `(n,)`, by its name.
        what: Whose they are, for messages.

    Raises:
        ValuesError: naming the part, what it holds and what it can hold.
    """
    spec, cells = plan.router, cell_count(plan)
    d = plan.data.shape[0] * spec.frequencies if isinstance(spec, StatisticsSpec) else 0
    x = math.log(_statements(plan, cells, d) / FALSE_ALARM)
    noises = {
        name: _Noise(message_named(plan, name).l2_sensitivity * float(event.noise_multiplier), x)
        for name, event in router_events(plan).items()
    }
    for message in messages(plan):
        # before anything is added up: sums of extremes would overflow
        most = MOST_UNITS * GRID + noises[message.name].one
        vector = vectors[message.name]
        for extreme in (int(vector.min()), int(vector.max())):
            if abs(extreme) > most:
                raise _beyond(what, f"{message.name}: one of its integers", extreme, most)
    location = message_named(plan, LOCATION)
    parts = _parts(location, vectors[LOCATION])
    units = _check_counts(plan, parts, location, noises[LOCATION], what)
    if CENTROIDS in vectors:
        _check_centroids(plan, vectors[CENTROIDS], units[0], noises[CENTROIDS], what)
    if not isinstance(spec, StatisticsSpec):
        return
    if NORMS in vectors:
        _check_norms(plan, vectors[NORMS], units[0], noises[NORMS], what)
    _check_sums(plan, parts["cell_sum"], units[1:], location, noises[LOCATION], what, "cell")
    if not own_covariances(plan):
        _check_spreads(plan, SHAPE, vectors, units[:1], noises[SHAPE], what, "")
        return
    _check_spreads(plan, SHAPE, vectors, units[1:], noises[SHAPE], what, " of cell {}")
    if component_count(plan) > 1:
        message, noise = message_named(plan, COMPONENT_LOCATION), noises[COMPONENT_LOCATION]
        parts = _parts(message, vectors[COMPONENT_LOCATION])
        of_components = _check_components(plan, parts, message, units[1:], noise, what)
        _check_sums(plan, parts["component_sum"], of_components, message, noise, what, "component")
        noise, name = noises[COMPONENT_SHAPE], " of component {}"
        _check_spreads(plan, COMPONENT_SHAPE, vectors, of_components, noise, what, name)


def _statements(plan: Plan, cells: int, d: int) -> int:
    """Returns at least how many inequalities about noise have to hold at once."""
    spec = plan.centroids
    cells += 0 if spec is None else 2 * len(spec.anchors)
    if not own_covariances(plan):
        return 12 + 2 * cells + d
    return 12 + NORM_BINS + (cells + cells * component_count(plan)) * (8 + d)


def _parts(message: Message, vector: Ints) -> dict[str, Floats]:
    """Returns the parts of `vector` as float64, in integer steps."""
    found, start = {}, 0
    for part in message.parts:
        found[part.name] = vector[start : start + part.size].astype(np.float64)
        start += part.size
    return found


def _weight(message: Message, name: str) -> float:
    return next(part.weight for part in message.parts if part.name == name)


def _lost(plan: Plan) -> int:
    """Returns how many integer steps rounding may take off one unit's part of a count."""
    return 1 if plan.privacy.unit == "image" else MOST_IMAGES_OF_A_UNIT


def _units(steps: float, weight: float, noise: float, plan: Plan) -> _Units:
    """Returns the range of what a count of `steps` stands for."""
    low = max(0.0, (steps - noise) / weight)
    return _Units(low, max(0.0, (steps + noise) / max(1.0, weight - _lost(plan))))


def _check_counts(
    plan: Plan, parts: Mapping[str, Floats], message: Message, noise: _Noise, what: str
) -> list[_Units]:
    """Returns the units of the site and then of each cell, after checking the counts."""
    count, scale = float(parts["count"][0]), _weight(message, "count")
    if count < -noise.one:
        raise _beyond(what, "its count", count / scale, -noise.one / scale, "at least")
    units = _units(count, scale, noise.one, plan)
    if units.low > MOST_UNITS:
        raise _beyond(what, f"its count of {plan.privacy.unit}s", units.low, MOST_UNITS)
    if "cell_count" not in parts:
        return [units, units]
    cells, weight = parts["cell_count"], _weight(message, "cell_count")
    fewest = float(cells.min())
    if fewest < -noise.one:
        raise _beyond(what, "the count of a cell", fewest / weight, -noise.one / weight, "at least")
    # every unit is in one cell, or divided among several: the same integers are added up twice
    apart = abs(float(cells.sum()) / weight - count / scale)
    most = noise.sum_of(len(cells) + 1) / weight + units.high * _lost(plan) / weight
    if apart > most * (1 + SLACK):
        raise _beyond(what, "its count less those of its cells", apart, most)
    return [units, *(_units(float(cell), weight, noise.one, plan) for cell in cells)]


def _check_norms(plan: Plan, vector: Ints, units: _Units, noise: _Noise, what: str) -> None:
    """Refuses a histogram with less than nothing in a bin, or with other images than the counts."""
    message = message_named(plan, NORMS)
    counts, weight = _parts(message, vector)["norm_count"], message.parts[0].weight
    if (fewest := float(counts.min())) < -noise.one:
        raise _beyond(what, "a bin of its norms", fewest / weight, -noise.one / weight, "at least")
    total, spread = float(counts.sum()), noise.sum_of(len(counts))
    most = units.high * weight + spread
    least = units.low * max(0.0, weight - _lost(plan)) - spread
    if not least - SLACK * abs(least) <= total <= most * (1 + SLACK):
        raise _beyond(what, "the count of its norms", total / weight, most / weight)


def _check_centroids(plan: Plan, vector: Ints, units: _Units, noise: _Noise, what: str) -> None:
    """Refuses counts of other images than the site's, or sums longer than their images make."""
    message = message_named(plan, CENTROIDS)
    parts = _parts(message, vector)
    counts, weight = parts["anchor_count"], _weight(message, "anchor_count")
    if (fewest := float(counts.min())) < -noise.one:
        found = ("the count of an anchor", fewest / weight, -noise.one / weight)
        raise _beyond(what, *found, "at least")
    total, spread = float(counts.sum()), noise.sum_of(len(counts))
    most = units.high * weight + spread
    least = units.low * max(0.0, weight - _lost(plan)) - spread
    if not least - SLACK * abs(least) <= total <= most * (1 + SLACK):
        raise _beyond(what, "the count of its anchors", total / weight, most / weight)
    scale = _weight(message, "anchor_sum")
    for number, row in enumerate(parts["anchor_sum"].reshape(len(counts), -1)):
        own = _units(float(counts[number]), weight, noise.one, plan)
        found_norm, most = float(np.linalg.norm(row)), own.high * scale + noise.norm_of(len(row))
        if found_norm > most * (1 + SLACK):
            name = f"the sum of directions at anchor {number}"
            raise _beyond(what, name, found_norm / scale, most / scale)


def _check_components(
    plan: Plan,
    parts: Mapping[str, Floats],
    message: Message,
    cells: list[_Units],
    noise: _Noise,
    what: str,
) -> list[_Units]:
    """Returns the units of every component, after checking that those of a cell are the cell's."""
    counts, weight = parts["component_count"], _weight(message, "component_count")
    if (fewest := float(counts.min())) < -noise.one:
        found = ("the count of a component", fewest / weight, -noise.one / weight)
        raise _beyond(what, *found, "at least")
    each = len(counts) // len(cells)
    spread = noise.sum_of(each)
    for number, (row, units) in enumerate(zip(counts.reshape(-1, each), cells, strict=True)):
        most = units.high * weight + spread
        least = units.low * max(0.0, weight - _lost(plan)) - spread
        if not least - SLACK * abs(least) <= (total := float(row.sum())) <= most * (1 + SLACK):
            name = f"the count of the components of cell {number}"
            raise _beyond(what, name, total / weight, most / weight)
    return [_units(float(count), weight, noise.one, plan) for count in counts]


def _check_sums(
    plan: Plan,
    sums: Floats,
    units: list[_Units],
    message: Message,
    noise: _Noise,
    what: str,
    of: str,
) -> None:
    """Refuses a sum of coefficients that is longer than its units can make it."""
    part = next(part for part in message.parts if part.name.endswith("_sum"))
    longest = part.sensitivity
    if not own_covariances(plan):  # no image is further from the centre than its pixels let it be
        longest = min(longest, longest_norm(plan))
    for number, (row, own) in enumerate(zip(sums.reshape(len(units), -1), units, strict=True)):
        found = float(np.linalg.norm(row))
        most = own.high * longest * part.weight + noise.norm_of(len(row))
        if found > most * (1 + SLACK):
            what_of = f"the sum of {of} {number}"
            raise _beyond(what, what_of, found / part.weight, most / part.weight)


def _check_spreads(
    plan: Plan,
    name: str,
    vectors: Mapping[str, Ints],
    units: list[_Units],
    noise: _Noise,
    what: str,
    which: str,
) -> None:
    """Refuses spreads beyond their radius, or directions that are not those of so many units."""
    message = message_named(plan, name)
    found = {
        part.name: (_parts(message, vectors[name])[part.name].reshape(len(units), -1), part)
        for part in message.parts
    }
    d = plan.data.shape[0] * plan.router.frequencies  # type: ignore[union-attr]
    row, column = np.triu_indices(d)
    for number, own in enumerate(units):
        of = which.format(number)
        traces, part = found["trace"]
        trace, most = float(traces[number, 0]), own.high * part.sensitivity * part.weight
        if not -noise.one <= trace <= (most + noise.one) * (1 + SLACK):
            limit = (most + noise.one) / part.weight
            raise _beyond(what, f"its trace{of}", trace / part.weight, limit, "between 0 and")
        directions, part = found["square"] if "square" in found else found["sign"]
        whole = directions[number]
        diagonal = whole if part.name == "square" else whole[row == column]
        _check_directions(plan, whole, diagonal, own, part.weight, noise, what, of)
        if "band" in found:
            bands, part = found["band"]
            _check_bands(bands[number], own, part.weight, noise, what, of)


def _check_directions(
    plan: Plan,
    directions: Floats,
    diagonal: Floats,
    units: _Units,
    weight: float,
    noise: _Noise,
    what: str,
    of: str,
) -> None:
    d = len(diagonal)
    smallest = float(diagonal.min())
    if smallest < -noise.one:
        found = (f"a square of its directions{of}", smallest / weight, -noise.one / weight)
        raise _beyond(what, *found, "at least")
    # a direction has length 1, so its squares add up to one for every unit
    total, most = float(diagonal.sum()), units.high * weight + noise.sum_of(d)
    if total > most * (1 + SLACK):
        found = (f"what its directions{of} add up to", total / weight, most / weight)
        raise _beyond(what, *found)
    # rounding takes less than a step off each of its D numbers, for every image
    least = units.low * max(0.0, weight - d * _lost(plan)) - noise.sum_of(d)
    if total < least - SLACK * abs(least):
        found = (f"what its directions{of} add up to", total / weight, least / weight)
        raise _beyond(what, *found, "at least")
    length, most = float(np.linalg.norm(directions)), most + noise.norm_of(len(directions))
    if length > most * (1 + SLACK):
        raise _beyond(what, f"the norm of its directions{of}", length / weight, most / weight)


def _check_bands(
    bands: Floats, units: _Units, weight: float, noise: _Noise, what: str, of: str
) -> None:
    """Refuses energies below nothing, or more of them than the radius lets an image have."""
    if (smallest := float(bands.min())) < -noise.one:
        found = (f"the energy of a band{of}", smallest / weight, -noise.one / weight)
        raise _beyond(what, *found, "at least")
    length, most = float(np.linalg.norm(bands)), units.high * weight + noise.norm_of(len(bands))
    if length > most * (1 + SLACK):
        raise _beyond(what, f"the energy of its bands{of}", length / weight, most / weight)


def _beyond(
    what: str, part: str, found: float, limit: float, relation: str = "at most"
) -> ValuesError:
    return ValuesError(
        f"{what} is refused: {part} is {found:.6g}; clipping and noise of the plan allow "
        f"{relation} {limit:.6g}",
        hint="an honest release is refused once in a billion times: ask the site's people whether "
        "somebody changed its router.safetensors; the site has to train and submit again",
    )

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
from ddm_fed.privacy import gaussian_events
from ddm_fed.records import Plan, StatisticsSpec
from ddm_fed.router.noisy_vector import GRID, Ints, Message
from ddm_fed.router.statistics import LOCATION, SHAPE, Floats, cell_count, messages, router_shares

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
    d = plan.data.channels * spec.frequencies if isinstance(spec, StatisticsSpec) else 0
    x = math.log((12 + 2 * cells + d) / FALSE_ALARM)
    events = gaussian_events(float(spec.epsilon), float(plan.privacy.delta), router_shares(plan))
    noises = {
        message.name: _Noise(message.l2_sensitivity * float(event.noise_multiplier), x)
        for message, event in zip(messages(plan), events, strict=True)
    }
    for message in messages(plan):
        # before anything is added up: sums of extremes would overflow
        most = MOST_UNITS * GRID + noises[message.name].one
        vector = vectors[message.name]
        for extreme in (int(vector.min()), int(vector.max())):
            if abs(extreme) > most:
                raise _beyond(what, f"{message.name}: one of its integers", extreme, most)
    location = messages(plan)[0]
    parts = _parts(location, vectors[LOCATION])
    units = _check_counts(plan, parts, location, noises[LOCATION], what)
    if isinstance(spec, StatisticsSpec):
        _check_sums(plan, spec, parts, location, units, noises[LOCATION], what)
        _check_shape(plan, spec, vectors[SHAPE], units, noises[SHAPE], what)


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


def _check_sums(
    plan: Plan,
    spec: StatisticsSpec,
    parts: Mapping[str, Floats],
    message: Message,
    units: list[_Units],
    noise: _Noise,
    what: str,
) -> None:
    """Refuses a sum of coefficients that is longer than its cell's units can make it."""
    weight, cells = _weight(message, "cell_sum"), cell_count(plan)
    sums = parts["cell_sum"].reshape(cells, -1)
    # no image is further from the centre than its pixels let it be
    furthest = (1 + abs(float(spec.centre))) * math.sqrt(math.prod(plan.data.shape))
    longest = min(float(spec.radius), furthest)
    for number, (row, own) in enumerate(zip(sums, units[1:], strict=True)):
        found = float(np.linalg.norm(row))
        most = own.high * longest * weight + noise.norm_of(len(row))
        if found > most * (1 + SLACK):
            raise _beyond(what, f"the sum of cell {number}", found / weight, most / weight)


def _check_shape(
    plan: Plan, spec: StatisticsSpec, vector: Ints, units: list[_Units], noise: _Noise, what: str
) -> None:
    """Refuses a spread beyond the radius, or directions that are not those of so many units."""
    message, whole = messages(plan)[1], units[0]
    parts = _parts(message, vector)
    trace, weight = float(parts["trace"][0]), _weight(message, "trace")
    most = whole.high * float(spec.radius) ** 2 * weight + noise.one
    if not -noise.one <= trace <= most * (1 + SLACK):
        raise _beyond(what, "its trace", trace / weight, most / weight, "between 0 and")
    name = "square" if spec.covariance == "diagonal" else "sign"
    directions, weight = parts[name], _weight(message, name)
    d = plan.data.channels * spec.frequencies
    row, column = np.triu_indices(d)
    diagonal = directions if name == "square" else directions[row == column]
    smallest = float(diagonal.min())
    if smallest < -noise.one:
        found = ("a square of its directions", smallest / weight, -noise.one / weight)
        raise _beyond(what, *found, "at least")
    # a direction has length 1, so its squares add up to one for every unit
    total, most = float(diagonal.sum()), whole.high * weight + noise.sum_of(d)
    if total > most * (1 + SLACK):
        raise _beyond(what, "what its directions add up to", total / weight, most / weight)
    # rounding takes less than a step off each of its D numbers, for every image
    least = whole.low * max(0.0, weight - d * _lost(plan)) - noise.sum_of(d)
    if total < least - SLACK * abs(least):
        found = ("what its directions add up to", total / weight, least / weight)
        raise _beyond(what, *found, "at least")
    length, most = float(np.linalg.norm(directions)), most + noise.norm_of(len(directions))
    if length > most * (1 + SLACK):
        raise _beyond(what, "the norm of its directions", length / weight, most / weight)


def _beyond(
    what: str, part: str, found: float, limit: float, relation: str = "at most"
) -> ValuesError:
    return ValuesError(
        f"{what} is refused: {part} is {found:.6g}; clipping and noise of the plan allow "
        f"{relation} {limit:.6g}",
        hint="an honest release is refused once in a billion times: ask the site's people whether "
        "somebody changed its router.safetensors; the site has to train and submit again",
    )

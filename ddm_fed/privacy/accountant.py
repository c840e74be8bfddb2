"""What a ledger costs: events composed to epsilon, with Google's dp-accounting.

Adjacency is add-or-remove-one unit. Figures are rounded up, never down.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from importlib.metadata import version
from itertools import pairwise
from typing import Any, Self

from ddm_fed.errors import BudgetError, PolicyError
from ddm_fed.records import (
    Event,
    GaussianEvent,
    LedgerEntry,
    NonPrivateEvent,
    SampledGaussianEvent,
    sha256_hex,
)

# A ledger may only be priced by code its reader chose: nothing is built from a name it contains.
ACCOUNTANT = "dp-accounting, privacy loss distributions, add_or_remove_one"
HOPELESS_EPSILON = 2000.0  # by the Renyi bound; no plan may allow so much
MOST_KINDS = 50  # of sampled events in one ledger
# What one price may cost, whatever a peer wrote: so many distributions are composed, on grids of so
# many points together. That is a few seconds; see `_grouped` and `_interval`.
MOST_DISTRIBUTIONS, MOST_POINTS, MOST_STEPS = 12, 1_000_000, 10**7
AT_ONCE = 10_000  # steps; for more, the library reckons with integers of millions of digits
PLACES = Decimal("0.0001")
RENYI_ORDERS = [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512]
# Largest steps of a discretised privacy loss. All bound from above; where epsilon is large, fine
# ones change the fourth digit and take seconds.
FINE, COARSE = 1e-4, 1e-3
SMALL_EPSILON = 4.0
# Rounding to the ends of a step of length h adds at most h^2 / 4 to the variance of each event's
# loss, h^2 / 6 on average: many events need finer steps. Of the whole variance no more than this
# may be added, as far as `MOST_POINTS` allows, which bounds time and memory.
ADDED_VARIANCE = 5e-4
TYPICAL_DELTA = 1e-5
MIN_MULTIPLIER, MAX_MULTIPLIER = 0.3, 1e5
CUT_OFF = 1e-15  # of the mass of a distribution; it counts as infinitely bad
TAIL = 10.0  # standard deviations of a Gaussian, beyond which the distributions are cut off
Kind = tuple[tuple[float, float], int]
"""A (sampling rate, noise multiplier), and for how many steps."""
Kinds = tuple[Kind, ...]


def accountant_name() -> str:
    """Returns the accountant and its version, as manifests state them."""
    return f"{ACCOUNTANT}, {version('dp-accounting')}"


def epsilon(events: Iterable[Event], delta: float) -> float:
    """Returns the epsilon that `events` compose to at `delta`; infinite if one is not private.

    Gaussian releases of noise multipliers z_i compose exactly to one of multiplier
    (sum 1 / z_i^2)^(-1/2), also when a later one depends on the outcome of an earlier one (Dong,
    Roth and Su 2019, arXiv:1905.02383, corollary 2), whose epsilon is the analytic one. With
    Poisson-sampled events the privacy loss distributions are composed, which bounds from above
    (Koskela et al. 2020, arXiv:1906.03049; Doroshenko et al. 2022, arXiv:2207.04380). The Renyi
    bound holds as well, so the smaller of both is returned; beyond `HOPELESS_EPSILON` or
    `MOST_STEPS` it is the only one. Of more than `MOST_DISTRIBUTIONS` kinds, like ones are put
    together, and where losses are wide the grid is as coarse as `MOST_POINTS` asks. All of these
    bound from above, and so the time this takes does not depend on what a peer wrote.

    Raises:
        PolicyError: more than `MOST_KINDS` different sampled events.

    Example:
        >>> from decimal import Decimal
        >>> release = GaussianEvent(noise_multiplier=Decimal(4))
        >>> round(epsilon([release], 1e-5), 2), round(epsilon([release, release], 1e-5), 2)
        (0.93, 1.36)
    """
    squares, sampled = _sorted(events)
    return _priced(squares, tuple(sorted(sampled.items())), delta)


@lru_cache(maxsize=1024)  # one ledger is priced for a limit, a statement, a table
def _priced(squares: float, sampled: Kinds, delta: float) -> float:
    from dp_accounting import get_epsilon_gaussian

    if math.isinf(squares):
        return math.inf
    if not sampled:
        return float(get_epsilon_gaussian(squares**-0.5, delta)) if squares else 0.0
    renyi = float(_renyi(squares, sampled).get_epsilon(delta))
    if renyi > HOPELESS_EPSILON or sum(steps for _, steps in sampled) > MOST_STEPS:
        return renyi
    losses = _losses(renyi, delta, squares, _grouped(sampled))
    return min(renyi, float(losses.get_epsilon_for_delta(delta)))


def deltas(events: Iterable[Event], epsilons: Sequence[float]) -> list[float]:
    """Returns the delta that `events` compose to at each of `epsilons`: their privacy profile.

    Raises:
        PolicyError: more than `MOST_KINDS` different sampled events.
        ValueError: an event without noise has no profile.
    """
    squares, sampled = _sorted(events)
    if math.isinf(squares):
        raise ValueError("an event without noise has no privacy profile")
    kinds = tuple(sorted(sampled.items()))
    about = float(_renyi(squares, kinds).get_epsilon(TYPICAL_DELTA))
    losses = _losses(about, TYPICAL_DELTA, squares, _grouped(kinds))
    return [float(losses.get_delta_for_epsilon(value)) for value in epsilons]


def _sorted(events: Iterable[Event]) -> tuple[float, Counter[tuple[float, float]]]:
    """Returns the sum of 1 / z^2 of Gaussians, and the steps of each (sampling rate, z)."""
    squares, sampled = 0.0, Counter[tuple[float, float]]()
    for event in events:
        match event:
            case NonPrivateEvent():
                return math.inf, sampled
            case GaussianEvent():
                squares += float(event.noise_multiplier) ** -2
            case SampledGaussianEvent() if event.sampling_rate == 1:  # as many Gaussians, exactly
                squares += event.steps * float(event.noise_multiplier) ** -2
            case SampledGaussianEvent():
                kind = (float(event.sampling_rate), float(event.noise_multiplier))
                sampled[kind] += event.steps
    if len(sampled) > MOST_KINDS:
        raise PolicyError(
            f"the ledger has {len(sampled)} different kinds of sampled events, more than "
            f"{MOST_KINDS}",
            hint="no site needs so many: look at it together with its data-protection officer",
        )
    return squares, sampled


def _grouped(kinds: Kinds) -> Kinds:
    """Returns at most `MOST_DISTRIBUTIONS` kinds that together cost no less than `kinds`.

    Two kinds become one of the larger sampling rate, the smaller noise and the steps of both: less
    noise is post-processed into more, and a mixture with a smaller rate is a mixture of that of
    the larger one and of no difference at all, which is dominated (Zhu, Dong and Wang 2022,
    arXiv:2106.08567). Those go together that lose least by it.
    """
    found = sorted(kinds, key=lambda kind: (kind[0][1], kind[0][0]))
    while len(found) > MOST_DISTRIBUTIONS:
        pairs = [_together(*pair) for pair in pairwise(found)]
        losses = [
            _weight(pair) - _weight(one) - _weight(other)
            for pair, (one, other) in zip(pairs, pairwise(found), strict=True)
        ]
        at = losses.index(min(losses))
        found[at : at + 2] = [pairs[at]]
    return tuple(sorted(found))


def _together(one: Kind, other: Kind) -> Kind:
    (rate, noise), (other_rate, other_noise) = one[0], other[0]
    return (max(rate, other_rate), min(noise, other_noise)), one[1] + other[1]


def _weight(kind: Kind) -> float:
    """Returns about how much a kind costs: the Renyi divergence of order 2 of all its steps."""
    (rate, noise), steps = kind
    return steps * math.log1p(rate**2 * math.expm1(noise**-2))


def _interval(about: float, delta: float, squares: float, kinds: Kinds) -> float:
    """Returns the step of the grid of losses for a ledger whose epsilon at `delta` is `about`.

    Its loss is nearly normal with variance mu^2 and mean mu^2 / 2, mu being that of the Gaussian
    mechanism of the same epsilon (Dong, Roth and Su 2019, arXiv:1905.02383, theorem 3.4): the more
    events, the finer the grid, and never finer than the losses of all kinds can be held in
    `MOST_POINTS`.
    """
    from dp_accounting import get_sigma_gaussian

    coarsest = FINE if about < SMALL_EPSILON else COARSE
    if not kinds or about <= 0:
        return coarsest
    mu = 1 / float(get_sigma_gaussian(about, delta))
    wanted = math.sqrt(6 * ADDED_VARIANCE / sum(steps for _, steps in kinds)) * mu
    # one event's loss reaches this far at most; all together, this far
    one = max(math.log1p(rate * math.expm1(2 * TAIL / z + 0.5 / z**2)) for (rate, z), _ in kinds)
    wide = max(one, 2 * TAIL * math.sqrt(squares), mu**2 / 2 + 2 * TAIL * mu)
    finest = wide * len(kinds) / MOST_POINTS
    return max(min(coarsest, wanted), finest)


def _losses(about: float, delta: float, squares: float, kinds: Kinds) -> Any:
    """Returns the composed distribution of losses, whose epsilon at `delta` is `about` so large."""
    from dp_accounting.pld import privacy_loss_distribution as plds

    from ddm_fed.privacy.losses import gaussian_losses

    interval = _interval(about, delta, squares, kinds)
    composed = plds.identity(value_discretization_interval=interval)
    for (rate, multiplier), steps in kinds:
        step = gaussian_losses(multiplier, interval, rate)
        whole, rest = divmod(steps, AT_ONCE)
        if whole:
            some = step.self_compose(AT_ONCE, CUT_OFF / whole)
            composed = composed.compose(some.self_compose(whole) if whole > 1 else some)
        if rest:
            composed = composed.compose(step.self_compose(rest))
    if squares:
        composed = composed.compose(gaussian_losses(squares**-0.5, interval))
    return composed


def _renyi(squares: float, kinds: Kinds) -> Any:
    """Returns an accountant that has composed Renyi divergences."""
    from dp_accounting import NeighboringRelation, dp_event
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(RENYI_ORDERS, NeighboringRelation.ADD_OR_REMOVE_ONE)
    for (rate, multiplier), steps in kinds:
        step = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(multiplier))
        accountant.compose(step, steps)
    if squares:
        accountant.compose(dp_event.GaussianDpEvent(squares**-0.5))
    return accountant


def epsilon_text(events: Iterable[Event], delta: float) -> str:
    """Returns `epsilon` as a decimal rounded up to four places, as it is signed.

    Raises:
        ValueError: one of `events` is not private, so there is no number to sign.
    """
    value = epsilon(events, delta)
    if math.isinf(value):
        raise ValueError("an event without noise has no epsilon")
    return format(Decimal(value).quantize(PLACES, rounding=ROUND_CEILING), "f")


def gaussian_events(
    target_epsilon: float, delta: float, shares: Sequence[float]
) -> tuple[GaussianEvent, ...]:
    """Returns one event per share, which together cost at most `target_epsilon` at `delta`.

    Squared inverse multipliers add (see `epsilon`), and `shares` divide their sum. Multipliers are
    rounded up to four places, so that what is signed is what was drawn.

    Source: the total is that of the analytic Gaussian mechanism, Balle and Wang 2018,
    arXiv:1805.06530.
    """
    from dp_accounting import get_sigma_gaussian

    total = get_sigma_gaussian(target_epsilon, delta)
    while True:
        events = tuple(
            GaussianEvent(
                noise_multiplier=Decimal(total * math.sqrt(sum(shares) / share)).quantize(
                    PLACES, ROUND_CEILING
                )
            )
            for share in shares
        )
        if epsilon(events, delta) <= target_epsilon:
            return events
        total *= 1.0005


def sampled_event(
    target_epsilon: float,
    delta: float,
    *,
    sampling_rate: Decimal,
    steps: int,
    beside: Sequence[Event] = (),
) -> SampledGaussianEvent:
    """Returns the event of least noise that costs, with `beside`, at most `target_epsilon`.

    Args:
        target_epsilon: Of all events together.
        delta: At which it holds.
        sampling_rate: Probability that a unit is in a step.
        steps: How often.
        beside: Events that are paid for out of the same target.

    Raises:
        BudgetError: no noise is enough, since `beside` takes all.
    """

    def event(multiplier: float) -> SampledGaussianEvent:
        return SampledGaussianEvent(
            sampling_rate=sampling_rate,
            noise_multiplier=Decimal(multiplier).quantize(PLACES, ROUND_CEILING),
            steps=steps,
        )

    def fits(multiplier: float) -> bool:
        return epsilon([*beside, event(multiplier)], delta) <= target_epsilon

    if not fits(MAX_MULTIPLIER):
        raise BudgetError(
            f"epsilon {target_epsilon:g} is spent already: nothing is left for training",
            hint="agree on a larger `privacy.sgd.epsilon`, or on a cheaper router release",
        )
    if fits(MIN_MULTIPLIER):
        return event(MIN_MULTIPLIER)
    from dp_accounting import LowerEndpointAndGuess, calibrate_dp_mechanism, dp_event

    found = calibrate_dp_mechanism(
        lambda: _Pricing(dp_event.NoOpDpEvent(), beside),
        event,
        target_epsilon,
        delta,
        LowerEndpointAndGuess(MIN_MULTIPLIER, 2 * MIN_MULTIPLIER),
        tol=float(PLACES),
    )
    return event(found)


@dataclass
class _Pricing:
    """What dp-accounting's calibration asks of an accountant, with the prices of `epsilon`."""

    ledger: Any
    beside: Sequence[Event]

    def compose(self, event: Event) -> Self:
        self.events = [*self.beside, event]
        return self

    def get_epsilon(self, delta: float) -> float:
        return epsilon(self.events, delta)


def private_events(entries: Iterable[LedgerEntry]) -> list[Event]:
    """Returns the events that add noise; what was released without noise has no epsilon to add."""
    return [entry.event for entry in entries if not isinstance(entry.event, NonPrivateEvent)]


def check_chain(entries: Sequence[LedgerEntry]) -> None:
    """Refuses a ledger with a missing, reordered or altered entry.

    Raises:
        PolicyError: naming the first entry that does not follow from the one before.
    """
    previous = None
    for index, entry in enumerate(entries):
        if entry.index != index or entry.previous_sha256 != previous:
            raise PolicyError(
                f"ledger entry {index} does not follow from the one before it",
                hint="the ledger was cut, reordered or edited; restore the site's ledger.jsonl "
                "from backup and build the bundle again",
            )
        previous = sha256_hex(entry.to_json())

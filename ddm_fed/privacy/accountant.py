"""What a ledger costs: events composed to epsilon, by Google's privacy loss distributions.

Adjacency is add-or-remove-one unit. Figures are rounded up, never down.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from decimal import ROUND_CEILING, Decimal
from importlib.metadata import version

from ddm_fed.errors import PolicyError
from ddm_fed.records import Event, GaussianEvent, LedgerEntry, NonPrivateEvent, sha256_hex

# A ledger may only be priced by code its reader chose: nothing is built from a name it contains.
ACCOUNTANT = "dp-accounting PLD, add_or_remove_one"


def accountant_name() -> str:
    """Returns the accountant and its version, as manifests state them."""
    return f"{ACCOUNTANT}, {version('dp-accounting')}"


def epsilon(events: Iterable[Event], delta: float) -> float:
    """Returns the epsilon that `events` compose to at `delta`; infinite if one is not private.

    Adaptive composition: a later event may depend on the outcome of an earlier one.
    """
    multipliers = []
    for event in events:
        match event:
            case NonPrivateEvent():
                return math.inf
            case GaussianEvent():
                multipliers.append(float(event.noise_multiplier))
    return _composed_epsilon(tuple(multipliers), delta)


@functools.lru_cache
def _composed_epsilon(noise_multipliers: tuple[float, ...], delta: float) -> float:
    from dp_accounting import NeighboringRelation, dp_event
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
    for multiplier in noise_multipliers:
        accountant.compose(dp_event.GaussianDpEvent(multiplier))
    return float(accountant.get_epsilon(delta))


def epsilon_text(events: Iterable[Event], delta: float) -> str:
    """Returns `epsilon` as a decimal rounded up to four places, as it is signed."""
    value = epsilon(events, delta)
    return format(Decimal(value).quantize(Decimal("0.0001"), rounding=ROUND_CEILING), "f")


def gaussian_events(
    target_epsilon: float, delta: float, shares: Sequence[float]
) -> tuple[GaussianEvent, ...]:
    """Returns one event per share, which together cost at most `target_epsilon` at `delta`.

    A Gaussian release of noise multiplier z has privacy 1/z in the sense of Gaussian DP, and those
    add in squares (Dong, Roth and Su 2019, arXiv:1905.02383): `shares` divide that square. The
    analytic Gaussian mechanism (Balle and Wang 2018, arXiv:1805.06530) proposes the total; the
    accountant that will be asked to check decides.
    """
    from dp_accounting import get_sigma_gaussian

    total = get_sigma_gaussian(target_epsilon, delta)
    while True:
        events = tuple(
            GaussianEvent(
                noise_multiplier=Decimal(total * math.sqrt(sum(shares) / share)).quantize(
                    Decimal("0.0001"), ROUND_CEILING
                )
            )
            for share in shares
        )
        if epsilon(events, delta) <= target_epsilon:
            return events
        total *= 1.0005


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

"""What a ledger costs: events composed to epsilon, with Google's dp-accounting.

Adjacency is add-or-remove-one unit. Figures are rounded up, never down.
"""

import math
from collections.abc import Iterable, Sequence
from decimal import ROUND_CEILING, Decimal
from importlib.metadata import version

from ddm_fed.errors import PolicyError
from ddm_fed.records import Event, GaussianEvent, LedgerEntry, NonPrivateEvent, sha256_hex

# A ledger may only be priced by code its reader chose: nothing is built from a name it contains.
ACCOUNTANT = "dp-accounting, Gaussian composition, add_or_remove_one"


def accountant_name() -> str:
    """Returns the accountant and its version, as manifests state them."""
    return f"{ACCOUNTANT}, {version('dp-accounting')}"


def epsilon(events: Iterable[Event], delta: float) -> float:
    """Returns the epsilon that `events` compose to at `delta`; infinite if one is not private.

    Gaussian releases of noise multipliers z_i compose exactly to one of multiplier
    (sum 1 / z_i^2)^(-1/2), also when a later one depends on the outcome of an earlier one (Dong,
    Roth and Su 2019, arXiv:1905.02383, corollary 2). Its epsilon is the analytic one, so the time
    this takes does not depend on what a peer wrote into its ledger.
    """
    from dp_accounting import get_epsilon_gaussian

    squares = 0.0
    for event in events:
        match event:
            case NonPrivateEvent():
                return math.inf
            case GaussianEvent():
                squares += float(event.noise_multiplier) ** -2
    return float(get_epsilon_gaussian(squares**-0.5, delta)) if squares else 0.0


def epsilon_text(events: Iterable[Event], delta: float) -> str:
    """Returns `epsilon` as a decimal rounded up to four places, as it is signed.

    Raises:
        ValueError: one of `events` is not private, so there is no number to sign.
    """
    value = epsilon(events, delta)
    if math.isinf(value):
        raise ValueError("an event without noise has no epsilon")
    return format(Decimal(value).quantize(Decimal("0.0001"), rounding=ROUND_CEILING), "f")


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

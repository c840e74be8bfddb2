"""What another accountant, which shares no code with ours, makes of the same events.

Ours prices a ledger by dp-accounting; this asks Opacus. A price that is too low would be a broken
promise that no test of a step can show.

Source: Gopi, Lee and Wutschitz 2021, arXiv:2106.02848 (numerical composition of privacy losses).
"""

import warnings
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from ddm_fed.privacy import Finding, epsilon
from ddm_fed.records import Event, GaussianEvent, SampledGaussianEvent

OWN_ERROR = 0.01  # which Opacus adds to what it finds, so that it is a bound from above
CLOSE = 0.005  # how far the two may be apart besides, in parts of epsilon
MOST_EPSILON = 100.0  # beyond, its table of losses would not fit into memory


def epsilon_of_opacus(events: Iterable[Event], delta: float) -> float:
    """Returns epsilon at `delta` of all `events` together, as Opacus finds it.

    Raises:
        TypeError: something left without noise, which has no epsilon.
    """
    history = []
    for event in events:
        if isinstance(event, GaussianEvent):
            history.append((float(event.noise_multiplier), 1.0, 1))
        elif isinstance(event, SampledGaussianEvent):
            each = float(event.noise_multiplier), float(event.sampling_rate)
            history.append((*each, event.steps))
        else:
            raise TypeError("what left without noise has no epsilon")
    return _priced(tuple(history), delta)


@lru_cache(maxsize=128)  # half a second
def _priced(history: tuple[tuple[float, float, int], ...], delta: float) -> float:
    # takes long to load, and most commands need none of it
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = list(history)
    # at a rate of 1 it divides by what is zero, to a right result
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return float(accountant.get_epsilon(delta=delta, eps_error=OWN_ERROR))


def examine_price(events: Iterable[Event], delta: float) -> Finding | None:
    """Returns whether our price of `events` is as high as Opacus'; None where it cannot tell.

    Args:
        events: All that is spent; something left without noise is not priced.
        delta: At which epsilon holds.
    """
    spent = [event for event in events if isinstance(event, GaussianEvent | SampledGaussianEvent)]
    if not spent:
        return None
    ours = epsilon(spent, delta)
    if ours > MOST_EPSILON:
        return None
    found = epsilon_of_opacus(spent, delta) - OWN_ERROR
    return Finding(
        "price of everything, by Opacus",
        ours >= found - CLOSE * max(1.0, ours),
        f"epsilon {found:.3f}",
        f"at most {ours:.3f}, as this program says, but for rounding",
    )

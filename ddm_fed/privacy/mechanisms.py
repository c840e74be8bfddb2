"""From a private statistic to a release: exact discrete Gaussian noise on an integer grid.

A statistic is a vector of integers whose L2 sensitivity under adding or removing one unit is
known. Integers make the sum exact and independent of order, and OpenDP's sampler draws the noise
exactly, from the operating system's randomness: no floating-point attack applies (Canonne, Kamath
and Steinke 2020, arXiv:2004.00010; Mironov 2012).
"""

from collections.abc import Callable
from dataclasses import InitVar, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddm_fed.privacy.private_value import Private
from ddm_fed.privacy.selftest import require_noise
from ddm_fed.records import GaussianEvent, LedgerEntry, Mechanism

IntVector = NDArray[np.int64]
Spend = Callable[[str, Mechanism, GaussianEvent], LedgerEntry]
"""`(purpose, mechanism, event) -> entry`: writes to the ledger durably, or refuses."""


@dataclass(frozen=True)
class BoundedStatistic:
    """An integer vector `(n,)` that one unit moves by at most `l2_sensitivity`."""

    value: Private[IntVector]
    l2_sensitivity: int
    purpose: str


_MECHANISM = object()  # only this module can make a release


@dataclass(frozen=True)
class Release:
    """A noisy statistic, and the ledger entry that paid for it. This may leave the site.

    Only `release` makes one.

    Raises:
        TypeError: something else tried to.
    """

    value: IntVector
    entry: LedgerEntry
    made_by: InitVar[object]

    def __post_init__(self, made_by: object) -> None:
        if made_by is not _MECHANISM:
            raise TypeError("a release is made by `ddm_fed.privacy.release`, which adds the noise")


def release(statistic: BoundedStatistic, event: GaussianEvent, spend: Spend) -> Release:
    """Returns `statistic` plus discrete Gaussian noise of `noise_multiplier` sensitivities.

    The ledger entry is durable before any noise is drawn: a crash in between costs budget that
    bought nothing, and never the other way round.

    Raises:
        BudgetError: from `spend`; then nothing was released.
        MechanismError: the noise is not of the size that was paid for; nothing is released.

    Guarantees:
        zCDP with rho = 1 / (2 noise_multiplier^2), certified by OpenDP for this very measurement.
    """
    scale = statistic.l2_sensitivity * float(event.noise_multiplier)
    measurement = _discrete_gaussian(scale)
    rho = float(measurement.map(statistic.l2_sensitivity))
    allowed = 0.5 / float(event.noise_multiplier) ** 2
    if rho > allowed * (1 + 1e-9):
        raise ArithmeticError(f"OpenDP certifies rho {rho}, the event promises {allowed}")
    entry = spend(statistic.purpose, "discrete-gaussian", event)
    exact = statistic.value.reveal()
    noisy = measurement(exact.tolist())
    require_noise(np.asarray(noisy, dtype=np.int64) - exact, scale, what=statistic.purpose)
    return Release(np.asarray(noisy, dtype=np.int64), entry, _MECHANISM)


def _discrete_gaussian(scale: float) -> Any:
    # not its prelude, which loads scikit-learn and more: a second and a half
    from opendp.domains import atom_domain, vector_domain
    from opendp.measurements import make_gaussian
    from opendp.metrics import l2_distance
    from opendp.mod import enable_features

    enable_features("contrib")
    domain = vector_domain(atom_domain(T="i64"))
    return make_gaussian(domain, l2_distance(T="i64"), scale=scale)

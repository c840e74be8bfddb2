"""The price of everything, by an accountant that shares no code with ours."""

from decimal import Decimal

import pytest

from ddm_fed.auditing import epsilon_of_opacus, examine_price, second_accountant
from ddm_fed.privacy import epsilon
from ddm_fed.records import GaussianEvent, NonPrivateEvent, SampledGaussianEvent

DELTA = 1e-5


def gaussian(sigma):
    return GaussianEvent(noise_multiplier=Decimal(str(sigma)))


def sampled(sigma, rate, steps):
    return SampledGaussianEvent(
        noise_multiplier=Decimal(str(sigma)), sampling_rate=Decimal(str(rate)), steps=steps
    )


SITES = {
    "a release": [gaussian(2), gaussian(0.9), gaussian(5)],
    "a release and a training": [gaussian(1.1), gaussian(3), sampled(1.1, 0.0512, 300)],
    "little of both": [gaussian(12), sampled(8, 0.1, 200)],
}


@pytest.mark.parametrize("events", SITES.values(), ids=SITES)
def test_both_accountants_find_the_same(events):
    assert epsilon_of_opacus(events, DELTA) == pytest.approx(
        epsilon(events, DELTA) + 0.01, rel=5e-3
    )
    assert examine_price(events, DELTA).passed


def test_price_that_is_too_low_is_found(monkeypatch):
    events = SITES["a release and a training"]
    monkeypatch.setattr(
        second_accountant, "epsilon", lambda spent, delta: epsilon(spent[1:], delta)
    )
    found = examine_price(events, DELTA)
    assert not found.passed
    assert "Opacus" in found.name


def test_what_is_not_private_has_no_second_price():
    assert examine_price([NonPrivateEvent()], DELTA) is None
    assert examine_price([gaussian(0.02)], DELTA) is None  # beyond what its table of losses holds
    with pytest.raises(TypeError, match="without noise"):
        epsilon_of_opacus([NonPrivateEvent()], DELTA)

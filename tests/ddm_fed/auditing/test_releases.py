"""Releases against their exact statistics, at a false-alarm rate of 1e-6 each."""

from decimal import Decimal

import numpy as np
import pytest

from ddm_fed.auditing import examine_expected_units, examine_noise
from ddm_fed.privacy import BoundedStatistic, Private, release
from ddm_fed.records import GaussianEvent, LedgerEntry, today

SCALE = 2e6
VALUES = 100


def a_statistic(size=VALUES):
    return np.random.default_rng(0).integers(-(10**9), 10**9, size)


def noise(scale, size=VALUES, seed=1):
    return np.rint(np.random.default_rng(seed).normal(0, scale, size)).astype(np.int64)


@pytest.mark.parametrize("multiplier", ["0.8", "4", "1000"])
def test_release_of_the_real_mechanism_passes(multiplier):
    def spend(purpose, mechanism, event):
        return LedgerEntry(
            index=0,
            previous_sha256=None,
            recorded_at=today(),
            plan_sha256="0" * 64,
            purpose=purpose,
            mechanism=mechanism,
            event=event,
        )

    event, exact = GaussianEvent(noise_multiplier=Decimal(multiplier)), a_statistic()
    left = release(BoundedStatistic(Private(exact), 5, "test"), event, spend).value
    assert examine_noise(left, exact, 5 * float(multiplier), what="shape").passed


@pytest.mark.parametrize("size", [1, 2, 10, 1000])
@pytest.mark.parametrize("seed", range(10))
def test_honest_noise_passes_whatever_the_number_of_values(size, seed):
    exact = a_statistic(size)
    assert examine_noise(exact + noise(SCALE, size, seed), exact, SCALE, what="shape").passed


@pytest.mark.parametrize("size", [1, 2, 5])
def test_small_scale_in_few_values_is_no_alarm(size):
    exact = a_statistic(size)
    for seed in range(50):
        assert examine_noise(exact + noise(1.0, size, seed), exact, 1.0, what="shape").passed


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.5, 2.0])
def test_noise_of_another_scale_is_caught(factor):
    exact = a_statistic()
    finding = examine_noise(exact + noise(factor * SCALE), exact, SCALE, what="shape")
    assert not finding.passed
    assert finding.found.endswith("of the stated scale in 100 values")


def test_release_without_noise_is_caught_in_two_values():
    exact = a_statistic(2)
    assert not examine_noise(exact, exact, SCALE, what="shape").passed


def test_difference_that_overflows_is_caught():
    exact = np.full(VALUES, -(2**63), dtype=np.int64)
    released = np.full(VALUES, 2**63 - 1, dtype=np.int64)
    assert not examine_noise(released, exact, SCALE, what="shape").passed


@pytest.mark.parametrize(("released", "exact"), [(3, 4), (0, 0)])
def test_vectors_that_do_not_belong_together_are_refused(released, exact):
    with pytest.raises(ValueError, match="expected vectors of one length"):
        examine_noise(a_statistic(released), a_statistic(exact), SCALE, what="shape")


def test_noise_too_small_to_judge_is_refused():
    with pytest.raises(ValueError, match="cannot be judged"):
        examine_noise(a_statistic(), a_statistic(), 0.5, what="shape")


def units(stated, released=103.7):
    return examine_expected_units(
        stated, sampling_rate=0.25, released_count=released, exact_count=100
    )


def test_expected_units_of_the_released_count_pass():
    assert units(0.25 * 103.7).passed
    assert units(25.925).passed


def test_expected_units_of_the_exact_count_are_caught():
    finding = units(25.0)
    assert not finding.passed
    assert "EXACT" in finding.found
    assert "100" not in finding.found


def test_expected_units_of_something_else_are_caught():
    finding = units(30.0)
    assert (finding.passed, finding.found) == (False, "something else")


def test_expected_units_pass_where_noise_happened_to_be_nothing():
    assert units(25.0, released=100.0).passed

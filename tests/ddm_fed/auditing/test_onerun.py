"""Estimators from one run: reference values, laws, and how often an honest mechanism is accused."""

import math
from decimal import Decimal

import numpy as np
import pytest
from scipy import stats

from ddm_fed.auditing import (
    GaussianTradeOff,
    Guesses,
    ProfileTradeOff,
    Rate,
    ceiling,
    claim_p_value,
    clopper_pearson,
    gaussian_bound,
    gaussian_epsilon,
    guess_p_value,
    rates_p_value,
    scores_p_value,
    steinke_bound,
    steinke_p_value,
)
from ddm_fed.privacy import deltas, epsilon
from ddm_fed.records import GaussianEvent

# reference values computed with jax-privacy 2.0.0: m, r, v, epsilon, delta, p-value
STEINKE_P = [
    (100, 50, 40, 1.0, 0, 0.17429294704506848),
    (1000, 200, 180, 2.0, 1e-5, 0.23868165509120112),
    (2000, 100, 90, 1.5, 1e-4, 0.04589984915355216),
    (500, 500, 300, 0.1, 1e-6, 0.00045553774973359004),
]
# the same: m, r, v, delta, significance, epsilon
STEINKE_BOUNDS = [
    (100, 100, 70, 1e-5, 0.05, 0.471419),
    (1000, 200, 180, 1e-5, 0.05, 1.796285),
    (2000, 1000, 1000, 1e-5, 0.05, 5.755414),
    (5000, 5000, 2700, 1e-6, 0.05, 0.113262),
    (100, 10, 10, 1e-5, 0.05, 1.048237),
]
GAUSSIAN_BOUNDS = [
    (100, 100, 70, 1e-5, 0.05, 1.060703),
    (1000, 200, 180, 1e-5, 0.05, 2.901243),
    (2000, 1000, 1000, 1e-5, 0.05, 11.047581),
    (5000, 5000, 2700, 1e-6, 0.05, 0.244548),
    (200000, 2000, 1990, 1e-5, 0.001, 4.483252),
    (200000, 20000, 16000, 1e-5, 0.05, 1.720493),
    (200000, 200, 200, 1e-5, 0.05, 4.408103),
]
BOUNDS = [steinke_bound, gaussian_bound]


@pytest.mark.parametrize(("m", "r", "v", "eps", "delta", "expected"), STEINKE_P)
def test_steinke_p_value_is_the_reference_value(m, r, v, eps, delta, expected):
    assert steinke_p_value(m, r, v, eps, delta) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("bound", "m", "r", "v", "delta", "significance", "expected"),
    [(steinke_bound, *row) for row in STEINKE_BOUNDS]
    + [(gaussian_bound, *row) for row in GAUSSIAN_BOUNDS],
)
def test_bound_is_the_reference_value_and_not_above(bound, m, r, v, delta, significance, expected):
    found = bound(m, [Guesses(r, v)], delta, confidence=1 - significance)
    assert found == pytest.approx(expected, abs=1e-5)
    assert found <= expected + 1e-6


@pytest.mark.parametrize(("guesses", "expected"), [(10, 1.05), (50, 2.78), (500, 5.10)])
def test_ceiling_of_a_few_guesses_is_what_counting_gives(guesses, expected):
    # all right under epsilon alone: q^r = 0.05
    alone = -math.log(0.05 ** (-1 / guesses) - 1)
    right = [Guesses(guesses, guesses)]
    assert steinke_bound(guesses, right, 1e-5) == pytest.approx(expected, abs=0.01)
    assert steinke_bound(guesses, right, 0) == pytest.approx(alone, abs=1e-4)


# --- laws ---


@pytest.mark.parametrize("bound", BOUNDS)
def test_bound_grows_with_correct_guesses_and_ends_at_the_ceiling(bound):
    found = [bound(1000, [Guesses(200, v)], 1e-5) for v in range(90, 201, 10)]
    assert found == sorted(found)
    assert found[0] == 0
    assert found[-1] == bound(1000, [Guesses(200, 200)], 1e-5)
    if bound is gaussian_bound:
        assert found[-1] == ceiling(1000, 200, 1e-5)


@pytest.mark.parametrize("bound", BOUNDS)
def test_bound_falls_with_confidence_and_with_numbers_tried(bound):
    once = [bound(1000, [Guesses(200, 170)], 1e-5, confidence=c) for c in (0.5, 0.9, 0.99)]
    assert once == sorted(once, reverse=True)
    tried = [Guesses(200, 170), Guesses(20, 10)]
    assert 0 < bound(1000, tried, 1e-5) < bound(1000, tried[:1], 1e-5)


def test_bound_of_the_best_number_of_guesses_counts():
    good, bad = Guesses(200, 190), Guesses(1000, 500)
    shared = gaussian_bound(1000, [good], 1e-5, confidence=0.975)
    assert gaussian_bound(1000, [bad, good], 1e-5) == shared


@pytest.mark.parametrize("guesses", [10, 100, 1000])
def test_ceiling_grows_with_guesses_and_falls_with_numbers_tried(guesses):
    assert ceiling(10_000, guesses, 1e-5) < ceiling(10_000, 2 * guesses, 1e-5)
    assert ceiling(10_000, guesses, 1e-5, tried=5) < ceiling(10_000, guesses, 1e-5)


def test_p_value_falls_with_correct_guesses_and_rises_with_the_promise():
    by_correct = [guess_p_value(GaussianTradeOff(1.0), 1000, 200, v) for v in range(100, 201, 20)]
    assert by_correct == sorted(by_correct, reverse=True)
    by_mu = [guess_p_value(GaussianTradeOff(mu), 1000, 200, 160) for mu in (0.0, 0.5, 1.0, 2.0)]
    assert by_mu == sorted(by_mu)


def test_p_value_of_one_canary_is_the_best_chance_to_guess_it():
    assert guess_p_value(GaussianTradeOff(1.0), 1, 1, 1) == pytest.approx(
        stats.norm.cdf(0.5), rel=2e-3
    )


def test_p_value_of_epsilon_alone_is_not_below_the_binomial_tail():
    claim = ProfileTradeOff([1.0], [0.0])
    chance = 1 / (1 + math.exp(-1.0))
    for correct in range(120, 201, 20):
        tail = stats.binom.sf(correct - 1, 200, chance)
        assert guess_p_value(claim, 1000, 200, correct) >= min(tail, 1.0) * (1 - 1e-3)


def test_p_value_of_a_claim_counts_how_many_numbers_were_tried():
    claim, one = GaussianTradeOff(0.5), Guesses(200, 170)
    alone = guess_p_value(claim, 1000, *one)
    assert claim_p_value(claim, 1000, [one, Guesses(20, 10)]) == pytest.approx(2 * alone)


def test_nothing_correct_says_nothing():
    assert steinke_p_value(100, 10, 0, 1.0, 1e-5) == 1
    assert guess_p_value(GaussianTradeOff(1.0), 100, 10, 0) == 1


@pytest.mark.parametrize(("m", "r", "v"), [(10, 11, 5), (10, 5, 6), (10, 5, -1), (10, 0, 0)])
def test_impossible_counts_are_refused(m, r, v):
    with pytest.raises(ValueError, match="impossible"):
        steinke_p_value(m, r, v, 1.0, 1e-5)
    with pytest.raises(ValueError, match="impossible"):
        guess_p_value(GaussianTradeOff(1.0), m, r, v)
    with pytest.raises(ValueError, match="impossible"):
        gaussian_bound(m, [Guesses(r, v)], 1e-5)


def test_nothing_tried_is_refused():
    for call in (
        lambda: gaussian_bound(10, [], 1e-5),
        lambda: steinke_bound(10, [], 1e-5),
        lambda: claim_p_value(GaussianTradeOff(1.0), 10, []),
    ):
        with pytest.raises(ValueError, match="no number of guesses"):
            call()


# --- trade-off functions ---


def test_profile_trade_off_is_the_largest_of_its_lines():
    epsilons, points = [0.0, 0.5, 0.5, 2.0, 5.0], [0.4, 0.2, 0.25, 0.01, 1e-6]
    claim = ProfileTradeOff(epsilons, points)
    for y in np.linspace(0, 1, 1001):
        lines = [
            line
            for eps, delta in zip(epsilons, points, strict=True)
            for line in (1 - delta - math.exp(eps) * (1 - y), math.exp(-eps) * (y - delta))
        ]
        assert claim(y) == pytest.approx(max(0.0, *lines), abs=1e-12)


def test_profile_of_gaussian_noise_implies_nearly_its_trade_off_and_never_more():
    event = GaussianEvent(noise_multiplier=Decimal("0.8"))
    epsilons = np.arange(0, 12, 0.05).tolist()
    claim, exact = ProfileTradeOff(epsilons, deltas([event], epsilons)), GaussianTradeOff(1 / 0.8)
    for y in np.linspace(0.001, 0.999, 200):
        assert exact(y) - 2e-3 < claim(y) <= exact(y) + 1e-9


@pytest.mark.parametrize(
    ("epsilons", "points"), [([1.0], []), ([-1.0], [0.1]), ([1.0], [1.5]), ([1.0], [-0.1])]
)
def test_profile_with_an_impossible_point_is_refused(epsilons, points):
    with pytest.raises(ValueError, match=r"profile|deltas"):
        ProfileTradeOff(epsilons, points)


@pytest.mark.parametrize("multiplier", ["0.2", "1", "30"])
def test_epsilon_of_a_gaussian_trade_off_is_what_the_accountant_says(multiplier):
    event = GaussianEvent(noise_multiplier=Decimal(multiplier))
    expected = epsilon([event], 1e-5)
    assert gaussian_epsilon(1 / float(multiplier), 1e-5) == pytest.approx(expected, abs=1e-4)
    assert gaussian_epsilon(0.0, 1e-5) == 0


# --- how often an honest mechanism is accused ---


def gaussian_run(mu, canaries, generator):
    members = generator.random(canaries) < 0.5
    return members * mu + generator.standard_normal(canaries), members


def right_guesses(scores, members, number):
    order = members[np.argsort(scores)]
    return int(order[-number // 2 :].sum() + (~order[: number // 2]).sum())


def test_bound_of_honest_runs_exceeds_the_truth_as_seldom_as_it_says():
    # expected: at most 20 of 400; more than 36 has a probability below 1e-3
    generator = np.random.default_rng(0)
    claim, accused = GaussianTradeOff(1.0), 0
    for _ in range(400):
        scores, members = gaussian_run(1.0, 200, generator)
        accused += guess_p_value(claim, 200, 40, right_guesses(scores, members, 40)) < 0.05
    assert accused <= 36


def test_rates_of_honest_runs_accuse_as_seldom_as_they_say():
    generator = np.random.default_rng(1)
    claim = GaussianTradeOff(1.0)
    found = [scores_p_value(claim, *gaussian_run(1.0, 2000, generator)) for _ in range(200)]
    assert sum(p < 0.05 for p in found) <= 21  # more has a probability below 1e-3


def test_rates_notice_what_guesses_do_not():
    generator, claim = np.random.default_rng(2), GaussianTradeOff(1.0)
    scores, members = gaussian_run(1.2, 100_000, generator)
    correct = right_guesses(scores, members, 1000)
    assert guess_p_value(claim, 100_000, 1000, correct) > 1e-3
    assert scores_p_value(claim, scores, members) < 1e-6


def test_rates_that_a_claim_allows_are_not_significant():
    claim = GaussianTradeOff(1.0)
    inside, outside = stats.norm.sf(1.0), stats.norm.sf(2.0)
    allowed = Rate(round(inside * 10_000), 10_000), Rate(round(outside * 10_000), 10_000)
    assert rates_p_value(claim, *allowed) == 1
    assert rates_p_value(GaussianTradeOff(0.5), *allowed) < 1e-6


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [(0, 10, 0.0, 0.308497), (10, 10, 0.691503, 1.0), (5, 20, 0.086571, 0.491046)],
)
def test_clopper_pearson_interval_is_that_of_the_tables(hits, total, low, high):
    found = clopper_pearson(Rate(hits, total))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-5)
    assert (found.value, found.hits, found.total) == (hits / total, hits, total)


@pytest.mark.parametrize("total", [1, 7, 400, 10_000])
def test_clopper_pearson_interval_is_that_of_scipys_binomial_test(total):
    for hits in sorted({0, 1, total // 3, total - 1, total}):
        expected = stats.binomtest(hits, total).proportion_ci(0.95, method="exact")
        found = clopper_pearson(Rate(hits, total))
        assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-9)


def test_rate_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no proportion"):
        clopper_pearson(Rate(0, 0))

"""The bound by scores: how often it exceeds the truth, how near it comes, and what it is beside."""

from decimal import Decimal

import numpy as np
import pytest
from scipy import stats

from ddm_fed.auditing import (
    gaussian_bound,
    gaussian_epsilon,
    guess_both_sides,
    log_ratio,
    score_bound,
)
from ddm_fed.auditing.canaries import numbers_of_guesses
from ddm_fed.auditing.score_bound import _least_gap
from ddm_fed.privacy import epsilon
from ddm_fed.records import SampledGaussianEvent

DELTA = 1e-5
RUNS = 400
# more runs above the truth than this are seen once in a million tests of a bound that holds
MOST_ABOVE = stats.binom.ppf(1 - 1e-6, RUNS, 0.05)


def run_of(mu, canaries, rng):
    """Scores of canaries of a Gaussian mechanism, and which were in."""
    members = rng.random(canaries) < 0.5
    return rng.normal(size=canaries) + mu * members, members


@pytest.mark.parametrize("canaries", [20, 100, 5000])
@pytest.mark.parametrize("mu", [0.0, 0.25, 1.0, 3.0, 8.0])
def test_bound_exceeds_the_truth_in_few_runs(mu, canaries):
    truth, rng = gaussian_epsilon(mu, DELTA), np.random.default_rng(canaries)
    above = sum(score_bound(*run_of(mu, canaries, rng), DELTA) > truth for _ in range(RUNS))
    assert above <= MOST_ABOVE


def test_bound_exceeds_the_truth_in_few_runs_where_canaries_that_were_in_vary_more():
    # noise of canaries that were in has 1.5 times the deviation: their mu at equal errors is 0.8
    truth, rng, above = gaussian_epsilon(2 * 1.0 / 2.5, DELTA), np.random.default_rng(0), 0
    for _ in range(RUNS):
        members = rng.random(2000) < 0.5
        scores = np.where(members, 1 + 1.5 * rng.normal(size=2000), rng.normal(size=2000))
        above += score_bound(scores, members, DELTA) > truth
    assert above <= MOST_ABOVE


@pytest.mark.parametrize(("mu", "tighter"), [(0.25, 1.2), (1.0, 1.3), (2.0, 1.4), (3.0, 1.6)])
def test_bound_of_many_canaries_is_near_the_truth_and_tighter_than_guesses(mu, tighter):
    canaries = 200_000
    scores, members = run_of(mu, canaries, np.random.default_rng(3))
    tried = guess_both_sides(scores, members, numbers_of_guesses(canaries))
    found, truth = score_bound(scores, members, DELTA), gaussian_epsilon(mu, DELTA)
    assert 0.92 * truth < found <= truth
    assert found > tighter * gaussian_bound(canaries, tried, DELTA)


SAMPLED = [
    ("0.0512", "1.1", 2000),
    ("0.01", "0.6", 5000),
    ("0.2", "2", 300),
    ("0.2", "1.1492", 50),
    ("0.5", "0.85", 3),
    ("0.05", "1", 1),
    ("0.9", "0.3", 3),
    ("1", "5", 20),
]


@pytest.mark.parametrize(("rate", "multiplier", "steps"), SAMPLED)
@pytest.mark.parametrize("delta", [1e-5, 1e-2])
def test_scores_of_a_sampled_step_promise_no_more_than_is_proved(rate, multiplier, steps, delta):
    q, z = float(rate), float(multiplier)
    y, width = np.linspace(-14 * z, 1 + 14 * z, 200_001, retstep=True)
    out = stats.norm(0, z).pdf(y) * width
    inside = (1 - q) * out + q * stats.norm(1, z).pdf(y) * width
    scores = log_ratio(y, q, z)
    means = [float(p @ scores) for p in (out, inside)]
    deviations = [
        float(p @ (scores - mean) ** 2) ** 0.5 for p, mean in zip((out, inside), means, strict=True)
    ]
    mu = 2 * (means[1] - means[0]) / sum(deviations) * steps**0.5
    event = SampledGaussianEvent(
        sampling_rate=Decimal(rate), noise_multiplier=Decimal(multiplier), steps=steps
    )
    proved = epsilon([event], delta)
    assert gaussian_epsilon(mu, delta) <= proved * (1 + 1e-3)
    if q == 1:
        assert gaussian_epsilon(mu, delta) == pytest.approx(proved, rel=1e-3)


def test_gap_between_means_is_that_of_welch():
    scores, members = run_of(1.0, 50, np.random.default_rng(0))
    inside, outside = scores[members], scores[~members]
    welch = stats.ttest_ind(inside, outside, equal_var=False, alternative="greater")
    expected = welch.confidence_interval(0.99).low
    assert _least_gap(inside, outside, 0.01) == pytest.approx(expected)


def test_more_confidence_shows_less():
    scores, members = run_of(2.0, 1000, np.random.default_rng(0))
    usual, surer = (score_bound(scores, members, DELTA, confidence=c) for c in (0.95, 0.999))
    assert 0 < surer < usual


def test_scores_without_noise_show_the_most_there_is():
    members = np.arange(10) % 2 == 0
    assert score_bound(np.where(members, 1.0, 0.0), members, DELTA) > 100


def test_scores_that_tell_nothing_show_nothing():
    members = np.arange(10) % 2 == 0
    assert score_bound(np.zeros(10), members, DELTA) == 0
    assert score_bound(np.where(members, 0.0, 1.0), members, DELTA) == 0  # guessed the other way


def test_too_few_canaries_of_a_kind_show_nothing():
    assert score_bound(np.array([5.0, 0.0, 0.1]), np.array([True, False, False]), DELTA) == 0


@pytest.mark.parametrize(
    ("count", "confidence", "message"), [(3, 0.95, "4 scores and 3"), (4, 1.0, "confidence")]
)
def test_what_cannot_be_meant_is_refused(count, confidence, message):
    with pytest.raises(ValueError, match=message):
        score_bound(np.zeros(4), np.zeros(count, dtype=bool), DELTA, confidence=confidence)

"""Canaries through the real step: honest steps pass, and what each planted bug does."""

from dataclasses import replace
from decimal import Decimal
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats

from ddm_fed.auditing import (
    CANARIES,
    SIGNIFICANCE,
    audit_facts,
    audit_step,
    canary_scores,
    describe_audit,
    guess_both_sides,
    log_ratio,
)
from ddm_fed.errors import MalformedError
from ddm_fed.privacy import PrivateStep, Randomness
from ddm_fed.records import AuditFacts, SampledGaussianEvent, canonical_json

pytestmark = pytest.mark.slow

DELTA = 1e-5
STEPS = 50
EVENTS = {
    claimed: SampledGaussianEvent(
        sampling_rate=Decimal("0.2"), noise_multiplier=Decimal(multiplier), steps=STEPS
    )
    for claimed, multiplier in ((1, "5.5041"), (8, "1.1492"))
}


class NoGradients:
    """What a step trains with is none of an audit's business."""

    name = "none"

    def clipped_sum(self, weights, rows, clip_norm):
        raise AssertionError("an audit asked for the gradients of the training")


def a_step(event, kind=PrivateStep, randomness=None):
    return kind(
        NoGradients(),
        randomness or Randomness.for_tests(10),
        sampling_rate=float(event.sampling_rate),
        noise_multiplier=float(event.noise_multiplier),
        expected_units=77.0,
    )


def audited(claimed, kind=PrivateStep, *, seed=0, **options):
    event = EVENTS[claimed]
    return audit_step(
        a_step(event, kind), event, delta=DELTA, randomness=Randomness.for_tests(seed), **options
    )


honest = cache(audited)  # what is measured of a step without a bug, once for each claim


def with_noise(factor):
    class TooLittle(PrivateStep):
        def release(self, clipped, step, clip_norm):
            kept, self.noise_multiplier = self.noise_multiplier, self.noise_multiplier * factor
            try:
                return super().release(clipped, step, clip_norm)
            finally:
                self.noise_multiplier = kept

    return TooLittle


class Twice(PrivateStep):
    """Every included unit counts twice."""

    def included(self, step, units):
        chosen = super().included(step, units)
        return torch.cat([chosen, chosen])


class TwoDraws(PrivateStep):
    """Two batches are drawn and joined: some units are there twice, and the rate is higher."""

    def included(self, step, units):
        first, second = super().included(2 * step, units), super().included(2 * step + 1, units)
        return torch.cat([first, second])


class ClippedLate(PrivateStep):
    """Units are clipped to more than the norm that noise is scaled by."""

    def clipped_sum(self, weights, blocks, clip_norm):
        return super().clipped_sum(weights, blocks, 2 * clip_norm)


# --- verdicts; an honest step is accused with a probability below SIGNIFICANCE each ---


@pytest.mark.parametrize("claimed", EVENTS)
@pytest.mark.parametrize("seed", range(4))
def test_honest_step_is_not_accused(claimed, seed):
    found = audited(claimed, seed=seed)
    assert found.claimed_epsilon == pytest.approx(claimed, abs=0.001)
    assert found.verdict == "consistent_with_claim"
    assert 0.4 * claimed < found.bound < found.score_bound < claimed < found.ceiling


@pytest.mark.parametrize("claimed", EVENTS)
@pytest.mark.parametrize("factor", [0.0, 0.1, 0.5])
def test_too_little_noise_is_found(claimed, factor):
    found = audited(claimed, with_noise(factor))
    assert found.verdict == "violates_claim"
    assert found.bound > honest(claimed).bound
    assert found.score_bound > claimed


def test_no_noise_at_all_comes_near_the_ceiling():
    found = audited(8, with_noise(0.0))
    # a canary may happen to be in none of the steps
    assert 8 < 0.9 * found.ceiling < found.bound <= found.ceiling


@pytest.mark.parametrize("claimed", EVENTS)
@pytest.mark.parametrize("kind", [Twice, TwoDraws, ClippedLate])
def test_unit_that_counts_more_than_once_is_found(claimed, kind):
    assert audited(claimed, kind).verdict == "violates_claim"


def test_half_of_the_noise_is_found_by_guesses_alone_where_every_unit_is_in_every_step():
    event = SampledGaussianEvent(
        sampling_rate=Decimal(1), noise_multiplier=Decimal("1.8981"), steps=10
    )
    honest, broken = (
        audit_step(a_step(event, kind), event, delta=DELTA, randomness=Randomness.for_tests(0))
        for kind in (PrivateStep, with_noise(0.5))
    )
    assert honest.claimed_epsilon == pytest.approx(8, abs=0.01)
    assert honest.verdict == "consistent_with_claim"
    assert broken.p_guesses < SIGNIFICANCE
    assert broken.bound > 8


def test_few_canaries_make_an_audit_that_shows_nothing():
    found = audited(8, canaries=100)
    assert found.ceiling < found.claimed_epsilon
    assert found.verdict == "inconclusive"


def test_capped_audit_is_compared_with_the_claim_of_as_many_steps():
    found = audited(8, most_steps=10)
    assert (found.event.steps, found.training_steps) == (10, STEPS)
    assert found.claimed_epsilon < 5
    assert found.verdict == "consistent_with_claim"
    assert "Only 10 of 50 steps" in describe_audit(audit_facts(found))


def test_one_canary_is_refused():
    with pytest.raises(ValueError, match="too few"):
        audited(1, canaries=1)


# --- the parts ---


def test_scores_are_the_logarithm_of_the_likelihood_ratio():
    y, rate, multiplier = np.linspace(-3, 4, 50), 0.3, 0.8
    out, inside = stats.norm(0, multiplier).pdf(y), stats.norm(1, multiplier).pdf(y)
    expected = np.log(((1 - rate) * out + rate * inside) / out)
    assert log_ratio(y, rate, multiplier) == pytest.approx(expected)
    assert log_ratio(y, 1.0, multiplier) == pytest.approx(np.log(inside / out))


def test_scores_of_noise_too_small_to_hide_anything_are_finite():
    assert np.isfinite(log_ratio(np.array([-1e4, 0.0, 1e4]), 0.1, 0.3)).all()


def test_canary_that_is_out_is_in_no_step():
    event = EVENTS[8]
    scores, members = canary_scores(
        a_step(event, with_noise(0.0)),
        event,
        canaries=1000,
        clip_norm=0.3,
        randomness=Randomness.for_tests(0),
    )
    never = event.steps * log_ratio(np.zeros(1), 0.2, 1.1492)[0]
    assert scores[~members] == pytest.approx(never)
    assert scores[members].min() > never
    assert 400 < members.sum() < 600


def test_canaries_are_clipped_to_the_clip_norm():
    event = EVENTS[8]
    found = [
        canary_scores(
            a_step(event),
            event,
            canaries=100,
            clip_norm=clip_norm,
            randomness=Randomness.for_tests(0),
        )[0]
        for clip_norm in (0.01, 100.0)
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-3)


def test_noise_of_the_training_is_never_looked_at():
    class Spied(Randomness):
        def stream(self, purpose, step):
            raise AssertionError("an audit drew from the secret of the training")

    event = EVENTS[8]
    step = a_step(event, randomness=Spied(bytes(32), "csprng"))
    audit_step(step, event, delta=DELTA, canaries=100)
    assert isinstance(step.gradients, NoGradients)
    assert isinstance(step.randomness, Spied)


def test_audit_draws_new_coins_every_time():
    event = EVENTS[8].model_copy(update={"steps": 1})
    first, second = (audit_step(a_step(event), event, delta=DELTA) for _ in range(2))
    assert first.tried != second.tried


def test_audit_reports_every_step_and_leaves_the_threads_as_they_were():
    seen, threads = [], torch.get_num_threads()
    audited(1, canaries=100, advance=seen.append)
    assert seen == [1] * STEPS
    assert torch.get_num_threads() == threads


def test_guesses_are_the_highest_in_and_the_lowest_out():
    scores = np.array([3.0, -1.0, 2.0, 0.0, 1.0, -2.0])
    members = np.array([True, False, False, True, True, True])
    assert guess_both_sides(scores, members, [2, 4, 6]) == ((2, 1), (4, 2), (6, 3))


# --- what is reported ---


def test_facts_are_rounded_against_the_audit_and_survive_json():
    found = audited(8, canaries=2000)
    facts = audit_facts(found)
    assert facts.empirical_eps_lower_bound <= Decimal(found.bound)
    assert facts.score_eps_lower_bound <= Decimal(found.score_bound)
    assert facts.ceiling <= Decimal(found.ceiling)
    assert facts.claimed_eps >= Decimal(found.claimed_epsilon)
    assert facts.p_value >= Decimal(found.p_value)
    assert (facts.canaries, facts.steps, facts.training_steps) == (2000, STEPS, STEPS)
    assert (facts.attacker_access, facts.delta) == ("white-box gradients", Decimal("0.00001"))
    assert AuditFacts.from_json(facts.to_json(), what="facts") == facts


def test_facts_of_a_certain_violation_survive_json():
    facts = audit_facts(audited(1, with_noise(0.0)))
    assert facts.canaries == CANARIES
    assert AuditFacts.from_json(facts.to_json(), what="facts").verdict == "violates_claim"


def test_verdict_of_the_facts_follows_from_what_is_written_down():
    found = replace(audited(8, canaries=100), ceiling=7.99998, claimed_epsilon=7.99996)
    assert found.verdict == "consistent_with_claim"
    assert audit_facts(found).verdict == "inconclusive"  # 7.9999 and 8


def test_facts_of_a_step_that_is_nearly_all_noise_can_be_written():
    event = EVENTS[8].model_copy(update={"noise_multiplier": Decimal(10**6), "steps": 1})
    facts = audit_facts(audit_step(a_step(event), event, delta=DELTA, canaries=100))
    assert facts.claimed_eps < 1
    assert facts.verdict == "consistent_with_claim"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict": "consistent_with_claim"}, "verdict"),
        ({"guesses": 10**6}, "canaries"),
        ({"training_steps": 1}, "training_steps"),
        ({"confidence": "1"}, "confidence"),
        ({"ceiling": "NaN"}, "ceiling"),
    ],
)
def test_facts_that_do_not_add_up_are_refused(change, message):
    facts = audit_facts(audited(8, canaries=100)).model_dump(mode="json")
    with pytest.raises(MalformedError, match=message):
        AuditFacts.from_json(canonical_json(facts | change), what="facts")


@pytest.mark.parametrize("kind", [PrivateStep, with_noise(0.0)])
def test_report_says_what_was_shown_and_no_more(kind):
    facts = audit_facts(audited(8, kind))
    text = describe_audit(facts)
    assert text.startswith(
        f"With 95 % confidence the training leaks at least epsilon "
        f"{facts.empirical_eps_lower_bound} against this attack; the proved bound is"
    )
    assert f"at most epsilon {facts.ceiling}" in text
    assert "0.001" in text
    assert "verified" not in text.lower()
    assert ("REJECTED" in text) == (kind is not PrivateStep)
    assert ("The gap is unexplained, not safety." in text) == (kind is PrivateStep)


def test_report_of_scores_above_the_claim_says_how_rarely_chance_does_that():
    facts = audit_facts(audited(8))
    above = facts.model_copy(update={"score_eps_lower_bound": facts.claimed_eps + 1})
    assert "more than is proved" not in describe_audit(facts)
    assert f"at least epsilon {facts.score_eps_lower_bound}." in describe_audit(facts)
    assert (
        "more than is proved: of an honest step an audit says so with a probability below 0.05"
        in (describe_audit(above))
    )


def test_report_of_an_audit_without_power_says_so():
    text = describe_audit(audit_facts(audited(8, canaries=100)))
    assert "Nothing follows" in text

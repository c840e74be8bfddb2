"""The privacy statement in words, and who can make a release."""

import copy
import math
import pickle
from decimal import Decimal

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from ddm_fed.privacy import Private, Release, accountant_name, describe_privacy
from ddm_fed.privacy.plain_words import FALSELY_ACCUSED, most_found
from ddm_fed.records import (
    GaussianEvent,
    LedgerEntry,
    NonPrivateEvent,
    PrivacyStatement,
    SampledGaussianEvent,
    SgdFacts,
    today,
)
from sites.train.pipeline import write_releases

GAUSSIAN = GaussianEvent(noise_multiplier=Decimal(3))
SAMPLED = SampledGaussianEvent(sampling_rate=Decimal("0.1"), noise_multiplier=Decimal(2), steps=100)


MECHANISMS = {
    "gaussian": "discrete-gaussian",
    "poisson_gaussian": "dp-sgd",
    "non_private": "no-noise",
}


def entry(index, purpose, event):
    return LedgerEntry(
        index=index,
        previous_sha256=None,
        recorded_at=today(),
        plan_sha256="ab" * 32,
        purpose=purpose,
        mechanism=MECHANISMS[event.kind],
        event=event,
    )


def statement(epsilon="2.0000", private=True, **more):
    facts = SgdFacts(
        clip_norm=Decimal("0.5"),
        clip_norm_end=Decimal("0.5"),
        draws=8,
        trainable="lora-4",
        expected_units=Decimal(10),
        gradients="functional",
    )
    event = SAMPLED if private else NonPrivateEvent()
    return PrivacyStatement(
        delta=Decimal("0.00001"),
        releases_epsilon=epsilon,
        expert_is_private=private,
        sgd=facts if private else None,
        accountant=accountant_name(),
        randomness="csprng",
        ledger=(entry(0, "router-location", GAUSSIAN), entry(1, "expert", event)),
        **more,
    )


def page(**more):
    return "\n".join(describe_privacy(statement(**more)))


@pytest.mark.parametrize(
    ("epsilon", "found"),
    [("0.0000", "1.001 %"), ("1.0000", "2.719 %"), ("2.0000", "7.39 %"), ("8.0000", "99.97 %")],
)
def test_page_says_how_many_units_a_test_finds_at_most(epsilon, found):
    assert f"finds at most {found} of the images that were used" in page(epsilon=epsilon)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-2])
def test_best_test_of_gaussian_noise_finds_no_more_than_the_page_says(epsilon, delta):
    # the oracle: noise that is (epsilon, delta)-DP and no better, and Neyman and Pearson's test
    def excess(mu):
        return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(
            -mu / 2 - epsilon / mu
        )

    mu = brentq(lambda mu: excess(mu) - delta, 1e-3, 50)
    found = norm.cdf(norm.ppf(FALSELY_ACCUSED) + mu)
    assert found <= most_found(epsilon, delta)
    assert most_found(epsilon, delta) < 1


def test_page_does_not_promise_a_belief_that_delta_breaks():
    # at epsilon 1 a posterior above e / (1 + e) has a chance of many deltas, not of one
    assert "certain" not in page(epsilon="1.0000")


def test_page_names_what_has_no_bound():
    assert "NOT bounded by it: expert" in page(private=False)
    assert "NOT bounded" not in page()


def test_page_says_how_the_expert_was_trained():
    assert "DP-SGD (poisson sampling, clip norm 0.5, 8 draws per image, trained: lora-4" in page()


def test_page_speaks_of_the_unit_that_is_protected():
    assert "for one patient more or less" in page(unit="patient")


def test_page_calls_a_large_epsilon_weak():
    assert "promises little" in page(epsilon="12.0000")
    assert "promises little" not in page(epsilon="10.0000")


def test_page_does_not_promise_what_no_signature_can():
    assert "not that it is true" in page()
    assert "verified private" not in page().lower()


# --- releases ---


def test_release_cannot_be_made_without_a_mechanism():
    with pytest.raises(TypeError):
        Release(np.zeros(3, np.int64), entry(0, "router-location", GAUSSIAN))
    with pytest.raises(TypeError, match="adds the noise"):
        Release(np.zeros(3, np.int64), entry(0, "router-location", GAUSSIAN), object())


@pytest.mark.parametrize("value", [np.zeros(3, np.int64), Private(np.zeros(3, np.int64))])
def test_only_releases_are_written_for_the_router(tmp_path, value):
    with pytest.raises(TypeError, match="not a release"):
        write_releases(tmp_path / "router.safetensors", {"location": value})
    assert not (tmp_path / "router.safetensors").exists()


def test_private_value_is_neither_shown_nor_copied():
    secret = Private("the patient")
    assert "patient" not in repr(secret) + str(secret) + f"{secret}"
    for copied in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not serialised"):
            copied(secret)

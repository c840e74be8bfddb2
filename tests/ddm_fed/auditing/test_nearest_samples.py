"""The bound by nearest samples: copies are caught, and who does not copy is rarely accused."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ddm_fed.auditing import (
    GaussianTradeOff,
    ProfileTradeOff,
    describe_nearest_samples,
    measure_nearest_samples,
    price,
    steinke_p_value,
)
from ddm_fed.flows import integrate, time_grid
from ddm_fed.mixture import (
    MixtureVelocity,
    SiteRelease,
    exact_statistics,
    fit_image_mixtures,
    message_named,
    router_events,
)
from ddm_fed.mixture.messages import messages
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import read_plan_toml

DELTA = 1e-5
RUNS = 300


def few(runs=RUNS, rate=0.05):
    """As many hits at `rate` as are exceeded once in a million."""
    return stats.binom.ppf(1 - 1e-6, runs, rate)


def measured(samples, trained, held_back, rng, **options):
    return measure_nearest_samples(
        samples, trained, held_back, delta=DELTA, generator=rng, **options
    )


def normal(rng, count):
    return rng.normal(size=(count, 8))


# --- who does not copy is rarely accused ---


def test_samples_of_independent_data_show_nothing_in_most_runs():
    shown = rejected = 0
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        found = measured(
            normal(rng, 150), normal(rng, 80), normal(rng, 60), rng, claim=GaussianTradeOff(0.01)
        )
        assert found.pairs == 60
        shown += found.bound > 0
        rejected += found.p_value < 0.05
    assert shown <= few()
    assert rejected <= few()


PLAN = read_plan_toml("""
    federation = "test"
    expires_at = 2036-01-01T00:00:00Z
    data = { channels = 1, height = 8, width = 8 }
    expert = { architecture = "mixture" }
    training = { steps = 1, batch_size = 1 }
    router = { kind = "mixture", epsilon = 4, frequencies = 16, components = 1 }
    privacy = { max_epsilon = 4 }
""")


def smooth_images(rng, count):
    """Images whose lowest coefficients differ most."""
    coarse = torch.from_numpy(rng.normal(size=(count, 1, 3, 3)))
    images = torch.nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear")
    return (0.3 * images).clamp(-1, 1).float()


def samples_of_release(trained, rng, noise=1.0, count=200):
    """Samples of the mixture that a release of `trained` describes; noise times `noise`."""
    vectors = {}
    for message in messages(PLAN):
        scale = float(router_events(PLAN)[message.name].noise_multiplier)
        scale *= noise * message_named(PLAN, message.name).l2_sensitivity
        before = vectors | {m.name: np.zeros(m.size, dtype=np.int64) for m in messages(PLAN)}
        before |= vectors
        exact = exact_statistics(Private(ImageSet(trained, None)), PLAN, before)
        drawn = np.rint(scale * rng.normal(size=message.size)).astype(np.int64)
        vectors[message.name] = exact[message.name].reveal() + drawn
    claimed = {name: float(e.noise_multiplier) for name, e in router_events(PLAN).items()}
    (mixture,) = fit_image_mixtures(PLAN, [SiteRelease(vectors, claimed)])
    velocity = MixtureVelocity(PLAN, mixture)
    start = torch.from_numpy(rng.normal(size=(count, 1, 8, 8))).float()
    with torch.no_grad():
        found = integrate(
            lambda x, t: velocity(x, t.expand(len(x)), None), start, time_grid(10), "heun"
        )
    return found.flatten(1).double().numpy()


@pytest.mark.slow
def test_samples_of_a_mixture_release_are_not_accused():
    claimed, claim = price(tuple(router_events(PLAN).values()), float(PLAN.privacy.delta))
    runs, shown = 40, 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        trained, held_back = smooth_images(rng, 100), smooth_images(rng, 100)
        found = measured(
            samples_of_release(trained, rng),
            trained.flatten(1).numpy(),
            held_back.flatten(1).numpy(),
            rng,
            claim=claim,
        )
        assert not found.rejects
        assert found.bound <= claimed
        shown += found.bound > 0
    assert shown <= few(runs)


def told_by_coins(images, trained, chance, rng):
    """Copies of the images that a randomised response says were trained on: epsilon is known."""
    said = np.where(rng.random(len(images)) < chance, trained, ~trained)
    return images[said]


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 2.0])
def test_bound_and_claim_hold_for_a_generator_of_known_epsilon(epsilon):
    above = rejected = 0
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        images, trained = normal(rng, 200), np.arange(200) < 100
        samples = told_by_coins(images, trained, 1 / (1 + math.exp(-epsilon)), rng)
        found = measured(
            samples, images[:100], images[100:], rng, claim=ProfileTradeOff([epsilon], [0.0])
        )
        above += found.bound > epsilon
        rejected += found.p_value < 0.05
    assert above <= few()
    assert rejected <= few()


@pytest.mark.parametrize(("epsilon", "share"), [(0.3, 0.5), (1.0, 0.8), (1.5, 0.85)])
def test_bound_of_many_pairs_is_near_the_truth(epsilon, share):
    bounds = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        images, trained = normal(rng, 4000), np.arange(4000) < 2000
        samples = told_by_coins(images, trained, 1 / (1 + math.exp(-epsilon)), rng)
        found = measure_nearest_samples(
            samples, images[:2000], images[2000:], delta=1e-9, generator=rng
        )
        bounds.append(found.bound)
    assert share * epsilon < np.median(bounds) <= epsilon


# --- who copies is caught ---


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_samples_that_copy_training_images_are_caught(noise):
    rng = np.random.default_rng(1)
    trained, held_back = normal(rng, 400), normal(rng, 400)
    samples = trained[rng.integers(400, size=500)] + noise * normal(rng, 500)
    found = measured(samples, trained, held_back, rng, claim=GaussianTradeOff(0.4))
    assert 1.3 < found.bound <= found.ceiling
    assert found.rejects
    assert "REJECTED" in describe_nearest_samples(found)
    fair = measured(samples, normal(rng, 400), held_back, rng, claim=GaussianTradeOff(0.4))
    assert not fair.rejects
    assert fair.bound < 0.2


def test_copies_of_a_few_images_are_caught():
    rng = np.random.default_rng(2)
    trained, held_back = normal(rng, 1000), normal(rng, 1000)
    samples = np.concatenate([normal(rng, 400), trained[:100]])
    found = measured(samples, trained, held_back, rng)
    assert found.bound > 0.8


# --- parts ---


def test_numbers_of_guesses_share_the_error():
    rng = np.random.default_rng(1)
    trained, held_back = normal(rng, 400), normal(rng, 400)
    samples = trained[rng.integers(400, size=500)]
    found = measured(samples, trained, held_back, rng)

    def smallest_p(epsilon):
        exchanged = (1 + math.exp(epsilon)) * DELTA
        return min(
            steinke_p_value(400, one.made, one.correct, 2 * epsilon, exchanged)
            for one in found.tried
        )

    assert [one.made for one in found.tried] == [8, 40, 160, 400]
    assert smallest_p(found.bound - 1e-3) < 0.05 / 4 < smallest_p(found.bound + 1e-3)


def test_images_that_are_equally_far_are_guessed_by_a_coin():
    rng = np.random.default_rng(0)
    same = np.ones((2000, 8))
    found = measured(normal(rng, 10), same, same, rng)
    assert found.tried[-1].made == 2000
    assert abs(found.tried[-1].correct - 1000) < 150


def test_empty_sets_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="needs samples"):
        measured(normal(rng, 5), normal(rng, 5), normal(rng, 0), rng)


def test_report_says_what_was_shown_and_no_more():
    rng = np.random.default_rng(0)
    found = measured(normal(rng, 50), normal(rng, 30), normal(rng, 30), rng)
    text = describe_nearest_samples(found)
    assert "30 pairs" in text
    assert "95 % confidence" in text
    assert "Nothing is claimed" in text
    assert "safe" not in text

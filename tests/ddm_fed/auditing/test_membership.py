"""Membership by the denoising loss: what an over-fitted expert gives away, and an untrained not."""

from decimal import Decimal

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from ddm_fed.auditing import (
    Draws,
    LabelledImages,
    area_under_curve,
    describe_membership,
    measure_membership,
    membership_scores,
)
from ddm_fed.auditing.membership import compare
from ddm_fed.flows import ClassCondition, denoising_loss
from ddm_fed.models import network_named

pytestmark = pytest.mark.slow

MEMBERS, CONTROLS = 64, 400
STEPS = 200


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A network this small takes longer to divide between threads than to compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    order = torch.randperm(len(data.target), generator=generator(0))
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    images, labels = images[order], torch.tensor(data.target)[order]
    return (
        LabelledImages(images[:MEMBERS], labels[:MEMBERS]),
        LabelledImages(images[MEMBERS:][:CONTROLS], labels[MEMBERS:][:CONTROLS]),
    )


def a_network(classes=10):
    network = network_named("DiT-Nano/2", (1, 8, 8), classes)
    network.reset_parameters(generator(0))
    return network.eval()


@pytest.fixture(scope="module")
def overfitted(digits):
    """A network that saw nothing but 64 images, again and again."""
    network, draws, members = a_network(), generator(1), digits[0]
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(STEPS):
        t = 0.1 + 0.3 * torch.rand(MEMBERS, generator=draws)
        eps = torch.randn(members.images.shape, generator=draws)
        condition = ClassCondition(members.labels)
        loss = denoising_loss(network, members.images, eps, t, condition).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


@pytest.fixture(scope="module")
def draws():
    return Draws.at((1, 8, 8), generator(2), per_time=4)


def test_members_of_an_overfitted_expert_are_found(overfitted, digits, draws):
    found = measure_membership(overfitted, *digits, draws)
    assert found.area.low > 0.7
    assert found.true_positives.low > 0.03
    assert (found.members, found.controls, found.draws) == (MEMBERS, CONTROLS, 8)
    assert found.false_positives <= 0.01 * CONTROLS


def test_members_of_an_untrained_expert_are_not_found(digits, draws):
    found = measure_membership(a_network(), *digits, draws)
    assert found.area.low < 0.5 < found.area.high
    assert found.true_positives.low <= 0.01


def test_reference_takes_away_what_makes_an_image_hard_for_everybody(overfitted, digits, draws):
    calibrated = measure_membership(overfitted, *digits, draws, reference=a_network())
    assert calibrated.calibrated
    assert calibrated.area.low > 0.7
    itself = membership_scores(overfitted, digits[0], draws, reference=overfitted)
    assert np.allclose(itself, 0)


def test_score_of_an_image_does_not_depend_on_the_others(overfitted, digits, draws):
    together = membership_scores(overfitted, digits[1], draws)  # more than one block
    few = LabelledImages(digits[1].images[300:303], digits[1].labels[300:303])
    assert membership_scores(overfitted, few, draws) == pytest.approx(together[300:303], rel=1e-4)


def test_score_is_the_logarithm_of_the_mean_loss(digits, draws):
    def nothing(x_t, t, condition):
        return torch.zeros_like(x_t)

    images = LabelledImages(digits[0].images[:3])
    found = membership_scores(nothing, images, draws)
    losses = [
        float((noise - image).square().mean()) for image in images.images for noise in draws.noise
    ]
    expected = -np.log(np.reshape(losses, (3, -1)).mean(1))
    assert found == pytest.approx(expected, rel=1e-5)


def test_draws_are_at_small_times_and_repeat():
    first, second = (Draws.at((1, 4, 4), generator(3)) for _ in range(2))
    assert first.times.tolist() == pytest.approx([0.15] * 8 + [0.25] * 8)
    assert torch.equal(first.noise, second.noise)
    assert first.noise.shape == (16, 1, 4, 4)


def test_nobody_to_compare_with_is_refused(digits, draws):
    nobody = LabelledImages(digits[0].images[:0])
    with pytest.raises(ValueError, match="needs images"):
        measure_membership(a_network(), digits[0], nobody, draws)


# --- from scores to figures ---


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [([3, 4], [1, 2], 1.0), ([1, 2], [3, 4], 0.0), ([1, 1], [1, 1], 0.5), ([1, 3], [2, 2], 0.5)],
)
def test_area_counts_pairs_and_halves_ties(positive, negative, expected):
    area = area_under_curve(np.array(positive, dtype=float), np.array(negative, dtype=float))
    assert area.value == expected
    assert 0 <= area.low <= expected <= area.high <= 1


def test_area_of_one_has_an_interval():
    area = area_under_curve(np.arange(50.0) + 100, np.arange(50.0))
    assert (area.value, area.high) == (1.0, 1.0)
    assert 0.9 < area.low < 0.99


@pytest.mark.parametrize(("shift", "truth"), [(0.0, 0.5), (1.0, 0.760250), (2.5, 0.961461)])
def test_interval_of_the_area_covers_the_truth_nearly_always(shift, truth):
    draws, covered = np.random.default_rng(0), 0
    for _ in range(400):
        area = area_under_curve(draws.normal(shift, 1, 40), draws.normal(0, 1, 60))
        covered += area.low <= truth <= area.high
    assert covered >= 360  # of 95 %, fewer has a probability below 1e-4


def test_threshold_lets_through_one_control_of_a_hundred():
    controls, members = np.arange(200.0), np.array([197.5, 198.5, 300.0, 0.0])
    found = compare(members, controls, draws=1, calibrated=False)
    assert (found.true_positives.hits, found.false_positives) == (3, 2)


def test_threshold_with_few_controls_lets_through_none():
    found = compare(np.array([5.0, 9.0]), np.arange(10.0), draws=1, calibrated=False)
    assert (found.true_positives.hits, found.false_positives) == (0, 0)


def test_report_of_an_expert_without_noise_says_that_no_bound_exists():
    found = compare(np.array([5.0, 9.0]), np.arange(10.0), draws=1, calibrated=False)
    text = describe_membership(found)
    assert "No upper bound exists" in text
    assert "local" in text
    private = describe_membership(found, Decimal("7.9"))
    assert "The proved bound is epsilon 7.9" in private
    assert "No upper bound" not in private

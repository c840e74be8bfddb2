"""Fidelity of samples against scipy, closed forms and plain loops."""

import numpy as np
import pytest
import torch
from scipy import linalg
from sklearn.datasets import load_digits

from ddm_fed.evaluation import (
    frechet_distance,
    kernel_distance,
    manifold_scores,
    train_classifier_on,
)


def draws(seed, count=400, features=6, shift=0.0, scale=1.0):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(features, features))
    return rng.normal(size=(count, features)) @ mixing * scale + shift


def test_frechet_distance_is_that_of_scipys_matrix_root():
    real, drawn = draws(0), draws(1, count=300, shift=0.3)
    mean = np.square(real.mean(0) - drawn.mean(0)).sum()
    a, b = np.cov(real, rowvar=False), np.cov(drawn, rowvar=False)
    expected = mean + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert frechet_distance(real, drawn) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_a_shifted_and_scaled_copy_has_its_closed_form():
    real = draws(2)
    shift = np.arange(6.0)
    expected = np.square(shift + real.mean(0) * 1.0).sum() + np.cov(real, rowvar=False).trace()
    assert frechet_distance(real, 2 * real + shift) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_survives_features_that_never_vary():
    real, drawn = draws(3), draws(4)
    real[:, 0], drawn[:, 0] = 1.0, 1.0
    assert np.isfinite(frechet_distance(real, drawn))


def test_kernel_distance_is_that_of_plain_loops_and_unbiased():
    real, drawn = draws(5, count=15), draws(6, count=11)

    def k(a, b):
        return (a @ b / 6 + 1) ** 3

    xx = np.mean([k(a, b) for i, a in enumerate(real) for j, b in enumerate(real) if i != j])
    yy = np.mean([k(a, b) for i, a in enumerate(drawn) for j, b in enumerate(drawn) if i != j])
    xy = np.mean([k(a, b) for a in real for b in drawn])
    assert kernel_distance(real, drawn) == pytest.approx(xx + yy - 2 * xy, rel=1e-9)
    rng = np.random.default_rng(0)
    same = [kernel_distance(*rng.normal(size=(2, 60, 4))) for _ in range(300)]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(300)


def test_manifold_scores_are_those_of_plain_loops():
    real, drawn, k = draws(7, count=40), draws(8, count=30, scale=1.3), 3

    def reach(points, i):
        return sorted(np.linalg.norm(points[i] - p) for j, p in enumerate(points) if j != i)[k - 1]

    ball_r = [reach(real, i) for i in range(40)]
    ball_d = [reach(drawn, i) for i in range(30)]
    far = np.array([[np.linalg.norm(r - d) for d in drawn] for r in real])
    found = manifold_scores(real, drawn, neighbours=k)
    inside = np.array([[far[i, j] <= ball_r[i] for j in range(30)] for i in range(40)])
    assert found.precision == inside.any(0).mean()
    assert found.recall == np.mean([any(far[i] <= ball_d) for i in range(40)])
    assert found.density == pytest.approx(inside.sum() / (k * 30))
    assert found.coverage == inside.any(1).mean()


def test_collapsed_samples_have_precision_and_no_recall():
    real = draws(9, count=200)
    drawn = real[:1] + 1e-6 * draws(10, count=200)
    found = manifold_scores(real, drawn)
    assert found.precision == 1.0
    assert found.recall < 0.05
    assert found.coverage < 0.1


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance, manifold_scores])
def test_too_few_images_are_refused(measure):
    with pytest.raises(ValueError, match="at least"):
        measure(draws(0, count=1), draws(1))


@pytest.mark.slow
def test_classifier_learns_digits_and_its_features_tell_noise_from_digits():
    digits = load_digits()
    images = torch.from_numpy(digits.images / 8 - 1).float()[:, None]
    labels = torch.from_numpy(digits.target)
    options = {"epochs": 12, "batch_size": 64}
    trained = train_classifier_on(
        images[:1400], labels[:1400], 10, generator=torch.Generator().manual_seed(0), **options
    )
    again = train_classifier_on(
        images[:1400], labels[:1400], 10, generator=torch.Generator().manual_seed(0), **options
    )
    assert trained.network.accuracy(images[1400:], labels[1400:]) > 0.9
    assert trained.held_out_accuracy == again.held_out_accuracy
    features = trained.network.features(images).numpy()
    assert features.shape == (1797, 64)
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    far = frechet_distance(features[:900], trained.network.features(noise).numpy())
    assert far > 10 * frechet_distance(features[:900], features[900:])


def test_classifier_of_a_handful_of_images_is_refused():
    with pytest.raises(ValueError, match="at least 20"):
        train_classifier_on(
            torch.zeros(5, 1, 8, 8),
            torch.zeros(5).long(),
            2,
            epochs=1,
            generator=torch.Generator(),
        )

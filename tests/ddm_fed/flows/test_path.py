"""Paths, the denoising loss and its weights, and the times it is taken at."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from ddm_fed.flows import (
    LINEAR,
    denoising_loss,
    interpolate,
    logit_normal_times,
    path_named,
    shift_times,
    uniform_times,
    velocity,
)
from ddm_fed.flows.objective import loss_weight

PATHS = ["linear", "cosine", "vp"]
PREDICTIONS = ["velocity", "noise", "image"]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


# --- path ---


def test_interpolate_at_time_zero_is_the_image():
    x_0, eps = normal(1, 3, 2, 4, 4), normal(2, 3, 2, 4, 4)
    assert torch.equal(interpolate(x_0, eps, torch.zeros(3, dtype=torch.float64)), x_0)


def test_interpolate_at_time_one_is_the_noise():
    x_0, eps = normal(1, 3, 2, 4, 4), normal(2, 3, 2, 4, 4)
    assert torch.equal(interpolate(x_0, eps, torch.ones(3, dtype=torch.float64)), eps)


def test_interpolate_times_of_a_batch_apply_row_by_row():
    x_0, eps = normal(1, 3, 2, 4, 5), normal(2, 3, 2, 4, 5)
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    x_t = interpolate(x_0, eps, t).numpy()
    for row, time in enumerate([0.0, 0.25, 1.0]):
        mixed = [
            (1 - time) * a + time * b
            for a, b in zip(x_0[row].flatten().tolist(), eps[row].flatten().tolist(), strict=True)
        ]
        np.testing.assert_allclose(x_t[row].ravel(), mixed, rtol=1e-15, atol=1e-15)


def test_alpha_and_sigma_are_the_moments_of_noised_data():
    # Empirical mean and deviation of x_t for x_0 = 2 and standard normal noise. n = 200,000:
    # the mean is off by more than 5 standard errors with probability 6e-7, and so is the deviation.
    eps, n = normal(3, 200_000), 200_000
    for time in (0.2, 0.7):
        t = torch.full((n,), time, dtype=torch.float64)
        x_t = interpolate(torch.full((n,), 2.0, dtype=torch.float64), eps, t)
        assert abs(float(x_t.mean()) - 2 * float(LINEAR.alpha(t[0]))) < 5 * time / math.sqrt(n)
        assert abs(float(x_t.std()) - float(LINEAR.sigma(t[0]))) < 5 * time / math.sqrt(2 * n)


@pytest.mark.parametrize("time", [0.02, 0.3, 0.99])
@pytest.mark.parametrize("name", PATHS)
def test_velocity_is_the_derivative_of_interpolate(name, time):
    x_0, eps, path, h = normal(4, 5, 3, 4, 4), normal(5, 5, 3, 4, 4), path_named(name), 1e-5
    ahead, at, behind = (torch.full((5,), time + d, dtype=torch.float64) for d in (h, 0.0, -h))
    slope = (interpolate(x_0, eps, ahead, path) - interpolate(x_0, eps, behind, path)) / (2 * h)
    assert torch.allclose(velocity(x_0, eps, at, path), slope, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PATHS)
def test_path_rates_are_the_gradients_of_alpha_and_sigma(name):
    path = path_named(name)
    t = torch.tensor([0.01, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64, requires_grad=True)
    for value, rate in ((path.alpha, path.alpha_rate), (path.sigma, path.sigma_rate)):
        (gradient,) = torch.autograd.grad(value(t).sum(), t)
        assert torch.allclose(rate(t), gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", PATHS)
def test_path_time_of_its_own_alpha_and_sigma_is_the_time(name):
    path = path_named(name)
    t = torch.tensor([0.0, 1e-6, 0.01, 0.2, 0.5, 0.9, 0.999], dtype=torch.float64)
    # any common factor leaves the ratio
    found = path.time_of(3 * path.alpha(t), 3 * path.sigma(t))
    assert torch.allclose(found, t, rtol=1e-12, atol=0)


def test_path_vp_and_cosine_preserve_variance():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    for path in (path_named("vp"), path_named("cosine")):
        assert torch.allclose(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones_like(t))


# --- loss ---


def _toy_model(x, t, label):
    """Nonlinear, looks at time and label, mixes the pixels of an image, never the images."""
    shift = 0 if label is None else label.to(x.dtype).reshape(-1, 1, 1, 1)
    return torch.sin(x + x.mean((1, 2, 3), keepdim=True)) * t.reshape(-1, 1, 1, 1) + 0.1 * shift


def test_denoising_loss_equals_brute_force_loop():
    x_0, eps = normal(6, 4, 2, 3, 3), normal(7, 4, 2, 3, 3)
    t = torch.tensor([0.1, 0.4, 0.6, 0.95], dtype=torch.float64)
    label = torch.tensor([0, 2, 1, 1])
    found = denoising_loss(_toy_model, x_0.float(), eps.float(), t.float(), label)
    for i in range(4):
        x, e, time = x_0[i].numpy().ravel(), eps[i].numpy().ravel(), float(t[i])
        x_t = [(1 - time) * a + time * b for a, b in zip(x, e, strict=True)]
        centre = math.fsum(x_t) / len(x_t)
        predicted = [math.sin(p + centre) * time + 0.1 * int(label[i]) for p in x_t]
        terms = [(p - (b - a)) ** 2 for p, a, b in zip(predicted, x, e, strict=True)]
        assert float(found[i]) == pytest.approx(math.fsum(terms) / len(terms), rel=1e-5)


def test_denoising_loss_is_one_float32_number_per_image():
    def half_precision(x, t, label):
        return x.bfloat16()

    x_0, eps = normal(8, 6, 1, 4, 4, dtype=torch.float32), normal(9, 6, 1, 4, 4).float()
    loss = denoising_loss(half_precision, x_0, eps, torch.full((6,), 0.5), None)
    assert (loss.shape, loss.dtype) == ((6,), torch.float32)


def test_denoising_loss_of_a_row_has_no_gradient_in_other_rows():
    x_0 = normal(10, 4, 1, 4, 4).requires_grad_()
    eps, t = normal(11, 4, 1, 4, 4), torch.full((4,), 0.3, dtype=torch.float64)
    loss = denoising_loss(_toy_model, x_0, eps, t, None)
    (gradient,) = torch.autograd.grad(loss[2], x_0)
    assert gradient[2].abs().min() > 0
    assert torch.equal(gradient[[0, 1, 3]], torch.zeros(3, 1, 4, 4, dtype=torch.float64))


def test_denoising_loss_of_a_row_stays_when_all_other_rows_change():
    x_0, eps = normal(12, 4, 1, 4, 4), normal(13, 4, 1, 4, 4)
    t, label = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    before = denoising_loss(_toy_model, x_0, eps, t, label)
    x_0[1:], eps[1:], t[1:], label[1:] = 1e6, -3.0, 0.9, 0
    after = denoising_loss(_toy_model, x_0, eps, t, label)
    assert before[0] == after[0]
    assert (before[1:] != after[1:]).all()


def test_denoising_loss_of_the_true_velocity_is_zero():
    x_0, eps = normal(14, 3, 1, 4, 4).float(), normal(15, 3, 1, 4, 4).float()
    t = torch.tensor([0.1, 0.5, 0.9])
    loss = denoising_loss(lambda x, t, label: eps - x_0, x_0, eps, t, None)
    assert torch.equal(loss, torch.zeros(3))


@pytest.mark.parametrize("weighting", ["none", "min-snr"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", PATHS)
def test_denoising_loss_is_least_at_the_conditional_expectation(name, prediction, weighting):
    # Four images of one pixel, and the noise that takes each of them to the same state: over
    # these, weighted by how likely they are, the best answer is the conditional expectation.
    path, time, state, h = path_named(name), 0.4, 0.35, 1e-6
    t = torch.full((4,), time, dtype=torch.float64)
    alpha, sigma = float(path.alpha(t)[0]), float(path.sigma(t)[0])
    x_0 = torch.tensor([-1.0, -0.2, 0.5, 0.9], dtype=torch.float64)
    eps = (state - alpha * x_0) / sigma
    share = np.exp(-(eps.numpy() ** 2) / 2) / np.exp(-(eps.numpy() ** 2) / 2).sum()
    image, noise = share @ x_0.numpy(), share @ eps.numpy()
    rates = [(float(f(t + h)[0]) - float(f(t - h)[0])) / (2 * h) for f in (path.alpha, path.sigma)]
    expected = {"image": image, "noise": noise, "velocity": rates[0] * image + rates[1] * noise}
    answer = torch.tensor(expected[prediction], dtype=torch.float64, requires_grad=True)
    loss = denoising_loss(
        lambda x, t, c: answer.expand(x.shape),
        x_0.reshape(4, 1, 1, 1),
        eps.reshape(4, 1, 1, 1),
        t,
        None,
        path=path,
        prediction=prediction,
        weighting=weighting,
    )
    (slope,) = torch.autograd.grad((torch.from_numpy(share) * loss).sum(), answer)
    assert abs(float(slope)) < 1e-5


@pytest.mark.parametrize("name", PATHS)
def test_min_snr_weights_give_all_predictions_the_same_weighted_error(name):
    path = path_named(name)
    t = torch.tensor([0.01, 0.1, 0.3, 0.5, 0.8, 0.95], dtype=torch.float64)
    alpha, sigma = path.alpha(t), path.sigma(t)
    wrong = normal(30, 6)  # the error of the image; the noise's follows from the same x_t
    noise = -alpha / sigma * wrong
    errors = {"image": wrong, "noise": noise, "velocity": velocity(wrong, noise, t, path)}
    expected = torch.minimum((alpha / sigma) ** 2, torch.tensor(5.0)) * wrong**2
    for prediction, error in errors.items():
        weighted = loss_weight(t, path, prediction) * error**2
        assert torch.allclose(weighted, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_min_snr_weights_are_finite_at_both_ends(name, prediction):
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert torch.isfinite(loss_weight(ends, path_named(name), prediction)).all()


# --- times ---


def test_uniform_times_follow_the_uniform_distribution():
    # Kolmogorov-Smirnov, false alarm 1e-4 over seeds.
    t = uniform_times(20_000, generator(16)).double().numpy()
    assert stats.kstest(t, stats.uniform.cdf).pvalue > 1e-4


def test_uniform_times_lie_in_the_half_open_unit_interval():
    t = uniform_times(100_000, generator(17))
    assert t.shape == (100_000,)
    assert 0 <= float(t.min()) < float(t.max()) < 1


@pytest.mark.parametrize(("location", "scale"), [(0.0, 1.0), (0.8, 0.5), (-1.2, 1.7)])
def test_logit_normal_times_follow_the_logit_normal_distribution(location, scale):
    # Kolmogorov-Smirnov, false alarm 1e-4 over seeds.
    t = logit_normal_times(20_000, generator(18), location=location, scale=scale).double().numpy()
    cdf = lambda u: stats.norm.cdf(special.logit(u), location, scale)  # noqa: E731
    assert stats.kstest(t, cdf).pvalue > 1e-4


def test_logit_normal_times_lie_strictly_between_data_and_noise():
    t = logit_normal_times(100_000, generator(19), location=0.0, scale=1.0)
    assert 0 < float(t.min()) < float(t.max()) < 1


def test_logit_normal_times_of_positive_location_favour_noise():
    t = logit_normal_times(10_000, generator(20), location=1.0, scale=1.0)
    # P(t > 1/2) = Phi(1) = 0.841; below 0.8 has probability 3e-29 by the binomial.
    assert float((t > 0.5).float().mean()) > 0.8


@pytest.mark.parametrize(
    "draw",
    [uniform_times, lambda n, g: logit_normal_times(n, g, location=0.3, scale=0.7)],
    ids=["uniform", "logit-normal"],
)
def test_times_of_the_same_seed_are_the_same(draw):
    assert torch.equal(draw(50, generator(21)), draw(50, generator(21)))


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_shift_times_multiplies_noise_to_image_ratio_and_keeps_order_and_ends(shift):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    moved = shift_times(t, shift)
    inner, before = moved[1:-1], t[1:-1]
    assert torch.allclose(inner / (1 - inner), shift * before / (1 - before), rtol=1e-12)
    assert (moved.diff() > 0).all()
    assert (float(moved[0]), float(moved[-1])) == (0, 1)

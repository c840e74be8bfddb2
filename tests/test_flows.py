"""The linear path, the flow-matching loss, its times, and the order of every solver."""

import math

import numpy as np
import pytest
import torch
from scipy import linalg, special, stats

from ddm_fed.flows import (
    CALLS_PER_STEP,
    alpha,
    integrate,
    interpolate,
    logit_normal_times,
    sigma,
    time_grid,
    uniform_times,
    velocity,
    velocity_loss,
)

ORDERS = [("euler", 1), ("midpoint", 2), ("heun", 2)]


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
        assert abs(float(x_t.mean()) - 2 * float(alpha(t[0]))) < 5 * time / math.sqrt(n)
        assert abs(float(x_t.std()) - float(sigma(t[0]))) < 5 * time / math.sqrt(2 * n)


@pytest.mark.parametrize("time", [0.0, 0.3, 0.99])
def test_velocity_is_the_derivative_of_interpolate(time):
    x_0, eps = normal(4, 5, 3, 4, 4), normal(5, 5, 3, 4, 4)
    h = 1e-5
    ahead = interpolate(x_0, eps, torch.full((5,), time + h, dtype=torch.float64))
    behind = interpolate(x_0, eps, torch.full((5,), time - h, dtype=torch.float64))
    assert torch.allclose(velocity(x_0, eps), (ahead - behind) / (2 * h), rtol=0, atol=1e-9)


# --- loss ---


def _toy_model(x, t, label):
    """Nonlinear, looks at time and label, mixes the pixels of an image, never the images."""
    shift = 0 if label is None else label.to(x.dtype).reshape(-1, 1, 1, 1)
    return torch.sin(x + x.mean((1, 2, 3), keepdim=True)) * t.reshape(-1, 1, 1, 1) + 0.1 * shift


def test_velocity_loss_equals_brute_force_loop():
    x_0, eps = normal(6, 4, 2, 3, 3), normal(7, 4, 2, 3, 3)
    t = torch.tensor([0.1, 0.4, 0.6, 0.95], dtype=torch.float64)
    label = torch.tensor([0, 2, 1, 1])
    found = velocity_loss(_toy_model, x_0.float(), eps.float(), t.float(), label)
    for i in range(4):
        x, e, time = x_0[i].numpy().ravel(), eps[i].numpy().ravel(), float(t[i])
        x_t = [(1 - time) * a + time * b for a, b in zip(x, e, strict=True)]
        centre = math.fsum(x_t) / len(x_t)
        predicted = [math.sin(p + centre) * time + 0.1 * int(label[i]) for p in x_t]
        terms = [(p - (b - a)) ** 2 for p, a, b in zip(predicted, x, e, strict=True)]
        assert float(found[i]) == pytest.approx(math.fsum(terms) / len(terms), rel=1e-5)


def test_velocity_loss_is_one_float32_number_per_image():
    def half_precision(x, t, label):
        return x.bfloat16()

    x_0, eps = normal(8, 6, 1, 4, 4, dtype=torch.float32), normal(9, 6, 1, 4, 4).float()
    loss = velocity_loss(half_precision, x_0, eps, torch.full((6,), 0.5), None)
    assert (loss.shape, loss.dtype) == ((6,), torch.float32)


def test_velocity_loss_of_a_row_has_no_gradient_in_other_rows():
    x_0 = normal(10, 4, 1, 4, 4).requires_grad_()
    eps, t = normal(11, 4, 1, 4, 4), torch.full((4,), 0.3, dtype=torch.float64)
    loss = velocity_loss(_toy_model, x_0, eps, t, None)
    (gradient,) = torch.autograd.grad(loss[2], x_0)
    assert gradient[2].abs().min() > 0
    assert torch.equal(gradient[[0, 1, 3]], torch.zeros(3, 1, 4, 4, dtype=torch.float64))


def test_velocity_loss_of_a_row_stays_when_all_other_rows_change():
    x_0, eps = normal(12, 4, 1, 4, 4), normal(13, 4, 1, 4, 4)
    t, label = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    before = velocity_loss(_toy_model, x_0, eps, t, label)
    x_0[1:], eps[1:], t[1:], label[1:] = 1e6, -3.0, 0.9, 0
    after = velocity_loss(_toy_model, x_0, eps, t, label)
    assert before[0] == after[0]
    assert (before[1:] != after[1:]).all()


def test_velocity_loss_of_the_true_velocity_is_zero():
    x_0, eps = normal(14, 3, 1, 4, 4).float(), normal(15, 3, 1, 4, 4).float()
    t = torch.tensor([0.1, 0.5, 0.9])
    loss = velocity_loss(lambda x, t, label: eps - x_0, x_0, eps, t, None)
    assert torch.equal(loss, torch.zeros(3))


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


# --- solvers ---


def test_time_grid_runs_evenly_from_noise_to_data():
    t = time_grid(7, dtype=torch.float64)
    assert (t.shape, float(t[0]), float(t[-1])) == ((8,), 1.0, 0.0)
    np.testing.assert_allclose(np.diff(t.numpy()), -1 / 7, rtol=0, atol=1e-15)


@pytest.mark.parametrize("steps", [1, 3, 50, 1000])
def test_time_grid_in_float32_decreases_strictly_between_exact_ends(steps):
    t = time_grid(steps)
    assert t.dtype == torch.float32
    assert (len(t), float(t[0]), float(t[-1])) == (steps + 1, 1.0, 0.0)
    assert (t.diff() < 0).all()


def _order(solver, velocity_field, x_1, exact):
    """Slope of log error against log step: the order of convergence, measured."""
    steps = np.array([32, 64, 128, 256, 512])
    errors = [
        float(
            (integrate(velocity_field, x_1, time_grid(int(n), dtype=torch.float64), solver) - exact)
            .abs()
            .max()
        )
        for n in steps
    ]
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


@pytest.mark.parametrize(("solver", "order"), ORDERS)
def test_solver_converges_with_its_order_on_a_nonlinear_time_dependent_equation(solver, order):
    # dx/dt = -2 t x^2 is solved by x(t) = 1 / (t^2 + c)
    c = torch.tensor([0.7, 1.0, 2.5], dtype=torch.float64)
    measured = _order(solver, lambda x, t: -2 * t * x**2, 1 / (1 + c), 1 / c)
    assert measured == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(("solver", "order"), ORDERS)
def test_solver_converges_with_its_order_to_the_matrix_exponential(solver, order):
    matrix = np.array([[0.3, -2.0, 0.1], [1.5, -0.4, 0.6], [0.0, -0.8, 0.2]])
    x_1 = np.array([1.0, -0.5, 2.0])
    exact = torch.from_numpy(linalg.expm(-matrix) @ x_1)
    field = torch.from_numpy(matrix)
    measured = _order(solver, lambda x, t: field @ x, torch.from_numpy(x_1), exact)
    assert measured == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(("solver", "order"), ORDERS)
def test_solver_converges_with_at_least_its_order_to_the_gaussian_it_should_sample(solver, order):
    # For data N(m, s^2) the flow keeps the quantile, so noise z ends in m + s z. On this field the
    # leading error of midpoint cancels and its order is 3.
    m, s = 0.4, 0.6
    z = torch.tensor([-2.0, -0.3, 1.5], dtype=torch.float64)

    def field(x, t):
        slope = (t - (1 - t) * s**2) / ((1 - t) ** 2 * s**2 + t**2)
        return -m + slope * (x - (1 - t) * m)

    assert _order(solver, field, z, m + s * z) > order - 0.1


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
def test_solver_follows_a_straight_path_exactly_in_one_step(solver):
    x_0, eps = normal(22, 2, 1, 4, 4), normal(23, 2, 1, 4, 4)
    found = integrate(lambda x, t: eps - x_0, eps, time_grid(1, dtype=torch.float64), solver=solver)
    assert torch.allclose(found, x_0, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("solver", "calls"), CALLS_PER_STEP.items())
def test_solver_asks_for_the_velocity_as_often_as_it_says(solver, calls):
    asked = []

    def field(x, t):
        asked.append(float(t))
        return -x

    integrate(field, torch.ones(2), time_grid(6), solver)
    assert len(asked) == 6 * calls


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
def test_solver_asks_only_for_times_between_data_and_noise(solver):
    asked = []

    def field(x, t):
        asked.append(float(t))
        return -x

    integrate(field, torch.ones(2), time_grid(9), solver)
    assert min(asked) >= 0
    assert max(asked) == 1

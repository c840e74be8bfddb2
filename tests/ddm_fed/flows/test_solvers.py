"""Every solver's order, its calls, and that a batch may be split and joined between steps."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate as quadrature
from scipy import linalg, stats

from ddm_fed.flows import CALLS_PER_STEP, State, advance, integrate, join, time_grid

SOLVERS = list(CALLS_PER_STEP)
ORDERS = [("euler", 1), ("midpoint", 2), ("heun", 2)]
# dpm++2m steps in log(alpha / sigma), infinite at both ends: order 2 between them, and h^2 log(1/h)
# over the whole interval, which over the steps measured here is a slope of 1.6 to 1.85
MULTISTEP = ("dpm++2m", 2)

# Data: a mixture of two Gaussians on the line, and where its flow starts.
WEIGHTS, MEANS, DEVIATIONS = np.array([0.6, 0.4]), np.array([-0.8, 0.9]), np.array([0.35, 0.5])
STARTS = np.array([-1.7, -0.4, 0.3, 1.6])


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(seed, *shape):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def mixture_velocity(x, t):
    """E[eps - x_0 | x_t = x] on the linear path, by Bayes' rule over the components."""
    alpha, sigma = 1 - float(t), float(t)
    x = np.asarray(x)
    variance = alpha**2 * DEVIATIONS**2 + sigma**2
    residual = x[..., None] - alpha * MEANS
    joint = WEIGHTS * np.exp(-(residual**2) / (2 * variance)) / np.sqrt(variance)
    share = joint / joint.sum(-1, keepdims=True)
    image = MEANS + alpha * DEVIATIONS**2 * residual / variance
    return (share * (sigma * residual / variance - image)).sum(-1)


def mixture_field(x, t):
    return torch.from_numpy(mixture_velocity(x.numpy(), t))


def gaussian_field(m, s):
    """The velocity of data N(m, s^2), which is linear in x."""

    def field(x, t):
        slope = (t - (1 - t) * s**2) / ((1 - t) ** 2 * s**2 + t**2)
        return -m + slope * (x - (1 - t) * m)

    return field


def even_times(start, end, steps):
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)


def order_of(solver, field, x_1, exact, start=1.0, end=0.0):
    """Slope of log error against log step: the order of convergence, measured."""
    steps = np.array([32, 64, 128, 256, 512])
    errors = [
        float((integrate(field, x_1, even_times(start, end, n), solver) - exact).abs().max())
        for n in steps.tolist()
    ]
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


def recorder(asked):
    def field(x, t):
        asked.append(float(t))
        return -x

    return field


def no_noise(index):
    return torch.zeros(2, 3)


# --- times ---


def test_time_grid_runs_evenly_from_noise_to_data():
    t = time_grid(7, dtype=torch.float64)
    assert (t.shape, float(t[0]), float(t[-1])) == ((8,), 1.0, 0.0)
    np.testing.assert_allclose(np.diff(t.numpy()), -1 / 7, rtol=0, atol=1e-15)


def test_time_grid_of_a_start_runs_evenly_from_there_to_data():
    t = time_grid(5, start=0.9, dtype=torch.float64)
    assert (len(t), float(t[0]), float(t[-1])) == (6, 0.9, 0.0)
    np.testing.assert_allclose(np.diff(t.numpy()), -0.18, rtol=0, atol=1e-15)


@pytest.mark.parametrize("steps", [1, 3, 50, 1000])
def test_time_grid_in_float32_decreases_strictly_between_exact_ends(steps):
    t = time_grid(steps)
    assert t.dtype == torch.float32
    assert (len(t), float(t[0]), float(t[-1])) == (steps + 1, 1.0, 0.0)
    assert (t.diff() < 0).all()


# --- order ---


@pytest.mark.parametrize(
    ("solver", "order", "start", "end", "slack"),
    [(*row, 0.9, 0.1, 0.15) for row in [*ORDERS, MULTISTEP]]
    + [(*row, 1.0, 0.0, 0.15) for row in ORDERS]
    + [(*MULTISTEP, 1.0, 0.0, 0.45)],
)
def test_solver_converges_with_its_order_on_the_flow_of_a_mixture(solver, order, start, end, slack):
    exact = quadrature.solve_ivp(
        lambda t, x: mixture_velocity(x, t),
        (start, end),
        STARTS,
        method="DOP853",
        rtol=1e-13,
        atol=1e-14,
    ).y[:, -1]
    measured = order_of(
        solver, mixture_field, torch.from_numpy(STARTS), torch.from_numpy(exact), start, end
    )
    assert measured == pytest.approx(order, abs=slack)


@pytest.mark.parametrize(("solver", "order"), ORDERS)
def test_solver_converges_with_its_order_on_a_nonlinear_time_dependent_equation(solver, order):
    # dx/dt = -2 t x^2 is solved by x(t) = 1 / (t^2 + c)
    c = torch.tensor([0.7, 1.0, 2.5], dtype=torch.float64)
    measured = order_of(solver, lambda x, t: -2 * t * x**2, 1 / (1 + c), 1 / c)
    assert measured == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("solver", "order"), ORDERS)
def test_solver_converges_with_its_order_to_the_matrix_exponential(solver, order):
    matrix = np.array([[0.3, -2.0, 0.1], [1.5, -0.4, 0.6], [0.0, -0.8, 0.2]])
    x_1 = np.array([1.0, -0.5, 2.0])
    exact = torch.from_numpy(linalg.expm(-matrix) @ x_1)
    field = torch.from_numpy(matrix)
    measured = order_of(solver, lambda x, t: field @ x, torch.from_numpy(x_1), exact)
    assert measured == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("solver", "order"), ORDERS)
def test_solver_converges_with_at_least_its_order_to_the_gaussian_it_should_sample(solver, order):
    # For data N(m, s^2) the flow keeps the quantile, so noise z ends in m + s z. On this field the
    # leading error of midpoint cancels and its order is 3.
    z = torch.tensor([-2.0, -0.3, 1.5], dtype=torch.float64)
    assert order_of(solver, gaussian_field(0.4, 0.6), z, 0.4 + 0.6 * z) > order - 0.15


@pytest.mark.parametrize("solver", SOLVERS)
def test_solver_follows_a_straight_path_exactly_in_one_step(solver):
    x_0, eps = normal(22, 2, 1, 4, 4), normal(23, 2, 1, 4, 4)
    times = time_grid(1, dtype=torch.float64)
    found = integrate(lambda x, t: eps - x_0, eps, times, solver, no_noise)
    assert torch.allclose(found, x_0, rtol=0, atol=1e-14)


# --- calls ---


@pytest.mark.parametrize(("solver", "calls"), CALLS_PER_STEP.items())
def test_solver_asks_for_the_velocity_as_often_as_it_says(solver, calls):
    asked = []
    integrate(recorder(asked), torch.ones(2, 3), time_grid(6), solver, no_noise)
    # heun's last step is an Euler step
    assert len(asked) == 6 * calls - (solver == "heun")


@pytest.mark.parametrize("steps", [1, 2, 9, 64])
@pytest.mark.parametrize("solver", SOLVERS)
def test_solver_never_asks_for_the_velocity_at_time_zero(solver, steps):
    asked = []
    integrate(recorder(asked), torch.ones(2, 3), time_grid(steps), solver, no_noise)
    assert min(asked) > 0
    assert max(asked) == 1


@pytest.mark.parametrize("solver", SOLVERS)
def test_solver_with_a_grid_from_a_smaller_start_asks_for_no_larger_time(solver):
    asked = []
    integrate(recorder(asked), torch.ones(2, 3), time_grid(5, start=0.75), solver, no_noise)
    assert max(asked) == 0.75


# --- dpm++2m ---


def test_dpm_of_first_order_equals_euler():
    # a state that remembers nothing makes a first-order step, at any index
    x, times = normal(1, 4), time_grid(10, dtype=torch.float64)
    for index in range(10):
        first = advance(mixture_field, State(x), times, index, "dpm++2m").x
        euler = advance(mixture_field, State(x), times, index, "euler").x
        assert torch.allclose(first, euler, rtol=0, atol=1e-15)


@pytest.mark.parametrize("index", [0, 1, 9])
def test_dpm_step_where_the_log_ratio_is_infinite_is_of_first_order(index):
    state, times = State(normal(1, 4), normal(2, 4)), time_grid(10, dtype=torch.float64)
    found = advance(mixture_field, state, times, index, "dpm++2m").x
    euler = advance(mixture_field, state, times, index, "euler").x
    assert torch.allclose(found, euler, rtol=0, atol=1e-15)


def test_dpm_step_inside_extrapolates_the_image_as_lu_et_al_write_it():
    x, previous = 0.83, -0.4
    before, t, s = 0.8, 0.6, 0.25
    h_before, h = (math.log((1 - b) / b * a / (1 - a)) for a, b in ((before, t), (t, s)))
    r = h_before / h
    image = x - t * float(mixture_velocity(x, t))
    extrapolated = (1 + 1 / (2 * r)) * image - previous / (2 * r)
    expected = s / t * x - (1 - s) * math.expm1(-h) * extrapolated
    found = advance(
        mixture_field,
        State(
            torch.tensor([x], dtype=torch.float64), torch.tensor([previous], dtype=torch.float64)
        ),
        torch.tensor([before, t, s], dtype=torch.float64),
        1,
        "dpm++2m",
    )
    assert float(found.x) == pytest.approx(expected, abs=1e-14)
    assert float(found.previous) == pytest.approx(image, abs=1e-14)


def test_dpm_has_a_smaller_error_than_euler_for_the_same_calls():
    exact = quadrature.solve_ivp(
        lambda t, x: mixture_velocity(x, t), (1, 0), STARTS, rtol=1e-12, atol=1e-13
    ).y[:, -1]

    def error(solver, steps):
        times = time_grid(steps, dtype=torch.float64)
        found = integrate(mixture_field, torch.from_numpy(STARTS), times, solver)
        return np.abs(found.numpy() - exact).max()

    assert error("dpm++2m", 32) < error("euler", 32)


# --- sde ---


def test_sde_without_noise_is_refused():
    with pytest.raises(ValueError, match="noise"):
        integrate(mixture_field, normal(1, 4), time_grid(3), "sde")


def test_sde_asks_for_the_noise_of_every_step_but_the_last():
    asked = []

    def noise(index):
        asked.append(index)
        return torch.zeros(2, 3)

    integrate(lambda x, t: -x, torch.ones(2, 3), time_grid(5), "sde", noise)
    assert asked == [0, 1, 2, 3]


def _gaussian_moments(m, s, steps):
    """Mean and variance the sde ends in for data N(m, s^2), without sampling.

    The field is linear, so one step is x -> a x + b + c z; the factors are read off the step.
    """
    times, field = time_grid(steps, dtype=torch.float64), gaussian_field(m, s)
    x, mean, variance = torch.tensor([0.0, 1.0], dtype=torch.float64), 0.0, 1.0
    for index in range(steps):
        still, moved = (
            advance(field, State(x), times, index, "sde", lambda _, z=z: torch.full_like(x, z)).x
            for z in (0.0, 1.0)
        )
        a, b, c = float(still[1] - still[0]), float(still[0]), float(moved[0] - still[0])
        mean, variance = a * mean + b, a**2 * variance + c**2
    return np.array([mean, variance])


@pytest.mark.slow
@pytest.mark.parametrize(("m", "s"), [(0.4, 0.6), (-1.0, 0.1), (0.0, 1.0)])
def test_sde_converges_with_weak_order_one_to_mean_and_variance_of_a_gaussian(m, s):
    steps = np.array([64, 128, 256, 512, 1024])
    errors = [np.abs(_gaussian_moments(m, s, n) - [m, s**2]).max() for n in steps.tolist()]
    assert errors[-1] < 5e-3
    assert -np.polyfit(np.log(steps), np.log(errors), 1)[0] > 0.85


@pytest.mark.slow
def test_sde_samples_follow_the_mixture():
    # 20,000 samples: the Kolmogorov distance exceeds 0.0158 by chance with probability 1e-4;
    # 200 steps may add as much again.
    n, steps, source = 20_000, 200, generator(3)

    def noise(index):
        return torch.randn(n, generator=source, dtype=torch.float64)

    times = time_grid(steps, dtype=torch.float64)
    found = integrate(mixture_field, noise(-1), times, "sde", noise).numpy()

    def cdf(x):
        return (WEIGHTS * stats.norm.cdf((x[:, None] - MEANS) / DEVIATIONS)).sum(1)

    mean = float(WEIGHTS @ MEANS)
    variance = float(WEIGHTS @ (DEVIATIONS**2 + MEANS**2)) - mean**2
    assert found.mean() == pytest.approx(mean, abs=5 * math.sqrt(variance / n) + 0.01)
    assert found.var() == pytest.approx(variance, rel=0.05)
    assert stats.kstest(found, cdf).statistic < 0.03


def test_sde_with_other_noise_leads_the_same_start_elsewhere():
    x_1, times = normal(1, 50), time_grid(20, dtype=torch.float64)
    ends = [
        integrate(mixture_field, x_1, times, "sde", lambda i, seed=seed: normal(seed + i, 50))
        for seed in (100, 100, 200)
    ]
    assert torch.equal(ends[0], ends[1])
    assert (ends[0] - ends[2]).abs().mean() > 0.3


# --- state ---


def _noise_of(rows):
    return lambda index: normal(50 + index, 6)[rows]


@pytest.mark.parametrize("stop", [1, 2, 5, 7])
@pytest.mark.parametrize("solver", SOLVERS)
def test_integration_resumed_from_a_state_is_bit_equal_to_one_pass(solver, stop):
    x_1, times, noise = normal(4, 6), time_grid(8, dtype=torch.float64), _noise_of(slice(None))
    state = State(x_1)
    for index in range(stop):
        state = advance(mixture_field, state, times, index, solver, noise)
    kept = State(state.x.clone(), None if state.previous is None else state.previous.clone())
    for index in range(stop, 8):
        kept = advance(mixture_field, kept, times, index, solver, noise)
    assert torch.equal(kept.x, integrate(mixture_field, x_1, times, solver, noise))


@pytest.mark.parametrize("solver", SOLVERS)
def test_integration_split_and_joined_in_every_step_is_bit_equal_to_one_pass(solver):
    x_1, times = normal(4, 6), time_grid(8, dtype=torch.float64)
    state = State(x_1)
    for index in range(8):
        order = torch.randperm(6, generator=generator(index))
        groups = [order[:1], order[1:3], order[3:]]
        parts = [
            advance(mixture_field, state.rows(rows), times, index, solver, _noise_of(rows))
            for rows in groups
        ]
        state = join(parts, groups)
    whole = integrate(mixture_field, x_1, times, solver, _noise_of(slice(None)))
    assert torch.equal(state.x, whole)


def test_state_rows_keep_states_and_estimates_together():
    state = State(torch.arange(4.0), torch.arange(4.0) + 10)
    rows = state.rows(torch.tensor([3, 1]))
    assert (rows.x.tolist(), rows.previous.tolist()) == ([3, 1], [13, 11])
    assert len(rows) == 2
    assert State(torch.arange(4.0)).rows(slice(1, 2)).previous is None


def test_join_without_rows_puts_groups_one_after_the_other():
    joined = join([State(torch.tensor([5.0])), State(torch.tensor([1.0, 2.0]))])
    assert (joined.x.tolist(), joined.previous) == ([5, 1, 2], None)


def test_join_of_groups_of_different_steps_is_refused():
    x = torch.zeros(2)
    with pytest.raises(ValueError, match="joined"):
        join([State(x), State(x, x)])

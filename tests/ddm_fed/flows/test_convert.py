"""Experts of every path and prediction give the linear path's exact velocity."""

import math

import numpy as np
import pytest
import torch

from ddm_fed.flows import Expert, estimates, integrate, path_named, time_grid

PATHS = ["linear", "cosine", "vp"]
PREDICTIONS = ["velocity", "noise", "image"]
TIMES = [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99]

# Data: a mixture of three axis-parallel Gaussians in the plane.
WEIGHTS = np.array([0.5, 0.3, 0.2])
MEANS = np.array([[-1.0, 0.4], [0.7, -0.6], [1.5, 1.2]])
DEVIATIONS = np.array([[0.3, 0.5], [0.6, 0.2], [0.25, 0.4]])


def schedule(name, t):
    """alpha, sigma and their rates at time t, in numpy, from the papers' definitions."""
    if name == "linear":
        return 1 - t, t, -1.0, 1.0
    if name == "cosine":
        angle = math.pi / 2 * t
        return (
            math.cos(angle),
            math.sin(angle),
            *np.array([-1, 1]) * math.pi / 2 * np.array([math.sin(angle), math.cos(angle)]),
        )
    # d alpha^2 / dt = -beta alpha^2 and sigma^2 = 1 - alpha^2
    beta, kept = 0.1 + 19.9 * t, math.exp(-(0.1 * t + 9.95 * t**2))
    alpha, sigma = math.sqrt(kept), math.sqrt(-math.expm1(-(0.1 * t + 9.95 * t**2)))
    return alpha, sigma, -beta * kept / (2 * alpha), beta * kept / (2 * sigma)


def posterior(x, alpha, sigma):
    """E[x_0 | x_t = x] and E[eps | x_t = x] of the mixture: `(n, 2)` each, by Bayes' rule."""
    variance = alpha**2 * DEVIATIONS**2 + sigma**2
    residual = x[:, None] - alpha * MEANS
    log_joint = np.log(WEIGHTS) - (residual**2 / variance + np.log(variance)).sum(-1) / 2
    joint = np.exp(log_joint - log_joint.max(1, keepdims=True))
    share = (joint / joint.sum(1, keepdims=True))[..., None]
    image = (share * (MEANS + alpha * DEVIATIONS**2 * residual / variance)).sum(1)
    noise = (share * sigma * residual / variance).sum(1)
    return image, noise


def ideal_network(path, prediction):
    """What training with that path and prediction converges to on the mixture."""

    def network(x, t, condition):
        answers = []
        for row, time in zip(x.reshape(len(x), 2).numpy(), t.tolist(), strict=True):
            alpha, sigma, alpha_rate, sigma_rate = schedule(path, time)
            image, noise = posterior(row[None], alpha, sigma)
            velocity = alpha_rate * image + sigma_rate * noise
            answers.append({"image": image, "noise": noise, "velocity": velocity}[prediction])
        return torch.from_numpy(np.concatenate(answers)).reshape(x.shape)

    return network


def states(time, count=50):
    """States that the mixture visits at `time` of the linear path, `(count, 2)`."""
    rng = np.random.default_rng(round(1000 * time))
    k = rng.choice(3, count, p=WEIGHTS)
    x_0 = MEANS[k] + DEVIATIONS[k] * rng.standard_normal((count, 2))
    return (1 - time) * x_0 + time * rng.standard_normal((count, 2))


def as_images(x):
    return torch.from_numpy(x).reshape(len(x), 2, 1, 1)


def full(count, time):
    return torch.full((count,), time, dtype=torch.float64)


# --- expert ---


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_expert_of_any_path_and_prediction_is_the_exact_linear_velocity(path, prediction, time):
    x = states(time)
    found = Expert(ideal_network(path, prediction), path, prediction)(
        as_images(x), full(len(x), time)
    )
    image, noise = posterior(x, 1 - time, time)
    # noise and image predictions divide a difference of order 1 by alpha or sigma, and so does
    # rounding: 1e-13 of the terms before the division, at t = .99 up to 1e-11 of the velocity
    divisor = {"noise": 1 - time, "image": time, "velocity": 1.0}[prediction]
    terms = np.abs(x) + np.abs(image) + np.abs(noise)
    error = np.abs(found.reshape(-1, 2).numpy() - (noise - image))
    assert (error <= 1e-13 * terms / divisor).all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_expert_of_a_batch_of_times_answers_row_by_row(path, prediction):
    expert = Expert(ideal_network(path, prediction), path, prediction)
    x, t = as_images(states(0.5, len(TIMES))), torch.tensor(TIMES, dtype=torch.float64)
    apart = [expert(x[i : i + 1], t[i : i + 1]) for i in range(len(TIMES))]
    assert torch.allclose(expert(x, t), torch.cat(apart), rtol=1e-14, atol=0)


def test_expert_of_velocity_on_the_linear_path_hands_the_same_tensors_to_the_network():
    asked = []
    x, t, condition = torch.ones(2, 1, 1, 1), torch.ones(2), object()
    answer = torch.zeros(2, 1, 1, 1)
    found = Expert(lambda *arguments: asked.append(arguments) or answer)(x, t, condition)
    assert found is answer
    assert all(a is b for a, b in zip(asked[0], (x, t, condition), strict=True))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_expert_asks_its_network_at_the_same_ratio_of_image_to_noise(path, prediction):
    asked = []

    def network(x, t, condition):
        asked.append((x, t, condition))
        return x

    x, condition = as_images(states(0.5, len(TIMES))), object()
    Expert(network, path, prediction)(x, torch.tensor(TIMES, dtype=torch.float64), condition)
    ((own_x, own_t, own_condition),) = asked
    assert own_condition is condition
    for row, time in enumerate(TIMES):
        alpha, sigma, *_ = schedule(path, float(own_t[row]))
        assert alpha / sigma == pytest.approx((1 - time) / time, rel=1e-12)
        assert torch.allclose(own_x[row], x[row] * alpha / (1 - time), rtol=1e-12, atol=0)


@pytest.mark.parametrize("time", [0.0, 1.0])
@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_expert_of_velocity_at_both_ends_is_exact(path, time):
    x = states(time)
    found = Expert(ideal_network(path, "velocity"), path)(as_images(x), full(len(x), time))
    image, noise = posterior(x, 1 - time, time)
    np.testing.assert_allclose(found.reshape(-1, 2).numpy(), noise - image, rtol=0, atol=1e-14)


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_expert_of_noise_at_time_zero_and_of_image_at_time_one_are_exact(path):
    for prediction, time in (("noise", 0.0), ("image", 1.0)):
        x = states(time)
        network = ideal_network(path, prediction)
        found = Expert(network, path, prediction)(as_images(x), full(len(x), time))
        image, noise = posterior(x, 1 - time, time)
        np.testing.assert_allclose(found.reshape(-1, 2).numpy(), noise - image, rtol=0, atol=1e-14)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_expert_at_its_largest_time_stays_within_its_own_path(path, prediction):
    asked = []

    def network(x, t, condition):
        asked.append(t)
        return ideal_network(path, prediction)(x, t, condition)

    expert = Expert(network, path, prediction)
    found = expert(as_images(states(1.0)), full(50, expert.largest_time))
    assert torch.isfinite(found).all()
    assert float(asked[0].max()) <= 1


def test_expert_has_a_largest_time_below_one_only_where_velocity_is_not_determined_there():
    whole = {
        (path, prediction): Expert(lambda x, t, c: x, path, prediction).largest_time == 1
        for path in PATHS
        for prediction in PREDICTIONS
    }
    assert {pair for pair, reaches in whole.items() if reaches} == {
        (path, prediction) for path in ("linear", "cosine") for prediction in ("velocity", "image")
    }


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun", "dpm++2m", "sde"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_experts_that_encode_one_distribution_lead_every_solver_to_the_same_images(
    path, prediction, solver
):
    start = Expert(lambda x, t, c: x, "vp").largest_time
    times, x_1 = time_grid(6, start=start, dtype=torch.float64), as_images(states(1.0, 5))
    same = torch.from_numpy(np.random.default_rng(2).standard_normal((6, 5, 2, 1, 1)))

    def images(expert):
        def field(x, t):
            return expert(x, t.expand(len(x)))

        return integrate(field, x_1, times, solver, same.__getitem__)

    reference = images(Expert(ideal_network("linear", "velocity")))
    found = images(Expert(ideal_network(path, prediction), path, prediction))
    assert torch.allclose(found, reference, rtol=0, atol=1e-10)


# --- estimates ---


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_estimates_of_a_true_answer_are_the_image_and_the_noise_it_was_made_of(path, prediction):
    rng = np.random.default_rng(1)
    x_0, eps = rng.standard_normal((2, len(TIMES), 2, 3, 3))
    parts = np.array([schedule(path, time) for time in TIMES])
    alpha, sigma, alpha_rate, sigma_rate = parts.T.reshape(4, -1, 1, 1, 1)
    truth = {"noise": eps, "image": x_0, "velocity": alpha_rate * x_0 + sigma_rate * eps}
    found = estimates(
        torch.from_numpy(truth[prediction]),
        torch.from_numpy(alpha * x_0 + sigma * eps),
        torch.tensor(TIMES, dtype=torch.float64),
        path_named(path),
        prediction,
    )
    # rounding grows by alpha / sigma or its inverse, at most 1 / LEAST_RATIO here
    np.testing.assert_allclose(found[0].numpy(), x_0, rtol=0, atol=2e-13)
    np.testing.assert_allclose(found[1].numpy(), eps, rtol=0, atol=2e-13)

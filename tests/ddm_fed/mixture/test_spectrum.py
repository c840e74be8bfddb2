"""Eigenvalues behind noisy directions, and the covariance behind a sign covariance."""

import numpy as np
import pytest
import torch
from scipy import integrate

from ddm_fed.mixture.spectrum import denoised, of_covariance

D = 40


def noise_of(deviation, rng, d=D):
    """Symmetric, of the deviation s on the diagonal and s / sqrt(2) off it, as a release has."""
    upper = np.triu(rng.normal(size=(d, d)), 1) / np.sqrt(2)
    return deviation * (upper + upper.T + np.diag(rng.normal(size=d)))


def rebuilt(spectrum):
    return (spectrum.axes * spectrum.values) @ spectrum.axes.mT


def cleaned(matrix, deviation):
    return denoised(torch.from_numpy(matrix), torch.tensor(deviation, dtype=torch.float64))


def truth_of(values, rng):
    turn = np.linalg.qr(rng.normal(size=(len(values), len(values))))[0]
    return (turn * (values / values.sum())) @ turn.T


@pytest.mark.parametrize("relative", [0.02, 0.1, 0.14])
def test_noise_alone_gives_a_spectrum_that_is_nearly_flat(relative):
    # the noise reaches from -2 to 2 of `relative` times sqrt(D / 2), in units of a mean eigenvalue
    rng = np.random.default_rng(0)
    noisy, clean = [], []
    for _ in range(20):
        matrix = np.eye(D) / D + noise_of(relative / D, rng)
        noisy.append(np.linalg.eigvalsh(matrix).std() * D)
        clean.append(float(cleaned(matrix, relative / D).values.std(correction=0)) * D)
    assert np.mean(clean) < 0.35 * np.mean(noisy)


def test_spikes_stay_and_what_noise_made_beside_them_goes():
    rng = np.random.default_rng(1)
    values = np.ones(D)
    values[:3] = 40, 20, 10
    truth = truth_of(values, rng)
    exact = np.sort(np.linalg.eigvalsh(truth))
    found = np.zeros(D)
    for _ in range(20):
        found += cleaned(truth + noise_of(0.002, rng), 0.002).values.numpy() / 20
    # an axis that noise has turned a little shows a little less than the eigenvalue
    np.testing.assert_allclose(found[-3:], exact[-3:], rtol=0.06)
    seen = np.linalg.eigvalsh(truth + noise_of(0.002, rng))
    assert found[:-3].std() < 0.5 * seen[:-3].std()


@pytest.mark.parametrize("decay", [0.75, 0.9, 0.97, 1.0])
@pytest.mark.parametrize("relative", [0.03, 0.2, 1.0])
def test_denoised_matrix_is_nearer_to_the_truth_than_the_noisy_one(decay, relative):
    rng = np.random.default_rng(2)
    deviation, before, after = relative / D, 0.0, 0.0
    for _ in range(12):
        truth = truth_of(decay ** np.arange(D), rng)
        matrix = truth + noise_of(deviation, rng)
        matrix += np.eye(D) * (1 - np.trace(matrix)) / D
        before += ((matrix - truth) ** 2).sum()
        after += ((rebuilt(cleaned(matrix, deviation)).numpy() - truth) ** 2).sum()
    assert after < before
    if relative >= 0.2:
        assert after < 0.75 * before


def test_denoised_eigenvalues_err_little_more_than_the_best_that_keep_the_noisy_axes():
    rng = np.random.default_rng(3)
    best, found = 0.0, 0.0
    for _ in range(12):
        truth = truth_of(0.9 ** np.arange(D), rng)
        matrix = truth + noise_of(0.2 / D, rng)
        spectrum = cleaned(matrix, 0.2 / D)
        axes = spectrum.axes.numpy()
        oracle = np.diag(axes.T @ truth @ axes)  # known only to who knows the truth
        best += ((axes * oracle @ axes.T - truth) ** 2).sum()
        found += ((rebuilt(spectrum).numpy() - truth) ** 2).sum()
    assert found < 1.15 * best


@pytest.mark.parametrize("deviation", [0.0, 0.001, 0.1, 10.0])
def test_spectrum_rises_is_positive_and_adds_up_to_one_whatever_the_noise(deviation):
    rng = np.random.default_rng(4)
    matrices = np.stack([truth_of(0.8 ** np.arange(D), rng) for _ in range(6)]).reshape(2, 3, D, D)
    matrices += np.stack([noise_of(deviation, rng) for _ in range(6)]).reshape(2, 3, D, D)
    found = denoised(torch.from_numpy(matrices), torch.full((2, 3), deviation).double())
    assert bool((found.values > 0).all())
    assert bool((found.values.diff(dim=-1) >= 0).all())
    torch.testing.assert_close(found.values.sum(-1), torch.ones(2, 3).double())
    alone = cleaned(matrices[1, 2], deviation)
    torch.testing.assert_close(found.values[1, 2], alone.values)


def test_spectrum_without_noise_is_the_matrix_itself():
    truth = truth_of(0.9 ** np.arange(D), np.random.default_rng(5))
    np.testing.assert_allclose(rebuilt(cleaned(truth, 0.0)).numpy(), truth, atol=1e-10)


# --- of_covariance ---


def signs_of(values, count=150_000, seed=6):
    """E[l_i z_i^2 / sum_j l_j z_j^2] by drawing z."""
    powers = values * np.random.default_rng(seed).normal(size=(count, len(values))) ** 2
    return (powers / powers.sum(axis=1, keepdims=True)).mean(axis=0)


SPECTRA = {
    "flat": np.ones(6),
    "falling": 0.7 ** np.arange(10),
    "one-long": np.array([20.0, 1, 1, 1]),
    "two-and-dust": np.array([5.0, 3, 0.01, 0.01, 0.02]),
    "many": 0.93 ** np.arange(64),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECTRA)
def test_covariance_is_that_whose_directions_were_drawn(name):
    values = SPECTRA[name] / SPECTRA[name].sum()
    found = of_covariance(torch.from_numpy(signs_of(values))).numpy()
    np.testing.assert_allclose(found, values, rtol=0.03, atol=5e-4)


@pytest.mark.parametrize("ratio", [1.0, 1.5, 4.0, 50.0])
def test_covariance_of_two_directions_is_the_closed_form(ratio):
    # s_1 = sqrt(l_1) / (sqrt(l_1) + sqrt(l_2)), so l goes as the square of s
    signs = torch.tensor([1.0, ratio]).double()
    found = of_covariance(signs / signs.sum())
    assert float(found[1] / found[0]) == pytest.approx(ratio**2, rel=0.01)


@pytest.mark.parametrize("name", SPECTRA)
def test_covariance_put_back_into_the_integral_gives_the_signs_it_came_from(name):
    signs = SPECTRA[name] / SPECTRA[name].sum()
    found = of_covariance(torch.from_numpy(signs)).numpy()
    assert found.sum() == pytest.approx(1)
    for i in {0, len(found) // 2, len(found) - 1}:
        # by scipy's adaptive rule, u over all positive numbers
        value, _ = integrate.quad(
            lambda u, i=i: found[i] / (1 + 2 * found[i] * u) / np.sqrt((1 + 2 * found * u).prod()),
            0,
            np.inf,
            epsabs=1e-11,
            limit=400,
        )
        assert value == pytest.approx(signs[i], rel=0.005)


def test_covariance_is_longer_than_its_signs_where_they_are_long_and_the_order_stays():
    signs = torch.from_numpy(SPECTRA["falling"] / SPECTRA["falling"].sum())
    found = of_covariance(signs)
    assert float(found[0]) > float(signs[0])
    assert float(found[-1]) < float(signs[-1])
    assert bool((found.diff() < 0).all())


def test_covariances_of_many_are_those_of_each():
    signs = torch.rand((2, 3, 5), generator=torch.Generator().manual_seed(7)).double() + 0.1
    signs /= signs.sum(-1, keepdim=True)
    together = of_covariance(signs)
    assert together.shape == signs.shape
    torch.testing.assert_close(together[1, 2], of_covariance(signs[1, 2]))

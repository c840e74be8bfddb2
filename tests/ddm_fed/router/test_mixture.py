"""The closed-form routers against brute-force Bayes with scipy, and the basis they look through."""

import math

import numpy as np
import pytest
import torch
from scipy import fft, integrate, stats

from ddm_fed.embedding import dct_basis
from ddm_fed.flows import NO_CLASS, ClassCondition
from ddm_fed.mixture import GaussianMixtures
from ddm_fed.router import HeadsRouter, MixtureRouter, PriorRouter

CENTRE = -0.4
TIMES = [0.01, 0.3, 0.7, 0.95, 1.0]
WINDOWS = [  # image shape, DCT functions per channel
    pytest.param((1, 4, 4), 16, id="all-pixels"),
    pytest.param((3, 4, 2), 8, id="all-pixels-of-3-channels"),
    pytest.param((1, 4, 4), 7, id="few-frequencies"),
    pytest.param((3, 4, 6), 5, id="few-frequencies-of-3-channels"),
]
SITES, COMPONENTS = 3, 2


def generator(seed):
    return torch.Generator().manual_seed(seed)


class World:
    """Random full-covariance mixtures of coefficients about CENTRE, and the router of them."""

    def __init__(self, seed, shape, frequencies, *, per_class=False):
        rng = np.random.default_rng(seed)
        self.basis = dct_basis(shape, frequencies).numpy()
        self.shape, d = shape, len(self.basis)
        self.masses = rng.uniform(1, 20, size=(SITES, COMPONENTS)) ** 1.5
        self.means = rng.normal(size=(SITES, COMPONENTS, d)) * 0.5
        roots = rng.normal(size=(SITES, COMPONENTS, d, d)) / math.sqrt(d)
        self.covariances = 0.4 * roots @ roots.swapaxes(2, 3) + 0.05 * np.eye(d)
        values, axes = np.linalg.eigh(self.covariances)
        parts = (self.masses, self.means, values, axes)
        self.router = MixtureRouter(
            GaussianMixtures(*map(torch.from_numpy, parts)),
            torch.from_numpy(self.basis),
            centre=CENTRE,
            cells_are_classes=per_class,
        )

    def states(self, seed, count):
        return 1.2 * torch.randn(
            (count, *self.shape), generator=generator(seed), dtype=torch.float64
        )

    def joint(self, window, x_t, t):
        """log mass + log density of `window` x_t for every component, `(B, K, J)`, by scipy."""
        found = np.empty((len(x_t), SITES, COMPONENTS))
        constant = np.full(self.basis.shape[1], CENTRE)
        for k in range(SITES):
            for j in range(COMPONENTS):
                # pixel space: x_0 = centre + P^T y; then look at it through the window
                lift = window @ self.basis.T
                mean = window @ constant + lift @ self.means[k, j]
                covariance = lift @ self.covariances[k, j] @ lift.T
                noise = window @ window.T
                found[:, k, j] = math.log(self.masses[k, j]) + (
                    stats.multivariate_normal.logpdf(
                        x_t.flatten(1).numpy() @ window.T,
                        (1 - t) * mean,
                        (1 - t) ** 2 * covariance + t**2 * noise,
                    )
                )
        return found


def normalised(scores):
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)


def times(t, count):
    return torch.full((count,), t, dtype=torch.float64)


# --- mixture router ---


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize(("shape", "frequencies"), WINDOWS)
def test_mixture_router_equals_brute_force_posterior_in_coefficient_space(shape, frequencies, t):
    world = World(1, shape, frequencies)
    x_t = world.states(2, 6)
    scores = world.joint(world.basis, x_t, t)
    expected = normalised(np.logaddexp.reduce(scores, axis=2))
    found = world.router.log_posterior(x_t, times(t, 6), None).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize(("shape", "frequencies"), WINDOWS[:2])
def test_mixture_router_of_all_pixels_equals_brute_force_posterior_in_pixel_space(
    shape, frequencies, t
):
    world = World(3, shape, frequencies)
    x_t = world.states(4, 6)
    scores = world.joint(np.eye(math.prod(shape)), x_t, t)
    expected = normalised(np.logaddexp.reduce(scores, axis=2))
    found = world.router.log_posterior(x_t, times(t, 6), None).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize(("shape", "frequencies"), WINDOWS)
def test_mixture_router_of_classes_equals_brute_force_posterior_within_the_class(
    shape, frequencies, t
):
    world = World(5, shape, frequencies, per_class=True)
    x_t, label = world.states(6, 6), ClassCondition(torch.tensor([0, 1, 1, 0, 1, 0]))
    scores = world.joint(world.basis, x_t, t)
    expected = normalised(np.stack([scores[i, :, c] for i, c in enumerate(label.labels.tolist())]))
    found = world.router.log_posterior(x_t, times(t, 6), label).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


def test_mixture_router_of_classes_without_a_condition_sums_over_the_classes():
    world = World(7, (1, 4, 4), 7, per_class=True)
    x_t = world.states(8, 6)
    expected = normalised(np.logaddexp.reduce(world.joint(world.basis, x_t, 0.4), axis=2))
    found = world.router.log_posterior(x_t, times(0.4, 6), None).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("t", "x_t"), [(0.05, 0.3), (0.3, -0.2), (0.6, 0.8), (0.9, -1.5)])
def test_mixture_router_equals_quadrature_over_the_clean_image(t, x_t):
    # one pixel, two sites of one Gaussian each: p_t(x | k) is an integral over x_0
    masses, means, deviations = [3.0, 1.0], [0.5, -0.3], [0.2, 0.4]
    router = MixtureRouter(
        GaussianMixtures(
            torch.tensor(masses, dtype=torch.float64)[:, None],
            torch.tensor(means, dtype=torch.float64)[:, None, None],
            torch.tensor(deviations, dtype=torch.float64)[:, None, None] ** 2,
            torch.ones((2, 1, 1, 1), dtype=torch.float64),
        ),
        torch.ones((1, 1)),
        centre=CENTRE,
        cells_are_classes=False,
    )
    likelihoods = []
    for mean, deviation in zip(means, deviations, strict=True):
        density = stats.norm(CENTRE + mean, deviation).pdf
        likelihoods.append(
            integrate.quad(
                lambda x_0, p=density: p(x_0) * stats.norm.pdf(x_t, (1 - t) * x_0, t),
                -4,
                4,
                epsabs=1e-13,
                epsrel=1e-11,
                limit=400,
                points=[CENTRE + mean, x_t],
            )[0]
        )
    joint = np.array(masses) * likelihoods
    x = torch.full((1, 1, 1, 1), x_t, dtype=torch.float64)
    found = router.log_posterior(x, times(t, 1), None).exp().numpy()
    np.testing.assert_allclose(found[0], joint / joint.sum(), rtol=0, atol=1e-8)


def test_mixture_router_scores_rows_of_different_times_alone():
    world = World(9, (1, 4, 4), 7)
    x_t, t = world.states(10, 4), torch.tensor([0.01, 0.4, 0.8, 1.0], dtype=torch.float64)
    alone = [world.router.log_posterior(x_t[i : i + 1], t[i : i + 1], None) for i in range(4)]
    together = world.router.log_posterior(x_t, t, None)
    assert torch.allclose(together, torch.cat(alone), rtol=0, atol=1e-9)


@pytest.mark.parametrize("per_class", [False, True])
def test_mixture_router_at_pure_noise_returns_the_prior(per_class):
    world = World(11, (1, 4, 4), 7, per_class=per_class)
    found = world.router.log_posterior(world.states(12, 5), times(1.0, 5), None).exp().numpy()
    shares = world.masses.sum(1) / world.masses.sum()
    np.testing.assert_allclose(found, np.tile(shares, (5, 1)), rtol=0, atol=1e-12)


def test_mixture_router_of_classes_at_pure_noise_returns_the_prior_of_the_class():
    world = World(13, (1, 4, 4), 7, per_class=True)
    label = ClassCondition(torch.tensor([0, 1, 1]))
    found = world.router.log_posterior(world.states(14, 3), times(1.0, 3), label).exp().numpy()
    shares = (world.masses / world.masses.sum(0)).T[label.labels.numpy()]
    np.testing.assert_allclose(found, shares, rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", [0.0, *TIMES])
@pytest.mark.parametrize(
    "label", [None, ClassCondition(torch.tensor([0, 1, 0, 1, 0, 1]))], ids=["any", "class"]
)
def test_mixture_router_rows_sum_to_one(t, label):
    world = World(15, (3, 4, 6), 5, per_class=True)
    found = world.router.log_posterior(3 * world.states(16, 6), times(t, 6), label)
    assert (found.shape, found.dtype) == ((6, SITES), torch.float64)
    assert torch.allclose(found.exp().sum(1), torch.ones(6, dtype=torch.float64), atol=1e-12)


def test_mixture_router_without_a_condition_has_the_prior_of_all_masses():
    world = World(17, (1, 4, 4), 7)
    shares = world.masses.sum(1) / world.masses.sum()
    np.testing.assert_allclose(world.router.log_prior(None).exp().numpy(), shares, atol=1e-14)


def test_mixture_router_of_classes_has_the_prior_of_the_class():
    world = World(18, (1, 4, 4), 7, per_class=True)
    shares = (world.masses / world.masses.sum(0)).T
    found = world.router.log_prior(ClassCondition(torch.tensor([1, 0]))).exp().numpy()
    np.testing.assert_allclose(found, shares[[1, 0]], atol=1e-14)


def test_mixture_router_never_chooses_a_site_without_the_class():
    world = World(19, (1, 4, 4), 7, per_class=True)
    masses = torch.from_numpy(world.masses).clone()
    masses[1, 0] = 0
    old = world.router._mixtures
    router = MixtureRouter(
        GaussianMixtures(masses, old.means, old.variances, old.axes),
        torch.from_numpy(world.basis),
        centre=CENTRE,
        cells_are_classes=True,
    )
    label = ClassCondition(torch.tensor([0, 0, 0]))
    found = router.log_posterior(world.states(20, 3), times(0.3, 3), label).exp()
    assert torch.equal(found[:, 1], torch.zeros(3, dtype=torch.float64))
    assert torch.allclose(found.sum(1), torch.ones(3, dtype=torch.float64))


def test_mixture_router_ignores_what_its_basis_does_not_see():
    world = World(21, (1, 4, 4), 7)
    x_t = world.states(22, 4)
    hidden = torch.from_numpy(dct_basis((1, 4, 4), 16).numpy()[7:].sum(0)).reshape(1, 1, 4, 4)
    found = world.router.log_posterior(x_t + 5 * hidden, times(0.3, 4), None)
    assert torch.allclose(found, world.router.log_posterior(x_t, times(0.3, 4), None), atol=1e-9)


def test_mixture_router_given_float32_states_answers_in_float64():
    world = World(23, (1, 4, 4), 7)
    x_t = world.states(24, 4).float()
    found = world.router.log_posterior(x_t, times(0.5, 4).float(), None)
    expected = world.router.log_posterior(x_t.double(), times(0.5, 4), None)
    assert torch.equal(found, expected)


# --- prior router ---

COUNTS = torch.tensor([[30.0, 10.0], [10.0, 50.0], [0.0, 20.0]])


def test_prior_router_without_labels_gives_every_row_the_share_of_all_images():
    found = PriorRouter(COUNTS).log_posterior(torch.zeros(4, 1, 4, 4), times(0.5, 4), None).exp()
    expected = torch.tensor([40 / 120, 60 / 120, 20 / 120], dtype=torch.float64).expand(4, 3)
    assert torch.allclose(found, expected, rtol=0, atol=1e-15)


def test_prior_router_with_labels_gives_every_row_the_share_of_its_class():
    label = ClassCondition(torch.tensor([1, 0, 1]))
    router = PriorRouter(COUNTS)
    found = router.log_posterior(torch.zeros(3, 1, 4, 4), times(0.5, 3), label).exp()
    first, second = [30 / 40, 10 / 40, 0.0], [10 / 80, 50 / 80, 20 / 80]
    expected = torch.tensor([second, first, second], dtype=torch.float64)
    assert torch.allclose(found, expected, rtol=0, atol=1e-15)


def test_prior_router_looks_at_neither_state_nor_time():
    router, x_t = PriorRouter(COUNTS), torch.randn((2, 1, 4, 4), generator=generator(25))
    first = router.log_posterior(x_t, times(0.1, 2), None)
    assert torch.equal(first, router.log_posterior(-9 * x_t, times(0.9, 2), None))


def test_prior_router_without_classes_has_one_share_per_site():
    router = PriorRouter(torch.tensor([[1.0], [3.0]]))
    assert torch.allclose(router.log_prior(None).exp(), torch.tensor([0.25, 0.75]).double())


def test_rows_of_no_class_are_answered_as_if_nothing_was_asked_of_them():
    world = World(26, (1, 4, 4), 7, per_class=True)
    x_t, t = world.states(27, 4), times(0.4, 4)
    heads = [lambda y, t, c, k=k: y[:, :1] * k for k in range(SITES)]
    prior = PriorRouter(torch.from_numpy(world.masses))
    mixed = ClassCondition(torch.tensor([NO_CLASS, 0, NO_CLASS, 1]))
    asked = ClassCondition(torch.tensor([0, 0, 0, 1]))
    for router in (world.router, prior, HeadsRouter(heads, torch.from_numpy(world.basis), prior)):
        found = router.log_posterior(x_t, t, mixed)
        for row in (0, 2):
            assert torch.equal(found[row], router.log_posterior(x_t, t, None)[row])
            assert not torch.equal(found[row], router.log_posterior(x_t, t, asked)[row])
        for row in (1, 3):
            assert torch.equal(found[row], router.log_posterior(x_t, t, asked)[row])
    shares = prior.log_prior(mixed)
    assert torch.equal(shares[0], prior.log_prior(None))
    assert torch.equal(shares[3], prior.log_prior(asked)[3])


# --- basis ---

BASES = [((1, 4, 4), 16), ((1, 8, 8), 36), ((3, 4, 6), 5), ((3, 5, 7), 35), ((1, 28, 28), 64)]


@pytest.mark.parametrize(("shape", "frequencies"), BASES)
def test_dct_basis_rows_are_orthonormal(shape, frequencies):
    # so that P eps of white noise eps has covariance P P^T = I: it is white again
    basis = dct_basis(shape, frequencies).numpy()
    assert basis.shape == (shape[0] * frequencies, math.prod(shape))
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 5, 7), (3, 4, 6)])
def test_dct_basis_of_all_frequencies_gives_the_coefficients_of_scipy(shape):
    channels, height, width = shape
    image = np.random.default_rng(26).normal(size=shape)
    found = dct_basis(shape, height * width).numpy() @ image.ravel()
    expected = np.stack([fft.dctn(channel, norm="ortho") for channel in image])
    for c in range(channels):
        of_channel = found[c * height * width : (c + 1) * height * width]
        # same numbers; the basis orders them by frequency
        np.testing.assert_allclose(np.sort(of_channel), np.sort(expected[c].ravel()), atol=1e-12)


@pytest.mark.parametrize(("shape", "frequencies"), BASES)
def test_dct_basis_functions_are_cosines_of_rising_frequency(shape, frequencies):
    _, height, width = shape
    lengths = []
    for function in dct_basis((1, height, width), frequencies).numpy():
        spectrum = fft.dctn(function.reshape(height, width), norm="ortho")
        i, j = np.unravel_index(np.abs(spectrum).argmax(), spectrum.shape)
        pure = np.zeros_like(spectrum)
        pure[i, j] = 1
        np.testing.assert_allclose(spectrum, pure, rtol=0, atol=1e-12)
        lengths.append(math.hypot(i / height, j / width))
    assert np.all(np.diff(lengths) >= -1e-12)


def test_dct_basis_leaves_out_only_higher_frequencies():
    height, width, kept = 5, 7, 12
    every = sorted(math.hypot(i / height, j / width) for i in range(height) for j in range(width))
    longest = 0.0
    for function in dct_basis((1, height, width), kept).numpy():
        spectrum = np.abs(fft.dctn(function.reshape(height, width), norm="ortho"))
        i, j = np.unravel_index(spectrum.argmax(), spectrum.shape)
        longest = max(longest, math.hypot(i / height, j / width))
    assert longest == pytest.approx(every[kept - 1])


@pytest.mark.parametrize(("shape", "frequencies"), BASES)
def test_dct_basis_first_function_of_every_channel_is_constant(shape, frequencies):
    channels, height, width = shape
    basis = dct_basis(shape, frequencies).reshape(channels, frequencies, channels, -1)
    for c in range(channels):
        np.testing.assert_allclose(basis[c, 0, c], 1 / math.sqrt(height * width), atol=1e-15)


def test_dct_basis_keeps_channels_apart():
    channels, frequencies = 3, 5
    basis = dct_basis((channels, 4, 6), frequencies).reshape(channels, frequencies, channels, -1)
    for of in range(channels):
        for on in range(channels):
            assert bool((basis[of, :, on] != 0).any()) == (of == on)


def test_dct_basis_turns_white_noise_into_white_noise():
    # 5 coefficients of each of 2 channels, 20,000 draws. The largest of the 55 entries of the
    # empirical covariance is more than 5 standard errors off with probability below 4e-5.
    basis, n = dct_basis((3, 4, 6), 5)[:10], 20_000
    eps = torch.randn((n, 72), generator=generator(27), dtype=torch.float64)
    covariance = (eps @ basis.T).T.numpy() @ (eps @ basis.T).numpy() / n
    error = np.abs(covariance - np.eye(10)) * math.sqrt(n)
    assert error[~np.eye(10, dtype=bool)].max() < 5
    assert error.diagonal().max() < 5 * math.sqrt(2)

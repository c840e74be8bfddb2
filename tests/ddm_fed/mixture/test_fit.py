"""The fit of covariances of their own against mixtures that are known; real noise."""

import itertools

import numpy as np
import pytest
import torch
from mixtures import CENTRE, images_of, make_plan, released

from ddm_fed.embedding import dct_basis
from ddm_fed.mixture import fit_image_mixtures, fit_mixtures
from ddm_fed.mixture.coefficients import band_edges
from ddm_fed.mixture.fit import LEAST_VARIANCE, SMALLEST_VARIANCE
from ddm_fed.mixture.fit_own import fit_own
from ddm_fed.mixture.radius import longest_norm
from ddm_fed.router import build_router

MANY = 100  # epsilon at which noise is next to nothing


def covariance_of(values, seed):
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    return (turn * values) @ turn.T


def fitted_covariances(mixture):
    """`(..., D, D)` of what has variances and axes."""
    return ((mixture.axes * mixture.variances[..., None, :]) @ mixture.axes.mT).numpy()


def far(found, true):
    """Frobenius norm of the difference, over that of the truth."""
    return np.linalg.norm(found - true) / np.linalg.norm(true)


@pytest.mark.slow
@pytest.mark.parametrize("router", ["components = 1, radius = 4", "components = 1"])
def test_every_class_has_its_own_mean_and_covariance(router):
    plan = make_plan(router, classes=2, epsilon=MANY)
    rng = np.random.default_rng(0)
    means = np.array([np.linspace(-0.5, 0.5, 6), np.zeros(6)])
    true = [
        covariance_of(0.3 * 0.6 ** np.arange(6), 1),
        covariance_of(0.1 * 0.8 ** np.arange(6), 2),
    ]
    labels = np.repeat([0, 1], [9000, 3000])
    y = np.concatenate(
        [
            rng.multivariate_normal(means[label], true[label], size=int((labels == label).sum()))
            for label in (0, 1)
        ]
    )
    site = released(images_of(y, plan), plan, torch.from_numpy(labels))
    (found,) = fit_image_mixtures(plan, [site])
    np.testing.assert_allclose(found.weights.ravel(), [9000, 3000], rtol=0.01)
    np.testing.assert_allclose(found.means[:, 0], means, rtol=0, atol=0.03)
    for label in (0, 1):
        # a released radius shortens up to one image in twenty
        assert far(fitted_covariances(found)[label, 0], true[label]) < 0.12


@pytest.mark.slow
def test_components_of_a_known_mixture_are_found_each_with_its_own_covariance():
    plan = make_plan("components = 4, radius = 3", epsilon=MANY)
    rng = np.random.default_rng(3)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    centres = 0.2 + (signs * [1.2, 0.7]) @ turn[:2]
    shares = np.array([0.3, 0.2, 0.2, 0.3])
    true = [covariance_of(0.02 * (c + 1) * 0.5 ** np.arange(6), c) for c in range(4)]
    counts = (12_000 * shares).astype(int)
    y = np.concatenate(
        [
            rng.multivariate_normal(centre, covariance, size=count)
            for centre, covariance, count in zip(centres, true, counts, strict=True)
        ]
    )
    (found,) = fit_image_mixtures(plan, [released(images_of(y, plan), plan)])
    places = [
        int(((found.means[0] - torch.from_numpy(centre)) ** 2).sum(1).argmin())
        for centre in centres
    ]
    assert sorted(places) == [0, 1, 2, 3]
    covariances = fitted_covariances(found)[0]
    for place, centre, covariance, count in zip(places, centres, true, counts, strict=True):
        assert float(found.weights[0, place]) == pytest.approx(count, rel=0.02)
        np.testing.assert_allclose(found.means[0, place], centre, rtol=0, atol=0.03)
        assert far(covariances[place], covariance) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("components", [1, 4])
def test_bands_have_the_variance_of_their_frequencies(components):
    plan = make_plan(
        f"components = {components}, radius = 6, bands = 3",
        shape=(3, 8, 8),
        classes=2,
        epsilon=MANY,
    )
    rng, edges = np.random.default_rng(4), band_edges(plan)
    labels = torch.arange(4000) % 2
    true = np.array([[0.02, 0.01, 0.003], [0.06, 0.002, 0.001]])
    deviations = np.full((2, 3, 64), 0.3)
    for band, (a, b) in enumerate(itertools.pairwise(edges)):
        deviations[:, :, a:b] = np.sqrt(true[:, band])[:, None, None]
    z = rng.normal(size=(4000, 3, 64)) * deviations[labels.numpy()]
    pixels = CENTRE + z.reshape(4000, -1) @ dct_basis((3, 8, 8), 64).numpy()
    images = torch.from_numpy(pixels).reshape(-1, 3, 8, 8).float()
    (found,) = fit_image_mixtures(plan, [released(images, plan, labels)])
    np.testing.assert_allclose(found.bands, true, rtol=0.1, atol=1e-3)


def small_sites(plan, count, sites, true, rng):
    d = len(true)
    return [
        released(images_of(rng.multivariate_normal(np.zeros(d), true, size=count), plan), plan)
        for _ in range(sites)
    ]


@pytest.mark.slow
def test_ten_small_sites_drawn_together_are_nearer_to_the_truth_than_one_alone():
    plan = make_plan("components = 1, radius = 2", shape=(1, 8, 8), f=16, epsilon=1)
    true = covariance_of(0.5 * 0.7 ** np.arange(16), 5)
    rng = np.random.default_rng(6)
    alone, together = [], []
    for _ in range(4):
        sites = small_sites(plan, 80, 10, true, rng)
        own = [fitted_covariances(fit_own(plan, [site]))[0, 0] for site in sites]
        all_of = fitted_covariances(fit_own(plan, sites))[:, 0]
        alone += [far(one, true) for one in own]
        together += [far(one, true) for one in all_of]
    assert np.mean(together) < 0.8 * np.mean(alone)  # 0.55 in the mean of many runs


@pytest.mark.slow
def test_large_sites_that_differ_keep_what_they_differ_in():
    plan = make_plan("components = 1, radius = 4", epsilon=MANY)
    rng = np.random.default_rng(7)
    true = [covariance_of(0.3 * 0.5 ** np.arange(6), seed) for seed in (8, 9)]
    sites = [
        released(images_of(rng.multivariate_normal(np.zeros(6), one, size=5000), plan), plan)
        for one in true
    ]
    found = fitted_covariances(fit_own(plan, sites))[:, 0]
    for site in (0, 1):
        assert far(found[site], true[site]) < 0.12
        assert far(found[site], true[1 - site]) > 0.4


@pytest.mark.slow
def test_site_that_drowned_has_the_covariance_of_the_others():
    plan = make_plan("components = 1, radius = 2", classes=2, epsilon=2)
    rng, true = np.random.default_rng(10), covariance_of(0.3 * 0.5 ** np.arange(6), 11)
    sites = []
    for count in (3000, 3000, 2):
        y = rng.multivariate_normal(np.zeros(6), true, size=count)
        sites.append(released(images_of(y, plan), plan, torch.arange(count) % 2))
    found = fitted_covariances(fit_own(plan, sites))
    for cell in (0, 1):
        assert far(found[2, cell], true) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "router",
    ["components = 1, radius = 2", "components = 1, bands = 3", "components = 4, bands = 10"],
)
@pytest.mark.parametrize("count", [0, 20, 300])
@pytest.mark.parametrize("classes", [0, 3])
def test_any_noisy_release_gives_finite_mixtures_of_positive_mass_and_variance(
    router, count, classes
):
    plan = make_plan(router, classes=classes, epsilon=0.5)
    rng = np.random.default_rng(12)
    for _ in range(2):
        sites = []
        for size in (count, 40):
            y = 0.3 * rng.normal(size=(size, 6))
            labels = torch.arange(size) % classes if classes else None
            sites.append(released(images_of(y, plan), plan, labels))
        for releases in (sites, sites[:1]):
            fitted = fit_mixtures(plan, releases)
            for part in (fitted.weights, fitted.means, fitted.variances, fitted.axes):
                assert bool(torch.isfinite(part).all())
            assert bool((fitted.weights > 0).all())
            assert float(fitted.variances.min()) >= LEAST_VARIANCE
            for one in fit_image_mixtures(plan, releases):
                for part in (one.weights, one.means, one.variances, one.axes, one.bands):
                    assert bool(torch.isfinite(part).all())
                assert float(one.variances.min()) >= SMALLEST_VARIANCE
                # no image is longer than sqrt(25), or its energy greater; directions are unsure
                assert float(one.variances.sum(-1).max()) <= 25 * (1 + 1e-9)
                assert bool((one.bands <= 25).all())
                eye = one.axes.mT @ one.axes
                torch.testing.assert_close(eye, torch.eye(6).double().expand_as(eye))


@pytest.mark.slow
@pytest.mark.parametrize("components", [1, 4])
def test_fitted_weights_are_the_counts_of_cells_whatever_their_components(components):
    plan = make_plan(f"components = {components}, radius = 2", classes=3, epsilon=MANY)
    labels = torch.arange(1200) % 4 % 3
    y = 0.3 * np.random.default_rng(13).normal(size=(1200, 6))
    found = fit_mixtures(plan, [released(images_of(y, plan), plan, labels)])
    assert found.weights.shape == (1, 3 * components)
    np.testing.assert_allclose(found.cell_weights[0], [600, 300, 300], rtol=0.02)


@pytest.mark.slow
def test_router_tells_sites_apart_by_their_covariances_alone():
    # the floor of a router's variances is 0.1: both spectra lie above it
    plan = make_plan("components = 1, radius = 6", epsilon=MANY)
    rng = np.random.default_rng(14)
    true = [np.diag([1.5, 1.5, 1.5, 0.2, 0.2, 0.2]), np.diag([0.2, 0.2, 0.2, 1.5, 1.5, 1.5])]
    drawn = [rng.multivariate_normal(np.zeros(6), one, size=6000) for one in true]
    sites = [released(images_of(y, plan), plan) for y in drawn]
    router = build_router(plan, "mixture", sites)
    t = 0.2
    for site, y in enumerate(drawn):
        clean = y[:300] @ dct_basis((1, 4, 4), 6).numpy() + CENTRE
        x_t = 0.8 * clean + t * rng.normal(size=clean.shape)
        seen = (x_t - 0.8 * CENTRE) @ dct_basis((1, 4, 4), 6).numpy().T
        scores = np.stack(
            [
                -0.5 * (seen**2 / (v := 0.64 * np.diag(one) + t**2) + np.log(v)).sum(1)
                for one in true
            ]
        )
        truth = 1 / (1 + np.exp(scores[1 - site] - scores[site]))
        states = torch.from_numpy(x_t).reshape(-1, 1, 4, 4)
        found = router.log_posterior(states, torch.full((300,), t).double(), None).exp()[:, site]
        assert np.abs(found.numpy() - truth).mean() < 0.02
        assert truth.mean() > 0.8


@pytest.mark.parametrize("router", ["components = 1", "components = 4"])
def test_mean_of_a_site_that_drowned_is_no_longer_than_an_image_can_be(router):
    plan = make_plan(router, classes=2, epsilon=0.05)
    images = torch.full((3, 1, 4, 4), float("nan"))
    sites = [released(images, plan, torch.tensor([0, 0, 1])) for _ in range(2)]
    for mixture in fit_image_mixtures(plan, sites):
        assert float(mixture.means.norm(dim=2).max()) <= 2 * longest_norm(plan) * (1 + 1e-9)
        assert bool(torch.isfinite(mixture.variances).all())

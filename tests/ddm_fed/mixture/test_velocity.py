"""The velocity of a mixture against all of its densities in pixel space, in float64."""

import itertools
import math

import numpy as np
import pytest
import torch
from mixtures import CENTRE, make_plan, released
from scipy import stats

from ddm_fed.embedding import dct_basis
from ddm_fed.flows import NO_CLASS, ClassCondition, integrate, time_grid
from ddm_fed.mixture import ImageMixture, MixtureVelocity, fit_image_mixtures
from ddm_fed.mixture.coefficients import band_edges
from ddm_fed.records import read_plan_toml

PLANS = {
    "grey": make_plan("components = 1, radius = 2"),
    "components": make_plan("components = 4, radius = 2, bands = 3"),
    "classes": make_plan("components = 4, radius = 2", classes=3),
    "bands-classes": make_plan("components = 2, bands = 10", classes=3),
    "colour-bands-classes": make_plan(
        "components = 2, radius = 1, bands = 2", shape=(3, 4, 6), classes=2, f=4
    ),
    "colour": make_plan("components = 1, radius = 1", shape=(3, 4, 6), classes=2, f=4),
    "anchors": make_plan(
        "components = 2, radius = 2, bands = 2, anchors = [[-0.5, 0.0], [0.5, 0.0], [0.0, 1.0]]"
    ),
    "all-frequencies": make_plan("components = 2, radius = 2", f=16, classes=2),
    "shared": make_plan("radius = 2", classes=2),
}
CLASSED = [name for name in PLANS if PLANS[name].data.classes]


def mixture_of(plan, seed=0, *, spread=0.3):
    """A mixture that no images were needed for."""
    rng = np.random.default_rng(seed)
    cells = max(1, len(plan.data.classes), len(plan.router.anchors))
    each, d = plan.router.components or 1, plan.data.channels * plan.router.frequencies
    axes = np.linalg.qr(rng.normal(size=(cells, each, d, d)))[0]
    return ImageMixture(
        *map(
            torch.from_numpy,
            (
                rng.uniform(5, 50, size=(cells, each)),
                spread * rng.normal(size=(cells, each, d)),
                rng.uniform(0.002, 0.3, size=(cells, each, d)),
                axes,
                rng.uniform(0.001, 0.05, size=(cells, plan.router.bands)),
            ),
        )
    )


class PixelSpace:
    """The same mixture as normals of all pixels: weights, means `(N,)`, covariances `(N, N)`."""

    def __init__(self, plan, mixture):
        channels, height, width = plan.data.shape
        f, pixels = plan.router.frequencies, height * width
        basis = dct_basis(plan.data.shape, pixels).numpy().reshape(channels, pixels, -1)
        low = basis[:, :f].reshape(channels * f, -1)
        self.of_class = [[] for _ in range(max(1, len(plan.data.classes)))]
        shares = (mixture.weights.sum(1) / mixture.weights.sum()).numpy()
        bands = mixture.bands.numpy()
        if not plan.data.classes:  # energies are not told apart by anchor
            bands = np.tile(shares @ bands, (len(bands), 1))
        for cell, component in np.ndindex(*mixture.weights.shape):
            axes = mixture.axes[cell, component].numpy()
            inside = (axes * mixture.variances[cell, component].numpy()) @ axes.T
            covariance = low.T @ inside @ low
            for band, (a, b) in enumerate(itertools.pairwise(band_edges(plan))):
                if plan.router.bands:
                    rows = basis[:, a:b].reshape(-1, covariance.shape[0])
                    covariance += bands[cell, band] * rows.T @ rows
            mean = CENTRE + mixture.means[cell, component].numpy() @ low
            mass = float(mixture.weights[cell, component])
            self.of_class[cell if plan.data.classes else 0].append((mass, mean, covariance))

    def of(self, label):
        if label == NO_CLASS:
            return [one for group in self.of_class for one in group]
        return self.of_class[label]

    def velocity(self, x_t, t, label):
        """E[eps - x_0 | x_t] of one x_t, `(N,)`."""
        scores, means = [], []
        for mass, mean, covariance in self.of(label):
            spread = (1 - t) ** 2 * covariance + t**2 * np.eye(len(mean))
            off = x_t - (1 - t) * mean
            scores.append(
                math.log(mass) + stats.multivariate_normal.logpdf(off, np.zeros(len(off)), spread)
            )
            solved = np.linalg.solve(spread, off)
            means.append(t * solved - (mean + (1 - t) * covariance @ solved))
        chance = np.exp(np.array(scores) - np.logaddexp.reduce(scores))
        return chance @ np.array(means)

    def draw(self, label, rng):
        group = self.of(label)
        masses = np.array([mass for mass, *_ in group])
        _, mean, covariance = group[rng.choice(len(group), p=masses / masses.sum())]
        return rng.multivariate_normal(mean, covariance, method="eigh")

    def moments(self, label):
        group = self.of(label)
        p = np.array([mass for mass, *_ in group])
        p /= p.sum()
        mean = sum(q * m for q, (_, m, _) in zip(p, group, strict=True))
        second = sum(q * (c + np.outer(m, m)) for q, (_, m, c) in zip(p, group, strict=True))
        return mean, second - np.outer(mean, mean)


def states_of(plan, space, t, labels, seed):
    rng = np.random.default_rng(seed)
    clean = np.array([space.draw(label, rng) for label in labels])
    x_t = (1 - t) * clean + t * rng.normal(size=clean.shape)
    return torch.from_numpy(x_t).reshape(-1, *plan.data.shape).float()


@pytest.mark.parametrize("t", [0.01, 0.5, 0.99])
@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "none") for name in PLANS]
    + [(name, kind) for name in CLASSED for kind in ("classes", "mixed")],
)
def test_velocity_is_that_of_all_densities_in_pixel_space(name, kind, t):
    plan = PLANS[name]
    mixture = mixture_of(plan)
    space, velocity = PixelSpace(plan, mixture), MixtureVelocity(plan, mixture)
    labels = [NO_CLASS] * 12
    if kind != "none":
        labels = [number % len(plan.data.classes) for number in range(12)]
    if kind == "mixed":
        labels[::3] = [NO_CLASS] * 4
    x_t = states_of(plan, space, t, labels, 1)
    condition = None if kind == "none" else ClassCondition(torch.tensor(labels))
    found = velocity(x_t, torch.full((12,), t), condition)
    assert (found.dtype, found.shape) == (torch.float32, x_t.shape)
    expected = [
        space.velocity(row.double().numpy(), t, label)
        for row, label in zip(x_t.flatten(1), labels, strict=True)
    ]
    # float32 times 1 / t where t is small
    np.testing.assert_allclose(found.flatten(1), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.slow
def test_rows_of_any_times_and_classes_are_what_they_are_alone():
    plan = PLANS["colour-bands-classes"]
    mixture = mixture_of(plan)
    space, velocity = PixelSpace(plan, mixture), MixtureVelocity(plan, mixture)
    count = 300  # more than are taken at once
    labels = torch.arange(count) % 3 - 1
    t = torch.linspace(0.01, 1, count)
    x_t = states_of(plan, space, 0.5, labels.tolist(), 2)
    together = velocity(x_t, t, ClassCondition(labels))
    for row in (0, 1, 2, 150, 255, 256, 299):
        one = slice(row, row + 1)
        alone = velocity(x_t[one], t[one], ClassCondition(labels[one]))
        torch.testing.assert_close(alone, together[one], rtol=1e-5, atol=1e-5)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(3))
    shuffled = velocity(x_t[order], t[order], ClassCondition(labels[order]))
    torch.testing.assert_close(shuffled, together[order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("t", [0.0, 1e-6, 1.0])
def test_velocity_at_the_ends_and_far_from_any_image_is_finite(name, t):
    plan = PLANS[name]
    velocity = MixtureVelocity(plan, mixture_of(plan))
    for scale in (0.0, 1.0, 100.0):
        x_t = torch.randn((5, *plan.data.shape), generator=torch.Generator().manual_seed(4)) * scale
        assert bool(torch.isfinite(velocity(x_t, torch.full((5,), t))).all())


def test_velocity_at_pure_noise_is_the_noise_less_the_mean_image():
    plan = PLANS["bands-classes"]
    mixture = mixture_of(plan)
    space, velocity = PixelSpace(plan, mixture), MixtureVelocity(plan, mixture)
    x = torch.randn((6, 1, 4, 4), generator=torch.Generator().manual_seed(5))
    labels = [NO_CLASS, 0, 1, 2, 1, NO_CLASS]
    found = velocity(x, torch.ones(6), ClassCondition(torch.tensor(labels)))
    means = np.array([space.moments(label)[0] for label in labels])
    np.testing.assert_allclose(found.flatten(1), x.flatten(1).numpy() - means, atol=1e-5)


def covariance_error(samples, mean, covariance):
    """Largest distance of sampled moments from the true ones, in deviations."""
    count = len(samples)
    off = samples - mean
    scale = np.sqrt(np.diag(covariance) / count)
    errors = [np.abs(off.mean(0) / scale).max()]
    products = off[:, :, None] * off[:, None]
    found = (products.mean(0) - covariance) / (products.std(0) / math.sqrt(count))
    return max(*errors, np.abs(found).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["components", "bands-classes"])
@pytest.mark.parametrize("label", [NO_CLASS, 0])
def test_draws_of_the_mixture_have_its_mean_and_covariance(name, label):
    plan = PLANS[name]
    mixture = mixture_of(plan)
    space, velocity = PixelSpace(plan, mixture), MixtureVelocity(plan, mixture)
    labels = None if label == NO_CLASS else torch.full((20_000,), label)
    drawn = velocity.sample(20_000, torch.Generator().manual_seed(6), labels)
    assert drawn.shape == (20_000, 1, 4, 4)
    # the largest of some 150 normals
    assert covariance_error(drawn.flatten(1).double().numpy(), *space.moments(label)) < 5


@pytest.mark.slow
@pytest.mark.parametrize("label", [NO_CLASS, 1])
def test_noise_integrated_to_images_has_the_mean_and_covariance_of_the_draws(label):
    plan = PLANS["bands-classes"]
    mixture = mixture_of(plan)
    space, velocity = PixelSpace(plan, mixture), MixtureVelocity(plan, mixture)
    count = 3000
    noise = torch.randn((count, 1, 4, 4), generator=torch.Generator().manual_seed(7))
    condition = None if label == NO_CLASS else ClassCondition(torch.full((count,), label))
    images = integrate(
        lambda x, t: velocity(x, t.expand(len(x)), condition), noise, time_grid(40), "heun"
    )
    images = images.flatten(1).double().numpy()
    labels = None if condition is None else condition.labels
    drawn = velocity.sample(count, torch.Generator().manual_seed(8), labels)
    drawn = drawn.flatten(1).double().numpy()
    np.testing.assert_allclose(images.mean(0), drawn.mean(0), rtol=0, atol=0.04)
    np.testing.assert_allclose(np.cov(images.T), np.cov(drawn.T), rtol=0, atol=0.02)
    assert covariance_error(images, *space.moments(label)) < 6


def test_draws_are_of_the_classes_asked_for_and_else_in_their_proportions():
    plan = PLANS["classes"]
    mixture = mixture_of(plan, spread=0.0)
    mixture = ImageMixture(
        mixture.weights,
        # classes that are told apart by their mean alone
        torch.arange(3).double()[:, None, None].expand(3, 4, 6) * 5,
        torch.full_like(mixture.variances, 1e-4),
        mixture.axes,
        mixture.bands,
    )
    velocity = MixtureVelocity(plan, mixture)
    basis = dct_basis((1, 4, 4), 6).float()

    def classes_of(images):
        offset = CENTRE * basis.sum(1)
        return ((images.flatten(1) @ basis.T - offset).mean(1) / 5).round().long()

    labels = torch.arange(30) % 3
    drawn = velocity.sample(30, torch.Generator().manual_seed(9), labels)
    assert torch.equal(classes_of(drawn), labels)
    counts = torch.bincount(
        classes_of(velocity.sample(6000, torch.Generator().manual_seed(10), None)), minlength=3
    )
    shares = mixture.weights.sum(1) / mixture.weights.sum()
    assert (counts / 6000).tolist() == pytest.approx(shares.tolist(), abs=0.03)


def test_same_generator_draws_the_same_images():
    plan = PLANS["components"]
    velocity = MixtureVelocity(plan, mixture_of(plan))
    first, second = (velocity.sample(10, torch.Generator().manual_seed(11), None) for _ in range(2))
    assert torch.equal(first, second)


def test_tables_of_a_velocity_are_in_no_checkpoint_and_nothing_is_trained():
    velocity = MixtureVelocity(PLANS["components"], mixture_of(PLANS["components"]))
    assert not velocity.state_dict()
    assert not list(velocity.parameters())


def test_condition_for_a_mixture_without_classes_is_refused():
    plan = PLANS["components"]
    velocity = MixtureVelocity(plan, mixture_of(plan))
    with pytest.raises(ValueError, match="unconditional"):
        velocity(torch.zeros(1, 1, 4, 4), torch.ones(1), ClassCondition(torch.tensor([0])))


def test_velocity_of_a_plan_whose_sites_release_counts_alone_is_refused():
    plan = read_plan_toml("""
        federation = "test"
        expires_at = 2036-01-01T00:00:00Z
        data = { channels = 1, height = 4, width = 4 }
        expert = { architecture = "DiT-Nano/2" }
        training = { steps = 1, batch_size = 1 }
        router = { kind = "prior", epsilon = 1 }
        privacy = { max_epsilon = 3 }
    """)
    with pytest.raises(TypeError, match="mixture"):
        MixtureVelocity(plan, mixture_of(PLANS["grey"]))


def test_beside_a_network_frequencies_without_a_variance_are_left_to_the_network():
    plan = make_plan("components = 1, radius = 2")
    images = torch.rand((200, 1, 4, 4), generator=torch.Generator().manual_seed(0)) - 0.75
    (mixture,) = fit_image_mixtures(plan, [released(images, plan)])
    alone, beside = (MixtureVelocity(plan, mixture, alone=kind) for kind in (True, False))
    x, t = (
        torch.randn((8, 1, 4, 4), generator=torch.Generator().manual_seed(1)),
        torch.full((8,), 0.01),
    )
    rest = [index for index in range(16) if index not in alone.low.tolist()]
    found = [(model.rows @ model(x, t) @ model.columns.T).flatten(1) for model in (alone, beside)]
    z = (alone.rows @ x @ alone.columns.T).flatten(1)
    torch.testing.assert_close(found[0][:, rest], z[:, rest] / 0.01)
    torch.testing.assert_close(found[1][:, rest], torch.zeros(8, len(rest)), rtol=0, atol=1e-5)
    torch.testing.assert_close(found[0][:, alone.low], found[1][:, alone.low], rtol=0, atol=2e-4)

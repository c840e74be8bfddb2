"""The identity the project rests on: experts of sites, routed exactly, are the pooled model.

The oracle is a Gaussian mixture in pixel space. Given its component, (x_t, eps - x_0) is jointly
normal, so E[eps - x_0 | x_t] follows from Gaussian conditioning, and a mixture averages it with
the posterior of its components (densities by scipy). Quadrature checks the oracle itself.
"""

import math
from decimal import Decimal

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from ddm_fed.ensemble.strategy import Strategy, draw_sites
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.flows import ClassCondition, Expert
from ddm_fed.mixture import GaussianMixtures, SiteRelease, release_statistics
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import GaussianEvent, LedgerEntry, read_plan_toml, today
from ddm_fed.router import MixtureRouter, PriorRouter, build_router

SHAPE = (1, 2, 2)
PIXELS = 4
TIMES = [0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99]
FULL, STICKY, TOP_1, TOP_2 = (Strategy.parse(s) for s in ("full", "sticky", "top-1", "top-2"))


class Mixture:
    """A Gaussian mixture of images, `weights (J,)`, `means (J, N)`, `covariances (J, N, N)`."""

    def __init__(self, weights, means, covariances):
        self.weights = np.asarray(weights, dtype=float) / np.sum(weights)
        self.means, self.covariances = means, covariances

    def log_densities(self, x_t, t):
        """log w_j N(x_t; ...) of every component, `(J,)`."""
        noise = np.eye(len(x_t))
        return np.array(
            [
                math.log(w)
                + stats.multivariate_normal.logpdf(
                    x_t, (1 - t) * m, (1 - t) ** 2 * s + t**2 * noise
                )
                for w, m, s in zip(self.weights, self.means, self.covariances, strict=True)
            ]
        )

    def log_density(self, x_t, t):
        return float(np.logaddexp.reduce(self.log_densities(x_t, t)))

    def velocity(self, x_t, t):
        """E[eps - x_0 | x_t], `(N,)`."""
        joint = self.log_densities(x_t, t)
        posterior = np.exp(joint - np.logaddexp.reduce(joint))
        total = np.zeros(len(x_t))
        for p, m, s in zip(posterior, self.means, self.covariances, strict=True):
            covariance = (1 - t) ** 2 * s + t**2 * np.eye(len(x_t))
            cross = t * np.eye(len(x_t)) - (1 - t) * s  # Cov(eps - x_0, x_t)
            total += p * (-m + cross @ np.linalg.solve(covariance, x_t - (1 - t) * m))
        return total

    def expert(self, x_t, t, label=None):
        """The velocity as an expert gives it."""
        flat = x_t.flatten(1).double().numpy()
        rows = [self.velocity(x, float(time)) for x, time in zip(flat, t, strict=True)]
        return torch.from_numpy(np.stack(rows)).reshape(x_t.shape).to(x_t.dtype)


class ExactRouter:
    """Bayes' rule on the sites' own densities."""

    reads_state = True

    def __init__(self, prior, sites):
        self.prior, self.sites = torch.tensor(prior, dtype=torch.float64), sites

    def log_prior(self, label):
        return self.prior.log()

    def log_posterior(self, x_t, t, label):
        scores = torch.tensor(
            [
                [site.log_density(x.flatten().numpy(), float(time)) for site in self.sites]
                for x, time in zip(x_t.double(), t, strict=True)
            ],
            dtype=torch.float64,
        )
        return (self.log_prior(label) + scores).log_softmax(1)


class TableRouter:
    """The posterior that a test wrote down, `(B, K)`."""

    reads_state = True

    def __init__(self, posterior):
        self.table = torch.tensor(posterior, dtype=torch.float64)

    def log_prior(self, label):
        return self.table.mean(0).log()

    def log_posterior(self, x_t, t, label):
        return self.table.log()


class Witness:
    """An expert that notes what it was asked and answers `value`."""

    def __init__(self, value):
        self.value, self.asked = value, []

    def __call__(self, x_t, t, condition):
        labels = None if condition is None else condition.labels.clone()
        self.asked.append((x_t.clone(), t.clone(), labels))
        return torch.full_like(x_t, self.value)


def random_components(rng, count, pixels=PIXELS):
    means = rng.normal(size=(count, pixels)) * 0.8
    roots = rng.normal(size=(count, pixels, pixels)) * 0.3
    return means, roots @ roots.transpose(0, 2, 1) + 0.02 * np.eye(pixels)


def overlapping_sites(seed):
    """Four sites of unequal prior that hold the same six components in other proportions."""
    rng = np.random.default_rng(seed)
    means, covariances = random_components(rng, 6)
    prior = np.array([0.55, 0.25, 0.15, 0.05])
    inside = rng.dirichlet(np.full(6, 0.7), size=4)
    sites = [Mixture(row, means, covariances) for row in inside]
    return prior, sites, Mixture(prior @ inside, means, covariances)


def states(seed, count, pixels=SHAPE):
    draws = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn((count, *pixels), generator=draws, dtype=torch.float64)


def times(t, count):
    return torch.full((count,), t, dtype=torch.float64)


# --- the oracle itself ---


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("x_t", [-1.2, 0.1, 0.9])
def test_oracle_velocity_equals_quadrature_over_the_images(t, x_t):
    weights, means, deviations = [0.3, 0.7], [-0.5, 0.6], [0.2, 0.35]
    mixture = Mixture(weights, np.array(means)[:, None], np.array(deviations)[:, None, None] ** 2)

    def density(x_0):
        prior = sum(
            w * stats.norm.pdf(x_0, m, s)
            for w, m, s in zip(weights, means, deviations, strict=True)
        )
        return prior * stats.norm.pdf(x_t, (1 - t) * x_0, t)

    def moment(x_0):
        return ((x_t - (1 - t) * x_0) / t - x_0) * density(x_0)

    options = {"epsabs": 1e-13, "epsrel": 1e-12, "limit": 400, "points": [-0.5, 0.0, 0.6]}
    expected = integrate.quad(moment, -4, 4, **options)[0]
    expected /= integrate.quad(density, -4, 4, **options)[0]
    assert mixture.velocity(np.array([x_t]), t)[0] == pytest.approx(expected, abs=1e-8)


# --- strategy full ---


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_ensemble_of_overlapping_sites_equals_the_pooled_velocity(seed, t):
    prior, sites, pooled = overlapping_sites(seed)
    ensemble = Ensemble([site.expert for site in sites], ExactRouter(prior, sites))
    x_t = states(seed + 10, 12)
    found = ensemble.velocity(x_t, times(t, 12), strategy=FULL)
    assert (found - pooled.expert(x_t, times(t, 12))).abs().max() < 1e-10


@pytest.mark.parametrize("t", TIMES)
def test_ensemble_under_the_mixture_router_equals_the_pooled_velocity(t):
    # sites of two components of their own each, in the router's form: eigenvalues and axes
    rng = np.random.default_rng(4)
    masses = np.array([[40.0, 15.0], [20.0, 5.0], [3.0, 12.0], [4.0, 1.0]])
    parts = [random_components(rng, 2) for _ in range(4)]
    sites = [Mixture(row, m, s) for row, (m, s) in zip(masses, parts, strict=True)]
    pooled = Mixture(
        masses.ravel(),
        np.concatenate([m for m, _ in parts]),
        np.concatenate([s for _, s in parts]),
    )
    values, axes = np.linalg.eigh(np.stack([s for _, s in parts]))
    fitted = GaussianMixtures(
        *map(torch.from_numpy, (masses, np.stack([m for m, _ in parts]), values, axes))
    )
    router = MixtureRouter(
        fitted,
        torch.eye(PIXELS, dtype=torch.float64),
        centre=0.0,
        cells_are_classes=False,
    )
    ensemble, x_t = Ensemble([site.expert for site in sites], router), states(14, 12)
    found = ensemble.velocity(x_t, times(t, 12), strategy=FULL)
    assert (found - pooled.expert(x_t, times(t, 12))).abs().max() < 1e-10


def test_ensemble_with_a_time_per_row_equals_the_pooled_velocity():
    prior, sites, pooled = overlapping_sites(5)
    ensemble = Ensemble([site.expert for site in sites], ExactRouter(prior, sites))
    x_t, t = states(15, 7), torch.tensor(TIMES, dtype=torch.float64)
    found = ensemble.velocity(x_t, t, strategy=FULL)
    assert (found - pooled.expert(x_t, t)).abs().max() < 1e-10


def test_ensemble_under_a_class_condition_equals_the_pooled_velocity_of_the_class():
    # site k holds masses[k, c] images of class c from a Gaussian of its own
    rng = np.random.default_rng(6)
    masses = np.array([[50.0, 4.0, 9.0], [10.0, 30.0, 0.5], [2.0, 6.0, 20.0]])
    parts = [random_components(rng, 3) for _ in range(3)]
    values, axes = np.linalg.eigh(np.stack([s for _, s in parts]))
    fitted = GaussianMixtures(
        *map(torch.from_numpy, (masses, np.stack([m for m, _ in parts]), values, axes))
    )
    router = MixtureRouter(
        fitted, torch.eye(PIXELS, dtype=torch.float64), centre=0.0, cells_are_classes=True
    )

    def expert(k):
        means, covariances = parts[k]

        def velocity(x_t, t, condition):
            labels = condition.labels.tolist()
            rows = [
                Mixture([1.0], means[c : c + 1], covariances[c : c + 1]).velocity(x, float(time))
                for x, time, c in zip(x_t.flatten(1).numpy(), t, labels, strict=True)
            ]
            return torch.from_numpy(np.stack(rows)).reshape(x_t.shape)

        return velocity

    ensemble, x_t = Ensemble([expert(k) for k in range(3)], router), states(16, 9)
    t, label = times(0.4, 9), torch.arange(9) % 3
    asked = ClassCondition(label)
    found = ensemble.velocity(x_t, t, asked, strategy=FULL).flatten(1).numpy()
    for row, c in enumerate(label.tolist()):
        pooled = Mixture(
            masses[:, c],
            np.stack([m[c] for m, _ in parts]),
            np.stack([s[c] for _, s in parts]),
        )
        expected = pooled.velocity(x_t[row].flatten().numpy(), 0.4)
        np.testing.assert_allclose(found[row], expected, rtol=0, atol=1e-10)


def test_ensemble_of_identical_experts_returns_their_velocity_whatever_the_router():
    x_t = states(17, 3)
    ensemble = Ensemble([lambda x, t, c: x.sin()] * 3, TableRouter([[0.2, 0.3, 0.5]] * 3))
    found = ensemble.velocity(x_t, times(0.5, 3), strategy=FULL)
    assert torch.allclose(found, x_t.sin(), rtol=0, atol=1e-15)


def test_ensemble_velocity_has_the_dtype_of_the_state():
    ensemble = Ensemble([lambda x, t, c: x] * 2, TableRouter([[0.2, 0.8]] * 3))
    found = ensemble.velocity(states(18, 3).float(), times(0.5, 3).float(), strategy=FULL)
    assert found.dtype == torch.float32


# --- strategy top-k ---


POSTERIOR = [
    [0.55, 0.25, 0.15, 0.05],
    [0.10, 0.20, 0.30, 0.40],
    [0.05, 0.80, 0.10, 0.05],
    [0.34, 0.01, 0.33, 0.32],
]


def weights_of(strategy, posterior=POSTERIOR, sites=None):
    ensemble = Ensemble([Witness(k) for k in range(len(posterior[0]))], TableRouter(posterior))
    x_t = states(19, len(posterior))
    return ensemble.weights(x_t, times(0.5, len(posterior)), None, strategy, sites)


@pytest.mark.parametrize("k", [4, 5, 100])
def test_top_k_of_all_sites_equals_full(k):
    prior, sites, _ = overlapping_sites(7)
    ensemble = Ensemble([site.expert for site in sites], ExactRouter(prior, sites))
    x_t, t = states(20, 8), times(0.5, 8)
    top = ensemble.velocity(x_t, t, strategy=Strategy("top-k", k))
    assert torch.equal(top, ensemble.velocity(x_t, t, strategy=FULL))


def test_top_1_gives_all_weight_to_the_most_probable_site():
    expected = torch.nn.functional.one_hot(torch.tensor([0, 3, 1, 0]), 4).double()
    assert torch.equal(weights_of(TOP_1), expected)


def test_top_2_weights_keep_the_proportions_of_the_two_most_probable_sites():
    expected = torch.tensor(
        [
            [0.55 / 0.80, 0.25 / 0.80, 0, 0],
            [0, 0, 0.30 / 0.70, 0.40 / 0.70],
            [0, 0.80 / 0.90, 0.10 / 0.90, 0],
            [0.34 / 0.67, 0, 0.33 / 0.67, 0],
        ],
        dtype=torch.float64,
    )
    assert torch.allclose(weights_of(TOP_2), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("text", ["full", "top-1", "top-2", "top-3", "sticky"])
def test_weights_of_every_strategy_sum_to_one(text):
    found = weights_of(Strategy.parse(text), sites=torch.tensor([0, 3, 2, 1]))
    assert found.dtype == torch.float64
    assert torch.allclose(found.sum(1), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-15)


def test_full_weights_are_the_posterior():
    expected = torch.tensor(POSTERIOR, dtype=torch.float64)
    assert torch.allclose(weights_of(FULL), expected, rtol=0, atol=1e-15)


def test_top_2_beside_impossible_sites_leaves_the_possible_one_alone():
    assert weights_of(TOP_2, [[0.0, 1.0, 0.0]]).tolist() == [[0.0, 1.0, 0.0]]


# --- strategy sticky ---


def test_sticky_returns_the_velocity_of_the_drawn_site_alone():
    x_t, experts = states(21, 4), [Witness(10.0 * k) for k in range(4)]
    ensemble = Ensemble(experts, TableRouter(POSTERIOR))
    found = ensemble.velocity(x_t, times(0.5, 4), strategy=STICKY, sites=torch.tensor([2, 0, 3, 2]))
    expected = torch.tensor([20.0, 0.0, 30.0, 20.0], dtype=torch.float64)
    assert torch.equal(found, expected.reshape(4, 1, 1, 1).expand(4, *SHAPE))


def test_sticky_never_asks_the_sites_that_were_not_drawn():
    experts = [Witness(1.0) for _ in range(4)]
    ensemble = Ensemble(experts, TableRouter(POSTERIOR))
    sites = torch.tensor([2, 0, 2, 2])
    ensemble.velocity(states(22, 4), times(0.5, 4), strategy=STICKY, sites=sites)
    assert [len(expert.asked) for expert in experts] == [1, 0, 1, 0]


def test_sticky_without_drawn_sites_is_refused():
    ensemble = Ensemble([Witness(1.0)] * 4, TableRouter(POSTERIOR))
    with pytest.raises(ValueError, match="drawn sites"):
        ensemble.velocity(states(23, 4), times(0.5, 4), strategy=STICKY)


def evenly(seed, count):
    draws = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=draws, dtype=torch.float64)


def test_drawn_sites_follow_the_prior():
    # Chi-square over 20,000 draws, false alarm 1e-4 over seeds.
    router = PriorRouter(torch.tensor([[6.0], [3.0], [1.0]]))
    log_prior = Ensemble([Witness(1.0)] * 3, router).log_prior(20_000, None)
    counts = torch.bincount(draw_sites(log_prior, evenly(24, 20_000)), minlength=3).numpy()
    assert stats.chisquare(counts, 20_000 * np.array([0.6, 0.3, 0.1])).pvalue > 1e-4


def test_drawn_sites_under_labels_follow_the_prior_of_each_class():
    # Two chi-squares over 10,000 draws each, false alarm 1e-4 over seeds each.
    router = PriorRouter(torch.tensor([[9.0, 1.0], [1.0, 1.0], [0.0, 2.0]]))
    ensemble, label = Ensemble([Witness(1.0)] * 3, router), torch.arange(20_000) % 2
    log_prior = ensemble.log_prior(20_000, ClassCondition(label))
    drawn = draw_sites(log_prior, evenly(25, 20_000))
    first = torch.bincount(drawn[label == 0], minlength=3).numpy()
    second = torch.bincount(drawn[label == 1], minlength=3).numpy()
    assert first[2] == 0
    assert stats.chisquare(first[:2], [9000, 1000]).pvalue > 1e-4
    assert stats.chisquare(second, [2500, 2500, 5000]).pvalue > 1e-4


@pytest.mark.parametrize("uniform", [0.0, 0.2, 0.3, 1 - 2**-53])
def test_site_of_probability_zero_is_never_drawn(uniform):
    table = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64).log()
    drawn = int(draw_sites(table, torch.tensor([uniform], dtype=torch.float64)))
    assert drawn == (1 if uniform < 0.25 else 3)


# --- strategy threshold ---


def test_threshold_drops_light_sites_and_keeps_the_proportions_of_the_others():
    expected = torch.tensor(
        [
            [0.55 / 0.95, 0.25 / 0.95, 0.15 / 0.95, 0],
            [0.10, 0.20, 0.30, 0.40],
            [0, 0.80 / 0.90, 0.10 / 0.90, 0],
            [0.34 / 0.99, 0, 0.33 / 0.99, 0.32 / 0.99],
        ],
        dtype=torch.float64,
    )
    found = weights_of(Strategy.parse("threshold-0.08"))
    assert torch.allclose(found, expected, rtol=0, atol=1e-14)


def test_threshold_above_every_weight_keeps_the_largest():
    found = weights_of(Strategy.parse("threshold-0.99"))
    assert torch.equal(found, weights_of(TOP_1))


# --- guidance ---


@pytest.mark.parametrize("factor", [0.0, 2.5])
def test_guided_ensemble_equals_the_guided_velocity_of_the_pooled_images(factor):
    # experts of class-conditional Gaussians, of all classes where no class is asked for
    rng = np.random.default_rng(33)
    masses = np.array([[50.0, 4.0], [10.0, 30.0], [2.0, 6.0]])
    parts = [random_components(rng, 2) for _ in range(3)]
    values, axes = np.linalg.eigh(np.stack([s for _, s in parts]))
    fitted = GaussianMixtures(
        *map(torch.from_numpy, (masses, np.stack([m for m, _ in parts]), values, axes))
    )
    router = MixtureRouter(
        fitted, torch.eye(PIXELS, dtype=torch.float64), centre=0.0, cells_are_classes=True
    )

    def pooled(rows, chosen):
        return Mixture(
            np.concatenate([masses[k, chosen] for k in rows]),
            np.concatenate([parts[k][0][chosen] for k in rows]),
            np.concatenate([parts[k][1][chosen] for k in rows]),
        )

    def expert(k):
        def velocity(x_t, t, condition):
            if condition is None:
                return pooled([k], [0, 1]).expert(x_t, t)
            each = [
                pooled([k], [c]).expert(x_t[i : i + 1], t[i : i + 1])
                for i, c in enumerate(condition.labels.tolist())
            ]
            return torch.cat(each)

        return velocity

    ensemble, x_t, t = Ensemble([expert(k) for k in range(3)], router), states(34, 6), times(0.4, 6)
    labels = torch.arange(6) % 2
    found = ensemble.velocity(x_t, t, ClassCondition(labels), strategy=FULL, guidance=factor)
    null = pooled(range(3), [0, 1]).expert(x_t, t)
    of_class = [pooled(range(3), [c]).expert(x_t, t) for c in (0, 1)]
    conditional = torch.where((labels == 0).reshape(-1, 1, 1, 1), *of_class)
    assert (found - (null + factor * (conditional - null))).abs().max() < 1e-10


def test_guidance_of_a_drawn_site_asks_that_site_twice_and_no_other():
    experts = [Witness(1.0) for _ in range(4)]
    ensemble = Ensemble(experts, TableRouter(POSTERIOR))
    sites, asked = torch.tensor([2, 0, 2, 2]), ClassCondition(torch.tensor([5, 6, 7, 8]))
    ensemble.velocity(states(35, 4), times(0.5, 4), asked, strategy=STICKY, sites=sites, guidance=3)
    assert [len(expert.asked) for expert in experts] == [2, 0, 2, 0]


def test_guidance_of_one_asks_nothing_without_the_condition():
    expert, asked = Witness(1.0), ClassCondition(torch.tensor([5]))
    ensemble = Ensemble([expert], TableRouter([[1.0]]))
    ensemble.velocity(states(36, 1), times(0.5, 1), asked, strategy=FULL, guidance=1.0)
    assert [labels is None for _, _, labels in expert.asked] == [False]


def test_guidance_without_a_condition_is_refused():
    ensemble = Ensemble([Witness(1.0)], TableRouter([[1.0]]))
    with pytest.raises(ValueError, match="needs a condition"):
        ensemble.velocity(states(37, 1), times(0.5, 1), strategy=FULL, guidance=2.0)


# --- batches and order ---


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("descending", [False, True])
def test_velocity_is_the_same_in_batches_of_any_size_and_in_either_order(batch_size, descending):
    prior, sites, pooled = overlapping_sites(38)
    ensemble = Ensemble([site.expert for site in sites], ExactRouter(prior, sites))
    x_t, t = states(39, 7), times(0.4, 7)
    found = ensemble.velocity(x_t, t, strategy=FULL, batch_size=batch_size, descending=descending)
    assert (found - pooled.expert(x_t, t)).abs().max() < 1e-10


# --- experts of other paths ---


@pytest.mark.parametrize("t", [0.05, 0.5, 0.9])
def test_experts_of_mixed_paths_and_predictions_equal_the_pooled_velocity(t):
    prior, sites, pooled = overlapping_sites(40)

    def of(site, path, prediction):
        # E[x_0 | x_t] of the site, asked on the path's own scale and time
        def network(x, own_time, condition):
            return _answer(site, x, own_time, path, prediction)

        return Expert(network, path, prediction)

    kinds = [("linear", "velocity"), ("cosine", "noise"), ("vp", "noise"), ("cosine", "image")]
    experts = [of(site, *kind) for site, kind in zip(sites, kinds, strict=True)]
    ensemble, x_t = Ensemble(experts, ExactRouter(prior, sites)), states(41, 6)
    found = ensemble.velocity(x_t, times(t, 6), strategy=FULL)
    assert (found - pooled.expert(x_t, times(t, 6))).abs().max() < 1e-8


def _answer(site, x, own_time, path, prediction):
    """What a perfect network of `path` predicts: Gaussian conditioning at its own alpha, sigma."""
    answers = []
    for row, time in zip(x.flatten(1).numpy(), own_time.tolist(), strict=True):
        if path == "linear":
            alpha, sigma = 1 - time, time
        elif path == "cosine":
            alpha, sigma = math.cos(math.pi * time / 2), math.sin(math.pi * time / 2)
        else:
            integral = 0.1 * time + 9.95 * time**2
            alpha, sigma = math.exp(-integral / 2), math.sqrt(-math.expm1(-integral))
        logs, images = [], []
        for w, m, s in zip(site.weights, site.means, site.covariances, strict=True):
            covariance = alpha**2 * s + sigma**2 * np.eye(len(row))
            logs.append(math.log(w) + stats.multivariate_normal.logpdf(row, alpha * m, covariance))
            images.append(m + alpha * s @ np.linalg.solve(covariance, row - alpha * m))
        posterior = np.exp(np.array(logs) - np.logaddexp.reduce(logs))
        image = posterior @ np.array(images)
        noise = (row - alpha * image) / sigma
        answers.append({"image": image, "noise": noise, "velocity": noise - image}[prediction])
    return torch.from_numpy(np.stack(answers)).reshape(x.shape)


# --- who is asked what ---


def test_expert_is_asked_once_about_exactly_the_rows_that_give_it_weight():
    experts = [Witness(1.0) for _ in range(4)]
    ensemble, x_t = Ensemble(experts, TableRouter(POSTERIOR)), states(26, 4)
    t = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    label = torch.tensor([5, 6, 7, 8])
    ensemble.velocity(x_t, t, ClassCondition(label), strategy=TOP_1)
    for expert, rows in zip(experts, [[0, 3], [2], [], [1]], strict=True):
        assert len(expert.asked) == (1 if rows else 0)
        for seen, whole in zip(expert.asked[0] if rows else (), (x_t, t, label), strict=False):
            assert torch.equal(seen, whole[rows])


def test_expert_of_a_site_with_zero_posterior_is_not_asked_under_full():
    experts = [Witness(1.0) for _ in range(3)]
    ensemble = Ensemble(experts, TableRouter([[0.5, 0.0, 0.5], [1.0, 0.0, 0.0]]))
    ensemble.velocity(states(27, 2), times(0.5, 2), strategy=FULL)
    assert [[len(x) for x, _, _ in expert.asked] for expert in experts] == [[2], [], [1]]


def test_expert_without_labels_is_asked_without_labels():
    expert = Witness(1.0)
    Ensemble([expert], TableRouter([[1.0]])).velocity(states(28, 1), times(0.5, 1), strategy=FULL)
    assert expert.asked[0][2] is None


# --- removal ---


PLAN = read_plan_toml("""
    federation = "test"
    expires_at = 2036-01-01T00:00:00Z
    data = { channels = 1, height = 4, width = 4 }
    expert = { architecture = "DiT-Nano/2" }
    training = { steps = 1, batch_size = 1 }
    router = { kind = "mixture", epsilon = 2, frequencies = 6, radius = 3 }
    privacy = { max_epsilon = 3 }
""")


def site_release(seed, count):
    """A real, noisy release of a site of its own mean; the noise is the system's."""
    draws = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn((count, 1, 4, 4), generator=draws) + 0.2 * (seed % 3 - 1)

    def spend(purpose, mechanism, event):
        return LedgerEntry(
            index=0,
            previous_sha256=None,
            recorded_at=today(),
            plan_sha256="0" * 64,
            purpose=purpose,
            mechanism=mechanism,
            event=GaussianEvent(noise_multiplier=Decimal(event.noise_multiplier)),
        )

    released = release_statistics(Private(ImageSet(images, None)), PLAN, spend)
    return SiteRelease(
        {name: item.value for name, item in released.items()},
        {name: float(item.entry.event.noise_multiplier) for name, item in released.items()},
    )


@pytest.mark.parametrize("kind", ["prior", "mixture"])
def test_ensemble_after_removal_is_bit_equal_to_one_the_site_never_joined(kind):
    releases = [site_release(seed, count) for seed, count in ((1, 3000), (2, 1200), (3, 800))]
    experts = [lambda x, t, c, k=k: torch.sin(x + k) for k in range(3)]
    never_joined = Ensemble(experts[::2], build_router(PLAN, kind, releases[::2]))
    x_t, t = states(29, 16, (1, 4, 4)).float(), times(0.6, 16).float()
    expected = never_joined.velocity(x_t, t, strategy=FULL)
    joined = Ensemble(experts, build_router(PLAN, kind, releases))
    assert not torch.equal(joined.velocity(x_t, t, strategy=FULL), expected)
    del releases[1], experts[1]
    removed = Ensemble(experts, build_router(PLAN, kind, releases))
    assert torch.equal(removed.velocity(x_t, t, strategy=FULL), expected)


@pytest.mark.parametrize("strategy", [FULL, TOP_1, TOP_2], ids=str)
def test_mixture_router_that_loses_a_row_keeps_the_others_up_to_their_sum(strategy):
    # p without site k = p renormalised: the separable router needs nothing else of the site
    rng = np.random.default_rng(30)
    means, covariances = random_components(rng, 4)
    values, axes = np.linalg.eigh(covariances[:, None])
    parts = [torch.tensor([[5.0], [3.0], [1.0], [2.0]]), torch.from_numpy(means[:, None])]
    parts += [torch.from_numpy(values), torch.from_numpy(axes)]
    basis, kept = torch.eye(PIXELS, dtype=torch.float64), [0, 1, 3]

    def router(rows):
        fitted = GaussianMixtures(*(part.double()[rows] for part in parts))
        return MixtureRouter(fitted, basis, centre=0.0, cells_are_classes=False)

    x_t, t = states(31, 10), times(0.5, 10)
    whole = router([0, 1, 2, 3]).log_posterior(x_t, t, None)[:, kept].exp().numpy()
    expected = whole / whole.sum(1, keepdims=True)
    found = Ensemble([Witness(1.0)] * 3, router(kept)).weights(x_t, t, None, strategy, None)
    limit = {"full": 3, "top-1": 1, "top-2": 2}[str(strategy)]
    for row, posterior in zip(found.numpy(), expected, strict=True):
        winners = np.argsort(posterior)[::-1][:limit]
        target = np.zeros(3)
        target[winners] = posterior[winners] / posterior[winners].sum()
        np.testing.assert_allclose(row, target, rtol=0, atol=1e-12)


def test_site_of_zero_mass_leaves_the_ensemble_bit_equal_to_one_without_it():
    x_t, t = states(32, 5), times(0.3, 5)
    experts = [lambda x, t, c, k=k: torch.cos(x * (k + 1)) for k in range(3)]
    with_it = Ensemble(experts, PriorRouter(torch.tensor([[3.0], [0.0], [5.0]])))
    without = Ensemble(experts[::2], PriorRouter(torch.tensor([[3.0], [5.0]])))
    assert torch.equal(
        with_it.velocity(x_t, t, strategy=FULL), without.velocity(x_t, t, strategy=FULL)
    )


# --- names of strategies ---


@pytest.mark.parametrize(
    "text",
    [
        "full",
        "sticky",
        "top-1",
        "top-2",
        "top-12",
        "threshold-0.05",
        "per-step",
        "sticky-then-routed-0.25",
    ],
)
def test_strategy_name_survives_parsing(text):
    assert str(Strategy.parse(text)) == text


def test_strategy_sticky_then_routed_names_its_default_time():
    assert str(Strategy.parse("sticky-then-routed")) == "sticky-then-routed-0.5"


@pytest.mark.parametrize("text", ["per-step", "sticky-then-routed"])
def test_redrawing_by_a_router_that_does_not_look_at_the_state_is_refused(text):
    ensemble = Ensemble([Witness(1.0)] * 2, PriorRouter(torch.ones(2, 1)))
    with pytest.raises(ValueError, match="does not look"):
        ensemble.require(Strategy.parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "top",
        "top-",
        "top-0",
        "top--1",
        "top-1.5",
        "FULL",
        "all",
        "threshold",
        "threshold-0",
        "threshold-1",
        "threshold-0.0",
        "threshold-1.5",
        "threshold-nan",
        "threshold--0.5",
        "sticky-0.5",
        "sticky-then-routed-1",
        "sticky-then-routed-",
        "per-step-0.5",
    ],
)
def test_strategy_of_unknown_name_is_refused(text):
    with pytest.raises(ValueError, match="unknown strategy"):
        Strategy.parse(text)

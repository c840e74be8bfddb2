"""Sampling: repeatable, sites in their shares under full and sticky, and not under top-1."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ddm_fed.ensemble import Ensemble, Strategy
from ddm_fed.evaluation import site_share_error
from ddm_fed.models import DiT
from ddm_fed.records import DitSize
from ddm_fed.router import PriorRouter
from ddm_fed.sampling import sample

FULL, STICKY, TOP_1, TOP_2 = (Strategy.parse(s) for s in ("full", "sticky", "top-1", "top-2"))
PRIOR = [0.55, 0.25, 0.15, 0.05]
MODES = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]])
DEVIATION = 0.1
SHAPE = (1, 1, 2)
SOLVER_STEPS = [("euler", 40), ("midpoint", 20), ("heun", 20)]


class Gaussian:
    """The exact expert of a site whose images are N(mean, DEVIATION^2), two pixels each."""

    def __init__(self, mean):
        self.mean = mean.reshape(SHAPE)

    def __call__(self, x_t, t, label):
        t = t.reshape(-1, 1, 1, 1)
        slope = (t - (1 - t) * DEVIATION**2) / ((1 - t) ** 2 * DEVIATION**2 + t**2)
        return -self.mean + slope * (x_t - (1 - t) * self.mean)


class ExactRouter:
    """Bayes' rule on those Gaussians."""

    def log_prior(self, label):
        return torch.tensor(PRIOR, dtype=torch.float64).log()

    def log_posterior(self, x_t, t, label):
        t = t.double()[:, None]
        variance = (1 - t) ** 2 * DEVIATION**2 + t**2
        gap = x_t.flatten(1).double()[:, None] - (1 - t)[:, None] * MODES
        return (self.log_prior(label) - gap.square().sum(2) / variance / 2).log_softmax(1)


def four_sites():
    return Ensemble([Gaussian(mode) for mode in MODES], ExactRouter())


def drawn(ensemble, count, *, strategy=FULL, solver="heun", steps=5, seed=1, **more):
    return sample(
        ensemble, SHAPE, count, strategy=strategy, steps=steps, solver=solver, seed=seed, **more
    )


def nearest_site_counts(images):
    """Modes lie 1 apart, 10 deviations: the nearest one is the site that an image is of."""
    nearest = torch.cdist(images.flatten(1), MODES).argmin(1)
    return torch.bincount(nearest, minlength=4).tolist()


# --- repeatable ---


@pytest.mark.parametrize("batch_size", [1, 7, 23, 64])
@pytest.mark.parametrize("strategy", [FULL, STICKY, TOP_1, TOP_2], ids=str)
def test_images_of_the_same_seed_are_the_same_whatever_the_batch_size(strategy, batch_size):
    first = drawn(four_sites(), 23, strategy=strategy)
    second = drawn(four_sites(), 23, strategy=strategy, batch_size=batch_size)
    assert torch.allclose(first.images, second.images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_images_of_networks_of_the_same_seed_are_the_same_whatever_the_batch_size(batch_size):
    experts = []
    for seed in (2, 3):
        model = DiT((1, 8, 8), DitSize(depth=2, width=16, heads=2), 2, 3)
        weights = torch.Generator().manual_seed(seed)
        for value in model.parameters():
            value.data.normal_(std=0.1, generator=weights)
        experts.append(model.eval())
    ensemble = Ensemble(experts, PriorRouter(torch.tensor([[2.0, 1.0, 1.0], [1.0, 1.0, 4.0]])))
    labels = torch.arange(10) % 3
    runs = [
        sample(
            ensemble,
            (1, 8, 8),
            10,
            strategy=STICKY,
            steps=2,
            solver="euler",
            seed=4,
            labels=labels,
            batch_size=size,
        )
        for size in (10, batch_size)
    ]
    assert torch.equal(runs[0].sites, runs[1].sites)
    assert torch.allclose(runs[0].images, runs[1].images, rtol=0, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_sticky_sites_of_the_same_seed_are_exactly_the_same_whatever_the_batch_size(batch_size):
    first = drawn(four_sites(), 100, strategy=STICKY, steps=1)
    second = drawn(four_sites(), 100, strategy=STICKY, steps=1, batch_size=batch_size)
    assert torch.equal(first.sites, second.sites)


def test_images_of_a_longer_run_begin_with_those_of_a_shorter_one():
    short, long = drawn(four_sites(), 5), drawn(four_sites(), 12)
    assert torch.allclose(long.images[:5], short.images, rtol=0, atol=1e-5)


def test_images_of_the_same_call_are_bit_equal():
    assert torch.equal(drawn(four_sites(), 9).images, drawn(four_sites(), 9).images)


def test_images_of_another_seed_differ_in_every_sample():
    first, second = drawn(four_sites(), 50, seed=1), drawn(four_sites(), 50, seed=2)
    assert (first.images != second.images).flatten(1).any(1).all()


def test_images_of_one_seed_differ_from_each_other():
    images = drawn(four_sites(), 200).images.flatten(1)
    assert len(images.unique(dim=0)) == 200


def test_sticky_sites_of_another_seed_differ():
    first = drawn(four_sites(), 200, strategy=STICKY, steps=1, seed=1)
    second = drawn(four_sites(), 200, strategy=STICKY, steps=1, seed=2)
    assert not torch.equal(first.sites, second.sites)


def test_starting_noise_is_standard_normal():
    # A velocity of zero returns the noise, clamped: Kolmogorov-Smirnov of what lies strictly
    # inside, against the normal between -1 and 1. False alarm 1e-4 over seeds.
    still = Ensemble([lambda x, t, c: torch.zeros_like(x)], PriorRouter(torch.ones(1, 1)))
    noise = drawn(still, 4000, steps=1, solver="euler").images.flatten().double().numpy()
    inside = noise[np.abs(noise) < 1]
    assert stats.kstest(inside, stats.truncnorm(-1, 1).cdf).pvalue > 1e-4
    assert stats.binomtest(len(inside), 8000, math.erf(math.sqrt(0.5))).pvalue > 1e-4


def test_sticky_sites_are_independent_of_the_starting_noise():
    # Welch's t of the first pixel of site 0 against the other sites; false alarm 1e-4 over seeds.
    still = Ensemble([lambda x, t, c: torch.zeros_like(x)] * 4, ExactRouter())
    found = drawn(still, 4000, strategy=STICKY, steps=1, solver="euler")
    pixel, first = found.images[:, 0, 0, 0].numpy(), (found.sites == 0).numpy()
    assert stats.ttest_ind(pixel[first], pixel[~first], equal_var=False).pvalue > 1e-4


# --- form ---


def test_images_are_clamped_to_the_range_of_pixels():
    # an expert that shoots past white and black
    wild = Ensemble([lambda x, t, c: -9 * x.sign()], PriorRouter(torch.ones(1, 1)))
    images = drawn(wild, 40).images
    assert set(images.unique().tolist()) == {-1.0, 1.0}


def test_images_have_the_shape_asked_for_in_float32():
    found = drawn(four_sites(), 5, batch_size=2)
    assert (found.images.shape, found.images.dtype) == ((5, *SHAPE), torch.float32)


def test_samples_of_sticky_name_a_site_each():
    found = drawn(four_sites(), 30, strategy=STICKY, steps=1, batch_size=8)
    assert found.sites.shape == (30,)
    assert 0 <= int(found.sites.min()) <= int(found.sites.max()) < 4


def test_samples_that_several_sites_share_name_none():
    assert drawn(four_sites(), 3, strategy=FULL).sites is None


def test_samples_carry_the_labels_asked_for():
    labels = torch.tensor([2, 0, 1])
    assert torch.equal(drawn(four_sites(), 3, labels=labels).labels, labels)


@pytest.mark.parametrize("batch_size", [1, 2, 10])
def test_expert_gets_the_label_of_each_sample(batch_size):
    told = []

    def witness(x_t, t, label):
        told.extend(label.tolist())
        return torch.zeros_like(x_t)

    labels = torch.tensor([0, 3, 1, 2, 3])
    ensemble = Ensemble([witness], PriorRouter(torch.ones(1, 4)))
    drawn(ensemble, 5, labels=labels, batch_size=batch_size, steps=1, solver="euler")
    assert told == labels.tolist()


def test_progress_counts_every_sample_once():
    done = []
    drawn(four_sites(), 23, batch_size=10, advance=done.append)
    assert done == [10, 10, 3]


# --- shares ---

# Each chi-square below has a false alarm of 1e-4 over seeds; 4,000 samples each.


@pytest.mark.parametrize(("solver", "steps"), SOLVER_STEPS)
def test_full_sampling_gives_every_site_its_share(solver, steps):
    images = drawn(four_sites(), 4000, solver=solver, steps=steps, batch_size=4000).images
    counts = nearest_site_counts(images)
    assert stats.chisquare(counts, 4000 * np.array(PRIOR)).pvalue > 1e-4


def test_full_sampling_gives_the_distribution_of_the_pooled_images():
    # Kolmogorov-Smirnov of a slanted projection, false alarm 1e-4 over seeds; the solver's own
    # error at 60 steps is far below the test's resolution of 0.03.
    images = drawn(four_sites(), 4000, steps=60, batch_size=4000).images.flatten(1).double()
    slant = torch.tensor([0.8, 0.6])
    centres = (MODES @ slant).tolist()

    def cdf(value):
        return sum(
            p * stats.norm.cdf(value, c, DEVIATION) for p, c in zip(PRIOR, centres, strict=True)
        )

    assert stats.kstest((images @ slant.double()).numpy(), cdf).pvalue > 1e-4


def test_sticky_sites_follow_the_prior():
    sites = drawn(four_sites(), 4000, strategy=STICKY, steps=1, batch_size=4000).sites
    counts = torch.bincount(sites, minlength=4).numpy()
    assert stats.chisquare(counts, 4000 * np.array(PRIOR)).pvalue > 1e-4


def test_sticky_sites_under_labels_follow_the_prior_of_each_class():
    router = PriorRouter(torch.tensor([[3.0, 0.0], [1.0, 2.0]]))
    still = Ensemble([lambda x, t, c: torch.zeros_like(x)] * 2, router)
    labels = torch.arange(4000) % 2
    sites = drawn(still, 4000, strategy=STICKY, steps=1, labels=labels, batch_size=999).sites
    assert (sites[labels == 1] == 1).all()
    first = int((sites[labels == 0] == 0).sum())
    assert stats.binomtest(first, 2000, 0.75).pvalue > 1e-4


@pytest.mark.parametrize(("solver", "steps"), SOLVER_STEPS)
def test_sticky_sampling_ends_at_the_site_it_drew(solver, steps):
    found = drawn(four_sites(), 1000, strategy=STICKY, solver=solver, steps=steps, batch_size=1000)
    assert torch.equal(torch.cdist(found.images.flatten(1), MODES).argmin(1), found.sites)


def test_sticky_sampling_gives_every_site_its_share():
    images = drawn(four_sites(), 4000, strategy=STICKY, steps=20, batch_size=4000).images
    counts = nearest_site_counts(images)
    assert stats.chisquare(counts, 4000 * np.array(PRIOR)).pvalue > 1e-4


@pytest.mark.parametrize(("solver", "steps"), SOLVER_STEPS)
def test_top_1_sampling_all_but_deletes_small_sites_even_with_exact_parts(solver, steps):
    images = drawn(
        four_sites(), 4000, strategy=TOP_1, solver=solver, steps=steps, batch_size=4000
    ).images
    counts = nearest_site_counts(images)
    found = site_share_error(PRIOR, counts)
    assert found.error > 10 * found.expected_by_chance
    assert counts[0] / 4000 > 0.7  # meant: 0.55
    assert counts[3] / 4000 < 0.025  # meant: 0.05


def test_site_share_error_of_full_sampling_is_what_chance_gives():
    # 3 times its expectation is exceeded with probability 6e-4 (by two million simulations).
    images = drawn(four_sites(), 4000, steps=20, batch_size=4000).images
    found = site_share_error(PRIOR, nearest_site_counts(images))
    assert found.error < 3 * found.expected_by_chance

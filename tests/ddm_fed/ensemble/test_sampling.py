"""Sampling: repeatable, sites in their shares under every exact strategy, not under top-1."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ddm_fed.ensemble.pool import ExpertPool
from ddm_fed.ensemble.sampling import SamplingOptions, apportioned, sample
from ddm_fed.ensemble.strategy import Strategy
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.evaluation import site_share_error
from ddm_fed.flows import ClassCondition, Expert
from ddm_fed.models import DiT
from ddm_fed.records import DitSize
from ddm_fed.router import PriorRouter

FULL, STICKY, TOP_1, TOP_2 = (Strategy.parse(s) for s in ("full", "sticky", "top-1", "top-2"))
PER_STEP, ROUTED, ROUTED_EARLY = (
    Strategy.parse(s) for s in ("per-step", "sticky-then-routed", "sticky-then-routed-0.9")
)
EVERY = [FULL, STICKY, TOP_1, TOP_2, PER_STEP, ROUTED]
EVERY += [Strategy.parse(name) for name in ("threshold-0.1", "nucleus-0.9", "sample-2")]
EXACT = [FULL, STICKY, PER_STEP, ROUTED, ROUTED_EARLY]
SOLVERS = ["euler", "midpoint", "heun", "dpm++2m", "sde"]
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

    reads_state = True

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
    passed = {name: more.pop(name) for name in ("condition", "advance") if name in more}
    options = SamplingOptions(strategy, steps=steps, solver=solver, seed=seed, **more)
    return sample(ensemble, SHAPE, count, options, **passed)


def as_bytes(images):
    return ((images + 1) * 127.5).round().byte()


def nearest_site_counts(images):
    """Modes lie 1 apart, 10 deviations: the nearest one is the site that an image is of."""
    nearest = torch.cdist(images.flatten(1), MODES).argmin(1)
    return torch.bincount(nearest, minlength=4).tolist()


# --- repeatable ---


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "in_flight"), [(1, 1024), (7, 23), (64, 5), (3, 1)])
@pytest.mark.parametrize("solver", ["heun", "dpm++2m", "sde"])
@pytest.mark.parametrize("strategy", EVERY, ids=str)
def test_images_of_the_same_seed_are_the_same_whatever_the_batch_size(
    strategy, solver, batch_size, in_flight
):
    sizes = {"batch_size": batch_size, "in_flight": in_flight}
    first = drawn(four_sites(), 23, strategy=strategy, solver=solver)
    second = drawn(four_sites(), 23, strategy=strategy, solver=solver, **sizes)
    assert torch.allclose(first.images, second.images, rtol=0, atol=1e-5)
    assert torch.equal(as_bytes(first.images), as_bytes(second.images))
    assert (first.sites is None) == (second.sites is None) == (not strategy.draws_sites)
    assert first.sites is None or torch.equal(first.sites, second.sites)


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
    runs = [
        sample(
            ensemble,
            (1, 8, 8),
            10,
            SamplingOptions(STICKY, steps=2, solver="euler", seed=4, batch_size=size),
            condition=ClassCondition(torch.arange(10) % 3),
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


@pytest.mark.parametrize("batch_size", [1, 2, 10])
@pytest.mark.parametrize("in_flight", [2, 1024])
def test_expert_gets_the_label_of_each_sample(batch_size, in_flight):
    told = []

    def witness(x_t, t, condition):
        told.extend(condition.labels.tolist())
        return torch.zeros_like(x_t)

    labels = torch.tensor([0, 3, 1, 2, 3])
    ensemble = Ensemble([witness], PriorRouter(torch.ones(1, 4)))
    options = {"batch_size": batch_size, "in_flight": in_flight, "steps": 1, "solver": "euler"}
    drawn(ensemble, 5, condition=ClassCondition(labels), **options)
    assert told == labels.tolist()


@pytest.mark.parametrize("strategy", EVERY, ids=str)
def test_progress_counts_every_step_of_every_sample_once(strategy):
    done = []
    drawn(four_sites(), 23, strategy=strategy, in_flight=10, batch_size=4, advance=done.append)
    assert sum(done) == 23 * 5


@pytest.mark.parametrize("name", ["steps", "batch_size", "in_flight"])
def test_options_that_are_not_positive_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be positive"):
        drawn(four_sites(), 1, **{name: 0})


def test_guidance_without_a_condition_is_refused():
    with pytest.raises(ValueError, match="needs a condition"):
        drawn(four_sites(), 1, guidance=2.0)


@pytest.mark.parametrize("strategy", [PER_STEP, ROUTED], ids=str)
def test_redrawing_by_the_prior_alone_is_refused(strategy):
    blind = Ensemble([lambda x, t, c: x], PriorRouter(torch.ones(1, 1)))
    with pytest.raises(ValueError, match="does not look"):
        drawn(blind, 1, strategy=strategy)


# --- who is asked, and when ---


class Diary:
    """Experts that note who was asked, at which time, about how many images."""

    def __init__(self):
        self.entries = []

    def ensemble(self):
        def expert(k):
            def velocity(x_t, t, condition):
                self.entries.append((k, round(float(t[0]), 3), len(x_t)))
                return Gaussian(MODES[k])(x_t, t, condition)

            return velocity

        return Ensemble([expert(k) for k in range(4)], ExactRouter())

    def sites(self):
        """The sites in the order in which they were turned to."""
        turns = [k for k, _, _ in self.entries]
        return [k for i, k in enumerate(turns) if i == 0 or turns[i - 1] != k]


def pooled_in_memory(resident):
    pool = ExpertPool([lambda mode=mode: Gaussian(mode) for mode in MODES], resident=resident)
    return Ensemble(pool, ExactRouter())


def test_sticky_turns_to_each_site_once_a_chunk():
    diary = Diary()
    drawn(diary.ensemble(), 200, strategy=STICKY, in_flight=100, batch_size=10, solver="heun")
    assert diary.sites() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert max(rows for _, _, rows in diary.entries) == 10


def test_routed_steps_begin_with_the_site_asked_last_and_ask_each_once():
    diary = Diary()
    drawn(diary.ensemble(), 400, strategy=PER_STEP, steps=3, solver="euler", batch_size=1000)
    assert diary.sites() == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3]
    assert len(diary.entries) == 3 * 4
    for time in (1.0, 0.667, 0.333):
        assert sum(rows for _, at, rows in diary.entries if at == time) == 400


def test_weighted_steps_begin_with_the_site_asked_last():
    diary = Diary()
    drawn(diary.ensemble(), 4, strategy=FULL, steps=2, solver="euler")
    assert [k for k, _, _ in diary.entries] == [0, 1, 2, 3, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("solver", "calls"), [("euler", 4), ("midpoint", 8), ("heun", 7), ("dpm++2m", 4), ("sde", 4)]
)
@pytest.mark.parametrize("strategy", [STICKY, PER_STEP, ROUTED], ids=str)
def test_drawn_site_answers_every_stage_of_its_step_and_nobody_else(strategy, solver, calls):
    # four steps; the last one of heun needs one call
    ensemble = four_sites()
    drawn(ensemble, 50, strategy=strategy, solver=solver, steps=4)
    assert sum(ensemble.experts.calls) == 50 * calls


@pytest.mark.parametrize("resident", [1, 2])
@pytest.mark.parametrize("strategy", [FULL, STICKY, ROUTED], ids=str)
def test_images_are_bit_equal_however_few_experts_are_in_memory(strategy, resident):
    found = drawn(pooled_in_memory(resident), 60, strategy=strategy, in_flight=25)
    expected = drawn(four_sites(), 60, strategy=strategy, in_flight=25)
    assert torch.equal(found.images, expected.images)


def test_sticky_with_one_expert_in_memory_loads_each_once_a_chunk():
    ensemble = pooled_in_memory(1)
    drawn(ensemble, 300, strategy=STICKY, steps=7)
    assert ensemble.experts.loads == [1, 1, 1, 1]


def test_routed_steps_with_one_expert_in_memory_save_a_load_in_every_step():
    ensemble = pooled_in_memory(1)
    drawn(ensemble, 400, strategy=PER_STEP, steps=5, solver="euler")
    assert sum(ensemble.experts.loads) == 4 + 4 * 3


# --- experts of other paths ---


@pytest.mark.parametrize("strategy", [FULL, ROUTED], ids=str)
def test_sampling_starts_no_earlier_than_every_expert_may_be_asked(strategy):
    # the noise expert of a Gaussian on the linear path: eps = x + (1 - t) v
    def predicts_noise(mode):
        gaussian = Gaussian(mode)

        def network(x_t, t, condition):
            return x_t + (1 - t).reshape(-1, 1, 1, 1) * gaussian(x_t, t, condition)

        return Expert(network, "linear", "noise")

    experts = [predicts_noise(mode) if k % 2 else Gaussian(mode) for k, mode in enumerate(MODES)]
    mixed = Ensemble(experts, ExactRouter())
    assert mixed.experts.largest_time == experts[1].largest_time < 1
    # the same noise from a start 0.7 % later: images differ by what is left of the modes there
    found = drawn(mixed, 300, strategy=strategy, steps=30).images
    plain = drawn(four_sites(), 300, strategy=strategy, steps=30).images
    assert (found - plain).abs().flatten(1).amax(1).median() < 0.01


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
    asked = ClassCondition(labels)
    sites = drawn(still, 4000, strategy=STICKY, steps=1, condition=asked, in_flight=999).sites
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


# --- distribution of every exact strategy ---


def exact_images(count, seed):
    draws = torch.Generator().manual_seed(seed)
    prior = torch.tensor(PRIOR, dtype=torch.float64)
    sites = torch.multinomial(prior, count, replacement=True, generator=draws)
    return MODES[sites] + DEVIATION * torch.randn((count, 2), generator=draws)


def sliced_wasserstein(first, second):
    """Mean distance of the sorted projections onto 32 directions of the half circle."""
    angles = torch.arange(32) * math.pi / 32
    directions = torch.stack([angles.cos(), angles.sin()])
    gaps = (first @ directions).sort(0).values - (second @ directions).sort(0).values
    return float(gaps.abs().mean())


def distance_to_exact(count=2000, **options):
    images = drawn(four_sites(), count, in_flight=count, batch_size=count, **options).images
    return sliced_wasserstein(images.flatten(1), exact_images(count, 99)), images


@pytest.fixture(scope="module")
def noise_floor():
    """The largest distance of 20 pairs of exact sets of 2,000."""
    pairs = [(exact_images(2000, s), exact_images(2000, s + 1)) for s in range(0, 40, 2)]
    return max(sliced_wasserstein(*pair) for pair in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("strategy", EXACT, ids=str)
def test_exact_strategy_samples_the_pooled_images(strategy, solver, noise_floor):
    steps = {"euler": 80, "sde": 120}.get(solver, 30)
    distance, images = distance_to_exact(strategy=strategy, solver=solver, steps=steps)
    assert distance < 1.5 * noise_floor
    for share, count in zip(PRIOR, nearest_site_counts(images), strict=True):
        # four deviations of a binomial, false alarm 6e-5 each
        assert abs(count - 2000 * share) < 4 * math.sqrt(2000 * share * (1 - share))


def test_top_1_is_far_from_the_pooled_images(noise_floor):
    assert distance_to_exact(strategy=TOP_1, steps=30)[0] > 4 * noise_floor


def test_dpm_that_extrapolated_across_sites_would_miss_by_more(monkeypatch):
    # shows that the step of order 1 after a change of site is needed, not only cautious
    def missed_spread():
        images = distance_to_exact(4000, strategy=PER_STEP, solver="dpm++2m", steps=30)[1]
        away = images.flatten(1) - MODES[torch.cdist(images.flatten(1), MODES).argmin(1)]
        return abs(float(away.std()) - DEVIATION)

    as_it_is = missed_spread()
    keep = "ddm_fed.ensemble.sampling._without_past"
    monkeypatch.setattr(keep, lambda state, velocity, *_: (state, velocity))
    assert missed_spread() > 1.5 * as_it_is


# --- beside one model of all images ---


def pooled_velocity(x_t, t, condition):
    """The velocity of all images by brute force: every mode's, weighted by its density."""
    answers = torch.stack([Gaussian(mode)(x_t, t, None) for mode in MODES])
    t = t.double()[:, None]
    variance = (1 - t) ** 2 * DEVIATION**2 + t**2  # (B, 1)
    gaps = [x_t.flatten(1).double() - (1 - t) * mode for mode in MODES]
    density = torch.stack(
        [
            share * torch.exp(-gap.square().sum(1, keepdim=True) / 2 / variance)
            for share, gap in zip(PRIOR, gaps, strict=True)
        ]
    )  # (K, B, 1)
    weight = (density / density.sum(0)).float()
    return (weight[..., None, None] * answers).sum(0)


def monolith(count):
    whole = Ensemble([pooled_velocity], PriorRouter(torch.ones(1, 1)))
    return drawn(whole, count, steps=20).images.flatten(1)


def test_full_ensemble_gives_the_images_of_the_pooled_model_from_the_same_noise():
    found = drawn(four_sites(), 500, steps=20).images.flatten(1)
    assert (found - monolith(500)).abs().max() < 1e-3


@pytest.mark.parametrize("strategy", [TOP_2, Strategy.parse("threshold-0.05")], ids=str)
def test_samples_of_the_same_noise_agree_with_the_pooled_model_far_above_shuffled(strategy):
    whole = monolith(1000)
    found = drawn(four_sites(), 1000, strategy=strategy, steps=20).images.flatten(1)
    paired = np.corrcoef(found.flatten(), whole.flatten())[0, 1]
    shuffled = np.corrcoef(found.roll(1, 0).flatten(), whole.flatten())[0, 1]
    assert paired > 0.8 > 0.4 > shuffled


# --- classes ---


@pytest.mark.parametrize("count", [1, 7, 100, 997])
@pytest.mark.parametrize(
    "weights", [[1, 1, 1], [5, 3, 2, 0], [0.7, 0.2999, 0.0001], [1e6, 1, 1e3], [1]], ids=str
)
def test_first_samples_hold_each_class_as_often_as_its_share_says(weights, count):
    found = apportioned(torch.tensor(weights), count)
    shares = np.array(weights) / np.sum(weights)
    ahead = torch.nn.functional.one_hot(found, len(weights)).cumsum(0).numpy()
    wanted = np.arange(1, count + 1)[:, None] * shares
    assert np.abs(ahead - wanted).max() <= max(1, (len(weights) - 1) / 2) + 1e-6
    assert set(found.tolist()) <= set(np.flatnonzero(shares).tolist())


def test_classes_of_equal_weight_come_in_turn():
    assert apportioned(torch.full((3,), 0.1), 3000).tolist() == [0, 1, 2] * 1000


def test_classes_of_a_longer_run_begin_with_those_of_a_shorter_one():
    weights = torch.tensor([0.5, 0.2, 0.17, 0.13])
    assert torch.equal(apportioned(weights, 500)[:77], apportioned(weights, 77))


@pytest.mark.parametrize("weights", [[0, 0], [1, -1], [1, math.nan], [math.inf, 1]], ids=str)
def test_weights_that_are_no_shares_are_refused(weights):
    with pytest.raises(ValueError, match="weights of classes"):
        apportioned(torch.tensor(weights).float(), 3)

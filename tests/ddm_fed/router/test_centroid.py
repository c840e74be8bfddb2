"""Centroids of embeddings against brute force: normalisers, posteriors, prompts, late sampling."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, special

from ddm_fed.ensemble.sampling import SamplingOptions, sample
from ddm_fed.ensemble.strategy import DEFAULT_STRATEGY, Strategy
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.flows import ClassCondition, EncodedTexts
from ddm_fed.mixture import Anchors, Centroids, image_directions, prompt_directions, public_anchors
from ddm_fed.router import (
    CalibratedRouter,
    Calibration,
    CentroidRouter,
    EstimateRouter,
    HybridRouter,
    PriorRouter,
    PromptedRouter,
    centroid_router,
    log_posterior_of,
    reads_estimate,
    sees_until,
)
from ddm_fed.router.sphere import concentration_of, log_normaliser

SHAPE = (1, 2, 2)
PIXELS = 4


def generator(seed):
    return torch.Generator().manual_seed(seed)


def unit(*shape, seed):
    drawn = torch.randn(shape, generator=generator(seed), dtype=torch.float64)
    return drawn / drawn.norm(dim=-1, keepdim=True)


def times(t, count):
    return torch.full((count,), t, dtype=torch.float64)


def flat_directions(images):
    """An embedder whose embedding of an image is its pixels."""
    return torch.nn.functional.normalize(images.flatten(1).double(), dim=1)


# --- the normaliser ---


def log_mass(d, kappa):
    """log of the integral of exp(kappa mu.u) over the sphere, by quadrature over the angle."""
    if d == 2:
        inner, _ = integrate.quad(lambda a: math.exp(kappa * (math.cos(a) - 1)), 0, 2 * math.pi)
        return math.log(inner) + kappa
    grid = np.linspace(0, math.pi, 20001)[1:-1]
    scale = (kappa * np.cos(grid) + (d - 2) * np.log(np.sin(grid))).max()

    def height(angle):
        sine = math.sin(angle)
        return math.exp(kappa * math.cos(angle) + (d - 2) * math.log(sine) - scale) if sine else 0

    inner, _ = integrate.quad(height, 0, math.pi, limit=400, points=[0.05, 0.2, 1, 1.5, 2])
    ring = math.log(2) + (d - 1) / 2 * math.log(math.pi) - special.gammaln((d - 1) / 2)
    return ring + math.log(inner) + scale


@pytest.mark.parametrize("d", [2, 3, 4, 7, 16, 64, 512])
@pytest.mark.parametrize("kappa", [0.0, 1e-6, 0.3, 3.0, 40.0, 300.0])
def test_log_normaliser_makes_the_density_integrate_to_one(d, kappa):
    found = log_normaliser(d, np.array([kappa]))[0]
    assert found + log_mass(d, kappa) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("d", [2, 3, 64, 512, 1025, 4096])
def test_log_normaliser_is_that_of_mpmath_where_float64_underflows_and_beyond(d):
    kappas = [1e-9, 1e-3, 0.5, 5, 20, 90, 500, 3e3, 1e5]
    found = log_normaliser(d, np.array(kappas))
    with mpmath.workdps(60):
        for kappa, value in zip(kappas, found, strict=True):
            order = mpmath.mpf(d) / 2 - 1
            exact = (
                order * mpmath.log(kappa)
                - mpmath.mpf(d) / 2 * mpmath.log(2 * mpmath.pi)
                - mpmath.log(mpmath.besseli(order, kappa))
            )
            assert value == pytest.approx(float(exact), rel=1e-11, abs=1e-9)


def test_log_normaliser_of_no_concentration_is_that_of_the_uniform_density():
    area = 4 * math.pi  # of the sphere in three dimensions
    assert log_normaliser(3, np.zeros(1))[0] == pytest.approx(-math.log(area), abs=1e-12)


@pytest.mark.parametrize(("d", "kappa"), [(1, 1.0), (3, -1.0), (3, math.nan), (3, math.inf)])
def test_log_normaliser_of_nonsense_is_refused(d, kappa):
    with pytest.raises(ValueError, match="two dimensions or more"):
        log_normaliser(d, np.array([kappa]))


@pytest.mark.parametrize(
    ("d", "kappa"), [(3, 1), (3, 20), (16, 20), (64, 5), (64, 40), (64, 400), (512, 50), (512, 900)]
)
def test_concentration_of_the_exact_resultant_is_within_five_per_cent(d, kappa):
    """The mean length at kappa is I_(d/2) / I_(d/2 - 1), here by mpmath."""
    ratio = mpmath.besseli(mpmath.mpf(d) / 2, kappa) / mpmath.besseli(mpmath.mpf(d) / 2 - 1, kappa)
    found = concentration_of(np.array([float(ratio)]), d)[0]
    assert found == pytest.approx(kappa, rel=0.05)


def test_concentration_of_a_resultant_of_one_stays_finite():
    assert concentration_of(np.array([0.0, 1.0, 1.7]), 8).tolist()[0] == 0
    assert np.isfinite(concentration_of(np.array([1.0, 1.7]), 8)).all()


# --- the posterior ---


class World:
    """Three sites of two centroids in four dimensions, each of a kappa of its own, and a rest."""

    def __init__(self, **options):
        self.centroids = unit(3, 2, PIXELS, seed=1)
        self.weights = torch.tensor([[30.0, 5.0], [10.0, 0.0], [1.0, 7.0]], dtype=torch.float64)
        self.kappa = torch.tensor([[1.0, 30.0], [12.0, 2.0], [0.0, 55.0]], dtype=torch.float64)
        self.rest = torch.tensor([2.0, 0.0, 4.0], dtype=torch.float64)
        self.router = CentroidRouter(
            self.centroids, self.weights, self.kappa, flat_directions, rest=self.rest, **options
        )

    def posterior(self, u):
        """p(k | u) for one direction, in plain loops with normalisers by quadrature."""
        joint = []
        for k in range(3):
            total = float(self.rest[k]) * math.exp(-log_mass(PIXELS, 0.0))
            for j in range(2):
                cosine = sum(
                    float(a) * float(b) for a, b in zip(u, self.centroids[k, j], strict=True)
                )
                kappa = float(self.kappa[k, j])
                density = math.exp(kappa * cosine - log_mass(PIXELS, kappa))
                total += float(self.weights[k, j]) * density
            joint.append(total)
        return [value / sum(joint) for value in joint]


@pytest.fixture(scope="module")
def world():
    return World()


def test_posterior_of_images_is_that_of_brute_force_with_unequal_concentrations(world):
    images = torch.randn((20, *SHAPE), generator=generator(3), dtype=torch.float64)
    found = world.router.log_posterior_of_images(images).exp()
    expected = [world.posterior(u) for u in flat_directions(images)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8, atol=1e-12)


def test_posterior_is_the_frequency_of_sites_among_drawn_directions():
    """Site and direction are drawn; sites of directions alike are counted. No density is used."""
    centroids = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]], dtype=torch.float64)
    weights = torch.tensor([[3.0], [1.0]], dtype=torch.float64)
    kappa = torch.tensor([[2.0], [9.0]], dtype=torch.float64)
    router = CentroidRouter(centroids, weights, kappa, lambda u: u)
    rng = np.random.default_rng(1)
    count = 400_000
    site = (rng.random(count) < 0.25).astype(int)
    middle = np.where(site == 0, math.pi / 2, 0.0)
    angle = rng.vonmises(middle, np.where(site == 0, 2.0, 9.0))
    for at in (-0.3, 0.2, 0.6, 1.2):
        near = np.abs(angle - at) < 0.02
        u = torch.tensor([[math.cos(at), math.sin(at)]], dtype=torch.float64)
        found = float(router.log_posterior_of_images(u).exp()[0, 1])
        error = math.sqrt(found * (1 - found) / near.sum())
        # false alarm of four such checks: 4 * 6e-5
        assert abs(site[near].mean() - found) < 4 * error


def test_shares_are_those_of_all_masses(world):
    expected = torch.tensor([37.0, 10.0, 12.0], dtype=torch.float64) / 59
    torch.testing.assert_close(world.router.log_prior(None).exp(), expected)
    asked = ClassCondition(torch.tensor([0, 1]))
    torch.testing.assert_close(world.router.log_prior(asked).exp(), expected.expand(2, -1))


def test_image_without_a_direction_leaves_the_shares(world):
    found = world.router.log_posterior_of_images(torch.zeros((2, *SHAPE)))
    torch.testing.assert_close(found, world.router.log_prior(None).expand(2, -1))


def test_posterior_of_one_row_does_not_depend_on_the_others(world):
    images = torch.randn((4, *SHAPE), generator=generator(5), dtype=torch.float64)
    together = world.router.log_posterior_of_images(images)
    alone = [world.router.log_posterior_of_images(images[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-13)


def test_dropping_a_site_leaves_the_others_as_if_it_never_joined(world):
    kept = [0, 2]
    smaller = CentroidRouter(
        world.centroids[kept], world.weights[kept], world.kappa[kept], flat_directions,
        rest=world.rest[kept],
    )  # fmt: skip
    images = torch.randn((6, *SHAPE), generator=generator(6), dtype=torch.float64)
    expected = world.router.log_posterior_of_images(images)[:, kept].log_softmax(1)
    torch.testing.assert_close(smaller.log_posterior_of_images(images), expected)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])},
        {"weights": torch.tensor([[1.0, -1.0], [1.0, 0.0], [1.0, 1.0]])},
        {"weights": torch.ones(3, 3)},
        {"until": 0.0},
        {"until": 1.0},
    ],
)
def test_router_of_impossible_masses_or_times_is_refused(change):
    arguments = {"weights": torch.ones(3, 2), "until": 0.4} | change
    weights, until = arguments["weights"], arguments["until"]
    with pytest.raises(ValueError):
        CentroidRouter(unit(3, 2, 4, seed=1), weights, 1.0, flat_directions, until=until)


# --- from releases ---


def site(count, weights, directions, resultants):
    tensors = (torch.tensor(v, dtype=torch.float64) for v in (weights, directions, resultants))
    return Centroids(count, *tensors)


def test_router_of_releases_has_one_concentration_from_what_is_known():
    one = site(100.0, [60.0, 40.0], [[1.0, 0, 0], [0, 1.0, 0]], [0.8, 0.0])
    two = site(50.0, [10.0, 40.0], [[0, 1.0, 0], [0, 0, 1.0]], [0.5, 0.6])
    mean = (60 * 0.8 + 10 * 0.5 + 40 * 0.6) / 110
    expected = CentroidRouter(
        torch.stack([one.directions, two.directions]),
        torch.stack([one.weights, two.weights]),
        mean * (3 - mean**2) / (1 - mean**2),
        flat_directions,
        rest=torch.tensor([1.0, 0.5]),  # a hundredth of the site
    )
    u = unit(8, 3, seed=4)
    torch.testing.assert_close(
        centroid_router([one, two], flat_directions).log_posterior_of_images(u),
        expected.log_posterior_of_images(u),
    )


def test_site_that_lacks_a_centroid_is_improbable_there_but_never_impossible():
    sites = [site(30.0, [30.0], [[x, 0.0, 0.0]], [0.98]) for x in (1.0, -1.0)]
    posterior = centroid_router(sites, flat_directions).log_posterior_of_images(
        torch.tensor([[1.0, 0, 0]])
    )
    assert 1e-6 < float(posterior.exp()[0, 1]) < 1e-2


def test_sites_that_drowned_altogether_are_told_apart_by_their_shares_alone():
    directions = unit(4, 3, seed=1).tolist()
    sites = [site(count, [count / 4] * 4, directions, [0.0] * 4) for count in (30.0, 10.0)]
    posterior = centroid_router(sites, flat_directions).log_posterior_of_images(unit(5, 3, seed=2))
    expected = torch.tensor([0.75, 0.25], dtype=torch.float64).expand(5, -1)
    torch.testing.assert_close(posterior.exp(), expected)


# --- prompts ---


class Words:
    """An embedder of two things in a cone; its texts have a cone of their own."""

    name, dimension, digest = "words", 4, "0" * 64

    def images(self, images):
        cone = torch.tensor([0.0, 0.0, 3.0, 0.0])
        return torch.nn.functional.normalize(images.flatten(1) + cone, dim=1)

    def texts(self, texts):
        meant = {"cat": [0.5, 0.0], "dog": [0.0, 0.5]}
        rows = torch.tensor([[*meant[text], 0.0, 3.0] for text in texts])
        return torch.nn.functional.normalize(rows, dim=1)


def pets(seed, cats, dogs):
    """Images `(N, 1, 2, 2)` near e_0 (cats) and e_1 (dogs)."""
    middle = torch.zeros(cats + dogs, 4)
    middle[:cats, 0] = middle[cats:, 1] = 1
    noise = torch.tensor([0.1, 0.1, 0.0, 0.0])
    drawn = torch.randn((cats + dogs, 4), generator=generator(seed))
    return (middle + noise * drawn).reshape(-1, 1, 2, 2)


@pytest.fixture(scope="module")
def prompts():
    embedder = Words()
    anchors = public_anchors(embedder.images(pets(1, 50, 50)), 2, 0, dimensions=2)
    embed = image_directions(embedder, anchors)
    directions = torch.stack([embed(pets(2, 200, 0)).mean(0), embed(pets(3, 0, 200)).mean(0)])
    return CentroidRouter(
        torch.nn.functional.normalize(directions, dim=1)[:, None],
        torch.tensor([[30.0], [10.0]]),
        5.0,
        embed,
        rest=torch.tensor([1.0, 1.0]),
        text_directions=prompt_directions(embedder, anchors, ["cat", "dog"]),
        prompt_concentration=3.0,
    )


def test_prompt_asks_for_the_site_that_has_what_it_names(prompts):
    share = prompts.log_prior(None).exp()
    cat, dog = prompts.log_prior_of_texts(Words().texts(["cat", "dog"])).exp()
    assert cat.shape == (2,)
    assert cat[0] > share[0] + 0.1
    assert dog[1] > share[1] + 0.3
    torch.testing.assert_close(dog.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_prompt_that_says_nothing_leaves_the_shares():
    router = World(text_directions=lambda texts: torch.zeros(len(texts), PIXELS)).router
    found = router.log_prior_of_texts(torch.ones(1, 4))
    torch.testing.assert_close(found[0], router.log_prior(None))


def test_prompt_without_an_embedder_of_text_is_refused(world):
    with pytest.raises(ValueError, match="no embedder of text"):
        world.router.log_prior_of_texts(torch.ones(1, 4))


def captions(*texts):
    """Captions as an encoder leaves them; the empty one is none."""
    encoder = EncodedTexts(
        ["cat", "dog"], np.ones((2, 1, 1)), Words().texts(["cat", "dog"]).numpy(), np.array([1, 1])
    )
    return encoder.condition(texts)


def test_captions_decide_about_sites_and_no_caption_leaves_the_shares(prompts):
    router = PromptedRouter(prompts, prompts.log_likelihood_of_texts)
    found = router.log_prior(captions("dog", "", "cat"))
    dog, cat = prompts.log_prior_of_texts(Words().texts(["dog", "cat"]))
    shares = prompts.log_prior(None)
    torch.testing.assert_close(found, torch.stack([dog, shares, cat]))
    assert torch.equal(router.log_prior(None), shares)


def test_posterior_given_a_caption_is_that_of_bayes_rule(prompts):
    """Of image and caption, independent given the site: whichever is looked at first."""
    router = PromptedRouter(prompts, prompts.log_likelihood_of_texts)
    x, t, asked = pets(5, 2, 2), torch.full((4,), 0.2), captions("dog", "cat", "", "dog")
    found = router.log_posterior_given(x, t, asked, x)
    images = prompts.log_posterior_of_images(x) - prompts.log_prior(None)
    torch.testing.assert_close(found, (images + router.log_prior(asked)).log_softmax(1))
    unseen = router.log_posterior(x, t, asked)
    torch.testing.assert_close(unseen, router.log_prior(asked))
    assert torch.equal(
        router.log_posterior_given(x, t, None, x), prompts.log_posterior_of_images(x)
    )
    assert router.reads_estimate
    assert router.sees_until == prompts.sees_until
    assert not router.reads_state


# --- estimates in place of noised images ---


def test_router_without_an_estimate_gives_the_shares_at_every_time(world):
    x_t = torch.randn((3, *SHAPE), generator=generator(7))
    for t in (0.05, 0.4, 0.9):
        found = world.router.log_posterior(x_t, times(t, 3), None)
        torch.testing.assert_close(found, world.router.log_prior(None).expand(3, -1))


def test_router_with_an_estimate_looks_at_it_from_until_down_and_never_at_the_noised_image(world):
    x_t = torch.randn((4, *SHAPE), generator=generator(8))
    estimate = torch.randn((4, *SHAPE), generator=generator(9))
    t = torch.tensor([0.9, 0.4, 0.41, 0.1])
    found = world.router.log_posterior_given(x_t, t, None, estimate)
    prior, seen = world.router.log_prior(None), world.router.log_posterior_of_images(estimate)
    torch.testing.assert_close(found, torch.stack([prior, seen[1], prior, seen[3]]))
    assert torch.equal(found, world.router.log_posterior_given(-x_t, t, None, estimate))


class Above:
    """A router that reads x_t and says something else."""

    reads_state = True

    def log_prior(self, condition):
        shares = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
        return shares if condition is None else shares.expand(len(condition), -1)

    def log_posterior(self, x_t, t, condition):
        first = x_t.flatten(1)[:, :1].double()
        return (self.log_prior(None) + first * torch.arange(3)).log_softmax(1)


def test_router_below_another_takes_its_shares_and_its_answers_above_until():
    router = World(above=Above()).router
    x_t = torch.randn((2, *SHAPE), generator=generator(8))
    t = torch.tensor([0.5, 0.2])
    found = router.log_posterior_given(x_t, t, None, x_t)
    assert torch.equal(found[0], Above().log_posterior(x_t, t, None)[0])
    own = World().router
    likelihood = own.log_posterior_of_images(x_t)[1] - own.log_prior(None)
    expected = (likelihood + Above().log_prior(None)).log_softmax(0)
    torch.testing.assert_close(found[1], expected)
    assert torch.equal(router.log_posterior(x_t, t, None), Above().log_posterior(x_t, t, None))


def test_class_reaches_the_router_through_the_shares_of_the_one_above():
    counts = torch.tensor([[5.0, 1.0], [3.0, 3.0], [1.0, 5.0]])
    router = World(above=PriorRouter(counts)).router
    x = torch.randn((2, *SHAPE), generator=generator(8))
    found = router.log_posterior_given(x, times(0.1, 2), ClassCondition(torch.tensor([1, 0])), x)
    own = World().router
    likelihood = own.log_posterior_of_images(x) - own.log_prior(None)
    shares = (counts / counts.sum(0)).T[[1, 0]].double()
    torch.testing.assert_close(found, (likelihood + shares.log()).log_softmax(1))


def test_hybrid_gives_its_lower_router_the_estimates_of_its_rows(world):
    hybrid = HybridRouter(Above(), world.router, switch=0.3)
    x_t = torch.randn((4, *SHAPE), generator=generator(8))
    estimate = torch.randn((4, *SHAPE), generator=generator(9))
    t = torch.tensor([0.9, 0.2, 0.3, 0.1])
    above = Above().log_posterior(x_t, t, None)
    seen = world.router.log_posterior_of_images(estimate)
    found = log_posterior_of(hybrid, x_t, t, None, estimate)
    torch.testing.assert_close(found, torch.stack([above[0], seen[1], above[2], seen[3]]))
    torch.testing.assert_close(
        log_posterior_of(hybrid, x_t[[1, 3]], t[[1, 3]], None, estimate[[1, 3]]), seen[[1, 3]]
    )


def routers():
    prior, centroid = PriorRouter(torch.ones(3, 1)), World().router
    calibration = Calibration(
        torch.tensor([0.0, 1.0]).double(), torch.zeros(2).double(), torch.zeros(2, 3).double()
    )
    return {
        "prior": (prior, False, 0.0),
        "mixture": (Above(), False, 1.0),
        "centroid": (centroid, True, 0.4),
        "centroid-below-mixture": (World(above=Above()).router, True, 1.0),
        "mixture-centroid": (HybridRouter(Above(), centroid, 0.3), True, 1.0),
        "mixture-centroid-with-a-gap": (HybridRouter(Above(), centroid, 0.5), True, 0.4),
        "prior-centroid": (HybridRouter(prior, centroid, 0.3), True, 0.3 * (1 - 1e-6)),
        "mixture-mixture": (HybridRouter(Above(), Above(), 0.3), False, 1.0),
        "calibrated-centroid": (CalibratedRouter(centroid, calibration), True, 0.4),
    }


@pytest.mark.parametrize("name", routers())
def test_routers_say_how_far_up_they_see_the_image(name):
    router, looks, until = routers()[name]
    assert reads_estimate(router) == looks
    assert sees_until(router) == pytest.approx(until, abs=0)
    ensemble = Ensemble([lambda x, t, c: x] * 3, router)
    ensemble.require(DEFAULT_STRATEGY)
    if 0 < until < 1:
        ensemble.require(Strategy("sticky-then-routed", level=until))
        with pytest.raises(ValueError, match="another router"):
            ensemble.require(Strategy("sticky-then-routed", level=(1 + until) / 2))


@pytest.mark.parametrize("strategy", ["per-step", "sticky-then-routed-0.5"])
def test_strategy_that_redraws_where_the_router_is_blind_is_refused(world, strategy):
    ensemble = Ensemble([lambda x, t, c: x] * 3, world.router)
    with pytest.raises(
        ValueError, match=r"looks at it up to 0\.4 only; use sticky, sticky-then-routed-0\.4"
    ):
        ensemble.require(Strategy.parse(strategy))


def test_routers_that_know_no_estimate_are_none(world):
    assert isinstance(world.router, EstimateRouter)
    assert not isinstance(PriorRouter(torch.ones(3, 1)), EstimateRouter)


# --- in the sampler ---


class Watcher:
    """Counts how often it is asked, and keeps what it was shown."""

    def __init__(self):
        self.seen, self.embedded = [], 0
        self._router = World().router
        self.reads_state, self.reads_estimate, self.sees_until = False, True, 0.4

    def log_prior(self, condition):
        return self._router.log_prior(condition)

    def log_posterior(self, x_t, t, condition):
        raise NotImplementedError("the sampler has an estimate in every step")

    def log_posterior_given(self, x_t, t, condition, estimate):
        self.seen.append((float(t[0]), estimate.clone()))
        return self._router.log_posterior_given(x_t, t, condition, estimate)


def towards(target):
    """An expert that knows one image: its velocity leads straight there, so x̂_0 is the image."""

    def velocity(x, t, condition):
        return (x - target) / t.reshape(-1, 1, 1, 1)

    return velocity


TARGETS = [torch.full(SHAPE, value) for value in (-0.5, 0.1, 0.6)]


def options(strategy, **changes):
    return SamplingOptions(
        **{"strategy": Strategy.parse(strategy), "steps": 10, "solver": "euler", "seed": 3}
        | changes
    )


@pytest.mark.parametrize("solver", ["euler", "heun", "dpm++2m", "sde"])
def test_sampler_shows_the_estimate_that_the_drawn_expert_made_one_step_before(solver):
    watcher = Watcher()
    ensemble = Ensemble([towards(target) for target in TARGETS], watcher)
    # with every expert sure of its image, a sample that changed site shows the image of the old one
    drawn = sample(
        ensemble, SHAPE, 40, options("sticky-then-routed-0.4", solver=solver, in_flight=64)
    )
    assert [round(t, 4) for t, _ in watcher.seen] == [0.4, 0.3, 0.2, 0.1]  # one look per step
    known = torch.stack(TARGETS)
    for _, estimate in watcher.seen:
        apart = (estimate[:, None] - known).flatten(2).abs().amax(2).min(1).values
        assert apart.max() < 1e-5
    assert drawn.images.shape == (40, *SHAPE)


def test_sampler_lags_weighted_estimates_by_one_velocity():
    watcher = Watcher()
    ensemble = Ensemble([towards(target) for target in TARGETS], watcher)
    sample(ensemble, SHAPE, 5, options("full", steps=4))
    prior = watcher.log_prior(None).exp().float()
    mean = sum(p * target for p, target in zip(prior, TARGETS, strict=True))
    assert [t for t, _ in watcher.seen] == [1.0, 0.75, 0.5, 0.25]
    assert torch.equal(watcher.seen[0][1], torch.zeros(5, *SHAPE))  # nothing was said yet
    for _, estimate in watcher.seen[1:]:  # above `until` the weights are the shares
        torch.testing.assert_close(estimate, mean.expand(5, *SHAPE), rtol=0, atol=1e-5)


@pytest.mark.parametrize("strategy", ["sticky-then-routed-0.4", "full"])
def test_samples_do_not_depend_on_batches_although_estimates_are_kept(strategy):
    ensemble = Ensemble([towards(target) for target in TARGETS], World().router)
    whole = sample(ensemble, SHAPE, 23, options(strategy, attribution=True))
    parts = sample(
        ensemble, SHAPE, 23, options(strategy, attribution=True, batch_size=4, in_flight=9)
    )
    torch.testing.assert_close(whole.images, parts.images, rtol=0, atol=1e-5)
    torch.testing.assert_close(whole.attribution, parts.attribution, rtol=0, atol=1e-4)
    if whole.sites is not None:
        assert torch.equal(whole.sites, parts.sites)


def test_sampler_keeps_no_estimates_for_routers_that_read_none():
    ensemble = Ensemble([towards(target) for target in TARGETS], Above())
    assert not ensemble.reads_estimate
    sample(ensemble, SHAPE, 3, options("per-step"))


# --- anchors ---


def test_public_anchors_find_the_clusters_of_public_images():
    middle = unit(5, 30, seed=1)
    drawn = torch.randn((400, 30), generator=generator(2), dtype=torch.float64)
    cone = 3 * unit(1, 30, seed=3)
    embeddings = cone + middle[torch.arange(400) % 5] + 0.03 * drawn
    anchors = public_anchors(embeddings, 5, 0, dimensions=8)
    assert anchors.points.shape == (5, 8)
    torch.testing.assert_close(anchors.axes @ anchors.axes.T, torch.eye(8), rtol=0, atol=1e-6)
    torch.testing.assert_close(anchors.points.norm(dim=1), torch.ones(5))
    nearest = (anchors.directions(embeddings) @ anchors.points.double().T).argmax(1)
    assert [len(set(nearest[k::5].tolist())) for k in range(5)] == [1] * 5
    assert len(set(nearest[:5].tolist())) == 5


def test_public_anchors_of_the_same_seed_are_the_same():
    embeddings = torch.randn((60, 12), generator=generator(1))
    first, again = (public_anchors(embeddings, 4, 7, dimensions=None) for _ in range(2))
    assert torch.equal(first.points, again.points)
    assert len(first.axes) == 12


def test_anchors_of_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="anchors take"):
        Anchors(torch.zeros(4), torch.eye(3), torch.ones(2, 3))

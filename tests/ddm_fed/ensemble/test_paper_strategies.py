"""Nucleus, drawing several experts, and the router's temperature: the paper's other strategies."""

import itertools

import pytest
import torch

from ddm_fed.ensemble.sampling import SamplingOptions, sample
from ddm_fed.ensemble.strategy import Strategy, gumbel
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.errors import OptionError
from ddm_fed.router import PriorRouter

POSTERIOR = [
    [0.55, 0.25, 0.15, 0.05],
    [0.10, 0.20, 0.30, 0.40],
    [0.05, 0.80, 0.10, 0.05],
    [0.0, 0.0, 1.0, 0.0],
]
SITES = 4


class TableRouter:
    """Says the same posterior of every row it is asked about, whatever it looks like."""

    reads_state = True

    def __init__(self, rows):
        self.rows = torch.tensor(rows, dtype=torch.float64).log()

    def log_prior(self, condition):
        return torch.full((SITES,), 0.25, dtype=torch.float64).log()

    def log_posterior(self, x_t, t, condition):
        return self.rows[: len(x_t)].expand(len(x_t), -1)


def constant(value):
    return lambda x, t, c=None: torch.full_like(x, value)


def ensemble_of(rows):
    return Ensemble([constant(float(site)) for site in range(SITES)], TableRouter(rows))


def weights_of(name, rows=POSTERIOR, **more):
    x_t = torch.zeros(len(rows), 1, 2, 2)
    t = torch.full((len(rows),), 0.5)
    return ensemble_of(rows).weights(x_t, t, None, Strategy.parse(name), **more)


@pytest.mark.parametrize("text", ["nucleus-0.9", "nucleus-0.05", "sample-1", "sample-3"])
def test_names_survive_parsing(text):
    assert str(Strategy.parse(text)) == text


@pytest.mark.parametrize("text", ["nucleus", "nucleus-0", "nucleus-1", "sample-0", "sample-0.5"])
def test_names_that_say_nothing_are_refused(text):
    with pytest.raises(ValueError, match="unknown strategy"):
        Strategy.parse(text)


@pytest.mark.parametrize("mass", [0.05, 0.3, 0.55, 0.56, 0.8, 0.9, 0.99])
def test_nucleus_keeps_the_smallest_set_that_weighs_enough(mass):
    found = weights_of(f"nucleus-{mass}")
    for row, posterior in enumerate(POSTERIOR):
        sets = [
            chosen
            for size in range(1, SITES + 1)
            for chosen in itertools.combinations(range(SITES), size)
            if sum(posterior[site] for site in chosen) >= mass - 1e-12
        ]
        least = min(len(chosen) for chosen in sets)
        heaviest = max(
            (chosen for chosen in sets if len(chosen) == least),
            key=lambda chosen: sum(posterior[site] for site in chosen),
        )
        total = sum(posterior[site] for site in heaviest)
        expected = [posterior[s] / total if s in heaviest else 0.0 for s in range(SITES)]
        assert found[row].tolist() == pytest.approx(expected, abs=1e-12)


def even(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((count, SITES), generator=generator, dtype=torch.float64)


def test_several_are_drawn_from_the_posterior_without_replacement():
    """Pairs come as often as drawing one after the other says, over 60,000 draws."""
    count, posterior = 60_000, POSTERIOR[0]
    found = weights_of("sample-2", [posterior] * count, noise=gumbel(even(count)))
    assert torch.equal((found > 0).sum(1), torch.full((count,), 2))
    for pair in itertools.combinations(range(SITES), 2):
        first, second = (posterior[site] for site in pair)
        expected = first * second / (1 - first) + second * first / (1 - second)
        chosen = (found[:, pair[0]] > 0) & (found[:, pair[1]] > 0)
        error = (expected * (1 - expected) / count) ** 0.5
        assert float(chosen.double().mean()) == pytest.approx(expected, abs=4.5 * error)
        ratio = found[chosen][:, pair[0]] / found[chosen][:, pair[1]]
        torch.testing.assert_close(ratio, torch.full_like(ratio, first / second))


def test_impossible_site_is_never_drawn():
    noise = gumbel(even(2000, seed=1))
    found = weights_of("sample-2", [POSTERIOR[3]] * 2000, noise=noise)
    assert torch.equal(found[:, 2], torch.ones(2000, dtype=torch.float64))


def test_draws_of_gumbel_noise_are_finite_at_the_ends():
    ends = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    assert bool(gumbel(ends).isfinite().all())


def test_drawing_without_draws_is_refused():
    with pytest.raises(ValueError, match="needs noise to draw sites by"):
        weights_of("sample-2")


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("name", ["full", "top-2", "threshold-0.05"])
def test_temperature_takes_the_posterior_to_its_power_before_the_strategy_chooses(
    name, temperature
):
    powered = torch.tensor(POSTERIOR, dtype=torch.float64) ** (1 / temperature)
    powered = powered / powered.sum(1, keepdim=True)
    found = weights_of(name, temperature=temperature)
    torch.testing.assert_close(found, weights_of(name, powered.tolist()))
    assert not torch.allclose(found, weights_of(name))


def sampled(name, rows=POSTERIOR, count=400, **more):
    options = SamplingOptions(
        Strategy.parse(name), **({"steps": 4, "solver": "euler", "seed": 3} | more)
    )
    return sample(ensemble_of(rows[:1]), (1, 2, 2), count, options, bound=100.0)


def test_sample_1_answers_as_often_as_the_posterior_says():
    """Expert k says k: an image ends lower than its noise by the mean of those that answered."""
    noise = sampled("full", [[1.0, 0.0, 0.0, 0.0]], count=2000).images
    fallen = (noise - sampled("sample-1", count=2000).images).mean((1, 2, 3))
    mean = sum(site * p for site, p in enumerate(POSTERIOR[0]))
    spread = sum(site**2 * p for site, p in enumerate(POSTERIOR[0])) - mean**2
    assert float(fallen.mean()) == pytest.approx(mean, abs=4.5 * (spread / 8000) ** 0.5)
    assert float(fallen.var()) == pytest.approx(spread / 4, rel=0.2)  # four draws, not one


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize(("batch_size", "in_flight"), [(1, 1024), (7, 23)])
def test_drawn_several_are_the_same_whatever_the_batch_size(solver, batch_size, in_flight):
    first = sampled("sample-2", count=30, solver=solver)
    again = sampled("sample-2", count=30, solver=solver, batch_size=batch_size, in_flight=in_flight)
    torch.testing.assert_close(first.images, again.images, rtol=0, atol=1e-5)
    assert first.sites is None


def test_temperature_decides_how_often_drawn_sites_change():
    cold = sampled("per-step", temperature=0.1).sites
    warm = sampled("per-step", temperature=10.0).sites
    assert (cold == 0).double().mean() > 0.99  # the most probable one
    assert torch.bincount(warm, minlength=SITES).min() > 60  # a quarter each


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        SamplingOptions(
            Strategy.parse("full"), steps=1, solver="euler", seed=0, temperature=temperature
        )


def test_temperature_of_a_strategy_that_asks_no_router_is_refused():
    from ddm_fed.ensemble.sample_options import Content, SampleOptions, require_fit
    from ddm_fed.records import DataSpec

    options = SamplingOptions(
        Strategy.parse("sticky"), steps=1, solver="euler", seed=0, temperature=2.0
    )
    ensemble = Ensemble([constant(1.0)] * 2, PriorRouter(torch.ones(2, 1)))
    content = Content(DataSpec(channels=1, height=4, width=4), None)
    with pytest.raises(OptionError, match="--router-temperature 2: strategy sticky asks no router"):
        require_fit(ensemble, content, SampleOptions(1, options))

"""Which sites a sample came from: the router's posterior along its way, averaged over time."""

import json
import math

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from coordinator.cli.main import app
from ddm_fed.ensemble.sampling import SamplingOptions, sample
from ddm_fed.ensemble.strategy import Strategy
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.errors import OptionError
from ddm_fed.router import PriorRouter

SHAPE = (1, 2, 2)
MEANS = (-0.8, 0.7)
SHARES = torch.tensor([0.7, 0.3], dtype=torch.float64)
STD = 0.15


class Gaussian:
    """The exact velocity of images whose pixels are independent N(mean, STD^2)."""

    def __init__(self, mean):
        self.mean = mean

    def __call__(self, x, t, condition=None):
        t = t.reshape(-1, 1, 1, 1)
        variance = (1 - t) ** 2 * STD**2 + t**2
        off = x - (1 - t) * self.mean
        x_0 = self.mean + (1 - t) * STD**2 / variance * off
        eps = t / variance * off
        return eps - x_0


class Bayes:
    """The exact posterior, which remembers what it was asked."""

    reads_state = True

    def __init__(self):
        self.asked = []

    def log_prior(self, condition):
        return SHARES.log()

    def log_posterior(self, x_t, t, condition):
        self.asked.append((x_t.clone(), t.clone()))
        logs = []
        for k, mean in enumerate(MEANS):
            variance = ((1 - t) ** 2 * STD**2 + t**2)[:, None]
            off = x_t.flatten(1) - (1 - t)[:, None] * mean
            density = -0.5 * (off**2 / variance + (2 * math.pi * variance).log()).sum(1)
            logs.append(density + SHARES[k].log())
        return torch.stack(logs, 1).double().log_softmax(1)


def options(strategy="full", **changed):
    return SamplingOptions(Strategy.parse(strategy), 12, "euler", 3, **changed)


def drawn(strategy="full", count=40, router=None, **changed):
    ensemble = Ensemble([Gaussian(mean) for mean in MEANS], router or Bayes())
    return sample(ensemble, SHAPE, count, options(strategy, attribution=True, **changed))


STRATEGIES = ["full", "sticky", "sticky-then-routed", "per-step", "top-1"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_attribution_goes_to_the_site_the_image_is_of(strategy):
    found = drawn(strategy)
    assert found.attribution.shape == (40, 2)
    torch.testing.assert_close(found.attribution.sum(1), torch.ones(40))
    side = (found.images.mean((1, 2, 3)) > 0).long()
    assert (found.attribution.argmax(1) == side).float().mean() > 0.9
    own = found.attribution[torch.arange(40), side]
    assert own.mean() > 0.75


def test_attribution_is_the_posterior_integrated_along_the_trajectory():
    found = drawn("full", count=5)
    router, x = Bayes(), None
    times = torch.linspace(1, 0, 13)
    expected = torch.zeros(5, 2, dtype=torch.float64)
    recorder = Bayes()
    sample(Ensemble([Gaussian(mean) for mean in MEANS], recorder), SHAPE, 5, options("full"))
    assert len(recorder.asked) == 12  # once a step: these are the states of the trajectory
    for step, (x, t) in enumerate(recorder.asked):
        assert float(t[0]) == pytest.approx(float(times[step]), abs=1e-6)
        expected += float(times[step] - times[step + 1]) * router.log_posterior(x, t, None).exp()
    torch.testing.assert_close(found.attribution.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_images_are_the_same_with_and_without_attribution(strategy):
    ensemble = Ensemble([Gaussian(mean) for mean in MEANS], Bayes())
    plain = sample(ensemble, SHAPE, 20, options(strategy))
    assert plain.attribution is None
    assert torch.equal(plain.images, drawn(strategy, count=20).images)


@pytest.mark.parametrize("strategy", ["full", "sticky-then-routed"])
def test_attribution_does_not_depend_on_batches_or_chunks(strategy):
    whole = drawn(strategy)
    parts = drawn(strategy, batch_size=3, in_flight=7)
    torch.testing.assert_close(whole.attribution, parts.attribution, rtol=0, atol=1e-5)


def test_router_that_looks_at_no_image_can_attribute_none():
    with pytest.raises(ValueError, match="cannot say which sites"):
        drawn("sticky", router=PriorRouter(SHARES[:, None]))


def run(*arguments):
    return CliRunner().invoke(app, [str(word) for word in arguments])


def test_command_writes_parts_of_every_sample_and_a_table(stages, scratch):
    out = scratch / "drawn"
    done = run(
        *("sample", stages.ensemble, "--root", stages.admitted.root, "--out", out, "--count", 6),
        *("--steps", 3, "--no-png", "--attribution", "--in-flight", 4),
    )
    assert done.exit_code == 0, done.output
    with np.load(out / "samples.npz") as archive:
        parts = archive["attribution"]
    assert parts.shape == (6, 3)
    np.testing.assert_allclose(parts.sum(1), 1, atol=1e-5)
    summary = json.loads((out / "samples.json").read_text())["attribution"]
    assert list(summary) == ["hospital-a", "hospital-b", "hospital-c"]
    for column, site in enumerate(summary.values()):
        assert site["mean_part"] == pytest.approx(parts[:, column].mean(), abs=1e-6)
        assert site["largest_in"] == (parts.argmax(1) == column).sum()
    assert "Which sites the 6 samples came from" in done.output


def test_command_refuses_attribution_by_a_router_that_looks_at_no_image(stages, scratch):
    done = run(
        *("sample", stages.ensemble, "--root", stages.admitted.root, "--out", scratch / "drawn"),
        *("--router", "prior", "--attribution"),
    )
    assert isinstance(done.exception, OptionError)
    assert "looks at no image" in done.exception.message

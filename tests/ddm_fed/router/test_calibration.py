"""Calibration of posteriors, against routers whose miscalibration is known."""

import math

import pytest
import torch

from ddm_fed.router import (
    CalibratedRouter,
    Calibration,
    HybridRouter,
    PriorRouter,
    calibrated_hybrid,
    fit_calibration,
    knots_about,
    posterior_quality,
)
from ddm_fed.router.calibration import calibration_error

SHAPE = (1, 2, 2)
MEANS = torch.tensor([-0.5, 0.1, 0.6])
SHARES = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
STD = 0.3


def generator(seed):
    return torch.Generator().manual_seed(seed)


class Exact:
    """Pixels of site k are independent N(MEANS[k], STD^2); the posterior is exact, then bent."""

    reads_state = True

    def __init__(self, temperature=1.0, bias=(0.0, 0.0, 0.0)):
        self.temperature, self.bias = temperature, torch.tensor(bias, dtype=torch.float64)

    def log_prior(self, condition):
        return SHARES.log()

    def log_posterior(self, x_t, t, condition):
        t = t.double()[:, None, None]
        variance = (1 - t) ** 2 * STD**2 + t**2
        off = x_t.flatten(1).double()[:, None] - (1 - t) * MEANS.double()[None, :, None]
        logs = (-0.5 * off**2 / variance).sum(2) + SHARES.log()
        return ((logs.log_softmax(1) - self.bias) * self.temperature).log_softmax(1)


def draws(count, seed=0):
    g = generator(seed)
    sites = torch.multinomial(SHARES, count, replacement=True, generator=g)
    noise = torch.randn((count, *SHAPE), generator=g)
    return MEANS[sites].reshape(-1, 1, 1, 1) + STD * noise, sites


def test_overconfident_router_gets_its_true_temperature_and_bias_back():
    images, sites = draws(6000)
    bent = Exact(temperature=5.0, bias=(0.5, -0.5, 0.0))
    times = (0.1, 0.4, 0.7)
    found = fit_calibration(bent, images, sites, None, generator(1), times=times)
    # bent = 5 (l - b) up to a constant of the row, so temperature 5 and bias b undo it
    assert found.log_temperature.exp().tolist() == pytest.approx([5.0] * 3, rel=0.15)
    for bias in found.bias[:2]:
        torch.testing.assert_close(
            bias - bias.mean(), torch.tensor([0.5, -0.5, 0.0]).double(), rtol=0, atol=0.2
        )
    judged, truth = draws(4000, seed=2)
    before = posterior_quality(bent, judged, truth, None, times, generator(3))
    after = posterior_quality(
        CalibratedRouter(bent, found), judged, truth, None, times, generator(3)
    )
    oracle = posterior_quality(Exact(), judged, truth, None, times, generator(3))
    for a, b, c in zip(before, after, oracle, strict=True):
        assert a.nll > b.nll + 0.05
        assert a.ece > 2 * b.ece
        assert b.nll == pytest.approx(c.nll, abs=0.01)
        assert b.ece < 0.03


def test_calibrated_router_is_left_as_it_is_up_to_sampling_error():
    images, sites = draws(40_000)
    found = fit_calibration(Exact(), images, sites, None, generator(1), times=(0.2, 0.6))
    assert found.log_temperature.abs().max() < 0.1
    assert found.bias.abs().max() < 0.15


def test_calibration_between_and_beyond_knots_is_interpolated():
    bias = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
    logs = torch.tensor([0.0, math.log(4)], dtype=torch.float64)
    knots = torch.tensor([0.2, 0.6], dtype=torch.float64)
    router, exact = CalibratedRouter(Exact(), Calibration(knots, logs, bias)), Exact()
    images, _ = draws(5)
    t = torch.tensor([0.0, 0.2, 0.4, 0.6, 1.0])
    plain = exact.log_posterior(images, t, None)
    shares = [0.0, 0.0, 0.5, 1.0, 1.0]
    for row, share in enumerate(shares):
        expected = (plain[row] / 4**share + share * bias[1]).log_softmax(0)
        torch.testing.assert_close(
            router.log_posterior(images, t, None)[row], expected, rtol=0, atol=1e-6
        )


def test_calibration_keeps_shares_and_what_the_router_reads():
    knots = torch.tensor([0.1, 0.9], dtype=torch.float64)
    calibration = Calibration(knots, torch.zeros(2).double(), torch.zeros(2, 3).double())
    router = CalibratedRouter(Exact(), calibration)
    assert router.reads_state
    assert torch.equal(router.log_prior(None), SHARES.log())
    assert not CalibratedRouter(PriorRouter(SHARES[:, None]), calibration).reads_state


def test_calibration_error_is_that_of_a_plain_loop_over_bins():
    g = generator(7)
    confidence = torch.rand(500, generator=g, dtype=torch.float64)
    right = (torch.rand(500, generator=g) < 0.6).double()
    expected = 0.0
    for index in range(15):
        low, high = index / 15, (index + 1) / 15
        rows = [i for i in range(500) if low < float(confidence[i]) <= high]
        if rows:
            mean_right = sum(float(right[i]) for i in rows) / len(rows)
            mean_confidence = sum(float(confidence[i]) for i in rows) / len(rows)
            expected += len(rows) / 500 * abs(mean_right - mean_confidence)
    assert calibration_error(confidence, right) == pytest.approx(expected, abs=1e-12)


def test_site_that_a_router_holds_impossible_does_not_spoil_the_fit():
    class Blind(Exact):
        def log_posterior(self, x_t, t, condition):
            scores = super().log_posterior(x_t, t, condition)
            scores[:, 2] = -torch.inf
            return scores.log_softmax(1)

    images, sites = draws(300)
    found = fit_calibration(Blind(), images, sites, None, generator(1), times=(0.2, 0.6))
    assert all(torch.isfinite(part).all() for part in found)


@pytest.mark.parametrize(("times", "count"), [((0.5,), 10), ((0.2, 0.6), 1)])
def test_too_little_to_calibrate_with_is_refused(times, count):
    images, sites = draws(count)
    with pytest.raises(ValueError, match="at least two knots and two images"):
        fit_calibration(Exact(), images, sites, None, generator(0), times=times)


@pytest.mark.slow
@pytest.mark.parametrize("switch", [0.03, 0.35, 0.7, 0.98])
def test_hybrid_is_calibrated_on_both_sides_of_its_switch(switch):
    images, sites = draws(6000)
    high, low = Exact(temperature=0.25), Exact(temperature=6.0, bias=(0.4, -0.4, 0.0))
    knots = knots_about(switch)
    fitted = fit_calibration(
        HybridRouter(high, low, switch), images, sites, None, generator(1), times=knots
    )
    router = calibrated_hybrid(high, low, switch, fitted)
    judged, truth = draws(4000, seed=2)
    # beside the switch, where one calibration of the whole would mix both temperatures
    times = (0.95 * switch, 0.985 * switch, 0.999 * switch, switch, 1.01 * switch)
    found = posterior_quality(router, judged, truth, None, times, generator(3))
    exact = posterior_quality(Exact(), judged, truth, None, times, generator(3))
    for ours, oracle in zip(found, exact, strict=True):
        assert ours.nll == pytest.approx(oracle.nll, abs=0.015), ours.t


def test_knots_of_a_hybrid_lie_on_both_sides_of_its_switch():
    assert knots_about(None, (0.1, 0.9)) == (0.1, 0.9)
    assert knots_about(0.7, (0.1, 0.7, 0.9)) == (0.1, 0.693, 0.7, 0.9)


def test_fit_that_ended_in_no_number_keeps_the_posterior(monkeypatch):
    """A line search may leave the range of numbers; a router of such values could not be read."""
    broken = torch.full((), torch.nan, dtype=torch.float64)
    monkeypatch.setattr(
        "ddm_fed.router.calibration._fit",
        lambda scores, _: (broken, broken.expand(scores.shape[1])),
    )
    generator = torch.Generator().manual_seed(0)
    images, sites = torch.randn((12, 1, 4, 4), generator=generator), torch.arange(12) % 3
    prior = PriorRouter(torch.ones(3, 1))
    found = fit_calibration(prior, images, sites, None, generator)
    assert not found.log_temperature.any()
    assert not found.bias.any()

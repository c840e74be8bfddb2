"""What a router that sees only P x_t does to images whose sites differ elsewhere.

Two sites are alike in the coefficient that the router sees and differ in the one that it does not:
N(+-APART, WITHIN^2) there. Experts and router are exact, each for what it sees. The truth is the
mixture's own deviation.
"""

import math

import pytest
import torch

from ddm_fed.ensemble.sampling import SamplingOptions, sample
from ddm_fed.ensemble.strategy import DEFAULT_STRATEGY, Strategy
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.mixture import GaussianMixtures
from ddm_fed.router import MixtureRouter

APART, WITHIN = 0.4, 0.05
TRUTH = math.hypot(APART, WITHIN)
SHAPE = (1, 1, 2)
BOTH = torch.eye(2, dtype=torch.float64)
LOW = BOTH[:1]
COUNT = 1500


class Gaussian:
    """The exact velocity of images N(0, WITHIN^2), N(mean, WITHIN^2) in their two pixels."""

    def __init__(self, mean):
        self.mean = torch.tensor([0.0, mean]).reshape(SHAPE)

    def __call__(self, x, t, condition=None):
        t = t.reshape(-1, 1, 1, 1)
        slope = (t - (1 - t) * WITHIN**2) / ((1 - t) ** 2 * WITHIN**2 + t**2)
        return -self.mean + slope * (x - (1 - t) * self.mean)


def two_sites(basis):
    """The exact experts under the exact router of P x_t, P the rows of `basis`."""
    seen = len(basis)
    means = torch.zeros(2, 1, seen, dtype=torch.float64)
    if seen == 2:
        means[:, 0, 1] = torch.tensor([-APART, APART])
    fitted = GaussianMixtures(
        weights=torch.ones(2, 1, dtype=torch.float64),
        means=means,
        variances=torch.full((2, 1, seen), WITHIN**2, dtype=torch.float64),
        axes=torch.eye(seen, dtype=torch.float64).expand(2, 1, -1, -1),
    )
    router = MixtureRouter(fitted, basis, centre=0.0, cells_are_classes=False)
    return Ensemble([Gaussian(-APART), Gaussian(APART)], router)


def deviation(strategy, basis):
    options = SamplingOptions(strategy, steps=30, solver="heun", seed=0, batch_size=COUNT)
    images = sample(two_sites(basis), SHAPE, COUNT, options).images
    return float(images[:, 0, 0, 1].std())


def test_default_strategy_keeps_what_the_router_cannot_see():
    # the standard error of the deviation is below 1 % of it
    assert deviation(DEFAULT_STRATEGY, LOW) == pytest.approx(TRUTH, rel=0.04)


@pytest.mark.parametrize(
    ("name", "most"), [("sticky-then-routed", 0.7), ("per-step", 0.7), ("full", 0.2)]
)
def test_strategy_that_asks_a_blind_router_loses_what_it_cannot_see(name, most):
    assert deviation(Strategy.parse(name), LOW) < most * TRUTH


@pytest.mark.parametrize("name", ["sticky", "sticky-then-routed", "per-step", "full"])
def test_every_exact_strategy_keeps_all_under_a_router_that_sees_all(name):
    assert deviation(Strategy.parse(name), BOTH) == pytest.approx(TRUTH, rel=0.04)

"""Guidance and the shares of sites, with exact experts and an exact router that sees everything.

Two sites hold as many images of class 0, at +-APART: the intended shares of class 0 are equal. The
left site also holds nine times as many images of class 1, farther to the left. So the images of no
class lie to the left, and guidance, away from them, favours the right site where the router is
asked.
"""

import pytest
import torch

from ddm_fed.ensemble.sampling import SamplingOptions, sample
from ddm_fed.ensemble.strategy import Strategy
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.flows import ClassCondition
from ddm_fed.mixture import GaussianMixtures
from ddm_fed.router import MixtureRouter

APART, OTHER, WITHIN = 0.3, -0.5, 0.1
MASSES = torch.tensor([[1.0, 9.0], [1.0, 0.0]], dtype=torch.float64)
MEANS = torch.tensor([[-APART, OTHER], [APART, 0.0]], dtype=torch.float64)
COUNT = 1500


class Site:
    """The exact velocity of one site's images of one pixel, of a class or of any."""

    def __init__(self, masses, means):
        self.masses, self.means = masses, means

    def __call__(self, x, t, condition=None):
        x, t = x.flatten().double()[:, None], t.double()[:, None]
        variance = (1 - t) ** 2 * WITHIN**2 + t**2
        off = x - (1 - t) * self.means  # (B, G)
        slope = (t - (1 - t) * WITHIN**2) / variance
        each = -self.means + slope * off
        if condition is None:
            logs = self.masses.log() - off**2 / variance / 2
            v = (logs.softmax(1) * each).sum(1)
        else:
            v = each[torch.arange(len(x)), condition.labels]
        return v.float().reshape(-1, 1, 1, 1)


def two_sites():
    fitted = GaussianMixtures(
        weights=MASSES,
        means=MEANS[..., None],
        variances=torch.full((2, 2, 1), WITHIN**2, dtype=torch.float64),
        axes=torch.ones(2, 1, 1, 1, dtype=torch.float64),
    )
    basis = torch.ones(1, 1, dtype=torch.float64)
    router = MixtureRouter(fitted, basis, centre=0.0, cells_are_classes=True)
    return Ensemble([Site(*each) for each in zip(MASSES, MEANS, strict=True)], router)


def shares(strategy, guidance):
    """Share of the right site, as its images tell, and as it was drawn."""
    options = SamplingOptions(Strategy.parse(strategy), 40, "heun", 0, guidance, batch_size=COUNT)
    asked = ClassCondition(torch.zeros(COUNT, dtype=torch.int64))
    found = sample(two_sites(), (1, 1, 1), COUNT, options, condition=asked)
    drawn = None if found.sites is None else float(found.sites.double().mean())
    return float((found.images > 0).double().mean()), drawn


@pytest.mark.parametrize("strategy", ["sticky", "sticky-then-routed", "full"])
def test_shares_are_as_intended_without_guidance(strategy):
    assert shares(strategy, 1.0)[0] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("guidance", [2.0, 4.0])
def test_sites_drawn_by_sticky_have_their_shares_under_guidance(guidance):
    assert shares("sticky", guidance)[1] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("strategy", "guidance", "least"),
    [
        ("sticky-then-routed", 2.0, 0.57),
        ("sticky-then-routed", 4.0, 0.8),
        ("full", 2.0, 0.8),
        ("full", 4.0, 0.9),
    ],
)
def test_strategies_that_ask_the_router_favour_a_site_under_guidance(strategy, guidance, least):
    assert shares(strategy, guidance)[0] > least

"""The most one site may weigh holds for every router that is made of releases."""

import pytest
import torch

from ddm_fed.mixture import ROUTER_PURPOSES, SiteRelease, release_statistics
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import Plan, read_plan_toml
from ddm_fed.router import build_router

MIXTURE = 'kind = "mixture", epsilon = 8, frequencies = 4, radius = 3'
ROUTERS = {
    "prior": 'kind = "prior", epsilon = 8',
    "mixture": MIXTURE,
    "mixture-low-rank": f'{MIXTURE}, covariance = "low-rank", rank = 2',
    "mixture-of-components": f"{MIXTURE}, components = 2",
}


def a_plan(router: str, classes: str) -> Plan:
    return read_plan_toml(f"""
        federation = "test"
        expires_at = 2036-01-01T00:00:00Z
        data = {{ channels = 1, height = 8, width = 8{classes} }}
        expert = {{ architecture = "DiT-Nano/2" }}
        training = {{ steps = 1, batch_size = 1 }}
        router = {{ {router} }}
        privacy = {{ max_epsilon = 9 }}
    """)


def release_of(plan: Plan, count: int, seed: int) -> SiteRelease:
    pixels = torch.rand((count, 1, 8, 8), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    images = ImageSet(pixels, torch.arange(count) % 2 if plan.data.classes else None)
    names = {purpose: name for name, purpose in ROUTER_PURPOSES.items()}
    multipliers: dict[str, float] = {}

    def spend(purpose, _, event):
        multipliers[names[purpose]] = float(event.noise_multiplier)

    found = release_statistics(Private(images), plan, spend)
    return SiteRelease({name: item.value for name, item in found.items()}, multipliers)


@pytest.mark.parametrize("classes", ["", ', conditioning = "class", classes = ["a", "b"]'])
@pytest.mark.parametrize("kind", ROUTERS)
def test_large_site_weighs_no_more_than_the_plan_lets_it(kind: str, classes: str):
    free, most = (a_plan(ROUTERS[kind] + more, classes) for more in ("", ', max_share = "0.4"'))
    releases = [release_of(free, count, seed) for seed, count in enumerate((3000, 400, 400))]
    name = "prior" if kind == "prior" else "mixture"
    assert float(build_router(free, name, releases).log_prior(None).exp()[0]) > 0.7
    shares = build_router(most, name, releases).log_prior(None).exp()
    assert float(shares[0]) == pytest.approx(0.4)
    assert float(shares.sum()) == pytest.approx(1)

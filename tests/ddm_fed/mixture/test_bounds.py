"""What clipping and noise allow a release to hold: honest ones pass, every kind of lie does not."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ddm_fed.errors import ValuesError
from ddm_fed.mixture import (
    capped,
    message_named,
    messages,
    release_statistics,
    require_plausible,
)
from ddm_fed.mixture.bounds import FALSE_ALARM, MOST_UNITS, _Noise
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import read_plan_toml


def make_plan(router, *, classes=(), unit="image"):
    names = ", ".join(f'"{name}"' for name in classes)
    conditioning = f', conditioning = "class", classes = [{names}]' if classes else ""
    return read_plan_toml(f"""
        federation = "test"
        expires_at = 2036-01-01T00:00:00Z
        data = {{ channels = 1, height = 8, width = 8{conditioning} }}
        expert = {{ architecture = "DiT-Nano/2" }}
        training = {{ steps = 1, batch_size = 1 }}
        router = {{ {router} }}
        privacy = {{ max_epsilon = 8, unit = "{unit}" }}
    """)


MIXTURE = 'kind = "mixture", epsilon = 4, frequencies = 6, radius = 3'
OWN = 'kind = "mixture", epsilon = 4, frequencies = 6'
PLANS = {
    "prior": make_plan('kind = "prior", epsilon = 4'),
    "prior-classes": make_plan('kind = "prior", epsilon = 4', classes=("a", "b")),
    "mixture": make_plan(MIXTURE),
    "mixture-classes": make_plan(MIXTURE, classes=("a", "b")),
    "diagonal": make_plan(MIXTURE + ', covariance = "diagonal"'),
    "patients": make_plan(MIXTURE, unit="patient"),
    "far-centre": make_plan(MIXTURE + ", centre = -1"),
    "own": make_plan(MIXTURE + ", components = 1"),
    "own-classes": make_plan(f"{OWN}, components = 1, bands = 3", classes=("a", "b")),
    "components": make_plan(MIXTURE + ", components = 4"),
    "components-classes": make_plan(f"{OWN}, components = 4, bands = 3", classes=("a", "b")),
    "components-patients": make_plan(f"{OWN}, components = 4, bands = 2", unit="patient"),
}


def images(plan, count: int, seed: int, kind: str = "noise") -> Private[ImageSet]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand((count, 1, 8, 8), generator=generator) * 2 - 1
    if kind == "extreme":  # as long as an image can be, all in one direction
        pixels = torch.ones_like(pixels)
    labels = torch.arange(count) % 2 if plan.data.classes else None
    units = torch.arange(count) // 3 if plan.privacy.unit == "patient" else None
    return Private(ImageSet(pixels, labels, units=units))


def released(plan, count: int = 600, seed: int = 0, kind: str = "noise"):
    found = release_statistics(images(plan, count, seed, kind), plan, lambda *_: None)
    return {name: item.value for name, item in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["noise", "extreme"])
@pytest.mark.parametrize("count", [1, 30, 1000])
@pytest.mark.parametrize("name", PLANS)
def test_honest_release_passes(name, count, kind):
    plan = PLANS[name]
    for seed in range(3):
        require_plausible(plan, released(plan, count, seed, kind), what="it")


# plan; changes: message, first and last integer, part, units added to each; the refusal
L, S = 0, 1
LIES = {
    "count-negative": ("mixture", [(L, 0, 1, "count", -1500)], "its count is"),
    "more-than-any-site-has": (
        "prior",
        [(L, 0, 1, "count", 2 * MOST_UNITS)],
        "one of its integers|its count of images",
    ),
    "cell-negative": (
        "prior-classes",
        [(L, 1, 2, "cell_count", -900), (L, 2, 3, "cell_count", 900)],
        "the count of a cell",
    ),
    "cells-are-not-the-count": (
        "prior-classes",
        [(L, 1, 2, "cell_count", 900)],
        "less those of its cells",
    ),
    "sum-beyond-the-radius": ("mixture", [(L, 1, 2, "cell_sum", 4500)], "the sum of cell 0"),
    "sum-of-one-class": ("mixture-classes", [(L, 3, 4, "cell_sum", 4500)], "the sum of cell 0"),
    "trace-beyond-the-radius": ("mixture", [(S, 0, 1, "trace", 13500)], "its trace"),
    "trace-negative": ("mixture", [(S, 0, 1, "trace", -13500)], "its trace"),
    "square-negative": ("mixture", [(S, 1, 2, "sign", -900)], "a square of its directions"),
    "directions-of-more": ("mixture", [(S, 1, 2, "sign", 900)], "directions add up to"),
    "directions-of-fewer": ("diagonal", [(L, 0, 1, "count", 1500)], "directions add up to"),
    "of-fewer-patients": ("patients", [(L, 0, 1, "count", 1500)], "directions add up to"),
    "impossible-correlations": ("mixture", [(S, 2, 6, "sign", 900)], "the norm of its directions"),
}


@pytest.mark.parametrize("lie", LIES)
def test_every_kind_of_lie_is_refused_by_its_part(lie):
    name, changes, match = LIES[lie]
    plan = PLANS[name]
    vectors = released(plan)
    for message, start, stop, part, units in changes:
        of = messages(plan)[message]
        weight = next(item.weight for item in of.parts if item.name == part)
        vectors[of.name][start:stop] += int(units * weight)
    with pytest.raises(ValuesError, match=match):
        require_plausible(plan, vectors, what="it")


# plan; changes: message, part, place in the part, units added; the refusal. 300 units of each class
OWN_LIES = {
    "bin-negative": (
        "own-classes",
        [("norms", "norm_count", 2, -900), ("norms", "norm_count", 3, 900)],
        "a bin of its norms",
    ),
    "norms-of-more": ("own-classes", [("norms", "norm_count", 12, 900)], "count of its norms"),
    "norms-of-fewer": (
        "own-classes",
        [("norms", "norm_count", slice(None), -100)],
        "a bin of its norms|count of its norms",
    ),
    "count-without-norms": (
        "components-patients",
        [("location", "count", 0, 1500)],
        "count of its norms",
    ),
    "sum-of-a-cell": ("own-classes", [("location", "cell_sum", 7, 900)], "the sum of cell 1"),
    "trace-of-a-cell": ("own-classes", [("shape", "trace", 1, 900)], "its trace of cell 1"),
    "trace-of-a-cell-negative": ("own", [("shape", "trace", 0, -1500)], "its trace of cell 0"),
    "directions-of-a-cell": (
        "own-classes",
        [("shape", "sign", 21, 900)],
        "directions of cell 1 add up to",
    ),
    "band-negative": ("own-classes", [("shape", "band", 3, -1500)], "of a band of cell 1"),
    "bands-beyond-the-radius": (
        "own-classes",
        [("shape", "band", slice(3, 6), 1500)],
        "the energy of its bands of cell 1",
    ),
    "component-negative": (
        "components",
        [
            ("component_location", "component_count", 0, -1200),
            ("component_location", "component_count", 1, 1200),
        ],
        "the count of a component",
    ),
    "component-too-heavy": (
        "components-classes",
        [("component_location", "component_count", 5, 900)],
        "the count of the components of cell 1",
    ),
    "components-of-fewer-than-their-cell": (
        "components",
        [
            ("location", "count", 0, 900),
            # the shape of a larger site, which this one then says it is
            ("shape", "sign", 0, 900),
        ],
        "the count of the components of cell 0",
    ),
    "sum-of-a-component": (
        "components-classes",
        [("component_location", "component_sum", 7 * 6 + 1, 900)],
        "the sum of component 7",
    ),
    "trace-of-a-component": (
        "components",
        [("component_shape", "trace", 2, 1500)],
        "its trace of component 2",
    ),
    "square-of-a-component-negative": (
        "components",
        [("component_shape", "sign", 21, -900)],
        "a square of its directions of component 1",
    ),
    "directions-of-a-component": (
        "components-classes",
        [("component_shape", "sign", 21 * 4, 900)],
        "directions of component 4 add up to",
    ),
    "impossible-correlations-of-a-component": (
        "components",
        [("component_shape", "sign", slice(21 * 3 + 1, 21 * 3 + 6), 900)],
        "the norm of its directions of component 3",
    ),
}


@pytest.mark.parametrize("lie", OWN_LIES)
def test_every_lie_about_covariances_of_their_own_is_refused_by_its_part(lie):
    name, changes, match = OWN_LIES[lie]
    plan = PLANS[name]
    vectors = released(plan)
    require_plausible(plan, vectors, what="it")
    for key, part, place, units in changes:
        start = 0
        for item in message_named(plan, key).parts:
            if item.name == part:
                vectors[key][start : start + item.size][place] += int(units * item.weight)
            start += item.size
    with pytest.raises(ValuesError, match=match):
        require_plausible(plan, vectors, what="it")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own-classes", "components", "components-classes"])
def test_every_message_of_a_release_multiplied_by_itself_is_refused(name):
    plan = PLANS[name]
    honest = released(plan, 1000)
    for key in honest:
        vectors = honest | {key: honest[key] * 100}
        with pytest.raises(ValuesError, match="it is refused"):
            require_plausible(plan, vectors, what="it")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own-classes", "components-classes"])
def test_message_of_another_site_of_ten_times_the_size_is_refused(name):
    plan = PLANS[name]
    small, large = released(plan, 300), released(plan, 3000)
    for key in small:
        vectors = small | {key: large[key]}
        with pytest.raises(ValuesError, match="it is refused"):
            require_plausible(plan, vectors, what="it")


@pytest.mark.parametrize(
    "name", ["mixture", "mixture-classes", "diagonal", "own-classes", "components"]
)
def test_release_times_a_million_is_refused(name):
    plan = PLANS[name]
    for seed in range(10):
        vectors = {key: item * 10**6 for key, item in released(plan, 100, seed).items()}
        with pytest.raises(ValuesError):
            require_plausible(plan, vectors, what="it")


@pytest.mark.parametrize("count", [1, 10, 1000])
@pytest.mark.parametrize("x", [5.0, 25.0])
def test_bounds_of_the_noise_hold_with_the_stated_chance(x, count):
    """The exact tails of a normal and of chi squared, which a discrete Gaussian's do not exceed."""
    noise = _Noise(1.0, x)
    assert stats.norm.sf(noise.one) <= math.exp(-x)
    assert stats.norm.sf(noise.sum_of(count) / math.sqrt(count)) <= math.exp(-x)
    assert stats.chi2.sf(noise.norm_of(count) ** 2, count) <= math.exp(-x)
    assert FALSE_ALARM == 1e-9


def test_cap_scales_one_site_and_keeps_the_proportions_of_the_others():
    plan = make_plan(MIXTURE + ', max_share = "0.5"')
    weights = torch.tensor([[900.0, 100.0], [30.0, 10.0], [0.0, 20.0]], dtype=torch.float64)
    found = capped(plan, weights)
    shares = found.sum(1) / found.sum()
    assert shares.tolist() == pytest.approx([0.5, 1 / 3, 1 / 6])
    assert (found[0] / found[0].sum()).tolist() == pytest.approx([0.9, 0.1])
    assert torch.equal(found[1:], weights[1:])


@pytest.mark.parametrize(
    ("masses", "shares"),
    [
        ([1000, 900, 1, 1], [0.4, 0.4, 0.1, 0.1]),  # two at the cap
        ([5, 1], [0.5, 0.5]),  # too few sites for the cap
        ([0, 0, 3], [0, 0, 1]),  # nobody else has anything
        ([1, 1, 1], [1 / 3] * 3),  # nobody exceeds it
    ],
)
def test_cap_with_any_number_of_large_sites_is_kept_where_it_can_be(masses, shares):
    plan = make_plan(MIXTURE + ', max_share = "0.4"')
    found = capped(plan, torch.tensor(masses, dtype=torch.float64)[:, None])[:, 0]
    assert (found / found.sum()).tolist() == pytest.approx(shares)


def test_plan_without_a_cap_changes_no_weight():
    weights = torch.tensor([[1e9, 0.0], [1.0, 2.0]], dtype=torch.float64)
    assert capped(PLANS["mixture"], weights) is weights


def test_plan_without_a_cap_keeps_the_digest_it_had_before_there_was_one():
    assert b"max_share" not in PLANS["mixture"].to_json()
    assert b'"max_share":"0.5"' in make_plan(MIXTURE + ', max_share = "0.5"').to_json()
    assert np.isfinite(float(PLANS["mixture"].router.max_share))

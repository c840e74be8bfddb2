"""Releases with a covariance per Gaussian: no unit moves a message further than its sensitivity.

Whatever was released before: the vectors of the messages that a message is about are anything here,
since noise made them.
"""

import math

import numpy as np
import pytest
import torch
from adversarial import KINDS, data_of, make_image, squared_norm
from hypothesis import given, settings
from hypothesis import strategies as st

from ddm_fed.embedding import dct_basis
from ddm_fed.mixture import exact_statistics, message_named, messages, router_events, statistics
from ddm_fed.mixture.coefficients import read_images
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import read_plan_toml

CLASSES = ', conditioning = "class", classes = ["cat", "dog", "fox"]'
ANCHORS = ", anchors = [[-1.5, 0.0], [1.5, 0.0], [0.0, 2.0]]"
GREY, COLOUR = "channels = 1, height = 4, width = 4", "channels = 3, height = 4, width = 6"


def make_plan(router, *, data=GREY, unit="image", f=6):
    return read_plan_toml(f"""
        federation = "test"
        expires_at = 2036-01-01T00:00:00Z
        data = {{ {data} }}
        expert = {{ architecture = "DiT-Nano/2" }}
        training = {{ steps = 1, batch_size = 1 }}
        router = {{ kind = "mixture", epsilon = 2, frequencies = {f}, centre = -0.25, {router} }}
        privacy = {{ max_epsilon = 3, unit = "{unit}" }}
    """)


def plans_of(unit):
    return {
        "one": make_plan("components = 1, radius = 2", unit=unit),
        "one-no-radius": make_plan("components = 1", unit=unit),
        "one-bands-classes": make_plan("components = 1, bands = 3", data=GREY + CLASSES, unit=unit),
        "four": make_plan("components = 4, radius = 2", unit=unit),
        "four-no-radius-bands": make_plan("components = 4, bands = 10", unit=unit),
        "four-anchors": make_plan(f"components = 4, radius = 2{ANCHORS}", unit=unit),
        "four-colour-bands-classes": make_plan(
            "components = 4, bands = 2, radius = 0.3", data=COLOUR + CLASSES, f=4, unit=unit
        ),
        "four-colour-no-radius": make_plan(
            "components = 4", data=COLOUR + CLASSES, f=4, unit=unit
        ),
    }  # fmt: skip


PLANS = {
    f"{unit}s-{name}": plan
    for unit in ("image", "patient")
    for name, plan in plans_of(unit).items()
}


def exact(data, plan, before):
    """Every message without noise, each about those of `before`."""
    found = exact_statistics(Private(data), plan, before)
    return {name: vector.reveal() for name, vector in found.items()}


def excess(plan, without, joined, before):
    """How far the message that is moved furthest moves, over its sensitivity, and its name."""
    one, other = exact(without, plan, before), exact(joined, plan, before)
    return max(
        (
            squared_norm(other[message.name] - one[message.name]) / message.l2_sensitivity**2,
            message.name,
        )
        for message in messages(plan)
    )


def noisy(vector, plan, name, rng):
    scale = float(router_events(plan)[name].noise_multiplier)
    scale *= message_named(plan, name).l2_sensitivity
    return vector + np.rint(scale * rng.normal(size=len(vector))).astype(np.int64)


def about_image(plan, y, rng):
    """Releases of a large site all of whose means are `y`: directions there are unforeseeable."""
    found = {}
    for message in messages(plan):
        parts = []
        for part in message.parts:
            value = 1e6 * np.abs(rng.normal(size=part.size))
            match part.name:
                case (
                    "norm_count" | "component_sum"
                ):  # radius the longest; component means at the cell's
                    value[:] = 0
                case "count":
                    value[:] = 3e6
                case "cell_count":
                    value[:] = 1e6
                case "cell_sum":
                    radius = statistics.radius_of(plan, found.get("norms"))
                    value = np.tile(3e6 * y / radius / (part.size // len(y)), part.size // len(y))
            parts.append(np.clip(value * part.weight, -(2.0**61), 2.0**61))
        found[message.name] = np.rint(np.concatenate(parts)).astype(np.int64)
    return found


def before_of(kind, seed, plan, added):
    """The vectors of every message as released, by a site that `kind` describes."""
    rng = np.random.default_rng(seed)
    if kind == "about-image":
        return about_image(plan, read_images(data_of([added], plan), plan).y[0], rng)
    found = {}
    for message in messages(plan):
        match kind:
            case "nothing":
                vector = np.zeros(message.size, dtype=np.int64)
            case "noise":
                vector = noisy(np.zeros(message.size, dtype=np.int64), plan, message.name, rng)
            case "anything":
                vector = rng.integers(-(2**40), 2**40, size=message.size)
            case "extreme":
                vector = rng.choice([-1, 1], size=message.size) * 2**62
            case "honest":
                crowd = data_of([[("noise", seed + i, i)] for i in range(12)], plan)
                own = statistics._statistic(message.name, plan, found, read_images(crowd, plan))
                vector = noisy(own, plan, message.name, rng)
        found[message.name] = vector
    return found


BEFORE = ["nothing", "noise", "anything", "extreme", "honest", "about-image"]
image = st.tuples(st.sampled_from(KINDS), st.integers(0, 2**31), st.integers(0, 2))
alike = st.builds(lambda one, m: [one] * m, image, st.integers(1, 20))
several = st.one_of(
    alike,  # the worst case: they all point in one direction
    st.lists(image, min_size=1, max_size=12),
    st.builds(lambda first, second: first + second, alike, alike),
)


def unit_of(plan):
    return several if plan.privacy.unit == "patient" else image.map(lambda one: [one])


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
@settings(max_examples=20)
@given(data=st.data())
def test_data_sets_that_differ_by_a_unit_differ_by_at_most_the_sensitivity(name, data):
    plan = PLANS[name]
    others = data.draw(st.lists(unit_of(plan), max_size=4))
    added = data.draw(unit_of(plan))
    before = before_of(
        data.draw(st.sampled_from(BEFORE)), data.draw(st.integers(0, 2**31)), plan, added
    )
    count = sum(len(own) for own in [*others, added])
    order = np.random.default_rng(count).permutation(count)
    joined = data_of([*others, added], plan, order)
    found, message = excess(plan, data_of(others, plan), joined, before)
    assert found <= 1, message


@pytest.mark.slow
@pytest.mark.parametrize("about", ["anything", "honest", "about-image"])
@pytest.mark.parametrize("name", PLANS)
def test_any_image_alone_and_many_times_moves_every_message_by_at_most_its_sensitivity(name, about):
    plan = PLANS[name]
    before = before_of(about, 1, plan, [("noise", 1, 1)])
    for number, kind in enumerate(KINDS):
        m = 1 if plan.privacy.unit == "image" else 3 + number  # also those where 1/m is rounded up
        added = [(kind, number, 1)] * m
        if about == "about-image":
            before = before_of(about, number, plan, added)
        own = exact(data_of([added], plan), plan, before)
        for message in messages(plan):
            bound = message.l2_sensitivity**2
            assert squared_norm(own[message.name]) <= bound, (kind, message.name)


@pytest.mark.parametrize("m", [1, 7])
@pytest.mark.parametrize("name", PLANS)
def test_sensitivity_of_every_message_is_nearly_reached(name, m):
    # so that no noise is wasted on influence nobody has
    plan = PLANS[name]
    m = 1 if plan.privacy.unit == "image" else m
    # energy in every frequency; far from means where "extreme" puts them
    added = data_of([[("largest", 2, 0)] * m], plan)
    for seed in range(2):
        own = exact(added, plan, before_of("extreme", seed, plan, None))
        for message in messages(plan):
            assert math.sqrt(squared_norm(own[message.name])) > 0.99 * message.l2_sensitivity, (
                message.name
            )


@pytest.mark.parametrize("name", PLANS)
def test_messages_depend_neither_on_the_order_of_images_nor_on_the_numbers_of_patients(name):
    plan = PLANS[name]
    patient = plan.privacy.unit == "patient"
    patients = [[("noise", 10 * k + i, i) for i in range(1 + 3 * k * patient)] for k in range(8)]
    data = data_of(patients, plan)
    order = np.random.default_rng(5).permutation(len(data))
    others = [data_of(patients, plan, order)]
    if patient:
        others.append(ImageSet(data.pixels, data.labels, units=7 - data.units))
    before = before_of("honest", 3, plan, None)
    own = exact(data, plan, before)
    for other in others:
        found = exact(other, plan, before)
        assert all(np.array_equal(found[key], own[key]) for key in own)


@pytest.mark.parametrize("name", PLANS)
def test_statistics_of_many_images_are_exactly_the_sums_of_those_of_single_units(name):
    plan = PLANS[name]
    patients = [[(kind, k, k)] for k, kind in enumerate(KINDS)]
    before = before_of("honest", 4, plan, None)
    own = exact(data_of(patients, plan), plan, before)
    singles = [exact(data_of([patient], plan), plan, before) for patient in patients]
    for key, vector in own.items():
        assert np.array_equal(sum(single[key] for single in singles), vector)


@pytest.mark.slow
def test_sums_over_the_edge_of_blocks_are_exactly_the_sums_of_parts():
    # `_spreads` takes 12,483 rows at once where there are 6 coefficients, others 1,024
    plan = PLANS["images-four-no-radius-bands"]
    generator = torch.Generator().manual_seed(6)
    pixels = torch.randn((13_000, 1, 4, 4), generator=generator) / 2
    before = before_of("honest", 6, plan, None)
    own = exact(ImageSet(pixels, None), plan, before)
    parts = [exact(ImageSet(part, None), plan, before) for part in torch.split(pixels, 7_001)]
    for key, vector in own.items():
        assert np.array_equal(sum(part[key] for part in parts), vector)


# --- what decides but what was released ---


def cluster(plan, coordinates, seed=0, spread=0.01):
    """Images with coefficients near the rows of `coordinates`, which name the first few."""
    rng = np.random.default_rng(seed)
    y = spread * rng.normal(size=(len(coordinates), 6))
    y[:, : coordinates.shape[1]] += coordinates
    pixels = -0.25 + y @ dct_basis(plan.data.shape, 6).numpy()
    return torch.from_numpy(pixels.reshape(-1, 1, 4, 4)).float()


# message: images, and one more that turns what the exact message says
along = np.repeat(np.eye(3)[:2], 40, axis=0) * np.tile([1.0, -1.0], 40)[:, None]
WORST = {
    # as many short as long: one more long one, and the radius is twice as large
    "norms": (np.repeat([[1.0, 0.0], [2.0, 0.0]], [668, 664], axis=0), [[2.0, 0.0]]),
    # a tight crowd, whose mean one image moves by more than their distances
    "location": (np.zeros((60, 2)), [[1.9, 0.0]]),
    # two axes of equal length, and one image that says which is first
    "shape": (along, [[0.0, 1.0, 0.0]]),
}
PLANTS = {
    "norms": "images-four-no-radius-bands",
    "location": "images-four",
    "shape": "images-four",
}


@pytest.mark.parametrize("message", PLANTS)
def test_contract_fails_where_a_message_is_about_the_exact_one_before_it(message, monkeypatch):
    plan = PLANS[PLANTS[message]]
    images, added = (cluster(plan, np.array(rows), spread=0.001) for rows in WORST[message])
    without, joined = ImageSet(images, None), ImageSet(torch.cat([images, added]), None)
    before = exact_chain(plan, without)
    assert excess(plan, without, joined, before)[0] <= 1
    made = statistics._statistic

    def planted(name, plan, before, own):
        names = [item.name for item in messages(plan)]
        if names.index(name) > names.index(message):
            before = {**before, message: made(message, plan, before, own)}
        return made(name, plan, before, own)

    monkeypatch.setattr(statistics, "_statistic", planted)
    assert excess(plan, without, joined, before)[0] > 2


def exact_chain(plan, data):
    """The messages of a site that draws no noise, each about the exact ones before it."""
    found, own = {}, read_images(data, plan)
    for message in messages(plan):
        found[message.name] = statistics._statistic(message.name, plan, found, own)
    return found


def test_kinds_of_images_are_distinct_and_finite_or_named_otherwise():
    plan = PLANS["images-four"]
    for kind in KINDS:
        finite = bool(torch.isfinite(make_image(kind, 1, plan)).all())
        assert finite == (kind not in ("nan", "one-nan", "inf", "minus-inf", "one-inf", "both-inf"))

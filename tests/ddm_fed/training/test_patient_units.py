"""Epsilon that protects patients: adding one, with any images, moves no message further."""

import math
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddm_fed.embedding import dct_basis
from ddm_fed.errors import DataError
from ddm_fed.mixture import decode_location, messages, release_statistics
from ddm_fed.mixture.coefficients import coefficients, image_weights
from ddm_fed.mixture.statistics import location_statistic, shape_statistic
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import LedgerEntry, read_plan_toml, today

CLASSES = 'conditioning = "class", classes = ["cat", "dog", "fox"]'
ANCHORS = "anchors = [[-1.5, 0.0], [1.5, 0.0], [0.0, 2.0]]"
STATISTICS = "epsilon = 2, frequencies = 6, radius = 2, centre = -0.25"


def make_plan(router, *, unit="patient", data="channels = 1", max_epsilon=1000):
    return read_plan_toml(f"""
        federation = "test"
        expires_at = 2036-01-01T00:00:00Z
        data = {{ {data}, height = 4, width = 4 }}
        expert = {{ architecture = "DiT-Nano/2" }}
        training = {{ steps = 1, batch_size = 1 }}
        router = {{ {router} }}
        privacy = {{ max_epsilon = {max_epsilon}, unit = "{unit}" }}
    """)


def of_classes(router, channels=1):
    return make_plan(router, data=f"channels = {channels}, {CLASSES}")


MIXTURE = f'kind = "mixture", {STATISTICS}'
DIAGONAL = f'{MIXTURE}, covariance = "diagonal"'
PLANS = {
    "prior": make_plan('kind = "prior", epsilon = 0.5'),
    "prior-classes": of_classes('kind = "prior", epsilon = 0.5'),
    "mixture": make_plan(MIXTURE),
    "mixture-classes": of_classes(MIXTURE),
    "mixture-colour-classes": of_classes(MIXTURE, channels=3),
    "mixture-anchors": make_plan(f"{MIXTURE}, {ANCHORS}"),
    "diagonal": make_plan(DIAGONAL),
    "diagonal-classes": of_classes(DIAGONAL),
    "diagonal-anchors": make_plan(f"{DIAGONAL}, {ANCHORS}"),
    "low-rank": make_plan(f'{MIXTURE}, covariance = "low-rank", rank = 2'),
    "heads": make_plan(f'kind = "heads", {STATISTICS}'),
    "heads-classes": of_classes(f'kind = "heads", {STATISTICS}'),
}
SHAPED = [name for name in PLANS if not name.startswith("prior")]
CELLS = 3  # of the plans with classes or anchors
WIDTH = {1: 6, 3: 18}  # coefficients by channels


def image_of(kind, seed, plan):
    """One image that somebody might choose to move the sums, `(C, H, W)` float32."""
    rng = np.random.default_rng(seed)
    shape = plan.data.shape
    image = rng.uniform(-1, 1, size=shape)
    match kind:
        case "white" | "black":
            image[:] = 1 if kind == "white" else -1
        case "huge":
            image *= 1e30
        case "tiny":
            image = -0.25 + image * 1e-12
        case "nan":
            image[:] = np.nan
        case "axis" | "radius":
            d = WIDTH[shape[0]]
            y = 9.0 * np.eye(d)[seed % d] if kind == "axis" else rng.normal(size=d)
            y = y if kind == "axis" else 2 * y / np.linalg.norm(y)
            image = (-0.25 + y @ dct_basis(shape, d // shape[0]).numpy()).reshape(shape)
    return torch.from_numpy(image.astype(np.float32))


def data_of(patients, plan, order=None):
    """The images of `patients`, one after the other or in `order`.

    A patient is a list of images, each a kind, a seed and a class.
    """
    rows = [(k, *image) for k, patient in enumerate(patients) for image in patient]
    rows = rows if order is None else [rows[i] for i in order]
    shown = [k for k, *_ in rows]
    dense = {k: index for index, k in enumerate(dict.fromkeys(shown))}
    images = [image_of(kind, seed, plan) for _, kind, seed, _ in rows]
    stacked = torch.stack(images) if images else torch.zeros((0, *plan.data.shape))
    labels = torch.tensor([cell for *_, cell in rows], dtype=torch.int64)
    units = torch.tensor([dense[k] for k in shown], dtype=torch.int64)
    return ImageSet(stacked, labels if plan.data.classes else None, units=units)


def location_of(data, plan):
    return location_statistic(*coefficients(data, plan), plan, image_weights(data, plan))


def shape_of(data, means, plan):
    return shape_statistic(*coefficients(data, plan), means, plan, image_weights(data, plan))


def length(vector):
    """Exact where it matters: the sum of squares is one of Python's integers."""
    return math.sqrt(sum(int(value) ** 2 for value in vector))


def means_of(kind, seed, plan, y):
    """Released means, `(J, D)`: anything at all, since noise made them."""
    means = np.random.default_rng(seed).normal(size=(CELLS, y.shape[1]))
    match kind:
        case "far":
            return 1e9 * means
        case "along-axis":  # where all directions are one square
            return np.full((CELLS, 1), -1e9) * (np.arange(y.shape[1]) == 3)
        case "at-image":
            return np.broadcast_to(y[0], means.shape)
    return means


KINDS = ["noise", "white", "black", "huge", "tiny", "nan", "axis", "radius"]
image = st.tuples(st.sampled_from(KINDS), st.integers(0, 2**32 - 1), st.integers(0, CELLS - 1))
# many alike are the worst case: they all point in one direction
alike = st.builds(lambda one, m: [one] * m, image, st.integers(1, 50))
patient = st.one_of(
    alike,
    st.lists(image, min_size=1, max_size=50),
    st.builds(lambda first, second: first + second, alike, alike).map(lambda own: own[:50]),
)


@pytest.mark.parametrize("name", PLANS)
@settings(max_examples=25)
@given(
    others=st.lists(patient, max_size=3),
    added=patient,
    about=st.tuples(
        st.sampled_from(["random", "far", "along-axis", "at-image"]), st.integers(0, 2**32 - 1)
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_messages_of_sets_that_differ_by_a_patient_differ_by_at_most_the_sensitivity(
    name, others, added, about, seed
):
    plan = PLANS[name]
    without = data_of(others, plan)
    count = sum(len(own) for own in [*others, added])
    joined = data_of([*others, added], plan, np.random.default_rng(seed).permutation(count))
    moved = location_of(joined, plan) - location_of(without, plan)
    assert length(moved) <= messages(plan)[0].l2_sensitivity
    if name in SHAPED:
        y, _ = coefficients(data_of([added], plan), plan)
        means = means_of(*about, plan, y)
        moved = shape_of(joined, means, plan) - shape_of(without, means, plan)
        assert length(moved) <= messages(plan)[1].l2_sensitivity


@pytest.mark.parametrize("name", PLANS)
def test_patient_with_any_number_of_images_alike_moves_messages_by_at_most_the_sensitivity(name):
    # every number, for the sake of those where 1/m is rounded up
    plan = PLANS[name]
    found, cells = coefficients(data_of([[("axis", 3, 1)]], plan), plan)
    far = means_of("along-axis", 1, plan, found)
    for m in range(1, 51):
        y, weights = found.repeat(m, axis=0), np.full(m, 1.0 / m)
        moved = location_statistic(y, cells.repeat(m), plan, weights)
        assert length(moved) <= messages(plan)[0].l2_sensitivity
        if name in SHAPED:
            moved = shape_statistic(y, cells.repeat(m), far, plan, weights)
            assert length(moved) <= messages(plan)[1].l2_sensitivity


@pytest.mark.parametrize("name", SHAPED)
@pytest.mark.parametrize("m", [1, 7, 50])
def test_sensitivity_is_nearly_reached_by_a_patient_with_images_alike(name, m):
    # so that no noise is wasted on influence nobody has
    plan = PLANS[name]
    data = data_of([[("axis", 3, 1)] * m], plan)
    far = means_of("along-axis", 1, plan, coefficients(data, plan)[0])
    location, shape = location_of(data, plan), shape_of(data, far, plan)
    assert length(location) > 0.999 * messages(plan)[0].l2_sensitivity
    assert length(shape) > 0.99 * messages(plan)[1].l2_sensitivity


def test_patient_counted_image_by_image_would_exceed_the_sensitivity():
    # the bound above is owed to the weights, not to the choice of images
    plan = PLANS["mixture"]
    y, cells = coefficients(data_of([[("axis", 3, 1)] * 50], plan), plan)
    assert length(location_statistic(y, cells, plan)) > 49 * messages(plan)[0].l2_sensitivity


def test_counts_are_of_patients_and_divide_one_over_the_classes_of_own_images():
    plan = PLANS["mixture-classes"]
    patients = [
        [("noise", 1, 0)],
        [("noise", seed, seed % 2) for seed in range(4)],
        [("noise", seed, 2) for seed in range(50)],
    ]
    parts = messages(plan)[0].decode(location_of(data_of(patients, plan), plan))
    assert parts["count"][0] == pytest.approx(3, abs=1e-3)
    assert parts["cell_count"] == pytest.approx([1.5, 0.5, 1], abs=1e-3)


def test_mean_without_noise_is_the_mean_over_patients_of_their_means():
    plan = PLANS["mixture"]
    patients = [[("noise", seed, 0) for seed in range(20 * m, 21 * m)] for m in (1, 2, 9)]
    data = data_of(patients, plan)
    y, _ = coefficients(data, plan)
    y = y * np.minimum(1, 2 / np.linalg.norm(y, axis=1, keepdims=True))
    found = decode_location(plan, location_of(data, plan), 0.0)
    expected = np.mean([y[:1].mean(0), y[1:3].mean(0), y[3:].mean(0)], axis=0)
    np.testing.assert_allclose(found.means[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", PLANS)
def test_messages_depend_neither_on_the_order_of_images_nor_on_the_numbers_of_patients(name):
    plan = PLANS[name]
    patients = [[("noise", 10 * k + i, i % 3) for i in range(1 + 3 * k)] for k in range(4)]
    data = data_of(patients, plan)
    mixed = data_of(patients, plan, np.random.default_rng(5).permutation(len(data)))
    renamed = ImageSet(data.pixels, data.labels, units=3 - data.units)
    means = means_of("random", 2, plan, coefficients(data, plan)[0])
    for other in (mixed, renamed):
        assert np.array_equal(location_of(other, plan), location_of(data, plan))
        if name in SHAPED:
            assert np.array_equal(shape_of(other, means, plan), shape_of(data, means, plan))


def test_patients_with_one_image_each_send_what_a_plan_for_images_sends():
    plan = PLANS["mixture-classes"]
    data = data_of([[("noise", seed, seed % 3)] for seed in range(30)], plan)
    y, cells = coefficients(data, plan)
    means = means_of("random", 3, plan, y)
    assert np.array_equal(location_of(data, plan), location_statistic(y, cells, plan))
    assert np.array_equal(shape_of(data, means, plan), shape_statistic(y, cells, means, plan))


def test_plan_for_images_ignores_which_patient_they_are_of():
    plan = make_plan(MIXTURE, unit="image")
    assert image_weights(data_of([[("noise", 1, 0)] * 3], plan), plan) is None


class Ledger:
    """Notes what was spent."""

    def __init__(self):
        self.entries = []

    def __call__(self, purpose, mechanism, event):
        self.entries.append(
            LedgerEntry(
                index=0,
                previous_sha256=None,
                recorded_at=today(),
                plan_sha256="0" * 64,
                purpose=purpose,
                mechanism=mechanism,
                event=event,
            )
        )
        return self.entries[-1]


def test_release_for_patients_counts_patients():
    # at epsilon 1000 the count's noise has a deviation below 0.2
    plan = make_plan(MIXTURE.replace("epsilon = 2", "epsilon = 1000"))
    patients = [[("noise", 100 * k + i, 0) for i in range(10)] for k in range(20)]
    ledger = Ledger()
    released = release_statistics(Private(data_of(patients, plan)), plan, ledger)
    multiplier = ledger.entries[0].event.noise_multiplier
    assert multiplier < Decimal("0.1")
    found = decode_location(plan, released["location"].value, float(multiplier))
    assert found.count == pytest.approx(20, abs=2)


@pytest.mark.parametrize("name", ["prior", "mixture", "heads"])
def test_release_for_patients_of_images_without_unit_ids_is_refused_before_anything_is_spent(name):
    plan, ledger = PLANS[name], Ledger()
    data = Private(ImageSet(torch.zeros((5, *plan.data.shape)), None))
    with pytest.raises(DataError, match="protects patients"):
        release_statistics(data, plan, ledger)
    assert ledger.entries == []

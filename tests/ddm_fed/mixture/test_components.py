"""How a cell is divided: slow loops as oracles, and images that decide for themselves alone."""

import itertools
import math

import numpy as np
import pytest
import torch
from adversarial import data_of
from mixtures import (
    QUIET,
    images_of,
    make_plan,
    multipliers,
    quiet_vectors,
    with_parts,
)

from ddm_fed.embedding import dct_basis
from ddm_fed.mixture import decode_location, message_named
from ddm_fed.mixture.coefficients import band_edges, band_energies, band_sizes, read_images
from ddm_fed.mixture.components import (
    axes_of_cells,
    component_of_images,
    component_radii,
    decode_components,
    symmetric,
)
from ddm_fed.mixture.radius import radius_of
from ddm_fed.privacy import ImageSet

PLANS = {
    "grey": make_plan("components = 4, radius = 1.5"),
    "classes": make_plan("components = 4, bands = 3", classes=3),
    "colour": make_plan("components = 8, radius = 1, bands = 4", shape=(3, 4, 6), classes=2, f=4),
    "one": make_plan("components = 1, radius = 1.5, bands = 2", classes=2),
    "anchors": make_plan("components = 2, radius = 1.5, anchors = [[-0.5, 0.0], [0.5, 0.0]]"),
    "patients": make_plan("components = 4, bands = 2", unit="patient", classes=2),
}
DIVIDED = [name for name in PLANS if name != "one"]


def data(plan, count=120, seed=0):
    """Images of clusters that lie along a few directions, the patients' several each."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(size=(count, *plan.data.shape)) * 0.3
    pixels += rng.normal(size=(1, *plan.data.shape)) * rng.choice([-1, 1], size=(count, 1, 1, 1))
    labels = torch.arange(count) % len(plan.data.classes) if plan.data.classes else None
    units = torch.from_numpy(np.sort(rng.integers(0, 40, size=count)))
    units = torch.unique(units, return_inverse=True)[1] if plan.privacy.unit == "patient" else None
    return ImageSet(torch.from_numpy(pixels).float(), labels, units=units)


def slow_weights(images):
    if images.units is None:
        return [1.0] * len(images)
    units = images.units.tolist()
    return [1 / units.count(unit) for unit in units]


def matrix_of(upper, d):
    found, place = np.zeros((d, d)), 0
    for i in range(d):
        for j in range(i, d):
            found[i, j] = found[j, i] = upper[place] / (1 if i == j else math.sqrt(2))
            place += 1
    return found


def slow_spreads(rows, means, radii, weights, count):
    """Traces over squared radii, and sums of v v', of `count` Gaussians, image by image."""
    d = len(rows[0][1])
    traces, signs = np.zeros(count), np.zeros((count, d, d))
    for (place, y), weight in zip(rows, weights, strict=True):
        u = y - means[place]
        length = math.sqrt(math.fsum(u * u))
        traces[place] += weight * min(length / radii[place], 1.0) ** 2
        signs[place] += weight * np.outer(u, u) / length**2
    return traces, signs


@pytest.mark.parametrize("name", PLANS)
def test_shape_decoded_is_trace_and_directions_of_every_cell_about_its_released_mean(name):
    plan = PLANS[name]
    images = data(plan)
    vectors, own = quiet_vectors(images, plan), read_images(images, plan)
    location = decode_location(
        plan, vectors["location"], multipliers(plan)["location"], vectors.get("norms")
    )
    cells, radius = len(location.means), radius_of(plan, vectors.get("norms"))
    rows = list(zip(own.cells.tolist(), own.y, strict=True))
    traces, signs = slow_spreads(
        rows, location.means.numpy(), [radius] * cells, slow_weights(images), cells
    )
    parts = message_named(plan, "shape").decode(vectors["shape"])
    np.testing.assert_allclose(parts["trace"], traces, rtol=0, atol=1e-3)
    for cell, upper in enumerate(parts["sign"].reshape(cells, -1)):
        np.testing.assert_allclose(matrix_of(upper, len(signs[0])), signs[cell], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", [name for name in PLANS if PLANS[name].router.bands])
def test_bands_decoded_are_energies_of_every_cell_each_image_shortened_to_the_radius(name):
    plan = PLANS[name]
    images = data(plan)
    vectors = quiet_vectors(images, plan)
    radius = radius_of(plan, vectors.get("norms"))
    channels, height, width = plan.data.shape
    basis = dct_basis(plan.data.shape, height * width).numpy()  # all frequencies, lowest first
    edges, weights = band_edges(plan), slow_weights(images)
    expected = np.zeros((len(plan.data.classes), plan.router.bands))
    for pixels, cell, weight in zip(images.images, images.labels.tolist(), weights, strict=True):
        z = (basis @ pixels.flatten().double().numpy()).reshape(channels, -1)
        energy = np.array([(z[:, a:b] ** 2).sum() for a, b in itertools.pairwise(edges)])
        expected[cell] += weight * energy / max(radius**2, math.hypot(*energy))
    found = message_named(plan, "shape").decode(vectors["shape"])["band"]
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("f", [1, 6, 15])
@pytest.mark.parametrize("bands", range(1, 17))
def test_bands_are_all_frequencies_above_the_lowest_and_each_has_one_or_more(f, bands):
    for side in (4, 8, 28):
        if bands > side * side - f:
            continue
        plan = make_plan(f"components = 1, radius = 1, bands = {bands}", shape=(3, side, side), f=f)
        edges = band_edges(plan)
        assert (edges[0], edges[-1], len(edges)) == (f, side * side, bands + 1)
        assert all(a < b for a, b in itertools.pairwise(edges))
        assert sum(band_sizes(plan)) == 3 * (side * side - f)


@pytest.mark.parametrize("bands", [1, 3, 9, 10])
def test_energy_of_an_image_of_one_frequency_lies_in_the_band_of_that_frequency_alone(bands):
    plan = make_plan(f"components = 1, radius = 1, bands = {bands}", shape=(1, 4, 4))
    basis, edges = dct_basis((1, 4, 4), 16), band_edges(plan)
    found = band_energies(ImageSet(basis.reshape(16, 1, 4, 4).float(), None), plan)
    for frequency in range(16):
        expected = [float(a <= frequency < b) for a, b in itertools.pairwise(edges)]
        np.testing.assert_allclose(found[frequency], expected, atol=1e-6)


def slow_components(plan, own, shape, means):
    """Component of every image: the signs along axes of numpy's, one inner product at a time."""
    d, each = own.y.shape[1], plan.router.components
    bits = int(math.log2(each))
    upper = message_named(plan, "shape").decode(shape)["sign"].reshape(-1, d * (d + 1) // 2)
    found, margin = [], []
    for y, cell in zip(own.y, own.cells.tolist(), strict=True):
        values, vectors = np.linalg.eigh(matrix_of(upper[cell], d))
        order = np.argsort(values)[::-1]
        along = [math.fsum(vectors[:, order[i]] * (y - means[cell])) for i in range(bits)]
        found.append((cell, tuple(a > 0 for a in along)))
        margin.append(min(map(abs, along)))
    return found, margin


@pytest.mark.parametrize("name", DIVIDED)
def test_images_are_divided_as_by_signs_along_the_principal_axes_of_the_released_directions(name):
    # which side of an axis is called positive is nobody's business: the division is the same
    plan = PLANS[name]
    images = data(plan)
    vectors, own = quiet_vectors(images, plan), read_images(images, plan)
    location = decode_location(
        plan, vectors["location"], multipliers(plan)["location"], vectors.get("norms")
    )
    means = location.means.numpy()
    found = component_of_images(own.y, own.cells, plan, vectors, means)
    expected, margin = slow_components(plan, own, vectors["shape"], means)
    assert min(margin) > 1e-9
    assert np.array_equal(found // plan.router.components, own.cells)
    together = {}
    for component, sides in zip(found.tolist(), expected, strict=True):
        assert together.setdefault(component, sides) == sides
    assert len(set(together.values())) == len(together) > len(means)


@pytest.mark.parametrize("name", DIVIDED)
def test_messages_of_components_decoded_are_sums_by_slow_loops(name):
    plan = PLANS[name]
    images = data(plan)
    vectors, own, noise = quiet_vectors(images, plan), read_images(images, plan), multipliers(plan)
    location = decode_location(plan, vectors["location"], noise["location"], vectors.get("norms"))
    radii = component_radii(plan, vectors, location, noise["shape"])
    places = component_of_images(own.y, own.cells, plan, vectors, location.means.numpy())
    each, weights = plan.router.components, slow_weights(images)
    count = each * len(location.means)
    counts, sums = np.zeros(count), np.zeros((count, own.y.shape[1]))
    for y, place, weight in zip(own.y, places.tolist(), weights, strict=True):
        u = y - location.means.numpy()[place // each]
        counts[place] += weight
        sums[place] += weight * u / max(math.hypot(*u), radii[place // each])
    parts = message_named(plan, "component_location").decode(vectors["component_location"])
    np.testing.assert_allclose(parts["component_count"], counts, rtol=0, atol=1e-3)
    np.testing.assert_allclose(parts["component_sum"], sums.ravel(), rtol=0, atol=1e-3)

    components = decode_components(
        plan, vectors["component_location"], noise["component_location"], location, radii
    )
    means = components.means.flatten(0, 1).numpy()
    rows = list(zip(places.tolist(), own.y, strict=True))
    traces, signs = slow_spreads(rows, means, np.repeat(radii, each), weights, count)
    parts = message_named(plan, "component_shape").decode(vectors["component_shape"])
    np.testing.assert_allclose(parts["trace"], traces, rtol=0, atol=1e-3)
    for place, upper in enumerate(parts["sign"].reshape(count, -1)):
        np.testing.assert_allclose(matrix_of(upper, len(signs[0])), signs[place], atol=1e-3)


def test_components_decoded_without_noise_have_counts_and_means_of_their_images():
    plan = PLANS["grey"]
    rng = np.random.default_rng(3)
    y = 0.05 * rng.normal(size=(400, 6))
    y[:, 0] += np.repeat([0.4, -0.4], 200)
    y[:, 1] += np.repeat([0.2, -0.2, 0.2, -0.2], 100)
    vectors = quiet_vectors(ImageSet(images_of(y, plan), None), plan)
    location = decode_location(plan, vectors["location"], QUIET)
    radii = np.array([10.0])
    sums = np.stack([y[i : i + 100].sum(0) for i in range(0, 400, 100)]) - 100 * y.mean(0)
    vector = with_parts(
        plan, "component_location", component_count=100, component_sum=(sums / 10).ravel()
    )
    found = decode_components(plan, vector, QUIET, location, radii)
    np.testing.assert_allclose(found.weights, np.full((1, 4), 100), rtol=1e-5)
    assert bool(found.known.all())
    for component in range(4):
        mean = y[100 * component : 100 * component + 100].mean(0)
        np.testing.assert_allclose(found.means[0, component], mean, atol=1e-4)
    assert float(found.mean_errors.max()) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", DIVIDED)
def test_weights_of_components_add_up_to_their_cell_whatever_was_released(name):
    plan, rng = PLANS[name], np.random.default_rng(4)
    noise = multipliers(plan)
    for seed in range(8):
        vectors = quiet_vectors(data(plan, 30, seed), plan)
        location = decode_location(
            plan, vectors["location"], noise["location"], vectors.get("norms")
        )
        radii = component_radii(plan, vectors, location, noise["shape"])
        message = message_named(plan, "component_location")
        vector = rng.integers(-(2**34), 2**34, size=message.size) >> rng.integers(0, 14)
        found = decode_components(plan, vector, noise["component_location"], location, radii)
        assert bool((found.weights > 0).all())
        torch.testing.assert_close(found.weights.sum(1), location.weights)
        assert bool(torch.isfinite(found.means).all())


def test_component_that_drowned_has_the_mean_of_its_cell_and_is_not_known():
    plan = PLANS["grey"]
    location = decode_location(plan, with_parts(plan, "location", count=900, cell_sum=90), QUIET)
    vector = with_parts(
        plan,
        "component_location",
        component_count=np.array([300, 300, 300, 0.0]),
        component_sum=np.full(24, 60.0),
    )
    found = decode_components(plan, vector, 5.0, location, np.array([1.5]))
    assert found.known.tolist() == [[True, True, True, False]]
    assert torch.equal(found.means[0, 3], location.means[0])
    assert math.isinf(float(found.mean_errors[0, 3]))
    assert 0 < float(found.weights[0, 3]) < 30


@pytest.mark.parametrize(("rms", "expected"), [(0.5, 1.0), (0.001, 1.5 / 64), (1.49, 1.5)])
def test_radius_of_components_is_a_multiple_of_the_released_spread_within_bounds(rms, expected):
    plan = PLANS["grey"]
    vectors = {
        "location": with_parts(plan, "location", count=1e6),
        "shape": with_parts(plan, "shape", trace=1e6 * (rms / 1.5) ** 2),
    }
    location = decode_location(plan, vectors["location"], QUIET)
    assert component_radii(plan, vectors, location, QUIET) == pytest.approx([expected], rel=1e-3)


def test_matrices_are_those_whose_upper_halves_were_sent():
    rng = np.random.default_rng(5)
    upper = rng.normal(size=(2, 3, 15))
    found = symmetric(torch.from_numpy(upper), 5).numpy()
    for i in range(2):
        for j in range(3):
            np.testing.assert_allclose(found[i, j], matrix_of(upper[i, j], 5))
            assert np.linalg.norm(found[i, j]) == pytest.approx(np.linalg.norm(upper[i, j]))


# --- no image decides for another ---


def border_images(plan, vectors, means, count, seed):
    """Coefficients of images that lie on the border of components up to the last bit."""
    rng = np.random.default_rng(seed)
    axes = axes_of_cells(plan, vectors["shape"])[0]
    u = rng.normal(size=(count, means.shape[1]))
    for _ in range(3):  # what rounding left of the part along the axes
        u -= (u @ axes.T) @ axes
    return means[0] + u


def test_component_of_an_image_on_the_border_does_not_depend_on_the_others():
    plan = make_plan("components = 32, radius = 3", shape=(1, 8, 8), f=36)
    vectors = quiet_vectors(data(plan), plan)
    location = decode_location(plan, vectors["location"], multipliers(plan)["location"])
    means = location.means.numpy()
    y = border_images(plan, vectors, means, 64, 6)
    cells = np.zeros(64, dtype=np.int64)
    together = component_of_images(y, cells, plan, vectors, means)
    for count in (1, 2, 3, 5, 8, 33):
        for start in range(0, 64, count):
            rows = slice(start, start + count)
            part = component_of_images(y[rows], cells[rows], plan, vectors, means)
            assert np.array_equal(part, together[rows])
    assert len(set(together.tolist())) > 8  # they lie on either side, by their last bits


@pytest.mark.parametrize("name", ["classes", "colour", "patients"])
def test_energies_of_an_image_do_not_depend_on_the_others(name):
    plan = PLANS[name]
    patients = [[("noise", seed, seed)] for seed in range(9)] + [[("one-inf", 1, 1)]]
    together = read_images(data_of(patients, plan), plan).bands
    for number, patient in enumerate(patients):
        alone = read_images(data_of([patient], plan), plan).bands
        assert np.array_equal(alone[0], together[number])
    assert not together[9].any()

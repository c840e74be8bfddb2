"""The radius that a site releases, and the sums of cells in its units."""

import math

import numpy as np
import pytest
import torch
from mixtures import QUIET, images_of, make_plan, multipliers, quiet_vectors, with_parts

from ddm_fed.mixture import decode_location, message_named
from ddm_fed.mixture.coefficients import read_images
from ddm_fed.mixture.location import BINS_PER_OCTAVE, longest_norm, norm_edges, radius_of
from ddm_fed.mixture.messages import NORM_BINS
from ddm_fed.mixture.statistics import location_statistic
from ddm_fed.privacy import ImageSet

NO_RADIUS = make_plan("components = 1")
RADIUS = make_plan("components = 1, radius = 2")
CLASSES = make_plan("components = 1", classes=3)


def with_norms(norms, plan=NO_RADIUS, seed=0):
    """Images whose coefficients are as long as `norms` says."""
    y = np.random.default_rng(seed).normal(size=(len(norms), 6))
    y *= np.asarray(norms)[:, None] / np.linalg.norm(y, axis=1, keepdims=True)
    return ImageSet(images_of(y, plan), None), y


def test_edges_of_norms_rise_by_the_third_root_of_two_to_the_longest_norm_there_is():
    edges = norm_edges(NO_RADIUS)
    assert edges.shape == (NORM_BINS,)
    assert np.allclose(edges[1:] / edges[:-1], 2 ** (1 / BINS_PER_OCTAVE))
    # the image furthest from the centre is white all over: 16 pixels, each 1.25 away
    assert edges[-1] == pytest.approx(1.25 * 4) == longest_norm(NO_RADIUS)


def test_histogram_of_norms_counts_every_image_in_the_first_bin_whose_edge_it_does_not_pass():
    norms = np.geomspace(0.001, 4.9, 57)
    data, _ = with_norms(norms)
    vector = quiet_vectors(data, NO_RADIUS)["norms"]
    counts = message_named(NO_RADIUS, "norms").decode(vector)["norm_count"]
    edges, expected = norm_edges(NO_RADIUS), np.zeros(NORM_BINS)
    for norm in norms:
        expected[next(i for i, edge in enumerate(edges) if norm <= edge)] += 1
    np.testing.assert_allclose(counts, expected, atol=1e-3)


def test_image_beyond_every_edge_is_counted_in_the_last_bin():
    data = ImageSet(torch.full((3, 1, 4, 4), 1e30), None)
    counts = message_named(NO_RADIUS, "norms").decode(quiet_vectors(data, NO_RADIUS)["norms"])
    assert counts["norm_count"][-1] == pytest.approx(3, abs=1e-3)
    assert counts["norm_count"].sum() == pytest.approx(3, abs=1e-3)


@pytest.mark.parametrize("scale", [0.03, 0.3, 3])
def test_released_radius_is_passed_by_few_images_and_is_not_far_beyond_the_others(scale):
    norms = np.sort(scale * np.random.default_rng(1).gamma(9, 1 / 9, size=1000))
    data, _ = with_norms(norms)
    radius = radius_of(NO_RADIUS, quiet_vectors(data, NO_RADIUS)["norms"])
    assert (norms > radius).mean() <= 0.05
    assert radius <= max(norms[949] * 2 ** (1 / BINS_PER_OCTAVE), norm_edges(NO_RADIUS)[0]) * (
        1 + 1e-6
    )


def test_radius_of_a_histogram_of_noise_alone_is_one_of_the_edges():
    rng = np.random.default_rng(2)
    edges = set(norm_edges(NO_RADIUS).tolist())
    found = set()
    for _ in range(200):
        noise = rng.integers(-(2**30), 2**30, size=NORM_BINS)
        found.add(radius_of(NO_RADIUS, noise))
    assert found <= edges
    nothing = np.zeros(NORM_BINS, dtype=np.int64)
    assert radius_of(NO_RADIUS, nothing) == longest_norm(NO_RADIUS) / 2


def test_radius_of_the_plan_needs_no_histogram_and_radius_of_a_release_does():
    assert radius_of(RADIUS, None) == 2.0
    with pytest.raises(ValueError, match="`norms`"):
        radius_of(NO_RADIUS, None)


@pytest.mark.parametrize("plan", [RADIUS, NO_RADIUS], ids=["radius", "no-radius"])
def test_location_decoded_without_noise_is_count_and_mean_of_clipped_images(plan):
    data, y = with_norms(np.linspace(0.1, 3, 300), plan)
    vectors = quiet_vectors(data, plan)
    found = decode_location(plan, vectors["location"], QUIET, vectors.get("norms"))
    radius = radius_of(plan, vectors.get("norms"))
    clipped = [row * min(1.0, radius / math.hypot(*row)) for row in y]
    assert found.count == pytest.approx(300, rel=1e-5)
    assert float(found.weights[0]) == pytest.approx(300, rel=1e-5)
    np.testing.assert_allclose(found.means[0], np.mean(clipped, axis=0), atol=1e-5)


def test_cells_decoded_without_noise_have_their_own_counts_and_means():
    _, y = with_norms(np.linspace(0.1, 0.5, 90), CLASSES)
    labels = torch.arange(90) % 5 % 3
    y += labels.numpy()[:, None] * 0.2
    # a radius that no image passes
    norms = with_parts(CLASSES, "norms", norm_count=np.eye(NORM_BINS)[-1])
    own = read_images(ImageSet(images_of(y, CLASSES), labels), CLASSES)
    vector = location_statistic(own.y, own.cells, CLASSES, None, norms)
    found = decode_location(CLASSES, vector, QUIET, norms)
    np.testing.assert_allclose(found.weights, [36, 36, 18], rtol=1e-5)
    for cell in range(3):
        np.testing.assert_allclose(found.means[cell], y[labels.numpy() == cell].mean(0), atol=1e-4)


def test_noise_of_a_sum_is_in_the_units_of_the_released_radius():
    multiplier = multipliers(NO_RADIUS)["location"]
    found = []
    for place in (9, NORM_BINS - 1):
        norms = with_parts(NO_RADIUS, "norms", norm_count=100 * np.eye(NORM_BINS)[place])
        vector = with_parts(NO_RADIUS, "location", count=100, cell_sum=50)
        location = decode_location(NO_RADIUS, vector, multiplier, norms)
        found.append((location.site_variance**0.5, float(location.means.norm())))
    ratio = norm_edges(NO_RADIUS)[-1] / norm_edges(NO_RADIUS)[9]
    assert found[1] == pytest.approx((ratio * found[0][0], ratio * found[0][1]), rel=1e-6)

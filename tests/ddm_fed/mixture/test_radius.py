"""The radius that a site releases, if its plan has none."""

import numpy as np
import pytest
import torch
from mixtures import make_plan, quiet_vectors, with_norms

from ddm_fed.mixture import message_named
from ddm_fed.mixture.messages import NORM_BINS
from ddm_fed.mixture.radius import (
    BINS_PER_OCTAVE,
    longest_norm,
    norm_edges,
    radius_of,
    upper_quantile,
)
from ddm_fed.privacy import ImageSet

NO_RADIUS = make_plan("components = 1")
RADIUS = make_plan("components = 1, radius = 2")


def test_edges_of_norms_rise_by_the_third_root_of_two_to_the_longest_norm_there_is():
    edges = norm_edges(NO_RADIUS)
    assert edges.shape == (NORM_BINS,)
    assert np.allclose(edges[1:] / edges[:-1], 2 ** (1 / BINS_PER_OCTAVE))
    # the image furthest from the centre is white all over: 16 pixels, each 1.25 away
    assert edges[-1] == pytest.approx(1.25 * 4) == longest_norm(NO_RADIUS)


def test_histogram_of_norms_counts_every_image_in_the_first_bin_whose_edge_it_does_not_pass():
    norms = np.geomspace(0.001, 4.9, 57)
    data, _ = with_norms(norms, NO_RADIUS)
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
    data, _ = with_norms(norms, NO_RADIUS)
    radius = radius_of(NO_RADIUS, quiet_vectors(data, NO_RADIUS)["norms"])
    assert (norms > radius).mean() <= 0.05
    assert radius <= max(norms[949] * 2 ** (1 / BINS_PER_OCTAVE), norm_edges(NO_RADIUS)[0]) * (
        1 + 1e-6
    )


def test_radius_of_a_histogram_of_noise_alone_lies_between_the_edges_and_is_not_small():
    rng = np.random.default_rng(2)
    edges = norm_edges(NO_RADIUS)
    found = []
    for _ in range(200):
        noise = rng.integers(-(2**30), 2**30, size=NORM_BINS)
        found.append(radius_of(NO_RADIUS, noise))
    assert edges[0] <= min(found)
    assert max(found) <= edges[-1]
    nothing = np.zeros(NORM_BINS, dtype=np.int64)
    # nothing is known: too large costs noise, too small would say that all images are alike
    assert edges[-1] / 2 <= radius_of(NO_RADIUS, nothing) <= edges[-1]


def test_radius_of_few_images_under_much_noise_is_seldom_far_from_their_norms():
    # three hundred at epsilon 1: a bin has some fifty, and its noise is over twenty; no bin of
    # noise may be taken for the largest images
    rng = np.random.default_rng(3)
    norms = 0.3 * rng.gamma(9, 1 / 9, size=300)
    data, _ = with_norms(norms, NO_RADIUS)
    exact = quiet_vectors(data, NO_RADIUS)["norms"]
    message = message_named(NO_RADIUS, "norms")
    of_a_count = exact.sum() / 300
    ratios = []
    for _ in range(200):
        noise = rng.normal(0, 22 * of_a_count, size=message.size)
        found = upper_quantile(message.decode(exact + noise.astype(np.int64))["norm_count"], 22.0)
        ratios.append(2 ** ((found - NORM_BINS + 1) / BINS_PER_OCTAVE) * 5)
    low, high = np.quantile(ratios, (0.05, 0.95)) / np.quantile(norms, 0.95)
    assert low > 0.7
    assert high < 2.1


def test_radius_of_the_plan_needs_no_histogram_and_radius_of_a_release_does():
    assert radius_of(RADIUS, None) == 2.0
    with pytest.raises(ValueError, match="`norms`"):
        radius_of(NO_RADIUS, None)

"""What a location message says: counts, and sums of cells in units of the radius."""

import math

import numpy as np
import pytest
import torch
from mixtures import QUIET, images_of, make_plan, multipliers, quiet_vectors, with_norms, with_parts

from ddm_fed.mixture import decode_location
from ddm_fed.mixture.coefficients import read_images
from ddm_fed.mixture.messages import NORM_BINS
from ddm_fed.mixture.radius import (
    radius_of,
)
from ddm_fed.mixture.statistics import location_statistic
from ddm_fed.privacy import ImageSet

NO_RADIUS = make_plan("components = 1")
RADIUS = make_plan("components = 1, radius = 2")
CLASSES = make_plan("components = 1", classes=3)


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
    found, radii = [], []
    for place in (9, NORM_BINS - 1):
        norms = with_parts(NO_RADIUS, "norms", norm_count=100 * np.eye(NORM_BINS)[place])
        vector = with_parts(NO_RADIUS, "location", count=100, cell_sum=50)
        location = decode_location(NO_RADIUS, vector, multiplier, norms)
        found.append((location.site_variance**0.5, float(location.means.norm())))
        radii.append(radius_of(NO_RADIUS, norms))
    ratio = radii[1] / radii[0]
    assert found[1] == pytest.approx((ratio * found[0][0], ratio * found[0][1]), rel=1e-6)

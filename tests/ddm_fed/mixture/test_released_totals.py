"""Which classes any site has, from noisy counts: what sampling draws in proportion to."""

from functools import cache

import numpy as np
import pytest
import torch

from ddm_fed.mixture import LOCATION, SiteRelease, messages, released_totals
from ddm_fed.records import read_plan_toml

MULTIPLIER = 4.0


@cache
def plan(classes=3):
    names = ", ".join(f'"c{index}"' for index in range(classes))
    return read_plan_toml(f"""
federation = "test"
expires_at = 2036-01-01
data = {{ channels = 1, height = 4, width = 4, conditioning = "class", classes = [{names}] }}
expert = {{ architecture = "DiT-Nano/2" }}
training = {{ steps = 1, batch_size = 1 }}
router = {{ kind = "prior", epsilon = 1 }}
privacy = {{ max_epsilon = 3 }}
""")


def releases(counts, rng, classes):
    """Releases of sites with these true counts `(K, G)`, noise as `MULTIPLIER` says."""
    message, found = messages(plan(classes))[0], []
    for row in np.asarray(counts, dtype=float):
        parts = {"count": [row.sum()], "cell_count": row}
        values = [np.array(parts[part.name]) * part.weight for part in message.parts]
        vector = np.concatenate(values)
        vector += rng.normal(size=len(vector)) * MULTIPLIER * message.l2_sensitivity
        found.append(
            SiteRelease({LOCATION: vector.round().astype(np.int64)}, {LOCATION: MULTIPLIER})
        )
    return found


def noise(classes=3):
    part = "cell_count" if classes > 1 else "count"
    return messages(plan(classes))[0].noise_std(part, MULTIPLIER)


@pytest.mark.slow
@pytest.mark.parametrize("sites", [1, 3, 20])
def test_class_that_no_site_has_is_seldom_said_to_be_there(sites):
    # expected: at most .0455, two tests of .0228; the standard error is .0047
    rng, counts = np.random.default_rng(0), np.tile([5000.0, 5000.0, 0.0], (sites, 1))
    said = [released_totals(plan(), releases(counts, rng, 3))[2] > 0 for _ in range(2000)]
    assert np.mean(said) < 0.06


def test_class_that_is_small_at_every_site_is_there_by_its_sum():
    # half a deviation at each of 36 sites: 3 deviations of the sum
    rng = np.random.default_rng(1)
    counts = np.tile([5000.0, 5000.0, 0.5 * noise()], (36, 1))
    totals = [released_totals(plan(), releases(counts, rng, 3))[2] for _ in range(200)]
    assert np.mean([float(total) > 0 for total in totals]) > 0.75


def test_class_of_one_site_among_many_is_there_by_that_site():
    rng, counts = np.random.default_rng(2), np.zeros((36, 3))
    counts[:, :2], counts[0, 2] = 5000, 6 * noise()
    found = [released_totals(plan(), releases(counts, rng, 3))[2] > 0 for _ in range(200)]
    assert np.mean(found) > 0.95


def test_totals_are_the_sums_of_the_counts_without_bias():
    rng, counts = np.random.default_rng(3), [[900, 300, 400], [100, 700, 400]]
    totals = torch.stack([released_totals(plan(), releases(counts, rng, 3)) for _ in range(400)])
    # four standard errors of the mean
    assert (totals.mean(0) - torch.tensor([1000.0, 1000, 800])).abs().max() < 4 * noise() * (
        2 / 400
    ) ** 0.5


def test_plan_of_one_class_counts_its_units():
    message = messages(plan(1))[0]
    assert [part.name for part in message.parts] == ["count"]
    vector = (np.array([500.0]) * message.parts[0].weight).round().astype(np.int64)
    found = released_totals(plan(1), [SiteRelease({LOCATION: vector}, {LOCATION: MULTIPLIER})])
    assert found.tolist() == pytest.approx([500], abs=1e-3)

"""Site-share error: how far the sites' obtained shares are from the intended ones."""

import numpy as np
import pytest

from ddm_fed.evaluation import site_share_error


def test_share_error_of_exact_shares_is_zero():
    assert site_share_error([0.5, 0.25, 0.25], [200, 100, 100]).error == 0


def test_share_error_of_a_known_case_is_half_the_l1_distance():
    # |.5 - .6| + |.3 - .4| + |.2 - .0| = .4
    found = site_share_error([0.5, 0.3, 0.2], [60, 40, 0])
    assert found.error == pytest.approx(0.2, abs=1e-15)


def test_share_error_of_swapped_shares_is_their_difference():
    assert site_share_error([0.9, 0.1], [10, 90]).error == pytest.approx(0.8)


def test_share_error_of_a_deleted_site_is_its_share():
    assert site_share_error([0.95, 0.05], [1000, 0]).error == pytest.approx(0.05)


def test_share_error_is_the_largest_gap_over_all_sets_of_sites():
    # total variation by its definition: the supremum over events
    intended, counts = [0.4, 0.3, 0.2, 0.1], [31, 44, 20, 5]
    gaps = [
        abs(sum((intended[k] - counts[k] / 100) for k in range(4) if event >> k & 1))
        for event in range(16)
    ]
    assert site_share_error(intended, counts).error == pytest.approx(max(gaps), abs=1e-15)


def test_share_error_of_unequal_lengths_is_refused():
    with pytest.raises(ValueError):
        site_share_error([0.5, 0.5], [1, 2, 3])


@pytest.mark.parametrize(
    ("intended", "count"),
    [([0.25] * 4, 400), ([0.55, 0.25, 0.15, 0.05], 1000), ([0.1] * 10, 2000), ([0.5, 0.5], 5000)],
)
def test_share_error_by_chance_matches_exact_sampling_in_simulation(intended, count):
    # 40,000 simulated sample sets: the standard error of the mean is below 0.4 % of it, so 5
    # standard errors are 2 % (false alarm below 1e-6). One more per cent is the formula's own
    # normal approximation of the binomial.
    draws = np.random.default_rng(24).multinomial(count, intended, size=40_000)
    simulated = 0.5 * np.abs(draws / count - np.array(intended)).sum(1).mean()
    counts = [int(n) for n in draws[0]]
    assert site_share_error(intended, counts).expected_by_chance == pytest.approx(
        simulated, rel=0.03
    )


def test_share_error_by_chance_falls_with_the_root_of_the_count():
    few = site_share_error([0.7, 0.3], [7, 3]).expected_by_chance
    many = site_share_error([0.7, 0.3], [700, 300]).expected_by_chance
    assert few / many == pytest.approx(10)

"""Anchors and covariances of a mixture router: bounded influence, exact cells, better fits."""

from pathlib import Path

import commands
import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from ddm_fed.embedding import dct_basis
from ddm_fed.errors import DdmFedError
from ddm_fed.mixture import SiteRelease, decode_location, messages
from ddm_fed.mixture.coefficients import coefficients, nearest_anchors
from ddm_fed.mixture.fit_shared import low_rank
from ddm_fed.mixture.statistics import location_statistic, shape_statistic
from ddm_fed.privacy import ImageSet
from ddm_fed.records import read_plan_toml
from ddm_fed.router import build_router

pytestmark = pytest.mark.slow

PLAN = """
federation = "test"
expires_at = 2036-01-01T00:00:00Z
[data]
channels = {channels}
height = 4
width = 4
{data}
[expert]
architecture = "DiT-Nano/2"
[training]
steps = 1
batch_size = 1
[privacy]
max_epsilon = 3
[router]
kind = "mixture"
epsilon = 2
frequencies = 6
radius = 3
{router}
"""
TWO = "anchors = [[-1.5, 0.0], [1.5, 0.0]]"
QUIET = 1e-9


def written(router="", *, channels=1, data=""):
    return PLAN.format(router=router, channels=channels, data=data)


def make_plan(router="", *, channels=1, data=""):
    return read_plan_toml(written(router, channels=channels, data=data))


def images_of(y, plan):
    basis = dct_basis(plan.data.shape, plan.router.frequencies)
    return (torch.as_tensor(y) @ basis).reshape(-1, *plan.data.shape).float()


def released(images, plan):
    """What a site would send, without noise."""
    y, cells = coefficients(ImageSet(images, torch.zeros(len(images), dtype=torch.int64)), plan)
    location = location_statistic(y, cells, plan)
    means = decode_location(plan, location, QUIET).means.numpy()
    shape = shape_statistic(y, cells, means, plan)
    return SiteRelease({"location": location, "shape": shape}, {"location": QUIET, "shape": QUIET})


def nll(router, images, sites):
    t = torch.full((len(images),), 0.1)
    found = router.log_posterior(0.9 * images, t, None)
    return -float(found[torch.arange(len(images)), sites].mean())


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize("kind", ["noise", "white", "huge", "nan", "axis", "border"])
def test_any_image_moves_every_message_by_at_most_its_sensitivity(covariance, kind):
    plan = make_plan(f'covariance = "{covariance}"\n{TWO}')
    rng = np.random.default_rng(3)
    images = torch.from_numpy(rng.uniform(-1, 1, size=(9, 1, 4, 4))).float()
    extra = images[:1].clone()
    match kind:
        case "white":
            extra[:] = 1
        case "huge":
            extra *= 1e30
        case "nan":
            extra[:] = float("nan")
        case "axis":
            extra = images_of(np.eye(6)[2:3] * 9, plan)
        case "border":
            extra = images_of(np.zeros((1, 6)), plan)  # as near to one anchor as to the other
    few = ImageSet(images, torch.zeros(9, dtype=torch.int64))
    many = ImageSet(torch.cat([images, extra]), torch.zeros(10, dtype=torch.int64))
    y, cells = coefficients(few, plan)
    y_more, cells_more = coefficients(many, plan)
    assert np.array_equal(cells, cells_more[:9])
    means = np.array(rng.normal(size=(2, 6)))
    pairs = [
        (location_statistic(y, cells, plan), location_statistic(y_more, cells_more, plan)),
        (shape_statistic(y, cells, means, plan), shape_statistic(y_more, cells_more, means, plan)),
    ]
    for message, (before, after) in zip(messages(plan), pairs, strict=True):
        moved = sum(int(value) ** 2 for value in after - before)
        assert 0 < moved <= message.l2_sensitivity**2


@pytest.mark.parametrize("channels", [1, 3])
def test_images_belong_to_the_nearest_anchor_in_its_own_frequencies(channels):
    rng = np.random.default_rng(1)
    anchors = np.round(rng.normal(size=(5, 2 * channels)), 3)
    rows = ", ".join(str(list(map(float, row))) for row in anchors)
    plan = make_plan(f"anchors = [{rows}]", channels=channels)
    y = rng.normal(size=(200, 6 * channels))
    lowest = y.reshape(200, channels, 6)[:, :, :2].reshape(200, -1)
    expected = cdist(lowest, anchors).argmin(1)
    assert np.array_equal(nearest_anchors(y, plan.router, channels), expected)


def test_diagonal_covariance_sends_as_many_squares_as_coefficients():
    full, diagonal = make_plan(), make_plan('covariance = "diagonal"')
    assert [part.size for part in messages(full)[1].parts] == [1, 21]
    assert [part.size for part in messages(diagonal)[1].parts] == [1, 6]


def test_several_components_know_a_site_that_one_gaussian_cannot_tell():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(600, 6)) * 0.2
    second = rng.normal(size=(600, 6)) * 0.2
    first[:, 0] += np.where(rng.random(600) < 0.5, 1.5, -1.5)  # two groups
    second[:, 0] += rng.normal(size=600) * 1.5  # one broad group: the same mean and variance
    one, two = make_plan(), make_plan("anchors = [[-1.5], [1.5]]")
    images = [images_of(y, one) for y in (first, second)]
    sites = torch.arange(2).repeat_interleave(600)
    found = {
        name: nll(
            build_router(plan, "mixture", [released(each, plan) for each in images]),
            torch.cat(images),
            sites,
        )
        for name, plan in (("one", one), ("two", two))
    }
    assert found["two"] < found["one"] - 0.02


def test_site_has_the_mass_of_its_images_whatever_their_anchors():
    plan = make_plan(TWO)
    rng = np.random.default_rng(2)
    images = [images_of(rng.normal(size=(n, 6)), plan) for n in (300, 100)]
    router = build_router(plan, "mixture", [released(each, plan) for each in images])
    assert router.log_prior(None).exp().tolist() == pytest.approx([0.75, 0.25], abs=1e-3)


def test_low_rank_keeps_the_largest_directions_and_the_trace():
    values = torch.tensor([0.1, 0.3, 0.2, 0.4, 3.0, 7.0], dtype=torch.float64).sort().values
    found = low_rank(values, 2, float(values.sum()), 0.5)
    assert found.tolist() == pytest.approx([0.25] * 4 + [3.0, 7.0])
    assert float(found.sum()) == pytest.approx(float(values.sum()))


def test_low_rank_keeps_no_direction_that_noise_alone_explains():
    values = torch.tensor([0.9, 1.0, 1.1, 1.2], dtype=torch.float64)
    assert low_rank(values, 2, 4.2, 5.0).tolist() == pytest.approx([1.05] * 4)


@pytest.mark.parametrize(
    ("router", "data", "said"),
    [
        ('covariance = "low-rank"', "", "rank"),
        ("rank = 2", "", "rank"),
        ('covariance = "low-rank"\nrank = 6', "", "not below"),
        ("anchors = [[1.0]]", "", "one row"),
        ("anchors = [[1.0], [1.0]]", "", "twice"),
        ("anchors = [[1.0], [1.0, 2.0]]", "", "different lengths"),
        ("anchors = [[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 8]]", "", "at most 6"),
        (TWO, 'conditioning = "class"\nclasses = ["cat", "dog"]', "keep one"),
    ],
)
def test_plan_that_does_not_fit_is_refused(router, data, said):
    with pytest.raises(DdmFedError, match=said):
        make_plan(router, data=data)


def plan_anchors(tmp_path: Path, plan: str, images, *arguments):
    (tmp_path / "plan.toml").write_text(plan)
    np.savez(tmp_path / "public.npz", images=images)
    words = ("plan", "anchors", "public.npz", "--plan", "plan.toml", *arguments)
    return commands.run("ddm-coord", *words, cwd=tmp_path)


def public(count, side=4):
    rng = np.random.default_rng(0)
    light = np.arange(count)[:, None, None] % 2 * 150
    return (light + rng.integers(0, 80, size=(count, side, side))).astype(np.uint8)


def test_plan_anchors_prints_lines_that_belong_into_the_plan(tmp_path):
    done = plan_anchors(tmp_path, written(), public(60), "--components", "2", "--frequencies", "1")
    assert done.code == 0, done.err
    plan = make_plan(done.out)
    dark, light = sorted(float(row[0]) for row in plan.router.anchors)
    assert dark < -2 < 1 < light  # 4 times the mean pixel, in [-1, 1]
    assert "never make them from private images" in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("images", "arguments", "said"),
    [
        (public(60, side=5), ["--components", "2"], "1 x 5 x 5"),
        (public(10), ["--components", "8"], "too few"),
    ],
)
def test_plan_anchors_of_unfit_images_says_what_is_wrong(tmp_path, images, arguments, said):
    done = plan_anchors(tmp_path, written(), images, *arguments)
    assert done.code != 0
    assert said in " ".join(done.err.split())


def test_plan_anchors_for_a_plan_with_classes_is_refused(tmp_path):
    plan = written(data='conditioning = "class"\nclasses = ["cat", "dog"]')
    done = plan_anchors(tmp_path, plan, public(60), "--components", "2")
    assert done.code != 0
    assert "no place for anchors" in " ".join(done.err.split())

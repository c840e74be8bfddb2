"""What a site releases for the router: bounded influence, exact sums, honest noise, good fits."""

import math
from decimal import Decimal

import numpy as np
import pytest
import torch
from adversarial import KINDS, make_image, squared_norm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ddm_fed.embedding import dct_basis
from ddm_fed.errors import BudgetError
from ddm_fed.mixture import (
    SiteRelease,
    decode_location,
    messages,
    release_statistics,
    release_tensors,
    router_shares,
)
from ddm_fed.mixture.coefficients import coefficients
from ddm_fed.mixture.noisy_vector import GRID
from ddm_fed.mixture.statistics import location_statistic, shape_statistic
from ddm_fed.privacy import BoundedStatistic, ImageSet, Private, release
from ddm_fed.records import GaussianEvent, LedgerEntry, read_plan_toml, today
from ddm_fed.router import build_router

CLASSES = ("cat", "dog", "fox")
MIXTURE = 'kind = "mixture", epsilon = 2, frequencies = {f}, radius = {radius}, centre = {centre}'
PRIOR = 'kind = "prior", epsilon = 0.5'


def make_plan(*, router=None, classes=(), shape=(1, 4, 4), f=6, radius=2, centre=-0.25):
    channels, height, width = shape
    router = router or MIXTURE.format(f=f, radius=radius, centre=centre)
    names = ", ".join(f'"{name}"' for name in classes)
    conditioning = f', conditioning = "class", classes = [{names}]' if classes else ""
    data = f"channels = {channels}, height = {height}, width = {width}{conditioning}"
    return read_plan_toml(f"""
        federation = "test"
        expires_at = 2036-01-01T00:00:00Z
        data = {{ {data} }}
        expert = {{ architecture = "DiT-Nano/2" }}
        training = {{ steps = 1, batch_size = 1 }}
        router = {{ {router} }}
        privacy = {{ max_epsilon = 3 }}
    """)


PLANS = {
    "prior": make_plan(router=PRIOR),
    "prior-classes": make_plan(router=PRIOR, classes=CLASSES),
    "mixture": make_plan(),
    "mixture-all-pixels": make_plan(f=16, radius=3, centre=0),
    "mixture-classes": make_plan(classes=CLASSES),
    "mixture-colour-classes": make_plan(classes=CLASSES, shape=(3, 4, 6), f=4, radius=0.3),
}
MIXTURES = [name for name in PLANS if name.startswith("mixture")]


def cell_count(plan):
    return max(1, len(plan.data.classes))


def width_of(plan):
    return plan.data.channels * plan.router.frequencies


def location_of(images, labels, plan):
    return location_statistic(*coefficients(ImageSet(images, labels), plan), plan)


def shape_of(images, labels, means, plan):
    return shape_statistic(*coefficients(ImageSet(images, labels), plan), means, plan)


def generator(seed):
    return torch.Generator().manual_seed(seed)


# --- neighbouring data sets ---


def make_means(kind, seed, plan, y):
    """Released means of every cell, `(J, D)`: anything at all, since noise made them."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(cell_count(plan), width_of(plan)))
    match kind:
        case "zero":
            means[:] = 0
        case "far":
            means *= 1e9
        case "at-image":
            means[:] = y
        case "next-to-image":
            means = y + 1e-13 * means
    return means


def stack(members, plan):
    images = [make_image(kind, seed, plan) for kind, seed, _ in members]
    labels = torch.tensor([cell % cell_count(plan) for _, _, cell in members], dtype=torch.int64)
    stacked = torch.stack(images) if images else torch.zeros((0, *plan.data.shape))
    return stacked, labels if plan.data.classes else None


member = st.tuples(st.sampled_from(KINDS), st.integers(0, 2**32 - 1), st.integers(0, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
@settings(max_examples=60, deadline=None)
@given(others=st.lists(member, max_size=9), added=member, place=st.integers(0, 9))
def test_location_of_neighbouring_data_sets_differs_by_at_most_the_sensitivity(
    name, others, added, place
):
    plan = PLANS[name]
    without = location_of(*stack(others, plan), plan)
    joined = location_of(*stack([*others[:place], added, *others[place:]], plan), plan)
    bound = messages(plan)[0].l2_sensitivity
    assert squared_norm(joined - without) <= bound**2


@pytest.mark.parametrize("name", MIXTURES)
@settings(max_examples=60, deadline=None)
@given(
    others=st.lists(member, max_size=9),
    added=member,
    place=st.integers(0, 9),
    about=st.tuples(
        st.sampled_from(["random", "zero", "far", "at-image", "next-to-image"]),
        st.integers(0, 2**32 - 1),
    ),
)
def test_shape_of_neighbouring_data_sets_differs_by_at_most_the_sensitivity(
    name, others, added, place, about
):
    plan = PLANS[name]
    y, _ = coefficients(ImageSet(*stack([added], plan)), plan)
    means = make_means(*about, plan, y[0])
    without = shape_of(*stack(others, plan), means, plan)
    joined = shape_of(*stack([*others[:place], added, *others[place:]], plan), means, plan)
    bound = messages(plan)[1].l2_sensitivity
    assert squared_norm(joined - without) <= bound**2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PLANS)
def test_any_single_image_in_any_cell_moves_every_message_by_at_most_its_sensitivity(name, kind):
    plan = PLANS[name]
    for seed in range(5):
        for cell in range(cell_count(plan)):
            data = stack([(kind, seed, cell)], plan)
            bound = messages(plan)[0].l2_sensitivity
            assert squared_norm(location_of(*data, plan)) <= bound**2
            if name in MIXTURES:
                for about in ("random", "zero", "far"):
                    means = make_means(about, seed, plan, None)
                    assert squared_norm(shape_of(*data, means, plan)) <= bound**2


@pytest.mark.parametrize("kind", ["nan", "one-nan", "inf", "minus-inf", "one-inf", "both-inf"])
def test_image_that_is_not_finite_adds_nothing_to_the_sums_but_itself_to_the_counts(kind):
    plan = PLANS["mixture-classes"]
    parts = messages(plan)[0].decode(location_of(*stack([(kind, 1, 2)], plan), plan))
    assert parts["count"][0] == pytest.approx(1, abs=1e-5)
    assert parts["cell_count"] == pytest.approx([0, 0, 1], abs=1e-5)
    assert not parts["cell_sum"].any()


@pytest.mark.parametrize("name", PLANS)
def test_sensitivity_of_location_is_nearly_reached_by_an_image_past_the_radius(name):
    # so that no noise is wasted on influence nobody has
    plan = PLANS[name]
    moved = math.sqrt(squared_norm(location_of(*stack([("white", 2, 0)], plan), plan)))
    assert moved > 0.9999 * messages(plan)[0].l2_sensitivity


@pytest.mark.parametrize("name", MIXTURES)
def test_sensitivity_of_shape_is_nearly_reached_by_an_image_far_from_its_mean(name):
    plan = PLANS[name]
    means = make_means("far", 3, plan, None)
    moved = math.sqrt(squared_norm(shape_of(*stack([("noise", 3, 0)], plan), means, plan)))
    assert moved > 0.9999 * messages(plan)[1].l2_sensitivity


def test_image_changes_only_the_sum_of_its_own_cell():
    plan = PLANS["mixture-classes"]
    parts = messages(plan)[0].decode(location_of(*stack([("noise", 4, 1)], plan), plan))
    changed = parts["cell_sum"].reshape(3, -1).any(axis=1)
    assert changed.tolist() == [False, True, False]


# --- sums ---


def boundary_image(plan, seed):
    """An image whose weighted coefficients are integers up to 1e-13, `(1, C, H, W)`, and those.

    Rounding towards zero then turns on the last bit of every coefficient. Three groups of pixels,
    each solved for what the group before left over, reach that precision in float32.
    """
    rng = np.random.default_rng(seed)
    basis = dct_basis(plan.data.shape, plan.router.frequencies).numpy().astype(np.longdouble)
    weight = np.longdouble(messages(plan)[0].parts[1].weight)
    sizes = rng.integers(1_000, 20_000, size=len(basis))
    goal = sizes * rng.choice([-1, 1], size=len(basis)) / weight
    image = np.zeros(basis.shape[1], dtype=np.float32)
    for group in np.array_split(rng.permutation(basis.shape[1]), 3):
        left = (goal - basis @ image.astype(np.longdouble)).astype(np.float64)
        image[group] = np.linalg.lstsq(basis[:, group].astype(np.float64), left)[0]
    return torch.from_numpy(image).reshape(1, *plan.data.shape)


BOUNDARY_PLAN = make_plan(shape=(1, 28, 28), f=64, radius=5, centre=0)


def test_boundary_image_lies_on_the_boundary_it_is_named_for():
    basis = dct_basis(BOUNDARY_PLAN.data.shape, 64).numpy().astype(np.longdouble)
    image = boundary_image(BOUNDARY_PLAN, 5).flatten().numpy().astype(np.longdouble)
    weighted = basis @ image * np.longdouble(messages(BOUNDARY_PLAN)[0].parts[1].weight)
    assert np.abs(weighted - np.rint(weighted)).max() < 1e-10


@pytest.mark.parametrize("count", [2, 5, 7, 9])
def test_location_of_images_in_another_order_is_exactly_the_same(count):
    # The image on the boundary is last in one order and first in the other. A matrix product
    # whose last bit depends on the row's place would show.
    image = boundary_image(BOUNDARY_PLAN, 5)
    others = torch.zeros((count - 1, *BOUNDARY_PLAN.data.shape))
    last = location_of(torch.cat([others, image]), None, BOUNDARY_PLAN)
    first = location_of(torch.cat([image, others]), None, BOUNDARY_PLAN)
    assert np.array_equal(last, first)


@pytest.mark.parametrize("count", [1, 4, 7, 15])
def test_location_of_boundary_images_and_one_more_differs_by_at_most_the_sensitivity(count):
    # The worst image to add points where the others' last bits turn, if they turn.
    plan = BOUNDARY_PLAN
    crowd = boundary_image(plan, 5).expand(count, -1, -1, -1)
    blank = torch.zeros((1, *plan.data.shape))
    before = location_of(crowd, None, plan)
    turned = (location_of(torch.cat([crowd, blank]), None, plan) - before)[1:].astype(float)
    direction = turned if turned.any() else np.ones(len(turned))
    y = 5 * direction / np.linalg.norm(direction)
    added = torch.from_numpy((y @ dct_basis(plan.data.shape, 64).numpy()).astype(np.float32))
    joined = location_of(torch.cat([crowd, added.reshape(1, 1, 28, 28)]), None, plan)
    assert squared_norm(joined - before) <= messages(plan)[0].l2_sensitivity ** 2


@pytest.mark.parametrize("name", PLANS)
def test_location_of_shuffled_images_is_exactly_the_same(name):
    plan = PLANS[name]
    images, labels = stack([("noise", seed, seed) for seed in range(50)], plan)
    order = torch.randperm(50, generator=generator(6))
    shuffled = location_of(images[order], None if labels is None else labels[order], plan)
    assert np.array_equal(shuffled, location_of(images, labels, plan))


@pytest.mark.parametrize("name", MIXTURES)
def test_shape_of_shuffled_images_is_exactly_the_same(name):
    plan = PLANS[name]
    images, labels = stack([("noise", seed, seed) for seed in range(50)], plan)
    order = torch.randperm(50, generator=generator(7))
    means = make_means("random", 7, plan, None)
    shuffled = shape_of(images[order], None if labels is None else labels[order], means, plan)
    assert np.array_equal(shuffled, shape_of(images, labels, means, plan))


@pytest.mark.parametrize("count", [3, 1023, 1024, 1025, 2500])
def test_statistics_of_many_rows_are_exactly_the_sums_of_single_rows(count):
    # over the edge of the blocks in which rows are taken
    plan = PLANS["mixture-classes"]
    rng = np.random.default_rng(8)
    y, cells = rng.normal(size=(count, 6)), rng.integers(0, 3, size=count)
    means = make_means("random", 8, plan, None)
    rows = [slice(i, i + 1) for i in range(count)]
    location = sum(location_statistic(y[row], cells[row], plan) for row in rows)
    shape = sum(shape_statistic(y[row], cells[row], means, plan) for row in rows)
    assert np.array_equal(location_statistic(y, cells, plan), location)
    assert np.array_equal(shape_statistic(y, cells, means, plan), shape)


@pytest.mark.parametrize("name", PLANS)
def test_statistics_of_no_image_are_zero(name):
    assert not location_of(*stack([], PLANS[name]), PLANS[name]).any()


# --- values ---


def slow_coefficients(images, plan):
    """Slow coefficients: one inner product at a time."""
    basis = dct_basis(plan.data.shape, plan.router.frequencies).numpy()
    pixels = images.flatten(1).double().numpy() - float(plan.router.centre)
    return np.array([[math.fsum(x * row) for row in basis] for x in pixels])


def test_location_decoded_without_noise_is_count_and_means_of_unclipped_images():
    plan = PLANS["mixture-classes"]
    images = -0.25 + 0.3 * torch.randn((600, 1, 4, 4), generator=generator(9)).clamp(-1.2, 1.2)
    labels = torch.arange(600) % 5 % 3  # 240, 240 and 120 images
    images += labels.reshape(-1, 1, 1, 1) * 0.1
    found = decode_location(plan, location_of(images, labels, plan), 0.0)
    y = slow_coefficients(images, plan)
    assert np.linalg.norm(y, axis=1).max() < float(plan.router.radius)
    assert found.count == pytest.approx(600, rel=1e-5)
    np.testing.assert_allclose(found.weights, [240, 240, 120], rtol=1e-5)
    for cell in range(3):
        # rounding takes less than one step of the grid off each image
        mean = y[labels.numpy() == cell].mean(0)
        np.testing.assert_allclose(found.means[cell], mean, rtol=0, atol=1e-5)


def test_location_of_images_past_the_radius_is_the_mean_of_their_projections_on_the_ball():
    plan = PLANS["mixture"]
    images = (3 * torch.randn((200, 1, 4, 4), generator=generator(10))).clamp(-1, 1)
    found = decode_location(plan, location_of(images, None, plan), 0.0)
    clipped = [y * min(1.0, 2 / math.hypot(*y)) for y in slow_coefficients(images, plan)]
    np.testing.assert_allclose(found.means[0], np.mean(clipped, axis=0), rtol=0, atol=1e-5)


def test_shape_decoded_is_trace_and_directions_about_the_released_means():
    plan = PLANS["mixture-classes"]
    images = (0.4 * torch.randn((80, 1, 4, 4), generator=generator(11))).clamp(-1, 1)
    labels = torch.arange(80) % 3
    means = 0.5 * make_means("random", 11, plan, None)
    parts = messages(plan)[1].decode(shape_of(images, labels, means, plan))
    trace, signs = 0.0, np.zeros((6, 6))
    for y, label in zip(slow_coefficients(images, plan), labels.tolist(), strict=True):
        u = y - means[label]
        trace += min(math.hypot(*u), 2.0) ** 2
        signs += np.outer(u, u) / math.fsum(u * u)
    assert parts["trace"][0] == pytest.approx(trace, rel=1e-4)
    upper = [signs[i, j] * (1 if i == j else math.sqrt(2)) for i in range(6) for j in range(i, 6)]
    np.testing.assert_allclose(parts["sign"], upper, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", PLANS)
def test_parts_of_every_message_share_its_sensitivity_exactly(name):
    for message in messages(PLANS[name]):
        joint = math.hypot(*(part.weight * part.sensitivity for part in message.parts))
        assert joint == pytest.approx(GRID, rel=1e-12)


def test_router_fitted_without_noise_is_close_to_the_true_posterior_of_isotropic_data():
    # three sites of N(m_k, s_k^2 I) in 9 coefficients; elsewhere they are the same
    plan = make_plan(shape=(1, 8, 8), f=9, radius=3.5, centre=-0.1)
    rng = np.random.default_rng(12)
    basis = dct_basis((1, 8, 8), 9).numpy()
    counts, deviations = [24_000, 12_000, 6_000], [0.4, 0.5, 0.6]
    centres = 0.3 * rng.normal(size=(3, 9))
    releases = []
    for count, mean, deviation in zip(counts, centres, deviations, strict=True):
        y = mean + deviation * rng.normal(size=(count, 9))
        images = torch.from_numpy((-0.1 + y @ basis).reshape(-1, 1, 8, 8)).float()
        location = location_of(images, None, plan)
        means = decode_location(plan, location, 0.0).means.numpy()
        vectors = {"location": location, "shape": shape_of(images, None, means, plan)}
        releases.append(SiteRelease(vectors, {"location": 0.0, "shape": 0.0}))
    router = build_router(plan, "mixture", releases)
    for t in (0.2, 0.5, 0.8):
        sites = rng.choice(3, size=400, p=np.array(counts) / sum(counts))
        y = centres[sites] + np.array(deviations)[sites, None] * rng.normal(size=(400, 9))
        clean = -0.1 + y @ basis
        x_t = (1 - t) * clean + t * rng.normal(size=clean.shape)
        seen = (x_t + (1 - t) * 0.1) @ basis.T
        scores = np.stack(
            [
                math.log(n)
                + stats.norm.logpdf(seen, (1 - t) * m, math.hypot((1 - t) * s, t)).sum(1)
                for n, m, s in zip(counts, centres, deviations, strict=True)
            ],
            axis=1,
        )
        truth = np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
        states = torch.from_numpy(x_t).reshape(-1, 1, 8, 8)
        found = router.log_posterior(states, torch.full((400,), t).double(), None).exp().numpy()
        assert np.abs(found - truth).mean() < 0.01
        assert np.abs(found - truth).max() < 0.1


# --- releases ---


def entry_of(purpose, mechanism, event):
    return LedgerEntry(
        index=0,
        previous_sha256=None,
        recorded_at=today(),
        plan_sha256="0" * 64,
        purpose=purpose,
        mechanism=mechanism,
        event=event,
    )


class Ledger:
    """Notes what was asked of it, and refuses the entry of number `refuse`."""

    def __init__(self, refuse=None):
        self.entries, self.refuse = [], refuse

    def __call__(self, purpose, mechanism, event):
        if len(self.entries) == self.refuse:
            raise BudgetError("spent", hint="none is left")
        self.entries.append(entry_of(purpose, mechanism, event))
        return self.entries[-1]


def data_for(plan, seed=13, count=200):
    images = 0.3 * torch.randn((count, *plan.data.shape), generator=generator(seed))
    labels = torch.arange(count) % cell_count(plan)
    return Private(ImageSet(images, labels if plan.data.classes else None))


@pytest.mark.parametrize("name", PLANS)
def test_released_vectors_have_the_names_sizes_and_type_the_plan_announces(name):
    plan = PLANS[name]
    released = release_statistics(data_for(plan), plan, Ledger())
    assert all(item.value.dtype == np.int64 for item in released.values())
    found = {key: ("I64", item.value.shape) for key, item in released.items()}
    assert found == release_tensors(plan)


@pytest.mark.parametrize("name", PLANS)
def test_released_vectors_cost_the_routers_epsilon_and_no_more(name):
    # by dp-accounting itself, from the noise that was spent
    from dp_accounting import NeighboringRelation, dp_event
    from dp_accounting.pld import PLDAccountant

    plan, ledger = PLANS[name], Ledger()
    release_statistics(data_for(plan), plan, ledger)
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
    for entry in ledger.entries:
        accountant.compose(dp_event.GaussianDpEvent(float(entry.event.noise_multiplier)))
    cost, allowed = accountant.get_epsilon(1e-5), float(plan.router.epsilon)
    assert 0.99 * allowed <= cost <= allowed


@pytest.mark.parametrize("name", MIXTURES)
def test_messages_take_the_shares_of_the_privacy_that_the_router_announces(name):
    plan, ledger = PLANS[name], Ledger()
    release_statistics(data_for(plan), plan, ledger)
    squares = [float(entry.event.noise_multiplier) ** -2 for entry in ledger.entries]
    shares = np.array(router_shares(plan)) / sum(router_shares(plan))
    np.testing.assert_allclose(np.array(squares) / sum(squares), shares, rtol=1e-3)


@pytest.mark.parametrize("name", PLANS)
def test_every_release_carries_the_entry_that_paid_for_it(name):
    plan, ledger = PLANS[name], Ledger()
    released = release_statistics(data_for(plan), plan, ledger)
    assert [item.entry for item in released.values()] == ledger.entries
    assert [entry.purpose for entry in ledger.entries] == [f"router-{key}" for key in released]


def test_release_refused_by_the_ledger_at_once_releases_nothing():
    ledger = Ledger(refuse=0)
    with pytest.raises(BudgetError):
        release_statistics(data_for(PLANS["mixture"]), PLANS["mixture"], ledger)
    assert ledger.entries == []


def test_release_refused_at_the_second_message_leaves_the_first_in_the_ledger():
    ledger = Ledger(refuse=1)
    with pytest.raises(BudgetError):
        release_statistics(data_for(PLANS["mixture"]), PLANS["mixture"], ledger)
    assert [entry.purpose for entry in ledger.entries] == ["router-location"]


class WatchedVector(np.ndarray):
    """Integers that note when their values are handed to a mechanism."""

    def tolist(self):
        self.happened.append("values")
        return super().tolist()


def watched_statistic(happened):
    vector = np.arange(5).view(WatchedVector)
    vector.happened = happened
    return BoundedStatistic(Private(vector), 3, "router-location")


def test_release_hands_its_values_to_the_mechanism_only_after_they_are_paid_for():
    happened = []

    def spend(purpose, mechanism, event):
        happened.append("paid")
        return entry_of(purpose, mechanism, event)

    release(watched_statistic(happened), GaussianEvent(noise_multiplier=Decimal(2)), spend)
    assert happened == ["paid", "values"]


def test_release_that_is_not_paid_for_never_hands_its_values_to_the_mechanism():
    happened = []
    with pytest.raises(BudgetError):
        release(
            watched_statistic(happened),
            GaussianEvent(noise_multiplier=Decimal(2)),
            Ledger(refuse=0),
        )
    assert happened == []


@pytest.mark.parametrize("name", PLANS)
def test_two_releases_of_the_same_images_differ_in_every_message(name):
    # A vector repeats with probability below 1e-6, the chance that one value of noise does.
    plan = PLANS[name]
    first = release_statistics(data_for(plan), plan, Ledger())
    second = release_statistics(data_for(plan), plan, Ledger())
    assert all(not np.array_equal(first[key].value, second[key].value) for key in first)


@pytest.fixture(scope="module")
def noise():
    """Message and part name to the noise of a real release over its announced deviation."""
    plan = make_plan(classes=CLASSES, shape=(3, 8, 8), f=24, radius=4)
    data, ledger = data_for(plan), Ledger()
    released = release_statistics(data, plan, ledger)
    images = data.reveal()
    multipliers = [float(entry.event.noise_multiplier) for entry in ledger.entries]
    location = released["location"].value
    means = decode_location(plan, location, multipliers[0]).means.numpy()
    exact = [
        location_of(images.images, images.labels, plan),
        shape_of(images.images, images.labels, means, plan),
    ]
    found = {}
    for message, multiplier, clean in zip(messages(plan), multipliers, exact, strict=True):
        for name, values in message.decode(released[message.name].value - clean).items():
            found[name] = values / message.noise_std(name, multiplier)
    return found


# The noise comes from the operating system, so these false alarms are per run: 1e-9 each.


@pytest.mark.parametrize("part", ["cell_sum", "sign"])
def test_noise_has_the_deviation_the_message_announces(noise, part):
    # chi-square, two-sided; 216 values of cell_sum and 2,628 of sign
    statistic, count = float((noise[part] ** 2).sum()), len(noise[part])
    tails = stats.chi2.cdf(statistic, count), stats.chi2.sf(statistic, count)
    assert min(tails) > 0.5e-9


@pytest.mark.parametrize("part", ["cell_sum", "sign"])
def test_noise_follows_the_normal_distribution(noise, part):
    assert stats.kstest(noise[part], stats.norm.cdf).pvalue > 1e-9


@pytest.mark.parametrize("part", ["count", "cell_count", "trace"])
def test_noise_of_counts_and_trace_lies_within_seven_deviations(noise, part):
    # P(|Z| > 7) = 2.6e-12 for each of at most 3 values
    assert np.abs(noise[part]).max() < 7


def test_noise_is_drawn_anew_for_every_value(noise):
    assert len(np.unique(noise["sign"])) > 0.99 * len(noise["sign"])

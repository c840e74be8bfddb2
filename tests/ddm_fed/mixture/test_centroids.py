"""What a site releases of its embeddings: bounded influence, exact sums, fair decoding."""

import numpy as np
import pytest
import torch
from centroids import centroid_plan
from hypothesis import given, settings
from hypothesis import strategies as st

from ddm_fed import mixture
from ddm_fed.errors import BudgetError, StateError
from ddm_fed.mixture import (
    CENTROIDS,
    Anchors,
    EmbeddedImages,
    decode_centroids,
    embed_images,
    exact_statistics,
    image_directions,
    planned_anchors,
    public_anchors,
    release_statistics,
    router_events,
)
from ddm_fed.mixture.centroids import LEAST_COUNT
from ddm_fed.mixture.messages import CENTROID_SHARES, ROUTER_PURPOSES
from ddm_fed.mixture.noisy_vector import GRID
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import LedgerEntry, today
from ddm_fed.router import centroid_router

SHAPE = (1, 4, 4)
WIDTH = 12  # E
DIMENSIONS = 5  # D


def generator(seed):
    return torch.Generator().manual_seed(seed)


def make_anchors(count, seed=1, dimensions=DIMENSIONS, width=WIDTH):
    drawn = torch.randn((width, dimensions), generator=generator(seed), dtype=torch.float64)
    axes = torch.linalg.qr(drawn).Q.T
    points = torch.randn((count, dimensions), generator=generator(seed + 1))
    mean = torch.randn(width, generator=generator(seed + 2)) / 5
    return Anchors(mean, axes.float(), torch.nn.functional.normalize(points, dim=1))


ANCHORS = {"one": make_anchors(1), "few": make_anchors(4), "many": make_anchors(40)}


class Blurred:
    """An embedder whose rounding depends on what else is in the batch, as that of networks may."""

    name, dimension, digest = "blurred", WIDTH, "0" * 64
    weight = torch.randn((WIDTH, 16), generator=generator(9))

    def images(self, images):
        found = torch.tanh(images.flatten(1).float()) @ self.weight.T
        return torch.nn.functional.normalize(found * (1 + 1e-7 * len(images)), dim=1)


def centroid_message(anchors):
    return mixture.centroid_message(*anchors.points.shape)


def centroid_statistic(rows, anchors, weights=None):
    """Of embeddings, by the way that those of images take."""
    return mixture.centroid_statistic(anchors.directions(rows).numpy(), anchors, weights)


def squared_norm(vector):
    """Exact, in Python's integers."""
    return sum(int(value) ** 2 for value in vector)


# --- neighbouring data sets ---

KINDS = [
    "ordinary", "unit", "at-mean", "next-to-mean", "at-anchor", "between-anchors", "zero", "huge",
    "largest", "tiny", "subnormal", "outside-axes", "nan", "one-nan", "inf", "minus-inf",
]  # fmt: skip


def make_embedding(kind, seed, anchors):
    """One embedding of a kind that somebody might use to move the statistic, `(E,)`."""
    rng = np.random.default_rng(seed)
    width = len(anchors.mean)
    e = rng.normal(size=width)
    mean, axes = anchors.mean.double().numpy(), anchors.axes.double().numpy()
    match kind:
        case "unit":
            e /= np.linalg.norm(e)
        case "at-mean":
            e = mean.copy()
        case "next-to-mean":
            e = mean + 1e-12 * e
        case "at-anchor":
            point = anchors.points[rng.integers(len(anchors.points))].double().numpy()
            e = mean + 0.3 * point @ axes
        case "between-anchors":
            points = anchors.points.double().numpy()
            e = mean + (points[0] + points[-1]) @ axes
        case "zero":
            e[:] = 0
        case "huge":
            e *= 10.0 ** rng.integers(2, 300)
        case "largest":
            e = np.finfo(np.float64).max * np.sign(e)
        case "tiny":
            e *= 10.0 ** -rng.integers(3, 300)
        case "subnormal":
            e = np.full(width, 5e-324)
        case "outside-axes":
            e = mean + (e - axes.T @ (axes @ e))
        case "nan" | "inf" | "minus-inf":
            e[:] = {"nan": np.nan, "inf": np.inf, "minus-inf": -np.inf}[kind]
        case "one-nan":
            e[rng.integers(width)] = np.nan
    return torch.from_numpy(e)


def stack(members, anchors):
    rows = [make_embedding(kind, seed, anchors) for kind, seed in members]
    return torch.stack(rows) if rows else torch.zeros((0, WIDTH), dtype=torch.float64)


member = st.tuples(st.sampled_from(KINDS), st.integers(0, 2**32 - 1))


@pytest.mark.parametrize("name", ANCHORS)
@settings(max_examples=80, deadline=None)
@given(others=st.lists(member, max_size=9), added=member, place=st.integers(0, 9))
def test_statistic_of_neighbouring_data_sets_differs_by_at_most_the_sensitivity(
    name, others, added, place
):
    anchors = ANCHORS[name]
    without = centroid_statistic(stack(others, anchors), anchors)
    joined = centroid_statistic(stack([*others[:place], added, *others[place:]], anchors), anchors)
    assert squared_norm(joined - without) <= centroid_message(anchors).l2_sensitivity ** 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ANCHORS)
def test_any_single_embedding_moves_the_statistic_by_at_most_its_sensitivity(name, kind):
    anchors = ANCHORS[name]
    for seed in range(20):
        moved = centroid_statistic(stack([(kind, seed)], anchors), anchors)
        assert squared_norm(moved) <= centroid_message(anchors).l2_sensitivity ** 2


@pytest.mark.parametrize("name", ANCHORS)
def test_ordinary_embedding_uses_nearly_all_of_the_sensitivity(name):
    """So the noise is not larger than it has to be."""
    anchors = ANCHORS[name]
    moved = centroid_statistic(stack([("unit", 1)], anchors), anchors)
    assert squared_norm(moved) ** 0.5 > centroid_message(anchors).l2_sensitivity * (1 - 1e-5)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(members=st.lists(member, min_size=2, max_size=12), seed=st.integers(0, 2**32 - 1))
def test_statistic_is_the_sum_of_its_rows_in_any_order_to_the_bit(members, seed):
    anchors = ANCHORS["few"]
    rows = stack(members, anchors)
    alone = sum(centroid_statistic(rows[i : i + 1], anchors) for i in range(len(rows)))
    mixed = rows[torch.randperm(len(rows), generator=generator(seed))]
    assert np.array_equal(centroid_statistic(rows, anchors), alone)
    assert np.array_equal(centroid_statistic(mixed, anchors), alone)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_embeddings_of_neighbouring_image_sets_are_the_same_to_the_bit(bad):
    images = torch.rand((9, *SHAPE), generator=generator(1)) * 2 - 1
    images[4, 0, 1, 2] = bad
    whole = embed_images(ImageSet(images, None), Blurred())
    for left_out in range(9):
        kept = [i for i in range(9) if i != left_out]
        part = embed_images(ImageSet(images[kept], None), Blurred())
        assert torch.equal(part, whole[kept])
    assert torch.equal(whole[4], Blurred().images(torch.zeros(1, *SHAPE))[0])


def test_embeddings_of_images_mapped_from_bytes_are_those_of_the_images():
    pixels = np.random.default_rng(1).integers(0, 256, (5, *SHAPE), dtype=np.uint8)
    mapped = ImageSet(pixels, None, (0, 255))
    assert torch.equal(
        embed_images(mapped, Blurred()), embed_images(ImageSet(mapped.images, None), Blurred())
    )


# --- what it means ---


def test_statistic_is_that_of_plain_loops():
    anchors = ANCHORS["few"]
    rows = stack([("unit", seed) for seed in range(30)], anchors)
    counts, sums = [0.0] * 4, [[0.0] * DIMENSIONS for _ in range(4)]
    for row in rows.tolist():
        shifted = [a - b for a, b in zip(row, anchors.mean.tolist(), strict=True)]
        z = [
            sum(a * b for a, b in zip(axis, shifted, strict=True)) for axis in anchors.axes.tolist()
        ]
        length = sum(value**2 for value in z) ** 0.5
        u = [value / length for value in z]
        cosines = [sum(a * b for a, b in zip(p, u, strict=True)) for p in anchors.points.tolist()]
        nearest = cosines.index(max(cosines))
        counts[nearest] += 1
        sums[nearest] = [a + b for a, b in zip(sums[nearest], u, strict=True)]
    message = centroid_message(anchors)
    found = message.decode(centroid_statistic(rows, anchors))
    np.testing.assert_allclose(found["anchor_count"], counts, rtol=1e-5)
    np.testing.assert_allclose(found["anchor_sum"].reshape(4, -1), sums, atol=30 * 1e-5)


def test_parts_share_the_sensitivity_as_agreed():
    parts = {part.name: part for part in centroid_message(ANCHORS["few"]).parts}
    assert sum(CENTROID_SHARES.values()) == pytest.approx(1)
    assert sum(part.weight**2 for part in parts.values()) == pytest.approx(GRID**2)
    assert parts["anchor_count"].size == 4
    assert parts["anchor_sum"].size == 4 * DIMENSIONS


# --- the release ---


class Ledger:
    def __init__(self, refuse=False):
        self.entries, self.refuse = [], refuse

    def spend(self, purpose, mechanism, event):
        if self.refuse:
            raise BudgetError("no", hint="no")
        entry = LedgerEntry(
            index=len(self.entries), previous_sha256=None, recorded_at=today(),
            plan_sha256="0" * 64,
            purpose=purpose, mechanism=mechanism, event=event,
        )  # fmt: skip
        self.entries.append(entry)
        return entry


def planned(anchors, *, unit="image", router='kind = "centroid", epsilon = 2'):
    """A plan whose sites release centroids at `anchors`, of images of SHAPE."""
    return centroid_plan(anchors, Blurred(), router=router, unit=unit, shape=SHAPE)


@pytest.mark.parametrize(
    "router",
    [
        'kind = "centroid", epsilon = 2',
        'kind = "mixture", epsilon = 2, frequencies = 4, radius = 2',
    ],
)
def test_release_adds_noise_of_the_stated_size_and_writes_it_down(router):
    plan, ledger = planned(ANCHORS["many"], router=router), Ledger()
    directions = EmbeddedImages(Blurred(), planned_anchors(plan.centroids))
    images = Private(ImageSet(torch.rand((20, *SHAPE), generator=generator(1)) * 2 - 1, None))
    released = release_statistics(images, plan, ledger.spend, directions)
    assert [entry.purpose for entry in ledger.entries] == [ROUTER_PURPOSES[n] for n in released]
    assert ledger.entries[-1].purpose == "router-centroids"
    vectors = {name: item.value for name, item in released.items()}
    exact = exact_statistics(images, plan, vectors, directions)[CENTROIDS].reveal()
    scale = float(router_events(plan)[CENTROIDS].noise_multiplier) * (GRID + 1)
    noise = (vectors[CENTROIDS] - exact) / scale
    # 240 draws: a standard deviation of 1 is missed by a quarter with probability 4e-8
    assert noise.shape == (240,)
    assert 0.75 < noise.std() < 1.25


def test_release_that_the_budget_refuses_draws_nothing():
    plan = planned(ANCHORS["few"])
    directions = EmbeddedImages(Blurred(), planned_anchors(plan.centroids))
    images = Private(ImageSet(torch.zeros((2, *SHAPE)), None))
    with pytest.raises(BudgetError):
        release_statistics(images, plan, Ledger(refuse=True).spend, directions)


def test_release_without_an_embedder_is_refused_before_anything_is_spent():
    plan, ledger = planned(ANCHORS["few"]), Ledger()
    with pytest.raises(StateError, match="take the weights of its embedder"):
        release_statistics(Private(ImageSet(torch.zeros((2, *SHAPE)), None)), plan, ledger.spend)
    assert not ledger.entries


@pytest.mark.parametrize("unit", ["image", "patient"])
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    added=st.integers(1, 9),
    alike=st.booleans(),
    bad=st.sampled_from([None, float("nan"), float("inf")]),
)
def test_message_of_images_moves_by_at_most_the_sensitivity_when_a_unit_joins(
    unit, seed, sizes, added, alike, bad
):
    """Through what the command runs: images, embedder, anchors of the plan, weights of units."""
    plan = planned(ANCHORS["few"], unit=unit)
    directions = EmbeddedImages(Blurred(), planned_anchors(plan.centroids))
    sizes = [1] * len(sizes) if unit == "image" else sizes
    more = 1 if unit == "image" else added
    units = torch.tensor([u for u, size in enumerate([*sizes, more]) for _ in range(size)])
    pixels = torch.rand((len(units), *SHAPE), generator=generator(seed)) * 2 - 1
    if alike:  # the worst case: all of a patient's point in one direction
        pixels[-more:] = pixels[-1]
    if bad is not None:
        pixels[-1, 0, 1, 1] = bad
    together = ImageSet(pixels, None, units=units)
    without = ImageSet(pixels[:-more], None, units=units[:-more])
    one, other = (
        exact_statistics(Private(images), plan, {"location": zeros(plan)}, directions)
        for images in (without, together)
    )
    moved = squared_norm(other[CENTROIDS].reveal() - one[CENTROIDS].reveal())
    assert moved <= (GRID + 1) ** 2
    if alike and bad is None:
        assert moved > (GRID * 0.99) ** 2


def zeros(plan):
    return np.zeros(mixture.message_named(plan, "location").size, dtype=np.int64)


# --- decoding ---


def noised(vector, anchors, multiplier, seed):
    scale = multiplier * centroid_message(anchors).l2_sensitivity
    drawn = np.random.default_rng(seed).normal(size=len(vector)) * scale
    return vector + np.rint(drawn).astype(np.int64)


def test_decoding_without_noise_gives_counts_directions_and_resultants():
    anchors = ANCHORS["few"]
    rows = stack([("unit", seed) for seed in range(400)], anchors)
    found = decode_centroids(anchors, centroid_statistic(rows, anchors), 1e-6)
    u = anchors.directions(rows)
    nearest = (u @ anchors.points.double().T).argmax(1)
    assert found.count == pytest.approx(400, rel=1e-5)
    for j in range(4):
        mean = u[nearest == j].mean(0)
        assert float(found.weights[j]) == pytest.approx(int((nearest == j).sum()), rel=1e-5)
        assert float(found.resultants[j]) == pytest.approx(float(mean.norm()), rel=1e-4)
        torch.testing.assert_close(found.directions[j], mean / mean.norm(), rtol=0, atol=1e-4)


def test_decoding_of_nothing_but_noise_gives_the_anchors_and_no_concentration():
    anchors = ANCHORS["many"]
    vector = noised(np.zeros(centroid_message(anchors).size, np.int64), anchors, 5.0, 1)
    found = decode_centroids(anchors, vector, 5.0)
    torch.testing.assert_close(found.directions, anchors.points.double(), rtol=0, atol=1e-6)
    assert found.resultants.max() == 0
    assert found.weights.std() == 0
    assert float(found.weights.sum()) <= max(found.count, 1.0) + 1e-6


def test_decoding_keeps_the_images_of_drowned_anchors_in_the_weights():
    anchors = ANCHORS["many"]
    rows = stack([("unit", seed) for seed in range(3000)], anchors)
    found = decode_centroids(
        anchors, noised(centroid_statistic(rows, anchors), anchors, 5.0, 2), 5.0
    )
    drowned = found.resultants == 0
    assert 0 < int(drowned.sum()) < 40
    assert float(found.weights.sum()) == pytest.approx(found.count)
    noise = centroid_message(anchors).noise_std("anchor_count", 5.0)
    assert float(found.weights[~drowned].min()) > LEAST_COUNT * noise


@pytest.mark.parametrize("multiplier", [1.0, 3.0])
def test_shrunk_directions_are_nearer_the_truth_than_noisy_ones_and_hardly_worse_than_anchors(
    multiplier,
):
    anchors = make_anchors(6, dimensions=48, width=60)
    rows = torch.cat([anchors.points.double()] * 40) @ anchors.axes.double()
    rows = anchors.mean + rows + 0.25 * torch.randn((240, 60), generator=generator(3)).double()
    exact = centroid_statistic(rows, anchors)
    truth = decode_centroids(anchors, exact, 1e-6).directions
    errors = {"shrunk": 0.0, "noisy": 0.0}
    for seed in range(20):
        vector = noised(exact, anchors, multiplier, seed)
        shrunk = decode_centroids(anchors, vector, multiplier).directions
        sums = torch.from_numpy(centroid_message(anchors).decode(vector)["anchor_sum"])
        noisy = torch.nn.functional.normalize(sums.reshape(6, -1), dim=1)
        errors["shrunk"] += float((shrunk - truth).square().sum())
        errors["noisy"] += float((noisy - truth).square().sum())
    public = float((anchors.points.double() - truth).square().sum()) * 20
    assert errors["shrunk"] < 0.8 * errors["noisy"]
    assert errors["shrunk"] < 1.15 * public


def test_router_of_private_releases_knows_the_sites_of_new_images():
    """Two sites of the same three kinds of image, each in a style of its own, at epsilon 4."""
    rng = generator(5)
    kinds = torch.randn((3, 16), generator=rng)
    styles = 0.5 * torch.randn((2, 3, 16), generator=rng)

    def draw(k, count):
        kind = torch.arange(count) % 3
        pixels = kinds[kind] + styles[k][kind] + 0.3 * torch.randn((count, 16), generator=rng)
        return (pixels / 3).reshape(-1, *SHAPE)

    public = torch.cat([draw(0, 60), draw(1, 60)])
    anchors = public_anchors(Blurred().images(public), 3, 0, dimensions=8)
    plan = centroid_plan(anchors, Blurred(), router='kind = "centroid", epsilon = 4', shape=SHAPE)
    anchors = planned_anchors(plan.centroids)
    sites = []
    for k in range(2):
        data = Private(ImageSet(draw(k, 300), None))
        found = release_statistics(data, plan, Ledger().spend, EmbeddedImages(Blurred(), anchors))
        noise = float(router_events(plan)[CENTROIDS].noise_multiplier)
        sites.append(decode_centroids(anchors, found[CENTROIDS].value, noise))
    router = centroid_router(sites, image_directions(Blurred(), anchors))
    right = [router.log_posterior_of_images(draw(k, 150)).argmax(1) == k for k in range(2)]
    assert torch.cat(right).double().mean() > 0.9

"""One owner's images divided among islands: clusters, features that are kept, shards."""

import numpy as np
import pytest
import torch

from ddm_fed.errors import DataError, StateError
from ddm_fed.partition import (
    CHANCE,
    GIVEN_CENTRES,
    OWN_CLUSTERS,
    Describe,
    at_random,
    coarse_centres,
    cosines,
    depends_on_others,
    described,
    nearest,
    open_images,
    whole_units,
    write_shards,
)

KINDS, EACH, SIDE = 4, 300, 8


def blobs(seed=0):
    """Images of four kinds, each bright in a quarter of its own, and their kinds."""
    rng = np.random.default_rng(seed)
    kind = rng.permutation(np.repeat(np.arange(KINDS), EACH))
    images = rng.integers(0, 60, (len(kind), SIDE, SIDE)).astype(np.uint8)
    for row, which in enumerate(kind):
        top, left = 4 * (which // 2), 4 * (which % 2)
        images[row, top : top + 4, left : left + 4] += 150
    return images, kind


def saved(folder, images, **beside):
    path = folder / "images.npy"
    np.save(path, images)
    for name, values in beside.items():
        np.save(folder / f"images.{name}.npy", values)
    return path


def features_of(path, folder, **more):
    found = open_images(path)
    return described(found, path, cosines(found.shape, 16), folder, **more)


@pytest.mark.parametrize("fine", [4, 64, 1024])
def test_clusters_are_the_kinds_of_image(tmp_path, fine):
    images, kind = blobs()
    features = features_of(saved(tmp_path, images), tmp_path / "features")
    centres = coarse_centres(features, KINDS, seed=0, fine=fine)
    found = nearest(features, centres)
    for island in range(KINDS):
        assert len(set(kind[found == island])) == 1
        assert (found == island).sum() == EACH


def test_same_seed_gives_the_same_centres(tmp_path):
    features = features_of(saved(tmp_path, blobs()[0]), tmp_path / "features")
    first, again = (coarse_centres(features, 3, seed=7) for _ in range(2))
    assert np.array_equal(first, again)


def test_nearest_is_that_of_the_least_distance():
    rng = np.random.default_rng(1)
    features, centres = (rng.normal(size=(n, 5)).astype(np.float32) for n in (200, 7))
    squared = ((features[:, None].astype(float) - centres[None]) ** 2).sum(2)
    assert np.array_equal(nearest(features, centres), squared.argmin(1))


def test_chance_makes_islands_of_equal_size_that_know_nothing_of_the_kinds():
    _, kind = blobs()
    found = at_random(len(kind), 3, seed=2)
    assert np.bincount(found).tolist() == [400, 400, 400]
    expected = np.full((3, KINDS), 100)
    table = np.zeros((3, KINDS))
    np.add.at(table, (found, kind), 1)
    assert ((table - expected) ** 2 / expected).sum() < 24  # chi-squared, 6 degrees, p = .0005
    assert not np.array_equal(found, at_random(len(kind), 3, seed=3))


def test_units_stay_whole_where_most_of_their_images_are():
    clusters = np.array([0, 0, 1, 1, 1, 0, 2])
    units = np.array(["a", "a", "a", "b", "b", "c", "c"])
    assert whole_units(clusters, units).tolist() == [0, 0, 0, 1, 1, 0, 0]


def test_features_are_those_of_all_images_at_once(tmp_path):
    images, _ = blobs()
    path = saved(tmp_path, images)
    found = features_of(path, tmp_path / "features", batch_size=37)
    whole = torch.from_numpy(images)[:, None].float() / 127.5 - 1
    expected = cosines((1, SIDE, SIDE), 16).images(whole)
    torch.testing.assert_close(torch.from_numpy(np.array(found)), expected)


class Stopping:
    """Describes as cosines do, and fails at its n-th batch, as a killed run would end there."""

    def __init__(self, shape, stop):
        self.inside, self.stop, self.asked = cosines(shape, 16), stop, 0

    def describe(self):
        return Describe(self.inside.name, self.inside.dimension, self.images)

    def images(self, images):
        self.asked += 1
        if self.asked == self.stop:
            raise KeyboardInterrupt
        return self.inside.images(images)


def test_stopped_run_goes_on_where_it_was_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("ddm_fed.storage.row_files.SAVE_S", 0.0)
    path = saved(tmp_path, blobs()[0])
    images, folder = open_images(path), tmp_path / "features"
    with pytest.raises(KeyboardInterrupt):
        described(images, path, Stopping(images.shape, 5).describe(), folder, batch_size=100)
    second = Stopping(images.shape, 0)
    told = []
    found = described(images, path, second.describe(), folder, batch_size=100, advance=told.append)
    assert second.asked == 8  # of twelve batches four were kept
    assert (told[0], sum(told)) == (400, 1200)
    assert np.array_equal(found, features_of(path, tmp_path / "anew"))


def test_features_of_other_images_are_not_taken_for_those_of_these(tmp_path):
    path = saved(tmp_path, blobs()[0])
    features_of(path, tmp_path / "features")
    saved(tmp_path, blobs(seed=5)[0])
    with pytest.raises(StateError, match="was begun with another `source_sha256`"):
        features_of(path, tmp_path / "features")


def test_features_made_otherwise_are_refused(tmp_path):
    path = saved(tmp_path, blobs()[0])
    images = open_images(path)
    features_of(path, tmp_path / "features")
    with pytest.raises(StateError, match="another `features`: 16 cosines per channel, now 9"):
        described(images, path, cosines(images.shape, 9), tmp_path / "features")


def test_features_that_are_not_finite_are_refused(tmp_path):
    path = saved(tmp_path, blobs()[0])
    broken = Describe("broken", 2, lambda x: torch.full((len(x), 2), torch.nan))
    with pytest.raises(DataError, match="images 0 to 255 have features that are not finite"):
        described(open_images(path), path, broken, tmp_path / "features")


def test_disk_without_room_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100})())
    with pytest.raises(StateError, match=r"has room for 100 bytes, .* 1,200 images are 76,800"):
        features_of(saved(tmp_path, blobs()[0]), tmp_path / "features")
    assert not (tmp_path / "features" / "features.f32").exists()


@pytest.mark.parametrize("colour", ["grey", "last", "first"])
def test_shards_hold_every_image_once_with_what_is_beside_it(tmp_path, colour):
    images, kind = blobs()
    if colour != "grey":
        images = np.stack([images] * 3, axis=-1 if colour == "last" else 1)
    path = saved(tmp_path, images, labels=kind, captions=np.char.add("kind ", kind.astype(str)))
    found = open_images(path)
    assert found.shape == ((1 if colour == "grey" else 3), SIDE, SIDE)
    told = []
    shards = write_shards(found, kind, KINDS, tmp_path / "shards", advance=told.append, by=CHANCE)
    assert sum(told) == len(images)
    for island, shard in enumerate(shards):
        assert np.array_equal(np.load(shard.file), images[kind == island])
        assert set(np.load(shard.file.with_suffix(".labels.npy"))) == {island}
        assert set(np.load(shard.file.with_suffix(".captions.npy"))) == {f"kind {island}"}
        for file in shard.file.parent.iterdir():
            assert file.stat().st_mode & 0o077 == 0
        assert shard.images == EACH
    assert (tmp_path / "shards").stat().st_mode & 0o077 == 0


def test_island_without_an_image_is_refused_and_leaves_nothing(tmp_path):
    path = saved(tmp_path, blobs()[0])
    images = open_images(path)
    clusters = np.zeros(len(images), np.int64)
    with pytest.raises(DataError, match="island 2 of 2 would have no image"):
        write_shards(images, clusters, 2, tmp_path / "shards", by=CHANCE)
    assert not (tmp_path / "shards").exists()


def test_fewer_images_that_differ_than_islands_are_refused(tmp_path):
    path = saved(tmp_path, np.zeros((50, SIDE, SIDE), np.uint8))
    features = features_of(path, tmp_path / "features")
    with pytest.raises(DataError, match="fewer than 3 images that differ"):
        coarse_centres(features, 3, seed=0)


def test_archive_of_medmnist_is_read(tmp_path):
    images, kind = blobs()
    path = tmp_path / "archive.npz"
    np.savez(path, train_images=images, train_labels=kind[:, None])
    found = open_images(path)
    assert (len(found), found.shape) == (1200, (1, SIDE, SIDE))
    assert np.array_equal(found.beside["labels"].reshape(-1), kind)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.png", lambda path: path.write_bytes(b"x"), "is no .npy or .npz file"),
        ("a.npy", lambda path: path.write_bytes(b"x"), "cannot be read"),
        ("a.npy", lambda path: np.save(path, np.zeros((4, 8, 8))), "float64 and shape"),
        ("a.npy", lambda path: np.save(path, np.zeros((4, 8, 8, 2), np.uint8)), "shape"),
        ("a.npy", lambda path: np.save(path, np.array([{}]), allow_pickle=True), "cannot be read"),
        ("a.npz", lambda path: np.savez(path, pictures=np.zeros(3)), "holds pictures, expected"),
    ],
)
def test_files_that_hold_no_images_are_refused(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(DataError, match=message):
        open_images(tmp_path / name)


def test_labels_of_other_images_are_refused(tmp_path):
    images, kind = blobs()
    with pytest.raises(DataError, match="has 1200 images and 1199 labels"):
        open_images(saved(tmp_path, images, labels=kind[1:]))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("features.json", b"{"),
        ("features.json", b"[]"),
        ("features.json", b'{"done": "all"}'),
        ("features.f32", b"short"),
    ],
)
def test_features_that_were_damaged_are_refused_by_name(tmp_path, name, content):
    path = saved(tmp_path, blobs()[0])
    features_of(path, tmp_path / "features")
    (tmp_path / "features" / name).write_bytes(content)
    with pytest.raises(StateError, match=f"{name} is not what an earlier run left there"):
        features_of(path, tmp_path / "features")


@pytest.mark.parametrize(
    ("by", "said"), [(OWN_CLUSTERS, True), (CHANCE, True), (GIVEN_CENTRES, False)]
)
def test_shards_say_whether_their_division_depends_on_other_images(tmp_path, by, said):
    found = open_images(saved(tmp_path, blobs()[0]))
    shards = write_shards(found, np.arange(len(found)) % 2, 2, tmp_path / "shards", by=by)
    assert depends_on_others(shards[0].file) == (by if said else None)
    assert depends_on_others(tmp_path / "images.npy") is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"divided_by": "me"}', '{"divided_by": []}'])
def test_note_of_a_division_that_was_changed_is_refused_by_name(tmp_path, text):
    found = open_images(saved(tmp_path, blobs()[0]))
    shards = write_shards(found, np.arange(len(found)) % 2, 2, tmp_path / "shards", by=CHANCE)
    (tmp_path / "shards" / "division.json").write_text(text)
    with pytest.raises(DataError, match=r"division\.json does not say by what"):
        depends_on_others(shards[0].file)


def test_one_patient_less_moves_nobody_who_is_left_where_centres_are_given():
    """What parallel composition needs: every unit decides about itself only."""
    images, _ = blobs()
    units = np.arange(len(images)) // 3
    features = images.reshape(len(images), -1).astype(np.float32)
    centres = features[[5, 500, 900]]
    everybody = whole_units(nearest(features, centres), units)
    for left_out in (0, 17, 133, units.max()):
        kept = units != left_out
        rest = whole_units(nearest(features[kept], centres), units[kept])
        assert np.array_equal(rest, everybody[kept])

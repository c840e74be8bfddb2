"""A site's latents: encoded once, continued after a kill, and of one image alone."""

import shutil
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch
from federation import a_plan
from latents import data_of, make_folder, opened, pictures

from ddm_fed.errors import MachineError, PlanError, StateError
from ddm_fed.mixture import exact_statistics, messages
from ddm_fed.privacy import ImageSet, Private, Randomness
from ddm_fed.records import Plan
from ddm_fed.training.batches import Batches
from ddm_fed.training.unit_rows import UnitDraws
from sites.data import encode_images, encode_part

COUNT = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("ae"))


def images(rows=None):
    chosen = pictures(COUNT) if rows is None else pictures(COUNT)[rows]
    return Private(ImageSet(chosen, torch.arange(len(chosen)) % 2))


def plan_of(folder) -> Plan:
    plan = a_plan()
    return plan.model_copy(update={"data": data_of(folder)})


class KilledError(Exception):
    pass


def test_latents_are_made_once_and_carry_labels_and_a_digest_of_their_own(folder, tmp_path):
    coder, told = opened(folder), []
    first = encode_images(images(), coder, tmp_path / "latents").reveal()
    again = encode_images(images(), coder, tmp_path / "latents", told.append).reveal()

    means, deviations = coder.encode(pictures(COUNT))
    torch.testing.assert_close(first.images, means)
    torch.testing.assert_close(torch.from_numpy(np.array(first.deviations)), deviations)
    assert told == [COUNT]  # all of them were there
    assert first.labels.tolist() == images().reveal().labels.tolist()
    assert first.digest() == again.digest() != images().reveal().digest()
    other = encode_images(images(range(1, COUNT)), coder, tmp_path / "latents").reveal()
    assert other.digest() != first.digest()


def test_encoding_that_is_killed_goes_on_where_it_was(folder, tmp_path, monkeypatch):
    coder = opened(folder)
    whole = encode_images(images(), coder, tmp_path / "whole").reveal()
    monkeypatch.setattr("ddm_fed.storage.row_files.SAVE_S", -1.0)

    def kill_at_the_fifth(more):
        kill_at_the_fifth.done += more
        if kill_at_the_fifth.done == 5:
            raise KilledError

    kill_at_the_fifth.done = 0
    with pytest.raises(KilledError):
        encode_images(images(), coder, tmp_path / "latents", kill_at_the_fifth)
    asked = []
    monkeypatch.setattr(
        coder, "encode", lambda own: asked.append(1) or type(coder).encode(coder, own)
    )

    found = encode_images(images(), coder, tmp_path / "latents").reveal()

    assert len(asked) == COUNT - 4  # four were said to be done
    assert torch.equal(found.images, whole.images)
    assert np.array_equal(found.deviations, whole.deviations)


def test_full_disk_is_found_out_before_anything_is_encoded(folder, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))

    with pytest.raises(MachineError, match="the latents of 9 images need"):
        encode_images(images(), opened(folder), tmp_path / "latents")
    assert not list((tmp_path / "latents").rglob("*.f32"))


def test_latent_of_an_image_is_the_same_to_the_bit_whoever_else_is_there(folder, tmp_path):
    coder = opened(folder)
    whole = encode_images(images(), coder, tmp_path / "a").reveal()
    fewer = encode_images(images([0, 1, 3, 4, 5, 6, 7, 8]), coder, tmp_path / "b").reveal()
    kept = [0, 1, 3, 4, 5, 6, 7, 8]

    assert torch.equal(whole.images[kept], fewer.images)
    assert np.array_equal(whole.deviations[kept], fewer.deviations)


def test_releases_of_neighbouring_sets_of_latents_differ_by_one_images_part(folder, tmp_path):
    plan, coder = plan_of(folder), opened(folder)
    whole = encode_images(images(), coder, tmp_path / "a")
    fewer = encode_images(images(range(COUNT - 1)), coder, tmp_path / "b")
    alone = encode_images(images([COUNT - 1]), coder, tmp_path / "c")

    first = {"location": np.zeros(messages(plan)[0].size, np.int64)}
    of = [exact_statistics(each, plan, first) for each in (whole, fewer, alone)]

    for name in of[0]:
        together, without, own = (found[name].reveal() for found in of)
        assert (together - without == own).all()


def test_private_rows_of_a_unit_follow_from_its_own_latents_alone(folder, tmp_path):
    plan, secret = plan_of(folder), Randomness.from_hex("11" * 32, "test")
    latents = encode_images(images(), opened(folder), tmp_path / "a").reveal()

    def rows(data, unit, first=0):
        draws = UnitDraws(
            data, plan.training, conditional=False, randomness=secret, draws=3, first_place=first
        )
        return next(draws.blocks(5, torch.tensor([unit])))

    for unit in (0, 4):
        x_0, *others = rows(latents, unit)
        lone_x_0, *lone_others = rows(latents.of_unit(unit), 0, first=unit)
        assert torch.equal(x_0, lone_x_0)
        assert all(torch.equal(a, b) for a, b in zip(others, lone_others, strict=True))
    means = latents.batch(torch.tensor([4, 4, 4]))
    assert not torch.equal(rows(latents, 4)[0][0], means)  # drawn, not the mean


def test_steps_draw_latents_by_seed_and_step_and_within_the_bound(folder, tmp_path):
    plan = plan_of(folder)
    latents = encode_images(images(), opened(folder), tmp_path / "a").reveal()
    wild = replace(latents, deviations=np.full_like(latents.deviations, 50.0))

    def batch(data, step, rows=slice(None)):
        return Batches(data, plan.training, conditional=False, seed=3).draw(step, rows)

    assert torch.equal(batch(latents, 2).x_0, batch(latents, 2).x_0)
    assert torch.equal(batch(latents, 2).x_0[4:6], batch(latents, 2, slice(4, 6)).x_0)
    assert not torch.equal(batch(latents, 0).x_0, batch(wild, 0).x_0)
    assert float(batch(wild, 0).x_0.abs().max()) == 4.0
    plain = replace(latents, deviations=None)
    assert torch.equal(batch(latents, 2).eps, batch(plain, 2).eps)


def test_plan_that_moves_latents_or_does_not_divide_is_refused():
    latent = f"""
[data.latent]
kind = "kl"
sha256 = "{"ab" * 32}"
channels = 4
factor = 2
scale = 1
"""
    with pytest.raises(PlanError, match="moved latent"):
        a_plan(width="width = 8" + latent, steps='steps = 3\naugmentation = ["horizontal-flip"]')
    with pytest.raises(PlanError, match="does not become latents"):
        a_plan(width="width = 8" + latent.replace("factor = 2", "factor = 4"))
    assert a_plan(width="width = 8" + latent).data.shape == (4, 4, 4)
    assert b"latent" not in a_plan().to_json()


def test_parts_of_the_images_end_in_the_bytes_that_one_machine_makes(folder, tmp_path):
    coder, asked = opened(folder), []
    whole = encode_images(images(), coder, tmp_path / "whole").reveal()
    told = [
        encode_part(images(), coder, tmp_path / "parts", (part, 4), asked.append)
        for part in (4, 1, 2)
    ]
    assert sum(told) == sum(asked) == 7  # two of nine are missing

    found = encode_images(images(), coder, tmp_path / "parts").reveal()

    assert torch.equal(found.images, whole.images)
    assert np.array_equal(found.deviations, whole.deviations)
    assert found.digest() == whole.digest()


def test_part_of_other_images_is_not_taken_for_one_of_these(folder, tmp_path):
    coder, place = opened(folder), tmp_path / "latents"
    encode_images(images(), coder, place)
    (own,) = place.iterdir()
    encode_part(images(range(1, COUNT)), coder, place, (1, 2))
    (other,) = set(place.iterdir()) - {own}
    shutil.rmtree(own)
    other.rename(own)
    with pytest.raises(StateError, match="was begun with another `key`"):
        encode_images(images(), coder, place)

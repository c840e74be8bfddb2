"""`ddm-site plan new`: a proposal that says nothing of a site's images but their form."""

import numpy as np
import pytest
from federation import SITES, create_federation
from PIL import Image

from ddm_fed.records import read_plan_file

REST = ("--sites", 3, "--epsilon", 8, "--machine", "cpu", "--hours", 8)


@pytest.fixture
def new(run, tmp_path):
    def asked(*words, out="plan.toml"):
        words = ("--federation", "test", "--out", tmp_path / out, *REST, *words)
        return run("ddm-site", "plan", "new", *words)

    return asked


def folder_of(place, seed, count, size=(40, 30), *, named=("ill", "well")):
    """Makes a folder of random colour images in subfolders."""
    values = np.random.default_rng(seed)
    for number in range(count):
        inner = place / named[number % len(named)]
        inner.mkdir(parents=True, exist_ok=True)
        pixels = values.integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(inner / f"{seed}-{number}.png")
    return place


@pytest.mark.parametrize("kind", ["npz", "npy", "folder"])
def test_plan_is_the_same_whatever_the_images_are_and_however_many(new, tmp_path, kind):
    texts = []
    for seed, count in ((0, 3), (1, 50)):
        place = tmp_path / f"data-{seed}"
        pixels = np.random.default_rng(seed).integers(0, 256, (count, 12, 10), np.uint8)
        if kind == "npz":
            place = tmp_path / f"{seed}.npz"
            np.savez(place, images=pixels // (1 + seed * 200), labels=np.full(count, seed))
        elif kind == "npy":
            place = tmp_path / f"{seed}.npy"
            np.save(place, pixels)
        else:
            folder_of(place, seed, count)
        ended = new("--data", place, "--classes", "a,b", out=f"{seed}.toml")
        assert ended.code == 0, ended.err
        texts.append((tmp_path / f"{seed}.toml").read_text())
    assert texts[0] == texts[1]


def test_images_too_small_to_be_trained_are_named_and_not_a_size_that_nobody_gave(new, tmp_path):
    np.save(tmp_path / "thin.npy", np.zeros((5, 20, 1), np.uint8))
    ended = new("--data", tmp_path / "thin.npy", "--classes", "none")
    assert ended.code == 1
    assert "thin.npy are 20 x 1 pixels, and sides from 4 can be trained" in ended.err
    assert not (tmp_path / "plan.toml").exists()


def test_plan_is_not_asked_for_where_it_could_not_be_written(new, tmp_path):
    ended = new("--data", "digits", "--classes", "none", out="nowhere/plan.toml")
    assert ended.code == 2
    assert "there is no folder" in ended.err


@pytest.mark.parametrize(
    ("size", "form"),
    [((40, 30), (3, 30, 40)), ((700, 500), (3, 256, 256)), ((70, 90), (3, 64, 64))],
)
def test_form_of_a_large_picture_is_made_coarse(new, tmp_path, size, form):
    data = folder_of(tmp_path / "data", 0, 1, size)
    assert new("--data", data, "--classes", "none").code == 0
    assert read_plan_file(tmp_path / "plan.toml").data.shape == form


def test_subfolders_are_not_taken_for_classes_unless_a_person_says_so(new, tmp_path):
    data = folder_of(tmp_path / "data", 0, 4, named=("Smith John", "Doe Jane"))
    ended = new("--data", data)
    assert (ended.code, "--classes is missing" in ended.err) == (2, True)
    assert new("--data", data, "--classes", "ill,well").code == 0
    text = (tmp_path / "plan.toml").read_text()
    assert "Smith" not in text
    assert "Doe" not in text


def test_options_go_before_the_data(new, tmp_path):
    assert new("--data", "digits", "--size", 16, "--classes", "none").code == 0
    assert read_plan_file(tmp_path / "plan.toml").data.shape == (1, 16, 16)


@pytest.mark.parametrize("kind", ["missing", "broken", "damaged"])
def test_data_that_cannot_be_read_are_refused_with_the_way_on(new, tmp_path, kind):
    data = tmp_path / ("data.npz" if kind == "damaged" else "data")
    if kind == "damaged":
        data.write_bytes(b"PK\x03\x04 and no more")
    if kind == "broken":
        data.mkdir()
        (data / "scan.png").write_bytes(b"no picture")
    ended = new("--data", data, "--classes", "none")
    assert (ended.code, "error[DDM102]" in ended.err) == (1, True)
    assert not (tmp_path / "plan.toml").exists()


def test_coordinator_publishes_the_proposal_unchanged(run, tmp_path):
    fed = create_federation(tmp_path / "fed", sites=SITES[:1])
    plan, site = tmp_path / "plan.toml", fed.path / SITES[0]
    words = ("--site", site, "--data", "digits:0-4", "--classes", "none", "--out", plan)
    ended = run("ddm-site", "plan", "new", *words, *REST)  # it knows its federation
    assert ended.code == 0, ended.err
    assert run("ddm-coord", "publish", plan, "--coordinator", fed.home.path).code == 0
    assert fed.trust.plan.data == read_plan_file(plan).data

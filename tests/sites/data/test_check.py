"""`ddm-site data check` says what training would see, by name, and trains nothing."""

import io
import json
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import commands
import numpy as np
import pytest
from PIL import Image
from shards import png

from ddm_fed.records import read_plan_toml
from sites.data import load_images
from sites.data.check import check_images
from sites.data.scratch import scratch_folder

PLAN = """
federation = "looking"
expires_at = 2036-01-01
[data]
channels = 1
height = 16
width = 16
conditioning = "class"
classes = ["cat", "dog"]
[expert]
architecture = "mixture"
[training]
steps = 1
batch_size = 1
[router]
kind = "mixture"
epsilon = 8
frequencies = 16
components = 1
[privacy]
max_epsilon = 8
"""


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


def smooth(seed, kind="PNG", **options):
    """Returns a picture as cameras make them: neighbours are alike."""
    rough = np.random.default_rng(seed).integers(0, 256, (4, 4), dtype=np.uint8)
    data = io.BytesIO()
    image = Image.fromarray(rough).resize((64, 64), Image.Resampling.BICUBIC)
    image.save(data, kind, **options)
    return data.getvalue()


@pytest.fixture
def pets(tmp_path):
    files = {
        "cat/a.png": smooth(1),
        "cat/b.png": smooth(2),
        "cat/again.png": smooth(1),
        "cat/saved again.jpg": smooth(2, "JPEG", quality=90),
        "dog/c.png": smooth(3),
        "dog/grey.png": smooth(4),
        "dog/broken.png": b"junk",
        "dog/notes.txt": b"hello",
    }
    for name, data in files.items():
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    Image.new("L", (64, 64), 90).save(tmp_path / "pets" / "dog" / "grey.png")
    return tmp_path / "pets"


def test_check_names_copies_near_copies_and_what_cannot_be_read(pets, plan):
    ended = commands.done("ddm-site", "data", "check", pets, "--plan", plan, "--json")
    found = json.loads(ended.out)
    assert found["images"] == 6
    assert found["classes"] == {"cat": 4, "dog": 2}
    assert found["copies"] == [["cat/a.png", "cat/again.png"]]
    assert found["near_copies"] == [["cat/b.png", "cat/saved again.jpg"]]
    assert found["of_one_shade"] == ["dog/grey.png"]
    assert [line.partition(":")[0] for line in found["unreadable"]] == ["dog/broken.png"]
    assert found["sizes"] == {"64 x 64 L": 6}
    assert found["across_units"] == 2


def test_check_says_the_same_to_people(pets, plan):
    said = commands.done("ddm-site", "data", "check", pets, "--plan", plan).err
    for part in (
        "6 images from",
        "of the classes: cat 4, dog 2",
        "resized to 16 x 16 (6 of them)",
        "dog/broken.png: it is none of",
        "cat/a.png, cat/again.png",
        "images that are of one shade: 1",
        "dog/grey.png",
        "lie in several images",
        "1 .txt files are not images: dog/notes.txt",
    ):
        assert part in said, part


def test_check_of_a_folder_with_an_unknown_class_says_what_was_expected(pets, plan):
    (pets / "dog").rename(pets / "hund")
    ended = commands.run("ddm-site", "data", "check", pets, "--plan", plan)
    assert ended.code == 1
    assert "has the classes ['hund'], the plan has ['cat', 'dog']" in ended.err


def test_check_of_a_published_folder_needs_the_site_that_verifies_it(pets, tmp_path):
    ended = commands.run("ddm-site", "data", "check", pets, "--plan", tmp_path)
    assert ended.code != 0
    assert "--site is missing" in ended.err


def test_arrays_are_checked_by_number(tmp_path, plan):
    images = np.stack([np.frombuffer(png(i)[-64:], np.uint8).reshape(8, 8) for i in (0, 1, 0)])
    np.savez(tmp_path / "a.npz", images=images, labels=[0, 1, 0])
    words = ("data", "check", tmp_path / "a.npz", "--plan", plan, "--json")
    found = json.loads(commands.done("ddm-site", *words).out)
    assert ["image 0", "image 2"] in found["copies"]


def test_plan_that_is_no_text_is_refused_by_its_name(pets, tmp_path):
    (tmp_path / "plan.toml").write_bytes(b"\xff\xfe")
    ended = commands.run("ddm-site", "data", "check", pets, "--plan", tmp_path / "plan.toml")
    assert ended.code == 1
    assert ended.err.startswith("error[DDM101]")


def decoded(source):
    """Folders of no site that hold images of `source`, some of them at least."""
    found = []
    for file in Path(tempfile.gettempdir()).glob("ddm-fed-images-*/*/pixels.bin"):
        with suppress(FileNotFoundError):  # another test's has just gone
            if file.stat().st_size and str(source) in (file.parent / "about.json").read_text():
                found.append(file.parents[1])
    return found


@pytest.mark.slow
def test_images_that_a_killed_check_left_are_gone_after_the_next(pets, plan, tmp_path):
    """Whoever is still decoding keeps them; nothing is left of a command that ends by itself."""
    many = tmp_path / "many"
    many.mkdir()
    pictures = [smooth(number) for number in range(50)]
    for number in range(2000):
        (many / f"{number}.png").write_bytes(pictures[number % 50])
    plan.write_text(PLAN.replace('"class"\nclasses = ["cat", "dog"]', '"none"'))
    few = ("data", "check", pets / "cat", "--plan", plan)
    with commands.Started("ddm-site", "data", "check", many, "--plan", plan) as started:
        until = time.monotonic() + 100
        while not decoded(many):
            assert started.poll() is None, started.said()
            assert time.monotonic() < until
            time.sleep(0.005)
        started.send_signal(signal.SIGSTOP)
        (left,) = decoded(many)
        assert left.stat().st_mode & 0o077 == 0
        commands.done("ddm-site", *few)
        assert decoded(many) == [left]
        started.kill()
        started.wait(60)
    assert decoded(many) == [left]
    commands.done("ddm-site", *few)
    assert not left.exists()
    assert decoded(pets) == []


def test_mapped_images_can_be_read_when_their_folder_is_gone(pets, plan):
    agreed = read_plan_toml(plan.read_text())
    with scratch_folder() as store:
        images, _ = load_images(str(pets), agreed.data, max_bad_fraction=1.0, store=store)
    assert not store.exists()
    assert len(check_images(images).copies) == 1

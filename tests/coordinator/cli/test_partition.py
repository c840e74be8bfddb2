"""`ddm-coord partition`: options that fit each other, and what is written."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from coordinator.cli.main import app
from ddm_fed.errors import DataError, OptionError, StateError
from ddm_fed.records.plan_toml import read_plan_file

PLAN = """
federation = "islands"
expires_at = 2036-01-01T00:00:00Z
[data]
channels = 1
height = 8
width = 8
[expert]
architecture = "DiT-Nano/4"
[training]
steps = 30
batch_size = 64  # of one network
[router]
kind = "prior"
epsilon = 8
[privacy]
max_epsilon = 8
"""


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 40, (120, 8, 8)).astype(np.uint8)
    pixels[:70, :4] += 200
    pixels[70:, 4:] += 200
    np.savez(tmp_path / "images.npz", images=pixels, labels=np.arange(120) % 3)
    return tmp_path / "images.npz"


def run(*words):
    return CliRunner().invoke(app, ["partition", *map(str, words)])


def test_islands_are_clusters_with_a_plan_whose_batch_is_divided(tmp_path, images):
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN)
    out = tmp_path / "out"
    done = run(images, "--islands", 2, "--out", out, "--plan", plan, "--json")
    assert done.exit_code == 0, done.output
    shards = json.loads(done.stdout)["shards"]
    assert sorted(shard["images"] for shard in shards) == [50, 70]
    divided = read_plan_file(out / "plan.toml")
    agreed = read_plan_file(plan)
    assert divided.training.batch_size == 32
    assert divided.model_copy(update={"training": agreed.training}) == agreed
    assert np.load(out / "centres.npy").shape == (2, 64)
    held = [np.load(out / "shards" / f"island-{k}.labels.npy") for k in (1, 2)]
    assert np.bincount(np.concatenate(held)).tolist() == [40, 40, 40]


def test_islands_by_chance_are_of_equal_size_and_describe_nothing(tmp_path, images):
    done = run(images, "--islands", 3, "--out", tmp_path / "out", "--features", "random", "--json")
    assert [s["images"] for s in json.loads(done.stdout)["shards"]] == [40, 40, 40]
    assert not (tmp_path / "out" / "features").exists()


def test_given_centres_divide_without_learning_anything_from_these_images(tmp_path, images):
    rng = np.random.default_rng(5)
    public = rng.integers(0, 40, (80, 8, 8)).astype(np.uint8)
    public[:40, :4] += 200
    public[40:, 4:] += 200
    np.savez(tmp_path / "public.npz", images=public)
    assert run(tmp_path / "public.npz", "--islands", 2, "--out", tmp_path / "p").exit_code == 0
    centres = tmp_path / "p" / "centres.npy"
    done = run(images, "--islands", 2, "--out", tmp_path / "out", "--centres", centres, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["divided_by"] == "centres that were given"
    assert sorted(shard["images"] for shard in found["shards"]) == [50, 70]
    assert np.array_equal(np.load(tmp_path / "out" / "centres.npy"), np.load(centres))


@pytest.mark.parametrize(
    ("centres", "words", "message"),
    [
        (np.zeros((3, 64)), (), "holds 3 centres of 64 numbers, and 2 islands"),
        (np.zeros((2, 9)), (), "need 2 finite ones of 64"),
        (np.full((2, 64), np.nan), (), "need 2 finite ones of 64"),
        (np.zeros((2, 64), int), (), "holds no centres"),
        (np.zeros(64), (), "holds no centres"),
        (b"no array", (), "cannot be read"),
        (np.zeros((2, 64)), ("--features", "random"), "--features random has no centres"),
        (np.zeros((2, 64)), ("--fine", 9), "--fine belongs to clusters that are learned"),
        (np.zeros((2, 64)), ("--seed", 0), "--seed decides nothing where --centres are given"),
    ],
)
def test_centres_that_do_not_fit_are_refused_before_anything_is_made(
    tmp_path, images, centres, words, message
):
    file = tmp_path / "centres.npy"
    if isinstance(centres, bytes):
        file.write_bytes(centres)
    else:
        np.save(file, centres)
    done = run(images, "--islands", 2, "--out", tmp_path / "out", "--centres", file, *words)
    assert isinstance(done.exception, (OptionError, DataError))
    assert message in done.exception.message
    assert not (tmp_path / "out").exists()


def test_small_island_is_warned_of(tmp_path):
    pixels = np.zeros((100, 8, 8), np.uint8)
    pixels[:90] = np.random.default_rng(0).integers(0, 20, (90, 8, 8))
    pixels[90:] = 255 - np.random.default_rng(1).integers(0, 20, (10, 8, 8))
    np.savez(tmp_path / "images.npz", images=pixels)
    done = run(tmp_path / "images.npz", "--islands", 2, "--out", tmp_path / "out")
    assert "less than a fifth of an even share" not in done.output  # exactly a fifth
    np.savez(tmp_path / "images.npz", images=pixels[:95])
    done = run(tmp_path / "images.npz", "--islands", 2, "--out", tmp_path / "again")
    assert "less than a fifth of an even share" in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--features", "pixels"), "--features pixels is not known"),
        (("--features", "timm:resnet10t"), "--weights is missing: the network's file"),
        (("--features", "random", "--frequencies", 4), "--frequencies belongs to --features"),
        (("--frequencies", 65), "--frequencies 65: a channel of these images has 64 pixels"),
        (("--features", "random", "--fine", 9), "--fine belongs to clusters that are learned"),
        (("--fine", 2, "--islands", 5), "--fine 2: 5 islands are made of no fewer"),
        (("--islands", 121), "--islands 121: there are 120 images"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, images, words, message):
    done = run(images, "--islands", 2, "--out", tmp_path / "out", *words)
    assert isinstance(done.exception, OptionError)
    assert message in done.exception.message
    assert not (tmp_path / "out").exists()


def test_weights_without_a_network_are_refused(tmp_path, images):
    done = run(images, "--islands", 2, "--out", tmp_path / "out", "--weights", images)
    assert isinstance(done.exception, OptionError)
    assert "--weights belongs to clip and timm" in done.exception.message


def test_batch_that_cannot_be_divided_is_refused_before_anything_is_made(tmp_path, images):
    (tmp_path / "plan.toml").write_text(PLAN)
    done = run(images, "--islands", 3, "--out", tmp_path / "out", "--plan", tmp_path / "plan.toml")
    assert isinstance(done.exception, OptionError)
    assert "--islands 3: `training.batch_size` 64 cannot be divided" in done.exception.message
    assert not (tmp_path / "out").exists()


def test_plan_whose_batch_is_not_on_a_line_of_its_own_is_refused(tmp_path, images):
    inline = PLAN.replace("[training]\nsteps = 30\nbatch_size = 64  # of one network\n", "")
    inline = "training = { steps = 30, batch_size = 64 }\n" + inline
    (tmp_path / "plan.toml").write_text(inline)
    done = run(images, "--islands", 2, "--out", tmp_path / "out", "--plan", tmp_path / "plan.toml")
    assert isinstance(done.exception, OptionError)
    assert "its line of `training.batch_size` was not understood" in done.exception.message


def test_shards_that_are_there_are_never_overwritten(tmp_path, images):
    assert run(images, "--islands", 2, "--out", tmp_path / "out").exit_code == 0
    done = run(images, "--islands", 2, "--out", tmp_path / "out")
    assert isinstance(done.exception, StateError)


def test_file_without_images_is_refused(tmp_path):
    np.savez(tmp_path / "no.npz", other=np.zeros(3))
    done = run(tmp_path / "no.npz", "--islands", 2, "--out", tmp_path / "out")
    assert isinstance(done.exception, DataError)


def test_file_of_no_images_is_refused_as_such(tmp_path):
    np.save(tmp_path / "no.npy", np.zeros((0, 8, 8), np.uint8))
    done = run(tmp_path / "no.npy", "--islands", 2, "--out", tmp_path / "out")
    assert isinstance(done.exception, DataError)
    assert "holds no images" in done.exception.message


def test_only_the_batch_of_the_training_is_divided(tmp_path, images):
    sgd = "[privacy.sgd]\nepsilon = 9\nunits = 400\nclip_norm = 0.1\n"
    central = "[privacy.sgd.central]\nepsilon = 1\nbatch_size = 64\nradius = 8\n"
    text = PLAN.replace("max_epsilon = 8", "max_epsilon = 20") + sgd + central
    (tmp_path / "plan.toml").write_text(text)
    plan = ("--plan", tmp_path / "plan.toml")
    done = run(images, "--islands", 2, "--out", tmp_path / "out", *plan)
    assert done.exit_code == 0, done.output
    divided = read_plan_file(tmp_path / "out" / "plan.toml")
    assert divided.training.batch_size == 32
    assert divided.privacy.sgd.central.batch_size == 64


def test_batch_that_is_written_in_another_base_is_refused_with_a_way_out(tmp_path, images):
    (tmp_path / "plan.toml").write_text(PLAN.replace("= 64 ", "= 0x40 "))
    done = run(images, "--islands", 2, "--out", tmp_path / "out", "--plan", tmp_path / "plan.toml")
    assert isinstance(done.exception, OptionError)
    assert "write a line of its own, `batch_size = 64`" in done.exception.hint


def test_images_without_the_labels_that_the_plan_needs_are_refused_first(tmp_path, images):
    classes = 'conditioning = "class"\nclasses = ["a", "b", "c"]\n[expert]'
    (tmp_path / "plan.toml").write_text(PLAN.replace("[expert]", classes))
    np.savez(tmp_path / "no.npz", images=np.load(images)["images"])
    plan = ("--plan", tmp_path / "plan.toml")
    done = run(tmp_path / "no.npz", "--islands", 2, "--out", tmp_path / "out", *plan)
    assert isinstance(done.exception, DataError)
    assert "the images have no labels" in done.exception.message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("labels", "strange"),
    [
        (np.arange(120) % 4 + 1, "plan.toml: 3, 4"),
        (np.array(["a", "b", "d"] * 40), "plan.toml: 'd'"),
        (np.arange(120) % 3 * 0.5, "labels of float64 and shape (120,)"),
        (np.arange(120) % 2 == 0, "labels of bool and shape (120,)"),
        (np.eye(3, dtype=np.int64)[np.arange(120) % 3], "labels of int64 and shape (120, 3)"),
    ],
)
def test_labels_that_are_no_classes_of_the_plan_are_refused_first(
    tmp_path, images, labels, strange
):
    classes = 'conditioning = "class"\nclasses = ["a", "b", "c"]\n[expert]'
    (tmp_path / "plan.toml").write_text(PLAN.replace("[expert]", classes))
    np.savez(tmp_path / "odd.npz", images=np.load(images)["images"], labels=labels)
    plan = ("--plan", tmp_path / "plan.toml")
    done = run(tmp_path / "odd.npz", "--islands", 2, "--out", tmp_path / "out", *plan)
    assert isinstance(done.exception, DataError)
    assert strange in done.exception.message
    assert not (tmp_path / "out").exists()
    spaced = np.array(["a", " b", "c "] * 40)
    np.savez(tmp_path / "names.npz", images=np.load(images)["images"], labels=spaced)
    done = run(tmp_path / "names.npz", "--islands", 2, "--out", tmp_path / "out", *plan)
    assert done.exit_code == 0, done.output


def test_without_a_plan_nothing_is_said_of_a_file_that_is_not_there(tmp_path, images):
    done = run(images, "--islands", 2, "--out", tmp_path / "out", "--features", "random")
    assert done.exit_code == 0, done.output
    assert "plan.toml" not in done.output


def test_patient_ids_keep_patients_whole_as_units_do(tmp_path, images):
    pixels = np.load(images)["images"]
    np.savez(tmp_path / "ids.npz", images=pixels, patient_ids=np.arange(120) // 4)
    words = ("--islands", 2, "--features", "random", "--out", tmp_path / "out")
    assert run(tmp_path / "ids.npz", *words).exit_code == 0
    held = [np.load(tmp_path / "out" / "shards" / f"island-{k}.units.npy") for k in (1, 2)]
    assert not set(held[0]) & set(held[1])


def test_images_described_in_parts_become_the_shards_of_one_machine(tmp_path, images):
    words = ("--islands", 2, "--batch-size", 16)
    assert run(images, *words, "--out", tmp_path / "one").exit_code == 0
    for part in ("3/3", "1/3", "2/3"):
        done = run(images, *words, "--out", tmp_path / "many", "--part", part)
        assert done.exit_code == 0, done.output
        assert "run the same without --part" in done.output
        assert not (tmp_path / "many" / "shards").exists()
    assert run(images, *words, "--out", tmp_path / "many").exit_code == 0
    found = [
        {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
        for out in (tmp_path / "one", tmp_path / "many")
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--part", "2/1"), "--part 2/1 is no part"),
        (("--part", "1/9"), "--part 1/9: 120 images are computed in 8 groups of 16"),
        (("--part", "1/2", "--features", "random"), "--part: --features random describes"),
    ],
)
def test_part_that_cannot_be_is_refused(tmp_path, images, words, message):
    common = ("--islands", 2, "--batch-size", 16, "--out", tmp_path / "out")
    done = run(images, *common, *words)
    assert isinstance(done.exception, OptionError)
    assert message in done.exception.message


def test_part_described_in_other_batches_is_refused(tmp_path, images):
    common = ("--islands", 2, "--out", tmp_path / "out")
    assert run(images, *common, "--batch-size", 16, "--part", "1/2").exit_code == 0
    done = run(images, *common, "--batch-size", 8)
    assert isinstance(done.exception, StateError)
    assert "was begun with another `batch_size`: 16, now 8" in done.exception.message

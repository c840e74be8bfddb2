"""`ddm_fed.train_expert`: the library's own training, on arrays, for experiments."""

import numpy as np
import pytest
import torch
from federation import PRIVATE, a_plan, random_images

import ddm_fed
from ddm_fed.errors import DataError, StateError
from ddm_fed.records import sha256_hex
from ddm_fed.training import RunOptions
from ddm_fed.training import train_expert as library

OPTIONS = RunOptions(seed=4, precision="float32")


@pytest.mark.slow
def test_expert_of_arrays_is_the_librarys_expert_of_the_same_images(tmp_path):
    plan = a_plan()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
    made = ddm_fed.train_expert(
        pixels, plan=plan, checkpoint=tmp_path / "a", options=OPTIONS, progress=False
    )
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    private = random_images(0).map(lambda held: type(held)(images, None))
    digest = sha256_hex(plan.to_json())
    expected = library(private, plan, digest, tmp_path / "b", options=OPTIONS)
    assert all(torch.equal(made.state[name], value) for name, value in expected.state.items())
    again = ddm_fed.train_expert(  # goes on from the finished checkpoint, from what is private
        private, plan=plan, checkpoint=tmp_path / "a", options=OPTIONS, progress=False
    )
    assert all(torch.equal(again.state[name], value) for name, value in expected.state.items())


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((4, 8, 8), np.uint8), "3 axes"),
        (np.full((4, 1, 8, 8), 255.0), "not in"),
        (np.full((4, 1, 8, 8), np.nan), "not in"),
        (np.zeros((0, 1, 8, 8)), "no images"),
        (np.zeros((4, 1, 8, 8), np.int16), "int16"),
        (np.zeros((4, 9, 9, 1), np.uint8), "shape"),
    ],
)
def test_images_of_another_form_are_refused(tmp_path, images, said):
    with pytest.raises(DataError, match=said):
        ddm_fed.train_expert(images, plan=a_plan(), checkpoint=tmp_path / "a", progress=False)
    assert not (tmp_path / "a").exists()


def test_what_a_ledger_has_to_know_is_refused(tmp_path):
    private = a_plan(max_epsilon=PRIVATE)
    mixture = a_plan(architecture='architecture = "mixture"')
    for plan in (private, mixture):
        with pytest.raises(StateError, match=r"ledger|noise"):
            ddm_fed.train_expert(
                np.zeros((40, 8, 8, 1), np.uint8),
                plan=plan,
                checkpoint=tmp_path / "a",
                progress=False,
            )
    assert not (tmp_path / "a").exists()


def test_labels_that_are_not_one_for_each_image_are_refused(tmp_path):
    images, labels = np.zeros((40, 8, 8, 1), np.uint8), np.zeros(39, np.int64)
    with pytest.raises(DataError, match=r"\(39,\) for 40 images"):
        ddm_fed.train_expert(images, labels, plan=a_plan(), checkpoint=tmp_path / "a")


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, -1, 0, 0]])
def test_labels_of_no_class_of_the_plan_are_refused(tmp_path, labels):
    classes = 'width = 8\nconditioning = "class"\nclasses = ["cat", "dog"]'
    with pytest.raises(DataError, match="the plan has 2 classes"):
        ddm_fed.train_expert(
            np.zeros((4, 8, 8, 1), np.uint8),
            np.array(labels),
            plan=a_plan(width=classes),
            checkpoint=tmp_path / "a",
            progress=False,
        )
    assert not (tmp_path / "a").exists()

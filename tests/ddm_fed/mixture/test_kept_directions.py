"""Directions of a site's images are embedded once and kept, by one job or many."""

import hashlib
import json

import numpy as np
import pytest
import torch

from ddm_fed.errors import StateError
from ddm_fed.mixture import Anchors, EmbeddedImages
from ddm_fed.privacy import ImageSet

SHAPE, WIDTH, COUNT = (1, 4, 4), 5, 11


def generator(seed):
    return torch.Generator().manual_seed(seed)


class Counting:
    """An embedder that says how many images it was asked about."""

    name, dimension, digest = "counting", WIDTH, "0" * 64
    weight = torch.randn((WIDTH, 16), generator=generator(9))

    def __init__(self):
        self.asked = 0

    def images(self, images):
        self.asked += len(images)
        return torch.nn.functional.normalize(images.flatten(1).float() @ self.weight.T, dim=1)


ANCHORS = Anchors(
    torch.zeros(WIDTH),
    torch.eye(WIDTH)[:3],
    torch.nn.functional.normalize(torch.randn((4, 3), generator=generator(1)), dim=1),
)


@pytest.fixture
def images():
    return ImageSet(torch.rand((COUNT, *SHAPE), generator=generator(2)) * 2 - 1, None)


def test_kept_directions_are_those_that_are_found_anew(tmp_path, images):
    directions = EmbeddedImages(embedder := Counting(), ANCHORS)
    directions.keep(images, tmp_path)
    assert embedder.asked == COUNT
    again = EmbeddedImages(embedder, ANCHORS)
    again.keep(images, tmp_path)
    assert np.array_equal(again(images), EmbeddedImages(Counting(), ANCHORS)(images))
    assert embedder.asked == COUNT  # nothing was embedded twice


def test_parts_end_in_the_directions_of_one_machine(tmp_path, images):
    for part in (2, 1):
        EmbeddedImages(Counting(), ANCHORS).keep_part(images, tmp_path, (part, 2))
    directions = EmbeddedImages(embedder := Counting(), ANCHORS)
    directions.keep(images, tmp_path)
    assert np.array_equal(directions(images), EmbeddedImages(Counting(), ANCHORS)(images))
    assert embedder.asked == 0


def test_directions_at_other_anchors_are_kept_apart(tmp_path, images):
    EmbeddedImages(Counting(), ANCHORS).keep(images, tmp_path)
    other = Anchors(ANCHORS.mean, torch.eye(WIDTH)[1:4], ANCHORS.points)
    directions = EmbeddedImages(Counting(), other)
    directions.keep(images, tmp_path)
    assert np.array_equal(directions(images), EmbeddedImages(Counting(), other)(images))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("value", [2.0, float("nan")])
def test_kept_row_that_would_break_the_bound_of_one_image_is_refused(tmp_path, images, value):
    EmbeddedImages(Counting(), ANCHORS).keep(images, tmp_path)
    (file,) = tmp_path.rglob("directions.f64")
    rows = np.fromfile(file).reshape(COUNT, 3)
    rows[4] = value
    file.write_bytes(rows.tobytes())
    progress = file.with_name("progress.json")
    facts = json.loads(progress.read_text())
    facts["sha256"] = [hashlib.sha256(rows.tobytes()).hexdigest()]  # by somebody who knows how
    progress.write_text(json.dumps(facts))
    with pytest.raises(StateError, match="holds what is no direction, in row 4"):
        EmbeddedImages(Counting(), ANCHORS).keep(images, tmp_path)

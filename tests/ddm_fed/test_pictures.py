"""Pictures for people: where each sample lands on the sheet, and with which grey or colour."""

import numpy as np
import pytest
import torch
from PIL import Image

from ddm_fed.pictures import write_grid

GAP_GREY = 128


@pytest.fixture
def sheet(tmp_path):
    """Returns a function that writes a grid and returns the PNG's pixels."""

    def write(images, **options):
        write_grid(tmp_path / "grid.png", images, **options)
        with Image.open(tmp_path / "grid.png") as picture:
            return np.asarray(picture)

    return write


@pytest.mark.parametrize(
    ("count", "options", "height", "width"),
    [
        (1, {"zoom": 1}, 10, 10),
        (4, {"zoom": 1}, 19, 19),
        (5, {"zoom": 1}, 19, 28),
        (5, {"zoom": 1, "columns": 5}, 10, 46),
        (5, {"zoom": 1, "columns": 1}, 46, 10),
        (2, {"zoom": 3}, 30, 57),
    ],
)
def test_grid_holds_every_image_with_gaps(sheet, count, options, height, width):
    assert sheet(torch.zeros(count, 1, 8, 8), **options).shape == (height, width)


@pytest.mark.parametrize(("side", "zoom"), [(8, 6), (28, 2), (32, 2), (64, 1), (256, 1)])
def test_grid_without_a_zoom_shows_images_about_48_pixels_high(sheet, side, zoom):
    assert sheet(torch.zeros(1, 1, side, side)).shape == ((side + 2) * zoom, (side + 2) * zoom)


def test_grid_of_images_that_are_not_square_keeps_their_shape(sheet):
    assert sheet(torch.zeros(2, 1, 4, 12), zoom=1).shape == (6, 27)


@pytest.mark.parametrize(
    ("value", "grey"), [(-1, 0), (1, 255), (0.2, 153), (-0.6, 51), (-3, 0), (7, 255)]
)
def test_pixel_in_the_grid_is_its_value_from_black_to_white(sheet, value, grey):
    assert np.all(sheet(torch.full((1, 1, 8, 8), float(value)), zoom=1)[1:-1, 1:-1] == grey)


def test_pixel_order_in_the_grid_is_that_of_the_image(sheet):
    bytes_in = np.arange(64, dtype=np.uint8).reshape(8, 8)
    image = torch.from_numpy(bytes_in / 127.5 - 1).float()[None, None]
    assert np.array_equal(sheet(image, zoom=1)[1:-1, 1:-1], bytes_in)


def test_images_in_the_grid_run_row_by_row(sheet):
    values = torch.tensor([-1.0, -0.6, -0.2, 0.2, 0.6])
    pixels = sheet(values.reshape(5, 1, 1, 1).expand(5, 1, 8, 8), zoom=1, columns=3)
    assert pixels[[4, 4, 4, 13, 13], [4, 13, 22, 4, 13]].tolist() == [0, 51, 102, 153, 204]


def test_gaps_and_the_unused_place_are_grey(sheet):
    pixels = sheet(torch.ones(3, 1, 8, 8), zoom=1)
    assert set(pixels[0].tolist()) == set(pixels[:, 9].tolist()) == {GAP_GREY}
    assert np.all(pixels[10:, 10:] == GAP_GREY)


def test_colour_images_keep_their_channels(sheet):
    image = torch.tensor([1.0, -1.0, 0.2]).reshape(1, 3, 1, 1).expand(1, 3, 8, 8)
    pixels = sheet(image, zoom=1)
    assert (pixels.shape, pixels[4, 4].tolist()) == ((10, 10, 3), [255, 0, 153])


def test_zoom_repeats_pixels_without_blending(sheet):
    image = torch.where(torch.arange(8) % 2 == 0, 1.0, -1.0).expand(1, 1, 8, 8)
    once, thrice = sheet(image, zoom=1), sheet(image, zoom=3)
    assert np.array_equal(thrice, once.repeat(3, 0).repeat(3, 1))


def test_images_are_not_changed_by_drawing_them(sheet):
    images = torch.full((2, 1, 8, 8), 3.0)
    sheet(images)
    assert torch.equal(images, torch.full((2, 1, 8, 8), 3.0))

"""Augmentation against a slow computation, pixel by pixel."""

import pytest
import torch

from ddm_fed.training.augment import Moves, draw_moves, move_images


def moved_slowly(image: torch.Tensor, flip: bool, down: int, right: int) -> torch.Tensor:
    """Moves one image `(C, H, W)`; whatever comes from outside is the nearest pixel inside."""
    _, height, width = image.shape
    result = torch.empty_like(image)
    for y in range(height):
        for x in range(width):
            source_y = min(max(y - down, 0), height - 1)
            source_x = min(max(x - right, 0), width - 1)
            if flip:
                source_x = width - 1 - source_x
            result[:, y, x] = image[:, source_y, source_x]
    return result


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 24)])
@pytest.mark.parametrize(
    "names", [(), ("horizontal-flip",), ("translate",), ("translate", "horizontal-flip")]
)
def test_moved_images_are_those_moved_pixel_by_pixel(shape, names):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((20, *shape), generator=generator)
    moves = draw_moves(names, 20, shape[1:], generator)
    moved = move_images(images, moves)
    for index, image in enumerate(images):
        flip = bool(moves.flip[index]) if "horizontal-flip" in names else False
        down, right = moves.shift[index].tolist() if "translate" in names else (0, 0)
        assert torch.equal(moved[index], moved_slowly(image, flip, down, right))


def test_drawn_moves_are_even_and_reach_an_eighth_of_each_side():
    generator = torch.Generator().manual_seed(1)
    moves = draw_moves(("horizontal-flip", "translate"), 20_000, (16, 40), generator)
    assert moves.flip.double().mean() == pytest.approx(0.5, abs=0.02)
    for side, most in ((0, 2), (1, 5)):
        values, counts = moves.shift[:, side].unique(return_counts=True)
        assert values.tolist() == list(range(-most, most + 1))
        assert counts / 20_000 == pytest.approx(1 / len(counts), abs=0.02)


def test_moves_of_some_rows_are_their_part_of_the_whole():
    generator = torch.Generator().manual_seed(2)
    images = torch.randn((9, 1, 8, 8), generator=generator)
    moves = draw_moves(("horizontal-flip", "translate"), 9, (8, 8), generator)
    part = move_images(images[3:7], moves.rows(slice(3, 7)))
    assert torch.equal(part, move_images(images, moves)[3:7])


def test_no_augmentation_leaves_images_alone():
    images = torch.randn((4, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    assert draw_moves((), 4, (8, 8), torch.Generator()) == Moves(None, None)
    assert torch.equal(move_images(images, Moves(None, None)), images)

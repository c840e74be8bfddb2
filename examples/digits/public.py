"""Public digits to start from: drawn with the fonts that matplotlib brings, nobody's handwriting.

A private training of few images has to start from something. These images are public by
construction, and look enough like digits for it.
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

CANVAS, SIDE = 64, 8
FONTS = ("DejaVu", "STIXGeneral")


def printed_digits(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns images `(count, 8, 8)` uint8 and their digits `(count,)`."""
    generator = np.random.default_rng(seed)
    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    fonts = sorted(
        path
        for path in folder.glob("*.ttf")
        if path.name.startswith(FONTS) and "Display" not in path.name
    )
    digits = generator.integers(0, 10, count)
    images = np.empty((count, SIDE, SIDE), np.uint8)
    for row, digit in enumerate(digits):
        picture = _printed(str(digit), fonts[generator.integers(len(fonts))], generator)
        blocks = np.asarray(picture, float).reshape(SIDE, CANVAS // SIDE, SIDE, CANVAS // SIDE)
        images[row] = np.clip(1.25 * blocks.mean((1, 3)), 0, 255)
    return images, digits


def _printed(digit: str, font: Path, generator: np.random.Generator) -> Image.Image:
    """Returns one digit, somewhere near the middle, turned, slanted and squeezed a little."""
    letters = ImageFont.truetype(str(font), int(generator.integers(40, 58)))
    picture = Image.new("L", (CANVAS, CANVAS))
    pen, stroke = ImageDraw.Draw(picture), int(generator.integers(0, 3))
    left, top, right, bottom = pen.textbbox((0, 0), digit, font=letters, stroke_width=stroke)
    x = (CANVAS - right - left) / 2 + generator.uniform(-4, 4)
    y = (CANVAS - bottom - top) / 2 + generator.uniform(-2, 2)
    pen.text((x, y), digit, fill=255, font=letters, stroke_width=stroke, stroke_fill=255)
    angle, slant = np.deg2rad(generator.normal(0, 8)), generator.normal(0, 0.15)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    squeeze = np.diag([1 / generator.uniform(0.75, 1.1), generator.uniform(0.9, 1.1) / 1.1])
    matrix = turn @ np.array([[1, slant], [0, 1]]) @ squeeze
    middle = np.full(2, CANVAS / 2)
    offset = middle - matrix @ middle
    numbers = (*matrix[0], offset[0], *matrix[1], offset[1])
    return picture.transform(
        (CANVAS, CANVAS), Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR
    )

"""Images as files people can look at."""

import math
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ddm_fed.errors import names_its_path

GAP = 1
Picture = Image.Image
"""What notebooks show, and people save in any format."""


@names_its_path
def write_grid(
    path: Path, images: torch.Tensor, *, columns: int | None = None, zoom: int = 0
) -> None:
    """Writes images as one PNG, row by row.

    Args:
        path: The PNG file.
        images: `(N, C, H, W)` in [-1, 1], C = 1 or 3.
        columns: Images per row; by default as many as there are rows.
        zoom: Pixels per pixel; by default such that an image is about 48 pixels high.
    """
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    grid_picture(pixels, columns=columns, zoom=zoom).save(path)


def grid_picture(
    images: NDArray[np.uint8], *, columns: int | None = None, zoom: int = 0
) -> Picture:
    """Returns images as one picture, row by row.

    Args:
        images: `(N, H, W, C)`, C = 1 or 3.
        columns: As for `write_grid`, and so is the next.
        zoom: Pixels per pixel.
    """
    zoom = zoom or max(1, round(48 / images.shape[1]))
    picture = _sheet(images, columns or math.ceil(math.sqrt(len(images))))
    size = (picture.width * zoom, picture.height * zoom)
    return picture.resize(size, Image.Resampling.NEAREST)


def grid_png(images: NDArray[np.uint8], *, columns: int) -> bytes:
    """Returns images `(N, C, H, W)`, C = 1 or 3, as one PNG, row by row, pixel by pixel."""
    content = BytesIO()
    _sheet(images.transpose(0, 2, 3, 1), columns).save(content, format="PNG")
    return content.getvalue()


def _sheet(images: NDArray[np.uint8], columns: int) -> Picture:
    """Returns images `(N, H, W, C)` on one sheet of grey, with a gap about each."""
    count, height, width, channels = images.shape
    rows = math.ceil(count / columns)
    sheet = np.full(
        (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, channels), 128, np.uint8
    )
    for i, cell in enumerate(images):
        top, left = GAP + i // columns * (height + GAP), GAP + i % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = cell
    return Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet)


@names_its_path
def write_picture(path: Path, image: NDArray[np.uint8], notes: Mapping[str, str]) -> None:
    """Writes one image `(C, H, W)`, C = 1 or 3, as a PNG that carries `notes` as text chunks."""
    texts = PngInfo()
    for name, value in notes.items():
        texts.add_text(name, value)
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, format="PNG", pnginfo=texts)

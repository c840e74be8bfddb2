"""Reads one image file. Pillow decodes it, as one of the listed kinds and no other."""

import struct
import warnings
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from ddm_fed.errors import FileSetError
from ddm_fed.storage.files import open_regular
from sites.data.picture import (
    MAX_PIXELS,
    Picture,
    PictureError,
    Wanted,
    fit_picture,
    to_shades,
)

# Pillow goes by content, not by name, and knows kinds that start programs (EPS, Ghostscript): it is
# told which it may try.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif"),
    *(".pgm", ".ppm", ".pbm", ".pnm"),
}
# What a decoder may raise on a damaged file. Pillow's own list is open: its plugins let through
# whatever their parsing stumbles over.
UNREADABLE_PICTURE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    BufferError,
    EOFError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
ORIENTATION = 0x0112  # EXIF's tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
GREY_MODES = ("1", "L", "LA", "La")
RGB_MODES = ("RGB", "RGBA", "RGBX", "RGBa", "P", "PA")
OPAQUE = 255
UPPER_BITS = "of 16 bits per colour the upper 8 were read"
COLOUR_TO_GREY = "colour was turned to grey (ITU-R 601 luma)"
GREY_TO_RGB = "grey was repeated to three channels"


def read_picture(path: Path, wanted: Wanted) -> Picture:
    """Returns one file in the plan's shape.

    Raises:
        PictureError: it cannot be taken, whatever the reason.
    """
    try:
        with open_regular(path) as file:
            return decode_picture(file, wanted)
    except FileSetError as error:
        raise PictureError(error.message) from None


def decode_picture(file: IO[bytes], wanted: Wanted) -> Picture:
    """Returns the picture that the bytes of `file` are, in the plan's shape.

    Raises:
        PictureError: it cannot be taken, whatever the reason.
    """
    image, changes = _decoded(file)
    try:
        if _has_transparent(image):
            raise PictureError(
                "it has transparent pixels, under which lie colours that nobody sees; flatten it "
                "onto the background that is meant"
            )
        return _fitted(image, wanted, changes)
    except ValueError as error:  # a kind of colours that Pillow does not convert
        raise PictureError(str(error)) from None


def _decoded(file: IO[bytes]) -> tuple[Image.Image, list[str]]:
    """Returns the first image of a file, upright, and what was done to it."""
    changes = list[str]()
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # on odd metadata; sizes are checked below
            Image.open(file, formats=FORMATS) as image,
        ):
            if image.width * image.height > MAX_PIXELS:
                raise PictureError(
                    f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}"
                )
            if getattr(image, "is_animated", False):
                changes.append("the first of several frames or pages was taken")
            if not _is_deep(image) and any(";16" in str(tile) for tile in image.tile):
                changes.append(UPPER_BITS)
            image.load()
            # the orientation alone: other entries may be anything, and are nobody's business
            turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
            if turn is None:
                return image.copy(), changes
            return image.transpose(turn), [*changes, "turned upright, as EXIF says"]
    except UnidentifiedImageError:
        raise PictureError(f"it is none of {', '.join(FORMATS)}, whatever its name") from None
    except UNREADABLE_PICTURE as error:
        raise PictureError(str(error) or type(error).__name__) from None


def _is_deep(image: Image.Image) -> bool:
    """Returns whether values are of more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def _has_transparent(image: Image.Image) -> bool:
    """Returns whether any pixel is not wholly opaque."""
    if not image.has_transparency_data:
        return False
    if _is_deep(image):
        return bool((np.asarray(image) == image.info["transparency"]).any())
    least, _ = image.convert("RGBA").getchannel("A").getextrema()
    return float(least) < OPAQUE  # type: ignore[arg-type]


def _fitted(image: Image.Image, wanted: Wanted, changes: list[str]) -> Picture:
    spec, value_range = wanted
    size, of = image.size, image.mode
    mode = "L" if spec.channels == 1 else "RGB"
    deep = _is_deep(image)
    if UPPER_BITS in changes and value_range is not None:
        raise PictureError(
            "it has 16 bits per colour, of which Pillow reads the upper 8, so --value-range does "
            "not fit it; convert it to 8 bits, or give an .npz"
        )
    if deep:
        values = np.asarray(image, dtype=np.float64)
    else:
        changes += _of_colours(image, mode)
        image = image.convert(mode)
        values = np.asarray(image)
    white = 1.0 if image.mode == "F" else 65535.0 if deep else 255.0
    low, high = span = value_range or (0.0, white)
    found = (float(values.min()), float(values.max()))
    if not (low <= found[0] and found[1] <= high):  # nor NaN
        raise PictureError(
            f"it holds values outside {low:g} to {high:g}; state what black and white are with "
            "--value-range LOW HIGH"
        )
    if deep or value_range is not None:
        image = Image.fromarray(to_shades((values.astype(np.float64) - low) / (high - low)))
    if deep:
        changes.append("more than 8 bits were rounded to 256 shades")
        changes += [GREY_TO_RGB] if mode == "RGB" else []
    fitted, resized = fit_picture(image.convert(mode), spec)
    depth = "fractions" if white == 1 else "values of 16 bits" if deep else "values of 8 bits"
    return Picture(np.asarray(fitted), depth, found, span, (*changes, *resized), size, of)


def _of_colours(image: Image.Image, mode: str) -> list[str]:
    """Returns what converting the colours of an image of 8 bits to `mode` changes in it."""
    if image.mode in GREY_MODES:
        return [GREY_TO_RGB] if mode == "RGB" else []
    changes = [] if image.mode in RGB_MODES else [f"{image.mode} colours were turned to RGB"]
    if mode == "L":
        colours = np.asarray(image.convert("RGB"))
        if (colours != colours[..., :1]).any():
            changes.append(COLOUR_TO_GREY)
    return changes

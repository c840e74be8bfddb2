"""Arrays of images, brought to the plan's shape and to [-1, 1]."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddm_fed.errors import DataError
from ddm_fed.privacy import to_unit_range
from ddm_fed.records import DataSpec
from sites.data.report import DataReport

BLOCK_IMAGES = 1024  # bounds memory while the values of a mapped file are checked
CHANNELS = (1, 3)
Pixels = NDArray[Any]


def to_images(
    pixels: Pixels, spec: DataSpec, value_range: tuple[float, float] | None, report: DataReport
) -> tuple[torch.Tensor | Pixels, tuple[float, float] | None]:
    """Returns pixels `(N, C, H, W)` and the values in them that mean -1 and 1, as ImageSet does.

    Bytes stay bytes and mapped files stay mapped, if they have the plan's shape.

    Raises:
        DataError: naming what is wrong and what would be right.
    """
    if pixels.dtype.kind not in "buif":
        raise DataError(f"the images are {pixels.dtype}, not numbers", hint="store them as uint8")
    low, high = value_range or _range_of_dtype(pixels)
    if pixels.ndim == 0 or 0 in pixels.shape[1:]:
        raise DataError(
            f"the images have shape {pixels.shape}, so they hold no pixels", hint="check the array"
        )
    channels_first = _channels_first(pixels, spec)
    if not report.values:  # of a folder, file by file
        report.note_values(
            f"values ({pixels.dtype.name})", _extremes(pixels, low, high), (low, high)
        )
    pixels = channels_first
    kept_as_is = isinstance(pixels, np.memmap) or pixels.dtype == np.uint8
    if kept_as_is and pixels.shape[1:] == spec.pixel_shape:
        return pixels, (low, high)
    images = to_unit_range(torch.from_numpy(pixels.astype(np.float32)), low, high)
    return _fitted(images, spec, report).contiguous(), None


def _extremes(pixels: Pixels, low: float, high: float) -> tuple[float, float]:
    """Returns the least and the greatest value; refuses what is not from `low` to `high`."""
    least, greatest = math.inf, -math.inf
    for start in range(0, len(pixels), BLOCK_IMAGES):
        with np.errstate(over="ignore"):  # to infinity, which is refused next
            values = pixels[start : start + BLOCK_IMAGES].astype(np.float32)
        if not np.isfinite(values).all():
            raise DataError("the images hold NaN or infinity", hint="clean them before training")
        least, greatest = min(least, float(values.min())), max(greatest, float(values.max()))
    if least < low or greatest > high:
        raise DataError(
            f"the images hold values outside {low:g} to {high:g}, which is what "
            f"{pixels.dtype} means here",
            hint="state what black and white are with --value-range LOW HIGH",
        )
    return least, greatest


def _fitted(images: torch.Tensor, spec: DataSpec, report: DataReport) -> torch.Tensor:
    """Returns images of the plan's channels and size."""
    if images.shape[1] != spec.channels:
        images = _convert_channels(images, spec.channels, report)
    height, width = images.shape[2:]
    if (height, width) != (spec.height, spec.width):
        images, done = _of_the_same_form(images, spec)
        report.notes.append(f"{done} from {height} x {width} to {spec.height} x {spec.width}")
        images = torch.nn.functional.interpolate(
            images, (spec.height, spec.width), mode="bilinear", antialias=True
        )
    return images


def _of_the_same_form(images: torch.Tensor, spec: DataSpec) -> tuple[torch.Tensor, str]:
    """Returns images of the plan's height to width, as `data.fit` says, and what was done."""
    height, width = images.shape[2:]
    if height * spec.width == width * spec.height:
        return images, "resized"
    if spec.fit == "stretch":
        return images, "stretched"
    if spec.fit == "pad":
        tall = max(height, math.ceil(width * spec.height / spec.width))
        wide = max(width, math.ceil(height * spec.width / spec.height))
        top, left = (tall - height) // 2, (wide - width) // 2
        edges = (left, wide - width - left, top, tall - height - top)
        return torch.nn.functional.pad(images, edges, value=-1), "padded with black and resized"
    low = min(height, max(1, round(width * spec.height / spec.width)))
    narrow = min(width, max(1, round(height * spec.width / spec.height)))
    top, left = (height - low) // 2, (width - narrow) // 2
    cut = images[:, :, top : top + low, left : left + narrow]
    return cut, "cropped about their centre and resized"


def _range_of_dtype(pixels: Pixels) -> tuple[float, float]:
    kind = pixels.dtype.newbyteorder("=")  # whichever end comes first
    if kind == np.uint8:
        return (0.0, 255.0)
    if kind == np.uint16:
        return (0.0, 65535.0)
    if kind == np.bool_ or np.issubdtype(kind, np.floating):
        return (0.0, 1.0)
    raise DataError(
        f"the images are {pixels.dtype}, which does not say what black and white are",
        hint="state it with --value-range LOW HIGH, for example --value-range 0 255",
    )


def _channels_first(images: Pixels, spec: DataSpec) -> Pixels:
    shape = tuple(images.shape)
    if images.ndim == 3:
        # as (N, H, W) one colour image would be so many grey ones, all but empty in width
        if shape[2] in CHANNELS or (spec.channels == 3 and shape[0] == 3):
            raise DataError(
                f"the images have shape {shape}, which may be one image with its channels",
                hint="give the array a fourth axis: images[None] for one image, images[..., None] "
                "for grey ones",
            )
        return images[:, None]
    if images.ndim == 4 and shape[1] in CHANNELS and shape[3] in CHANNELS:
        raise DataError(
            f"the images have shape {shape}, in which the channels may come first or last",
            hint="crop or pad the images so that no side has 1 or 3 pixels",
        )
    if images.ndim == 4 and shape[3] in CHANNELS:
        return images.transpose(0, 3, 1, 2)
    if images.ndim == 4 and shape[1] in CHANNELS:
        return images
    raise DataError(
        f"the images have shape {shape}, expected (N, H, W), (N, H, W, C) or "
        f"(N, C, H, W) with C = 1 or 3, for images of {spec.pixel_shape}",
        hint="write them again, stacked along the first axis, as grey or RGB",
    )


def _convert_channels(images: torch.Tensor, channels: int, report: DataReport) -> torch.Tensor:
    if channels == 3:
        report.notes.append("grey images were repeated to three channels")
        return images.expand(-1, 3, -1, -1)
    report.notes.append("colour images were turned to grey (ITU-R 601 luma)")
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    return 0.299 * red + 0.587 * green + 0.114 * blue

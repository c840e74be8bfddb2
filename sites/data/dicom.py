"""Reads DICOM files: pixels as a viewer shows them, the patient as the unit, and nothing else.

The order is DICOM's (PS3.3 C.11, PS3.4 N.2): stored values, modality transformation (rescale or a
table), values of interest (a table or a window), then black and white. pydicom does each. Where a
file has no window, black and white are the least and the greatest value that its bits can hold: the
values of an image never choose its own scale, nor that of another.

No tag of a file reaches a message: exceptions of pydicom quote values, so their text is dropped.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from ddm_fed.errors import DdmFedError, FileSetError, StateError
from ddm_fed.storage.files import open_regular
from sites.data.image_file import COLOUR_TO_GREY, GREY_TO_RGB
from sites.data.picture import (
    MAX_PIXELS,
    WHITE,
    Item,
    LeftOutError,
    Picture,
    PictureError,
    Pixels,
    Wanted,
    fit_picture,
    to_shades,
)

AT, MAGIC = 128, b"DICM"
SUFFIXES = {".dcm", ".dicom", ".ima"}
BURNED_IN = "DICOM images have burned-in annotations, which may name a patient"
LOCALISER = "DICOM images are localisers"
NO_PIXELS = "DICOM objects hold no image (structured reports, plans, presentations)"
NOT_IMAGES = ("SEG", "RTDOSE")  # modalities with pixels that are masks or doses
MAY_SHOW_NAMES = (
    "1.2.840.10008.5.1.4.1.1.7",
    "1.2.840.10008.5.1.4.1.1.6.1",
)  # captures, ultrasound
SAYS_NOTHING = "secondary captures or ultrasound that do not say whether text is burned in"
MOST_FRAMES = 100_000
INSTALL = "pip install 'ddm-fed[dicom]'"
# what a frame of its own groups may say instead of the file as a whole (PS3.3 C.7.6.16)
FRAME_GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
DISPLAY = (
    *("BitsAllocated", "BitsStored", "PixelRepresentation", "PhotometricInterpretation"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "PresentationLUTShape"),
)


@dataclass(frozen=True, kw_only=True)
class DicomItem(Item):
    """One DICOM file; its patient is the unit of privacy unless its source names another."""

    path: Path

    def unit(self) -> str | None:
        """Returns the unit that the source names, else the file's PatientID."""
        return self.unit_id if self.unit_id is not None else patient(self.path)

    def pictures(self, wanted: Wanted) -> Iterator[Picture]:
        """Yields its images; see `Item`."""
        try:
            with open_regular(self.path) as file:
                yield from decode_dicom(file, wanted)
        except FileSetError as error:
            raise PictureError(error.message) from None


def is_dicom(head: bytes) -> bool:
    """Returns whether a file begins as DICOM files do: with 128 bytes of anything, and a mark."""
    return head[AT : AT + len(MAGIC)] == MAGIC


def patient(path: Path) -> str | None:
    """Returns the file's PatientID: to be numbered at once, never kept or shown."""
    tags = ["PatientID"]
    with suppress(PictureError, FileSetError), open_regular(path) as file, _guarded():
        found = _pydicom().dcmread(
            file, force=True, stop_before_pixels=True, specific_tags=list(tags)
        )
        return str(found.get("PatientID") or "") or None
    return None


def decode_dicom(file: IO[bytes], wanted: Wanted) -> Iterator[Picture]:
    """Yields the frames of a DICOM file, each in the plan's shape.

    Raises:
        PictureError: it cannot be taken.
        LeftOutError: it is of a kind that is not to be taken.
    """
    with _guarded():
        header = _pydicom().dcmread(file, force=True)
        _require_image(header)
        _require_decodable(header)
        count = int(header.get("NumberOfFrames") or 1)
        if not 1 <= count <= MOST_FRAMES:
            raise PictureError(f"it claims {count} frames")
        # of the data set, not of the file: offsets in broken files are then found as well
        pixels = _pydicom().pixels
        one = count == 1  # which bears more broken files
        frames = iter([pixels.pixel_array(header)]) if one else pixels.iter_pixels(header)
    for index in range(count):
        with _guarded():
            picture = _picture(next(frames), header, index, wanted)
        yield picture


@contextmanager
def _guarded() -> Iterator[None]:
    """Keeps tags out of logs and errors: pydicom's warnings, log lines and exceptions quote them.

    Raises:
        PictureError: in place of whatever pydicom or a decoder raised.
    """
    logger = logging.getLogger("pydicom")
    was = logger.level
    logger.setLevel(logging.CRITICAL + 1)  # of those below it, too, which `disabled` is not
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except (PictureError, LeftOutError, DdmFedError):
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise anything
        raise PictureError(f"pydicom cannot decode it ({type(error).__name__})") from None
    finally:
        logger.setLevel(was)


def _require_image(header: Any) -> None:
    if "DirectoryRecordSequence" in header:  # DICOMDIR, the contents of a medium
        raise LeftOutError(NO_PIXELS)
    if "SOPClassUID" not in header and "Rows" not in header:
        raise PictureError("it is no DICOM file")
    if str(header.get("BurnedInAnnotation", "")).strip().upper() == "YES":
        raise LeftOutError(BURNED_IN)
    if "Rows" not in header or "Columns" not in header or header.get("Modality") in NOT_IMAGES:
        raise LeftOutError(NO_PIXELS)
    kinds = header.get("ImageType") or ()
    if "LOCALIZER" in ([kinds] if isinstance(kinds, str) else [str(kind) for kind in kinds]):
        raise LeftOutError(LOCALISER)
    if int(header.Rows) * int(header.Columns) > MAX_PIXELS:
        raise PictureError(
            f"{int(header.Columns)} x {int(header.Rows)} pixels are more than {MAX_PIXELS}"
        )


def _require_decodable(header: Any) -> None:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    syntax = UID(header.file_meta.get("TransferSyntaxUID") or "1.2.840.10008.1.2")
    if not syntax.is_encapsulated:
        return
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise PictureError("its transfer syntax is none of DICOM's that pydicom reads") from None
    if not decoder.is_available:
        raise PictureError(f"its transfer syntax ({syntax.name}) needs a plug-in: {INSTALL}")


def _shown_as(header: Any, index: int) -> Any:
    """Returns what says how frame `index` is shown: the file's own, or that of its group."""
    shown = _pydicom().Dataset()
    shown.set_original_encoding(*header.original_encoding)  # tables are read by it
    for source in (header, *_groups(header, index)):
        for keyword in DISPLAY:
            if keyword in source:
                shown[keyword] = source[keyword]
    return shown


def _groups(header: Any, index: int) -> Iterator[Any]:
    frames = header.get("PerFrameFunctionalGroupsSequence") or []
    for group in (
        *(header.get("SharedFunctionalGroupsSequence") or [])[:1],
        *frames[index : index + 1],
    ):
        for keyword in FRAME_GROUPS:
            yield from (group.get(keyword) or [])[:1]


def _picture(frame: Pixels, header: Any, index: int, wanted: Wanted) -> Picture:
    shown, changes = _shown_as(header, index), list[str]()
    kind, bits = str(shown.PhotometricInterpretation), int(shown.BitsStored)
    if int(header.get("NumberOfFrames") or 1) > 1:
        changes.append("every frame of a file of several was taken")
    if str(header.get("SOPClassUID", "")).startswith(MAY_SHOW_NAMES) and not header.get(
        "BurnedInAnnotation"
    ):
        changes.append(SAYS_NOTHING)
    if kind.startswith("MONOCHROME"):
        values, (low, high) = _grey(frame, shown, wanted, changes)
    else:
        values, (low, high) = _colour(frame, header, kind, bits, changes)
    unit = np.clip((values - low) / (high - low), 0, 1)
    if kind == "MONOCHROME1":
        unit = 1 - unit
        changes.append("MONOCHROME1 was inverted, so that white is high")
    if high - low != WHITE:
        changes.append("values were rounded to 256 shades")
    image = Image.fromarray(to_shades(unit))
    mode = "L" if wanted.spec.channels == 1 else "RGB"
    if image.mode != mode:
        changes.append(GREY_TO_RGB if mode == "RGB" else COLOUR_TO_GREY)
        image = image.convert(mode)
    fitted, resized = fit_picture(image, wanted.spec)
    return Picture(
        np.asarray(fitted),
        f"DICOM values of {bits} bits",
        (float(values.min()), float(values.max())),
        (min(low, high), max(low, high)),
        (*changes, *resized),
        (int(frame.shape[1]), int(frame.shape[0])),
        kind,
    )


def _grey(
    frame: Pixels, shown: Any, wanted: Wanted, changes: list[str]
) -> tuple[Pixels, tuple[float, float]]:
    """Returns values after modality and values of interest, and what black and white are."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    values = apply_modality_lut(frame, shown)
    if wanted.value_range is not None:
        changes.append("values beyond --value-range became black or white")
        return np.asarray(values, np.float64), wanted.value_range
    if shown.get("VOILUTSequence"):
        table = shown.VOILUTSequence[0]
        changes.append("shown by the file's table of values of interest")
        white = float((1 << int(table.LUTDescriptor[2])) - 1)
        return np.asarray(apply_voi_lut(values, shown), np.float64), (0.0, white)
    span = _span_of_bits(shown)
    if "WindowCenter" in shown and "WindowWidth" in shown:
        changes.append("shown by the file's first window")
        return np.asarray(apply_voi_lut(values, shown), np.float64), span
    return np.asarray(values, np.float64), span


def _span_of_bits(shown: Any) -> tuple[float, float]:
    """Returns the values that the lowest and the highest stored value mean; low may exceed high."""
    if shown.get("ModalityLUTSequence"):
        bits = int(shown.ModalityLUTSequence[0].LUTDescriptor[2])
        return 0.0, float((1 << bits) - 1)
    bits = int(shown.BitsStored)
    low, high = (
        (0, (1 << bits) - 1)
        if int(shown.PixelRepresentation) == 0
        else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    )
    slope, offset = shown.get("RescaleSlope"), shown.get("RescaleIntercept")
    if slope is None or offset is None:
        return float(low), float(high)
    if float(slope) == 0:
        raise PictureError("its rescale slope is 0, so that every value means the same")
    return low * float(slope) + float(offset), high * float(slope) + float(offset)


def _colour(
    frame: Pixels, header: Any, kind: str, bits: int, changes: list[str]
) -> tuple[Pixels, tuple[float, float]]:
    """Returns values `(H, W, 3)`, and what black and white are."""
    if kind == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        frame = apply_color_lut(frame, header)[..., :3]
        bits = 8 * frame.dtype.itemsize
        changes.append("a palette was turned to RGB")
    elif kind != "RGB":
        changes.append("YBR colours were turned to RGB")
    return np.asarray(frame, np.float64), (0.0, float((1 << bits) - 1))


@cache
def _pydicom() -> Any:
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as error:
        raise StateError(
            f"`pydicom` cannot be imported ({error}), and DICOM files need it", hint=INSTALL
        ) from None
    return pydicom

"""Captions of images. A caption is as private as its image: no message shows one."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddm_fed.errors import DataError
from ddm_fed.records import DataSpec
from ddm_fed.storage.files import UNREADABLE_ARCHIVE
from ddm_fed.storage.numpy_files import require_honest_archive, require_honest_array
from sites.data.report import DataReport

KEY = "captions"
HINT = "docs/plan.md says where captions come from, under `data.text`"
MAX_CHARACTERS = 10_000  # far more than an encoder reads of a caption


def load_captions(place: Path | None) -> NDArray[Any] | None:
    """Returns the captions of an `.npz` (`captions`) or beside an `.npy` (`NAME.captions.npy`).

    Raises:
        DataError: they cannot be read.
    """
    if place is None or not place.is_file():
        return None
    try:
        if place.suffix == ".npz":
            require_honest_archive(place)
            with place.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as found:
                return np.asarray(found[KEY]) if KEY in found else None
        beside = place.with_suffix(".captions.npy")
        if place.suffix != ".npy" or not beside.is_file():
            return None
        require_honest_array(beside)
        return np.asarray(np.load(beside, allow_pickle=False))
    except UNREADABLE_ARCHIVE:  # its text could hold a part of what is read
        raise DataError(
            f"the captions of {place} cannot be read",
            hint="store them as an array of strings: numpy.array(captions, dtype=str)",
        ) from None


def take_captions(
    captions: NDArray[Any] | Sequence[str | None] | None,
    spec: DataSpec,
    source: str,
    count: int,
    report: DataReport,
) -> tuple[str, ...] | None:
    """Returns a caption for each of `count` images; None where the plan has no captions.

    Raises:
        DataError: they are missing, too few or no texts. No caption is in it.
    """
    if spec.text is None:
        if captions is not None:
            report.notes.append("captions are not used: the plan has no text")
        return None
    if captions is None:
        raise DataError(f"{source} has no captions, the plan asks for text", hint=HINT)
    texts = _of_array(captions, source, count) if isinstance(captions, np.ndarray) else captions
    return _taken([cleaned(text or "") for text in texts], source, report)


def _of_array(captions: NDArray[Any], source: str, count: int) -> list[str]:
    if captions.dtype.kind != "U":
        raise DataError(
            f"{source} has captions of {captions.dtype}, not texts",
            hint="store them as an array of strings: numpy.array(captions, dtype=str)",
        )
    if captions.shape not in ((count,), (count, 1)):
        raise DataError(
            f"{source} has {count} images and captions of shape {captions.shape}",
            hint="every image needs one caption; an empty one where there is none",
        )
    return [str(text) for text in captions.reshape(-1)]


def _taken(texts: list[str], source: str, report: DataReport) -> tuple[str, ...]:
    broken = sum(not is_unicode(text) for text in texts)
    if broken:
        raise DataError(
            f"{source} has {broken} captions that are no Unicode text: halves of characters",
            hint="decode the bytes they came from with the encoding they were written in",
        )
    long = sum(len(text) > MAX_CHARACTERS for text in texts)
    if long:
        raise DataError(
            f"{source} has {long} captions of more than {MAX_CHARACTERS:,} characters",
            hint="a text encoder reads a few dozen words: shorten them",
        )
    empty = sum(not text for text in texts)
    if texts and empty == len(texts):
        raise DataError(f"{source} has captions that are all empty", hint=HINT)
    report.notes.append(f"{len(set(texts) - {''}):,} distinct captions")
    if empty:
        report.notes.append(f"{empty:,} of the images have no caption")
    return tuple(texts)


def is_unicode(text: str) -> bool:
    """Returns whether a text can be written in UTF-8, which encoders do with it."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def cleaned(text: str) -> str:
    """Returns a caption on one line, composed as people write it; empty if it says nothing."""
    return unicodedata.normalize("NFC", " ".join(text.split()))

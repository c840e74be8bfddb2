"""Encodes a site's captions once, into files of its private folder that are mapped from there.

    private/PLAN/captions/state.json     which captions by which encoder, and how many are done
    private/PLAN/captions/tokens.npy     and pooled.npy, lengths.npy: what became of each

Every distinct caption has one place, in the order of the texts, and is encoded in a block of its
neighbours. A run that was killed goes on with the first block that is missing.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddm_fed.embedding import open_text_encoder
from ddm_fed.errors import OptionError, StateError
from ddm_fed.flows import EncodedTexts
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import Plan, TextSpec
from ddm_fed.storage.files import write_atomically

FOLDER, STATE_FILE = "captions", "state.json"
ARRAYS = ("tokens", "pooled", "lengths")
BLOCK = 64
TIMEOUT_S = 24 * 3600.0


def encode_captions(
    work: Path,
    plan: Plan,
    data: Private[ImageSet],
    encoder: Path | None,
    say: Callable[[str], None] = lambda _: None,
    *,
    folder: str = FOLDER,
) -> Private[ImageSet]:
    """Returns the images with their captions encoded; without captions in the plan, as they are.

    Args:
        work: The private folder of the plan.
        plan: Names the encoder.
        data: With captions, where the plan has them.
        encoder: Its file; needed once, until all captions are encoded.
        say: Told how many there are; never what they say.
        folder: In `work`, where what becomes of them is kept.

    Raises:
        OptionError: no encoder is given and one is needed, or the plan has no text.
        DigestError, DataError, StateError: it is not the plan's, or cannot be opened.
    """
    text, images = plan.data.text, data.reveal()
    if text is None:
        if encoder is not None:
            raise OptionError(
                f"--text-encoder {encoder}: the plan has no captions",
                hint='leave it out; a plan with conditioning = "text" has them',
            )
        return data
    if images.captions is None:
        return data  # refused where the images are looked at
    captions, place = _distinct(images.captions), work / folder
    digest = _digest(captions, text)
    if _done(place, digest) < len(captions) or encoder is not None:
        if encoder is None:
            raise OptionError(
                "the captions have to be encoded, and no --text-encoder is given",
                hint=f"give the file whose SHA-256 the plan names: {text.sha256}",
            )
        _encode(place, captions, digest, text, encoder, say)
    return _attached(data, place, captions)


def wait_for_captions(work: Path, plan: Plan, data: Private[ImageSet]) -> Private[ImageSet]:
    """Returns the images with their captions as another process encodes them; writes nothing.

    Raises:
        StateError: it does not come to an end.
    """
    text, images = plan.data.text, data.reveal()
    if text is None or images.captions is None:
        return data
    captions, place = _distinct(images.captions), work / FOLDER
    digest, until = _digest(captions, text), time.monotonic() + TIMEOUT_S
    while _done(place, digest) < len(captions):
        if time.monotonic() > until:
            raise StateError(
                "the first process did not encode the captions",
                hint="see what it says; or start with one process until they are encoded",
            )
        time.sleep(0.2)
    return _attached(data, place, captions)


def _distinct(captions: Sequence[str]) -> list[str]:
    return sorted(set(captions) - {""})


def _digest(captions: Sequence[str], text: TextSpec) -> str:
    described = json.dumps([text.model_dump(mode="json"), *captions])
    return hashlib.sha256(described.encode()).hexdigest()


def _done(place: Path, digest: str) -> int:
    """Returns how many captions of that digest are encoded in `place`."""
    try:
        state = json.loads((place / STATE_FILE).read_bytes())
    except (OSError, ValueError):
        return 0
    whole = all((place / f"{name}.npy").is_file() for name in ARRAYS)
    return int(state["done"]) if whole and state["digest"] == digest else 0


def _encode(
    place: Path,
    captions: Sequence[str],
    digest: str,
    text: TextSpec,
    encoder: Path,
    say: Callable[[str], None],
) -> None:
    network = open_text_encoder(encoder, text)
    done, count = _done(place, digest), len(captions)
    if done >= count:
        return
    say(f"encoding {count - done:,} distinct captions")
    place.mkdir(mode=0o700, exist_ok=True)
    if not done:
        (place / STATE_FILE).unlink(missing_ok=True)
    arrays = _open(place, count, text, new=not done)
    full = 0
    for start in range(done, count, BLOCK):
        block = slice(start, min(start + BLOCK, count))
        tokens, pooled, lengths = network.states(captions[block], text.tokens)
        full += int((lengths > text.tokens).sum())
        arrays[0][block], arrays[1][block] = tokens, pooled
        arrays[2][block] = np.minimum(lengths, text.tokens)
        for array in arrays:
            array.flush()
        state = {"digest": digest, "done": block.stop}
        write_atomically(place / STATE_FILE, json.dumps(state).encode(), mode=0o600)
    if full:
        say(
            f"{full:,} captions have more than the {text.tokens} tokens that the plan keeps: of "
            "the rest only their pooled vector tells"
        )


def _open(place: Path, count: int, text: TextSpec, *, new: bool) -> list["np.memmap[Any, Any]"]:
    shapes = ((count, text.tokens, text.width), (count, text.pooled), (count,))
    types = (np.float16, np.float16, np.int64)
    return [
        np.lib.format.open_memmap(place / f"{name}.npy", "w+" if new else "r+", dtype, shape)
        for name, shape, dtype in zip(ARRAYS, shapes, types, strict=True)
    ]


def _attached(data: Private[ImageSet], place: Path, captions: list[str]) -> Private[ImageSet]:
    def read(name: str) -> NDArray[Any]:
        found: NDArray[Any] = np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return found

    if not captions:
        raise ValueError("there are no captions")  # the reader of images refused that
    texts = EncodedTexts(captions, *map(read, ARRAYS))
    return data.map(lambda images: replace(images, texts=texts))

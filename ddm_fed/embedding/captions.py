"""A plan's text encoder, opened by its digest, and what it makes of texts."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ddm_fed.embedding.clip import ClipEmbedder
from ddm_fed.errors import DataError
from ddm_fed.flows import EncodedTexts
from ddm_fed.records import TextSpec
from ddm_fed.storage.files import open_regular


def open_text_encoder(path: Path, spec: TextSpec) -> ClipEmbedder:
    """Returns the encoder of a plan from the safetensors file `path`.

    Raises:
        StateError: clip-anytorch is not installed.
        DigestError: it is another file than the plan names.
        DataError: it is missing, or holds another network than the plan says.
    """
    encoder = ClipEmbedder.open(path, spec.sha256)
    found, said = encoder.text_sizes, (spec.context, spec.width, spec.pooled)
    if found != said:
        raise DataError(
            f"{path} reads {found[0]} tokens and makes vectors of {found[1]} and {found[2]} "
            f"numbers; [data.text] says {said[0]}, {said[1]} and {said[2]}",
            hint="`ddm-coord plan text FILE` writes the section of a file",
        )
    return encoder


def text_spec(path: Path, tokens: int) -> TextSpec:
    """Returns the section of a plan that names the encoder in the safetensors file `path`.

    Args:
        path: Of a CLIP network.
        tokens: How many of a caption's tokens networks are handed; no more than it reads.

    Raises:
        StateError: clip-anytorch is not installed.
        DataError: it holds another network.
    """
    with open_regular(path) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    context, width, pooled = ClipEmbedder.open(path, sha256).text_sizes
    kept = min(tokens, context)
    return TextSpec(sha256=sha256, context=context, tokens=kept, width=width, pooled=pooled)


def encode_texts(encoder: ClipEmbedder, spec: TextSpec, texts: Sequence[str]) -> EncodedTexts:
    """Returns what the encoder makes of distinct `texts`, all of them in memory.

    Each is encoded by itself: what comes of it does not depend on the others.
    """
    known = [text for text in dict.fromkeys(texts) if text]
    if not known:
        return EncodedTexts.nothing(spec.tokens, spec.width, spec.pooled)
    parts = [encoder.states([text], spec.tokens) for text in known]
    tokens, pooled, lengths = (np.concatenate(values) for values in zip(*parts, strict=True))
    return EncodedTexts(known, tokens, pooled, np.minimum(lengths, spec.tokens))

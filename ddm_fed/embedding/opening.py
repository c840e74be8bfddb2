"""An embedder by the name a plan could give it."""

from pathlib import Path

from ddm_fed.embedding.base import FeatureEmbedder
from ddm_fed.embedding.clip import ClipEmbedder
from ddm_fed.embedding.timm import TimmEmbedder


def open_embedder(name: str, path: Path, sha256: str) -> FeatureEmbedder:
    """Returns the embedder `name`, `clip` or `timm:NETWORK`; see the two classes.

    Args:
        name: Which network.
        path: Safetensors file of its weights.
        sha256: Digest of the file, hexadecimal.

    Raises:
        ValueError: the name is neither.
    """
    kind, _, network = name.partition(":")
    if name == "clip":
        return ClipEmbedder.open(path, sha256)
    if kind == "timm" and network:
        return TimmEmbedder.open(network, path, sha256)
    raise ValueError(f"unknown embedder `{name}`; use clip, or timm: and the name of a network")

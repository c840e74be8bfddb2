"""CLIP, from weights that are at hand: images and text as directions in one space.

Only this module imports clip-anytorch (`pip install 'ddm-fed[clip]'`). Published CLIP checkpoints
are TorchScript archives, and opening one runs code: that happens once, where it is trusted
(docs/routers.md), and here only the safetensors file made of it is read.

Source: Radford et al. 2021, arXiv:2103.00020; the constants and steps of preparation are those of
the package's own `_transform`.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddm_fed.embedding.base import on_the_sphere, prepared
from ddm_fed.embedding.public_weights import (
    import_torchvision,
    not_installed,
    other_network,
    read_checkpoint,
)

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # of the TorchScript archives


class ClipEmbedder:
    """CLIP on the processor, in float32. `open` makes one."""

    def __init__(self, model: Any, digest: str) -> None:
        self._model, self._digest = model, digest

    @classmethod
    def open(cls, path: Path, sha256: str) -> Self:
        """Returns the embedder whose weights are in the safetensors file `path`.

        Args:
            path: State dict of a `clip.model.CLIP`, whose sizes follow from it.
            sha256: Digest of the file, hexadecimal.

        Raises:
            StateError: clip-anytorch is not installed.
            DigestError: it is another file.
            DataError: it is missing, or holds another network.
        """
        clip = _clip()
        tensors = read_checkpoint(path, sha256)
        weights = {name: v.float() for name, v in tensors.items() if name not in NOT_WEIGHTS}
        try:
            model = clip.model.build_model(dict(weights)).float()
            model.load_state_dict(weights)  # once more: `build_model` rounds them to 16 bits
        except (KeyError, RuntimeError, AssertionError) as error:
            raise other_network(path, "a CLIP network", error) from None
        return cls(model.eval().requires_grad_(False), sha256)

    @property
    def name(self) -> str:
        """`clip`; see `Embedder`."""
        return "clip"

    @property
    def dimension(self) -> int:
        """E; see `Embedder`."""
        return int(self._model.text_projection.shape[1])

    @property
    def digest(self) -> str:
        """SHA-256 of the weights' file; see `Embedder`."""
        return self._digest

    @property
    def text_sizes(self) -> tuple[int, int, int]:
        """Tokens it reads of a text, and lengths of a token's and of the pooled vector."""
        model = self._model
        return (int(model.context_length), int(model.ln_final.weight.shape[0]), self.dimension)

    def states(
        self, texts: Sequence[str], tokens: int
    ) -> tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.int64]]:
        """Returns what it makes of texts: by token, as a whole, and how many tokens they have.

        What exceeds the tokens it reads is cut off. In 16 bits, which is all that is kept of them.

        Args:
            texts: B of them.
            tokens: L, how many of the first tokens are returned.

        Returns:
            `(B, L, D)`, `(B, P)` of norm 1, and `(B,)`, the two marks at the ends included.
        """
        model, context = self._model, int(self._model.context_length)
        read = _clip().tokenize(list(texts), context_length=context, truncate=True)
        last = read.argmax(dim=1)  # the mark of the end is the largest number there is
        with torch.no_grad():
            x = model.token_embedding(read) + model.positional_embedding
            x = model.ln_final(model.transformer(x.permute(1, 0, 2)).permute(1, 0, 2))  # (B, N, D)
            pooled = on_the_sphere(x[torch.arange(len(x)), last] @ model.text_projection)
        return x[:, :tokens].half().numpy(), pooled.half().numpy(), (last + 1).numpy()

    def images(self, images: Tensor) -> Tensor:
        """Returns the embeddings of `(B, C, H, W)` in [-1, 1], `(B, E)`; see `Embedder`."""
        return on_the_sphere(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Returns the same before they are brought to norm 1; see `FeatureEmbedder`."""
        ready = prepared(images, int(self._model.visual.input_resolution), MEAN, STD)
        with torch.no_grad():
            found: Tensor = self._model.encode_image(ready)
        return found

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Returns the embeddings of `texts`, `(B, E)`; see `TextEmbedder`.

        Raises:
            ValueError: a text has more tokens than the network reads.
        """
        try:
            tokens = _clip().tokenize(list(texts), context_length=self._model.context_length)
        except RuntimeError as error:  # the package has no type of its own for it
            raise ValueError(str(error)) from None
        with torch.no_grad():
            return on_the_sphere(self._model.encode_text(tokens))


def _clip() -> Any:
    """Returns the package.

    Raises:
        StateError: it is not installed, or without what it needs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports pkg_resources, which says that it is old
            import_torchvision()
            import clip
    except ImportError as error:
        raise not_installed("clip", "clip", error) from None
    return clip

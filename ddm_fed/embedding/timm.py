"""Image networks of timm, from weights that are at hand: DINOv2 and many others.

Only this module imports timm (`pip install 'ddm-fed[timm]'`). Names are those of timm's own
registry: the names by which it would fetch a model from the network or a folder are refused.
"""

import re
import warnings
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ddm_fed.embedding.base import on_the_sphere, prepared
from ddm_fed.embedding.public_weights import (
    import_torchvision,
    not_installed,
    other_network,
    read_checkpoint,
)
from ddm_fed.errors import DataError

NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)?")  # architecture and tag; no `hf-hub:`, no path


class TimmEmbedder:
    """A network of timm without its classifier, on the processor, in float32. `open` makes one."""

    def __init__(self, model: Any, name: str, digest: str) -> None:
        self._model, self._name, self._digest = model, name, digest

    @classmethod
    def open(cls, name: str, path: Path, sha256: str) -> Self:
        """Returns the embedder `name` whose weights are in the safetensors file `path`.

        Args:
            name: Such as `vit_small_patch14_dinov2.lvd142m`.
            path: State dict of the network, with or without its classifier.
            sha256: Digest of the file, hexadecimal.

        Raises:
            StateError: timm is not installed.
            DigestError: it is another file.
            DataError: timm knows no such network, or the file is missing or of another one.
        """
        timm = _timm()
        if not NAME.fullmatch(name) or not timm.is_model(name):
            raise DataError(
                f"timm {timm.__version__} has no network named `{name}`",
                hint="give a name of `timm.list_models()`; nothing is fetched by name",
            )
        tensors = read_checkpoint(path, sha256)
        try:
            model = timm.create_model(name, pretrained=False, num_classes=0)
            heads = model.pretrained_cfg.get("classifier") or ()
            dropped = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
            kept = {
                key: value.float() if value.is_floating_point() else value
                for key, value in tensors.items()
                if not key.startswith(dropped)
            }
            model.load_state_dict(kept)
        except RuntimeError as error:
            raise other_network(path, f"the network `{name}`", error) from None
        return cls(model.eval().requires_grad_(False), f"timm:{name}", sha256)

    @property
    def name(self) -> str:
        """`timm:` and the network's name; see `Embedder`."""
        return self._name

    @property
    def dimension(self) -> int:
        """E; see `Embedder`."""
        return int(self._model.num_features)

    @property
    def digest(self) -> str:
        """SHA-256 of the weights' file; see `Embedder`."""
        return self._digest

    def images(self, images: Tensor) -> Tensor:
        """Returns the embeddings of `(B, C, H, W)` in [-1, 1], `(B, E)`; see `Embedder`."""
        return on_the_sphere(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Returns the same before they are brought to norm 1; see `FeatureEmbedder`."""
        settings = self._model.pretrained_cfg
        ready = prepared(images, settings["input_size"][-1], settings["mean"], settings["std"])
        with torch.no_grad():
            found: Tensor = self._model(ready)
        return found


def _timm() -> Any:
    """Returns the package.

    Raises:
        StateError: it is not installed, or without what it needs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_torchvision()
            import timm
    except ImportError as error:
        raise not_installed("timm", "timm", error) from None
    return timm

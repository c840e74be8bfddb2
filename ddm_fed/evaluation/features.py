"""Feature extractors: what images are compared by."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ddm_fed.errors import DataError
from ddm_fed.evaluation.classifier import TrainedClassifier
from ddm_fed.evaluation.inception import InceptionV3

INCEPTION_ROWS = 32
CONVERT_HINT = (
    "convert pt_inception-2015-12-05-6726825d.pth, of pytorch-fid or torch-fidelity, to "
    "safetensors as docs/evaluation.md says; nothing is downloaded here"
)


class Extractor(NamedTuple):
    """A function of images, `(N, C, H, W)` in [-1, 1], to features, `(N, F)` float32.

    Figures may be compared where `name` and `sha256` are the same: the digest is of the weights.
    """

    name: str
    sha256: str
    width: int
    apply: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        """Returns features."""
        with torch.no_grad():
            found: NDArray[np.float32] = self.apply(images).float().numpy()
        return found


def classifier_features(trained: TrainedClassifier) -> Extractor:
    """Returns the features of a small classifier: what its last layer sees."""
    network = trained.network
    return Extractor(
        name="classifier",
        sha256=weights_digest(network.state_dict()),
        width=network.head.in_features,
        apply=network.features,
    )


def inception_features(weights: Path) -> Extractor:
    """Returns the features that FID is defined by; grey images are taken as three equal channels.

    Args:
        weights: A safetensors file of the converted TensorFlow weights.

    Raises:
        DataError: it is missing, is not a safetensors file, or is of another network.
    """
    if not weights.is_file():
        raise DataError(f"{weights}, the weights of Inception-v3, is missing", hint=CONVERT_HINT)
    try:
        tensors = load_file(weights)
    except SafetensorError as error:
        raise DataError(
            f"{weights} is not a safetensors file: {error}", hint=CONVERT_HINT
        ) from None
    with torch.device("meta"):
        network = InceptionV3()
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    # counters of batches are used in training only, and some copies of the weights lack them
    counters = {name for name in shapes if name.endswith("num_batches_tracked")}
    wrong = sorted(
        name
        for name in (shapes.keys() | tensors.keys()) - counters
        if name not in shapes or name not in tensors or tensors[name].shape != shapes[name]
    )
    if wrong:
        raise DataError(
            f"{weights} does not hold the Inception-v3 of FID: {len(wrong)} tensors are missing, "
            f"of another shape or too many, for example {wrong[0]}",
            hint=CONVERT_HINT,
        )
    kept = {name: value.float() for name, value in tensors.items() if name not in counters}
    whole = kept | {name: torch.zeros((), dtype=torch.int64) for name in counters}
    network.load_state_dict(whole, assign=True)
    network.eval().requires_grad_(False)

    def apply(images: Tensor) -> Tensor:
        # it was trained on bytes, and real images are bytes: samples are rounded as files would be
        bytes_ = ((images.clamp(-1, 1) + 1) * 127.5).round()
        found = [
            network(block.expand(-1, 3, -1, -1)) for block in torch.split(bytes_, INCEPTION_ROWS)
        ]
        return torch.cat(found)

    return Extractor("inception", weights_digest(kept), network.fc.in_features, apply)


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 of names, types, shapes and values, whatever file they came in."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()

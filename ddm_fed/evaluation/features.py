"""Feature extractors: what images are compared by."""

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ddm_fed.embedding import open_embedder
from ddm_fed.errors import DataError, OptionError, guess
from ddm_fed.evaluation.classifier import TrainedClassifier
from ddm_fed.evaluation.inception import InceptionV3

ROWS = 32  # images that a public network is given at once
CLASSIFIER, INCEPTION = "classifier", "inception"
PUBLIC = "inception, clip or timm:NETWORK"  # networks whose weights are in a file
CONVERT_HINT = (
    "convert pt_inception-2015-12-05-6726825d.pth, of pytorch-fid or torch-fidelity, to "
    "safetensors as docs/evaluation.md says; nothing is downloaded here"
)


class Extractor(NamedTuple):
    """A function of images, `(N, C, H, W)` in [-1, 1], to features, `(N, F)` float32.

    Figures may be compared where `name` and `sha256` are the same: the digest is of the weights, or
    of their file where embedders are named by that.
    """

    name: str
    sha256: str
    width: int
    apply: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        """Returns features.

        Raises:
            DataError: they are not finite.
        """
        with torch.no_grad():
            found: NDArray[np.float32] = self.apply(images).float().numpy()
        if not np.isfinite(found).all():
            raise DataError(
                f"features of {self.name} are not finite",
                hint="train it again with another --seed"
                if self.name == CLASSIFIER
                else "the file of --weights is damaged, or is that of another network",
            )
        return found


def require_features(name: str, weights: Path | None) -> None:
    """Refuses features that are not known, and a file of weights without them or them without it.

    Raises:
        OptionError: naming the option.
    """
    # a network of timm is looked for later
    if re.fullmatch(f"{CLASSIFIER}|{INCEPTION}|clip|timm:.+", name) is None:
        raise OptionError(
            f"--features {name} is not known{guess(name, (CLASSIFIER, INCEPTION, 'clip'))}",
            hint=f"give classifier, or one of {PUBLIC}",
        )
    if (weights is None) != (name == CLASSIFIER):
        raise OptionError(
            f"--weights and --features {PUBLIC} need each other",
            hint="give both, or neither for features of a classifier trained here; nothing is "
            "downloaded, and docs/evaluation.md says where weights come from",
        )


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
        found = [network(block.expand(-1, 3, -1, -1)) for block in torch.split(bytes_, ROWS)]
        return torch.cat(found)

    return Extractor("inception", weights_digest(kept), network.fc.in_features, apply)


def embedder_features(name: str, weights: Path, sha256: str) -> Extractor:
    """Returns what a network of `ddm_fed.embedding` gives, before it becomes a direction.

    Args:
        name: `clip`, or `timm:` and a network's name.
        weights: Safetensors file of its weights.
        sha256: Digest of the file, hexadecimal.

    Raises:
        StateError: the network's package is not installed.
        DigestError: it is another file.
        DataError: it is missing or holds another network, or there is no such network.
        ValueError: the name is neither.
    """
    embedder = open_embedder(name, weights, sha256)

    def apply(images: Tensor) -> Tensor:
        return torch.cat([embedder.features(block) for block in torch.split(images, ROWS)])

    return Extractor(embedder.name, embedder.digest, embedder.dimension, apply)


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 of names, types, shapes and values, whatever file they came in."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()

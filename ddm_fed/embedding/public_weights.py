"""Opening public weights: by digest, as safetensors, with the library that knows the network."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ddm_fed.errors import DataError, DigestError, StateError
from ddm_fed.storage.files import open_regular

CONVERT_HINT = (
    "give a safetensors file of the network's state dict; docs/routers.md says how to convert a "
    "published checkpoint, and nothing is downloaded here"
)
_declared: list[torch.library.Library] = []  # a schema lives as long as the library it is in


def read_checkpoint(path: Path, sha256: str) -> dict[str, Tensor]:
    """Returns the tensors of the safetensors file `path`, parsed only if its digest is `sha256`.

    The bytes that are hashed are the bytes that are parsed.

    Raises:
        DataError: there is no such file, or it is not a safetensors file.
        DigestError: it is another file.
        FileSetError: it is a link or a device.
    """
    if not path.exists():
        raise DataError(f"{path}, the weights of an embedder, is missing", hint=CONVERT_HINT)
    with open_regular(path) as file:
        data = file.read()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise DigestError(
            f"{path} has SHA-256 {found}, expected {sha256}",
            hint="embeddings of other weights cannot be compared: give the file that the digest "
            "names, or agree on this one",
        )
    try:
        return load(data)
    except SafetensorError as error:
        raise DataError(f"{path} is not a safetensors file: {error}", hint=CONVERT_HINT) from None


def other_network(path: Path, what: str, error: Exception) -> DataError:
    """Returns the error for weights that do not fit the network they are said to be of."""
    reason = " ".join(str(error).split())[:300]
    return DataError(f"{path} does not hold {what}: {reason}", hint=CONVERT_HINT)


def not_installed(package: str, extra: str, error: ImportError) -> StateError:
    """Returns the error for a package of an extra that cannot be imported."""
    return StateError(
        f"`{package}` cannot be imported ({error}), and this embedder needs it",
        hint=f"pip install 'ddm-fed[{extra}]'",
    )


def import_torchvision() -> None:
    """Imports torchvision, which clip and timm do, also beside a torch it was not compiled for.

    PyPI's torchvision is compiled for CUDA. Beside a torch without CUDA its own library does not
    load, and its import fails at operators that library would have declared. No embedder calls
    them, so declaring their signatures is enough.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    else:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(schema)  # type: ignore[no-untyped-call]
    _declared.append(library)
    import torchvision  # noqa: F401

"""The folder of an autoencoder: `config.json` and safetensors weights, known by one digest."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from ddm_fed.autoencoders.config import AutoencoderConfig, read_config
from ddm_fed.autoencoders.networks import with_weights
from ddm_fed.errors import DataError, DigestError, StateError
from ddm_fed.storage.files import open_regular, write_atomically
from ddm_fed.storage.tensors import write_tensors

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
MOST_CONFIG, MOST_WEIGHTS = 1 << 16, 1 << 32  # bytes


class OpenedFolder(NamedTuple):
    """An autoencoder as its folder has it."""

    sha256: str
    config: AutoencoderConfig
    network: nn.Module


def read_folder(folder: Path, *, sha256: str | None = None) -> OpenedFolder:
    """Returns the autoencoder in `folder`; nothing of it is parsed if its digest is not `sha256`.

    The bytes that are hashed are the bytes that are parsed. Pickled weights are never opened.

    Raises:
        DataError: the folder holds no autoencoder that can be opened.
        DigestError: it holds another one.
    """
    config, weights = _read(folder, CONFIG_FILE, MOST_CONFIG), _read(folder, WEIGHTS_FILE)
    found = digest_of(config, weights)
    if sha256 is not None and found != sha256:
        raise DigestError(
            f"{folder} is another autoencoder than the plan's: its sha256 is {found}, the plan "
            f"names {sha256}",
            hint="latents of two autoencoders cannot be mixed: give the folder that the plan "
            "names; `ddm-coord autoencoder show FOLDER` prints a folder's digest",
        )
    described = read_config(config, f"{folder / CONFIG_FILE}")
    try:
        network = with_weights(described, load(weights))
    except (SafetensorError, ValueError) as error:
        raise DataError(
            f"{folder / WEIGHTS_FILE} does not hold the weights that {CONFIG_FILE} describes: "
            f"{error}",
            hint="copy the folder again, with both files from one place",
        ) from None
    return OpenedFolder(found, described, network)


def digest_of(config: bytes, weights: bytes) -> str:
    """Returns the digest of an autoencoder: of the lines that `sha256sum` prints of its files."""
    lines = (
        f"{hashlib.sha256(data).hexdigest()}  {name}\n"
        for name, data in ((CONFIG_FILE, config), (WEIGHTS_FILE, weights))
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_folder(folder: Path, config: dict[str, Any], network: nn.Module) -> None:
    """Writes an autoencoder as diffusers does; the config last, which says that it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".part-{WEIGHTS_FILE}"
    write_tensors(part, {name: value.cpu() for name, value in network.state_dict().items()})
    part.chmod(0o644)  # it is public
    part.replace(folder / WEIGHTS_FILE)
    write_atomically(folder / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True).encode())


def _read(folder: Path, name: str, most: int = MOST_WEIGHTS) -> bytes:
    path = folder / name
    if not path.is_file():
        raise DataError(f"{folder} holds no {name}", hint=_advice(folder))
    with open_regular(path.resolve()) as file:  # caches of models are made of links
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise DataError(
                f"{path} has {size:,} bytes, at most {most:,} are read",
                hint="give a folder of diffusers' AutoencoderKL or AutoencoderTiny",
            )
        data = file.read(most)
    if len(data) != size:
        raise StateError(f"{path} changed while it was read", hint="run the command again")
    return data


def _advice(folder: Path) -> str:
    inner = [name for name in ("vae", "ae") if (folder / name / CONFIG_FILE).is_file()]
    if inner:
        return f"it is a whole pipeline: give its part {folder / inner[0]}"
    if any(folder.glob("*.bin")) or any(folder.glob("*.ckpt")):
        return (
            "its weights are pickled, which can run code and is never read: save it once more with "
            "diffusers' save_pretrained(FOLDER, safe_serialization=True)"
        )
    if any(folder.glob("*.safetensors")):
        return f"its weights have to lie in one file named {WEIGHTS_FILE}, in float32 or float16"
    return (
        "give a folder as diffusers' save_pretrained writes it; `ddm-coord autoencoder train` "
        "makes one from public images"
    )

"""The folder of a network that diffusers saved: its configuration and its weights."""

import inspect
import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from ddm_fed.errors import DataError, printable
from ddm_fed.records import MAX_DOCUMENT_BYTES
from ddm_fed.storage.files import read_bounded

WEIGHTS = "diffusion_pytorch_model.safetensors"
HINT = (
    "choose a checkpoint of a UNet2DModel or a DiTTransformer2DModel, or train from the start, "
    "without [expert.base]"
)


class Found(NamedTuple):
    """A network of a plan, with the weights of a folder.

    Attributes:
        architecture: Its name.
        weights: By our names.
        labels: Name of its table of classes, if it has one.
        time_bias: Name of what is added to the embedding of times.
        last: Name of its last layer.
        notes: What was left out.
    """

    architecture: str
    weights: dict[str, Tensor]
    labels: str
    time_bias: str
    last: str
    notes: tuple[str, ...] = ()


def defaults_of(kind: Any) -> dict[str, Any]:
    """Returns the arguments of a class of diffusers, as they are where nothing is said."""
    signature = inspect.signature(kind.__init__).parameters
    return {key: each.default for key, each in signature.items() if key != "self"}


def arguments_of(kind: Any, folder: Path) -> dict[str, Any]:
    """Returns all arguments of the network in `folder`.

    Raises:
        DataError: it has others than the class.
    """
    known = defaults_of(kind)
    given = read_json(folder / "config.json")
    given = {key: value for key, value in given.items() if not key.startswith("_")}
    # earlier versions wrote what other networks have, as switched off
    if strange := sorted(key for key in given.keys() - known if given[key]):
        raise refused(folder, f"its config.json has `{printable(strange[0])[:80]}`")
    both = known | {key: value for key, value in given.items() if key in known}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in both.items()}


def require_values(
    folder: Path, found: dict[str, Any], expected: dict[str, Any], near: str
) -> None:
    """Refuses a configuration that differs from `expected`, with every key that does.

    Raises:
        DataError: naming them.
    """
    odd = [
        f"`{key}` is {printable(repr(found[key]))[:80]}, expected {expected[key]!r}"
        for key in sorted(expected)
        if found[key] != expected[key]
    ]
    if odd:
        raise refused(folder, f"it is near {near}, but in config.json " + "; ".join(odd))


def load_network(kind: Any, folder: Path) -> nn.Module:
    """Returns the network in `folder`, read without pickle.

    Raises:
        DataError: there are no such weights, or they are of another network.
    """
    if not (folder / WEIGHTS).is_file():
        raise refused(
            folder,
            f"there is no {WEIGHTS}",
            "save it in one file and without pickle: model.save_pretrained(FOLDER, "
            'safe_serialization=True, max_shard_size="100GB")',
        )
    try:
        # diffusers reads it, since it knows the names that its earlier versions gave
        network, told = kind.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        reason = printable(" ".join(str(error).split())[:300])
        raise refused(folder, f"diffusers cannot load it: {reason}") from None
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if told[problem]:  # diffusers would draw what is missing
            raise refused(folder, f"{WEIGHTS} is of another network: {problem} {told[problem][0]}")
    loaded: nn.Module = network
    return loaded.float().requires_grad_(False)


def read_json(file: Path) -> dict[str, Any]:
    """Returns what a file of the folder says.

    Raises:
        DataError: it is missing, or no JSON object.
    """
    if not file.is_file():
        raise refused(
            file.parent,
            f"there is no {file.name}",
            "give the folder that `save_pretrained` wrote, of a model or of a pipeline",
        )
    try:
        # caches of models are made of links
        found = json.loads(read_bounded(file.resolve(), MAX_DOCUMENT_BYTES))
    except (ValueError, RecursionError) as error:
        raise refused(file.parent, f"{file.name} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise refused(file.parent, f"{file.name} is no object")
    return found


def refused(folder: Path, reason: str, hint: str = HINT) -> DataError:
    """Returns the error of a folder that no expert can start from."""
    return DataError(f"{folder} cannot be a base: {reason}", hint=hint)

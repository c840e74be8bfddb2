"""A network of diffusers, in a folder, as the base checkpoint of a plan.

It is read without pickle: `config.json` decides which network is built, and the weights are
safetensors. What cannot be kept is said, and stands in the file as a fresh network has it.

What the folder's scheduler says its network learned, as path and prediction of ours:

| scheduler                             | path                                   |
| ------------------------------------- | -------------------------------------- |
| betas linear from .0001 to .02        | vp, whose B(t) is their limit          |
| betas squaredcos_cap_v2               | cosine, which leaves out its offset    |
| FlowMatchEulerDiscreteScheduler       | linear, and velocity                   |

| prediction_type | prediction                                                   |
| --------------- | ------------------------------------------------------------ |
| epsilon, sample | noise, image                                                 |
| v_prediction    | velocity on cosine, times pi / 2; on vp the factor varies: no |
"""

import hashlib
import inspect
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddm_fed.errors import DataError, printable
from ddm_fed.models import expert_tensors
from ddm_fed.models.unet import DDPM, diffusers_unet, unet_config
from ddm_fed.records import (
    MAX_DOCUMENT_BYTES,
    DataSpec,
    ExpertDesign,
    PathName,
    Prediction,
    UnetSize,
    parse_architecture,
    require_fit,
    unet_name,
)
from ddm_fed.storage.files import commit_file, read_bounded
from ddm_fed.storage.tensors import write_tensors

WEIGHTS = "diffusion_pytorch_model.safetensors"
LAST = "net.conv_out."
LABELS, TIME_BIAS = "net.class_embedding.weight", "net.time_embedding.linear_2.bias"
SHAPES = {"sample_size", "in_channels", "out_channels", "num_class_embeds"}
UNUSED = {"dropout", "num_train_timesteps"}  # this training drops nothing; times are sinusoids
STEPS = 1000
OTHERS = {
    "DiTTransformer2DModel": "its blocks embed times by other frequencies than a DiT of ours, so "
    "that its first layers do not fit",
    "UNet2DConditionModel": "it attends to captions, which no U-Net of a plan does",
}
HINT = "choose a checkpoint of a UNet2DModel, or train from the start, without [expert.base]"


@dataclass(frozen=True)
class Learned:
    """What a network was trained for, in words of a plan."""

    path: PathName
    prediction: Prediction


@dataclass(frozen=True)
class BaseFile:
    """What was written.

    Attributes:
        architecture: The name of the network, for the plan.
        sha256: Digest of the file.
        learned: What it was trained for; None if no plan can say it, and the last layer is zero.
        notes: What of the folder was not kept as it was, for people.
    """

    architecture: str
    sha256: str
    learned: Learned | None
    notes: tuple[str, ...]

    def toml(self) -> str:
        """Returns the lines of a plan."""
        said = self.learned or Learned("linear", "velocity")
        asked = (f'path = "{said.path}"', f'prediction = "{said.prediction}"')
        own = asked if self.learned else ()
        lines = ["[expert]", f'architecture = "{self.architecture}"', *own, "", "[expert.base]"]
        return "\n".join([*lines, f'sha256 = "{self.sha256}"', *asked])


def write_base(
    folder: Path, target: Path, data: DataSpec, learned: Learned | None = None
) -> BaseFile:
    """Writes the weights of a diffusers folder as what `[expert.base]` names.

    Args:
        folder: Of a model (`config.json`) or of a pipeline (`unet/config.json`).
        target: A file.
        data: Images and classes of the plan.
        learned: What it was trained for; by default its scheduler says it.

    Raises:
        DataError: no expert of these images is such a network; the message says why.
    """
    inner = folder / "unet" if (folder / "unet").is_dir() else folder
    config = _config(inner)
    name = _name(config, inner)
    _require_shape(config, data, inner, name)
    notes: list[str] = []
    if learned is None:
        learned, factor, reason = _scheduled(folder / "scheduler" / "scheduler_config.json")
    else:
        factor, reason = 1.0, ""
    weights = {f"net.{key}": value for key, value in _weights(inner).items()}
    if reason:
        notes.append(
            "the last layer starts at zero, as in a fresh network, so that a LoRA would learn "
            f"little: {reason}"
        )
    for key in (f"{LAST}weight", f"{LAST}bias"):
        weights[key] = weights[key] * (factor if learned else 0.0)
    _fit_classes(weights, len(data.classes), notes)
    design = ExpertDesign(architecture=name)
    table = {key: shape for key, (_, shape) in expert_tensors(data, design).items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    if found != table:
        odd = sorted(key for key in found.keys() | table if found.get(key) != table.get(key))
        raise _refused(inner, f"{odd[0]} is not that of {name}")
    if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
        raise _refused(inner, "some of its weights are not finite")
    part = target.with_name(f".{target.name}.part")
    write_tensors(part, weights)
    part.chmod(0o644)  # public, and every site reads it
    commit_file(part, target)
    with target.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return BaseFile(name, sha256, learned, tuple(notes))


def _config(folder: Path) -> dict[str, Any]:
    """Returns all arguments of the network, with diffusers' own where the file says nothing."""
    found = _read_json(folder / "config.json")
    name = str(found.get("_class_name"))
    if name != "UNet2DModel":
        why = OTHERS.get(name, "only UNet2DModel is a network of a plan")
        raise _refused(folder, f"its `_class_name` is {printable(name)[:80]}: {why}")
    known = _defaults()
    given = {key: value for key, value in found.items() if not key.startswith("_")}
    if strange := sorted(given.keys() - known):
        raise _refused(folder, f"its config.json has `{printable(strange[0])[:80]}`")
    both = known | given
    return {key: tuple(value) if isinstance(value, list) else value for key, value in both.items()}


def _defaults() -> dict[str, Any]:
    """Returns the arguments of diffusers' network, as they are where nothing is said."""
    signature = inspect.signature(diffusers_unet().__init__).parameters
    return {key: each.default for key, each in signature.items() if key != "self"}


def _name(config: dict[str, Any], folder: Path) -> str:
    """Returns the name of the network of a plan with that configuration."""
    kinds = config["down_block_types"]
    ddpm = all(config[key] == value for key, value in DDPM.items())
    size = UnetSize(
        config["block_out_channels"],
        config["layers_per_block"],
        tuple(kind == "AttnDownBlock2D" for kind in kinds),
        config["attention_head_dim"],
        config["norm_num_groups"],
        ddpm,
    )
    try:
        name = unet_name(size)
        parse_architecture(name)
    except (TypeError, ValueError) as error:
        raise _refused(folder, f"no plan can name its levels: {error}") from None
    ours = _defaults() | unet_config((1, 8, 8), size, 0)
    odd = [
        f"`{key}` is {printable(repr(config[key]))[:80]}, expected {ours[key]!r}"
        for key in sorted(ours.keys() - SHAPES - UNUSED)
        if config[key] != ours[key]
    ]
    if odd:
        raise _refused(folder, f"it is near {name}, but in config.json " + "; ".join(odd))
    return name


def _require_shape(config: dict[str, Any], data: DataSpec, folder: Path, name: str) -> None:
    channels = (config["in_channels"], config["out_channels"])
    wanted = (data.shape[0], data.shape[0])
    if channels != wanted:
        hint = "choose another checkpoint, or a plan with `data.channels` of the checkpoint"
        if channels[1] == 2 * channels[0]:
            hint = "it also predicts a variance, which no plan does: choose another checkpoint"
        raise _refused(
            folder,
            f"`in_channels` and `out_channels` are {channels[0]} and {channels[1]}, and the "
            f"plan's images have {wanted[0]} channels",
            hint,
        )
    try:
        require_fit(name, *data.sides)
    except ValueError as error:
        raise _refused(folder, str(error), "choose another size of images in the plan") from None
    embedded = config["num_class_embeds"]
    if embedded is not None and (type(embedded) is not int or embedded < 1):
        raise _refused(folder, f"`num_class_embeds` is {printable(repr(embedded))[:80]}")


def _weights(folder: Path) -> dict[str, Tensor]:
    if not (folder / WEIGHTS).is_file():
        raise _refused(
            folder,
            f"there is no {WEIGHTS}",
            "save it in one file and without pickle: model.save_pretrained(FOLDER, "
            'safe_serialization=True, max_shard_size="100GB")',
        )
    try:
        # diffusers reads it, since it knows the names that its earlier versions gave
        network, told = diffusers_unet().from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = printable(" ".join(str(error).split())[:300])
        raise _refused(folder, f"diffusers cannot load it: {reason}") from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if told[kind]:  # diffusers would draw what is missing
            raise _refused(folder, f"{WEIGHTS} is of another network: {kind} {told[kind][0]}")
    return {key: value.detach().float() for key, value in network.state_dict().items()}


def _scheduled(file: Path) -> tuple[Learned | None, float, str]:
    """Returns what a scheduler's network learned, the factor on its output, or why nothing fits."""
    advice = "--path and --prediction say it, if you know"
    if not file.is_file():
        return None, 0.0, f"no scheduler/scheduler_config.json says what it learned; {advice}"
    found = _read_json(file)
    steps = found.get("num_train_timesteps", STEPS)
    if steps != STEPS:
        return None, 0.0, f"its times run to {steps}, and ours to {STEPS}"
    kind, schedule = found.get("_class_name"), found.get("beta_schedule")
    predicted = found.get("prediction_type", "epsilon")
    if kind == "FlowMatchEulerDiscreteScheduler":
        return Learned("linear", "velocity"), 1.0, ""
    betas = (found.get("beta_start", 0.0001), found.get("beta_end", 0.02))
    path: PathName
    if found.get("trained_betas") is not None or found.get("rescale_betas_zero_snr"):
        return None, 0.0, "its scheduler has betas of its own"
    if schedule == "linear" and betas == (0.0001, 0.02):
        path = "vp"
    elif schedule == "squaredcos_cap_v2":
        path = "cosine"
    else:
        shown = printable(f"{schedule} from {betas[0]} to {betas[1]}")[:80]
        return None, 0.0, f"no path of a plan has the betas of its scheduler ({shown})"
    if predicted == "v_prediction" and path == "cosine":
        return Learned(path, "velocity"), math.pi / 2, ""
    predictions: dict[object, Prediction] = {"epsilon": "noise", "sample": "image"}
    if predicted not in predictions:
        shown = printable(str(predicted))[:80]
        return None, 0.0, f"no prediction of a plan is its {shown} on the path {path}"
    return Learned(path, predictions[predicted]), 1.0, ""


def _fit_classes(weights: dict[str, Tensor], classes: int, notes: list[str]) -> None:
    """Gives `weights` the table of `classes` classes and none, or takes the table away."""
    table, rows = weights.get(LABELS), classes + 1 if classes else 0
    if (0 if table is None else len(table)) == rows:
        return
    width = len(weights[TIME_BIAS])
    mean = torch.zeros(width) if table is None else table.mean(0)
    if not classes:
        del weights[LABELS]
        weights[TIME_BIAS] = weights[TIME_BIAS] + mean  # where classes are added as well
        notes.append("its classes are left out: it starts as their mean")
        return
    weights[LABELS] = mean.expand(rows, width).clone()
    if table is None:
        notes.append("it knows no classes: all of the plan's start as what it is without")
    else:
        notes.append(
            f"it has {len(table)} classes, and {rows} are needed (the plan's, and none): all of "
            "them start as the mean of its own"
        )


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise _refused(
            file.parent,
            f"there is no {file.name}",
            "give the folder that `save_pretrained` wrote, of a model or of a pipeline",
        )
    try:
        # caches of models are made of links
        found = json.loads(read_bounded(file.resolve(), MAX_DOCUMENT_BYTES))
    except ValueError as error:
        raise _refused(file.parent, f"{file.name} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise _refused(file.parent, f"{file.name} is no object")
    return found


def _refused(folder: Path, reason: str, hint: str = HINT) -> DataError:
    return DataError(f"{folder} cannot be a base: {reason}", hint=hint)

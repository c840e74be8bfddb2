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
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddm_fed.errors import printable
from ddm_fed.export.base_dit import read_dit
from ddm_fed.export.base_folder import Found, read_json, refused
from ddm_fed.export.base_unet import read_unet
from ddm_fed.models import expert_tensors
from ddm_fed.records import DataSpec, ExpertDesign, PathName, Prediction, require_fit
from ddm_fed.storage.files import commit_file
from ddm_fed.storage.tensors import Bounds, check_tensor_file, write_tensors

STEPS = 1000
READERS = {
    "UNet2DModel": read_unet,
    "DiTTransformer2DModel": read_dit,
    "Transformer2DModel": read_dit,  # what diffusers called it
}


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
    folder: Path,
    target: Path,
    data: DataSpec,
    learned: Learned | None = None,
    *,
    bounds: Bounds | None = None,
) -> BaseFile:
    """Writes the weights of a diffusers folder as what `[expert.base]` names.

    Args:
        folder: Of a model, or of a pipeline (`unet` or `transformer` in it).
        target: A file.
        data: Images and classes of the plan.
        learned: What it was trained for; by default its scheduler says it.
        bounds: What sites accept of a base; None asks for finite values alone.

    Raises:
        DataError: no expert of these images is such a network; the message says why.
        ValuesError: a value is beyond `bounds`.
    """
    parts = [folder / name for name in ("unet", "transformer") if (folder / name).is_dir()]
    inner = parts[0] if parts else folder
    kind = str(read_json(inner / "config.json").get("_class_name"))
    if kind not in READERS:
        raise refused(
            inner,
            f"its `_class_name` is {printable(kind)[:80]}, and a plan's networks are "
            "UNet2DModel and DiTTransformer2DModel; none attends to captions as another does",
        )
    try:
        found = READERS[kind](inner, data)
    # what diffusers raises of values that it does not expect has no common kind
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = printable(" ".join(str(error).split())[:300])
        raise refused(inner, f"config.json holds values that no network has: {reason}") from None
    try:
        require_fit(found.architecture, *data.sides)
    except ValueError as error:
        raise refused(inner, str(error), "choose another size of images in the plan") from None
    weights, notes = found.weights, list(found.notes)
    factor, reason = 1.0, ""
    if learned is None:
        learned, factor, reason = _scheduled(folder / "scheduler" / "scheduler_config.json")
    if reason:
        notes.append(
            "the last layer starts at zero, as in a fresh network, so that a LoRA would learn "
            f"little: {reason}"
        )
    for key in (f"{found.last}.weight", f"{found.last}.bias"):
        weights[key] = weights[key] * (factor if learned else 0.0)
    _fit_classes(found, len(data.classes), notes)
    _require_tensors(inner, found, data)
    part = target.with_name(f".{target.name}.part")
    write_tensors(part, weights)
    if bounds is not None:
        try:
            design = ExpertDesign(architecture=found.architecture)
            with part.open("rb") as file:
                check_tensor_file(
                    file, expert_tensors(data, design), what=str(inner), bounds=bounds
                )
        except BaseException:
            part.unlink()
            raise
    part.chmod(0o644)  # public, and every site reads it
    commit_file(part, target)
    with target.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return BaseFile(found.architecture, sha256, learned, tuple(notes))


def _require_tensors(folder: Path, found: Found, data: DataSpec) -> None:
    """Refuses weights that are not those of the expert they were found to be."""
    design = ExpertDesign(architecture=found.architecture)
    table = {key: shape for key, (_, shape) in expert_tensors(data, design).items()}
    shapes = {key: tuple(value.shape) for key, value in found.weights.items()}
    if shapes != table:
        odd = sorted(key for key in shapes.keys() | table if shapes.get(key) != table.get(key))
        raise refused(folder, f"{odd[0]} is not that of {found.architecture}")
    if not all(bool(torch.isfinite(value).all()) for value in found.weights.values()):
        raise refused(folder, "some of its weights are not finite")


def _scheduled(file: Path) -> tuple[Learned | None, float, str]:
    """Returns what a scheduler's network learned, the factor on its output, or why nothing fits."""
    advice = "--path and --prediction say it, if you know"
    if not file.is_file():
        return None, 0.0, f"no scheduler/scheduler_config.json says what it learned; {advice}"
    found = read_json(file)
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
    if not isinstance(predicted, str) or predicted not in predictions:
        shown = printable(str(predicted))[:80]
        return None, 0.0, f"no prediction of a plan is its {shown} on the path {path}"
    return Learned(path, predictions[predicted]), 1.0, ""


def _fit_classes(found: Found, classes: int, notes: list[str]) -> None:
    """Gives the weights a table of `classes` classes and none, or takes the table away."""
    weights, rows = found.weights, classes + 1 if classes else 0
    table: Tensor | None = weights.get(found.labels)
    if (0 if table is None else len(table)) == rows:
        return
    width = len(weights[found.time_bias])
    mean = torch.zeros(width) if table is None else table.mean(0)
    if not classes:
        del weights[found.labels]
        # where classes are added as well
        weights[found.time_bias] = weights[found.time_bias] + mean
        notes.append("its classes are left out: it starts as their mean")
        return
    weights[found.labels] = mean.expand(rows, width).clone()
    if table is None:
        notes.append("it knows no classes: all of the plan's start as what it is without")
    else:
        notes.append(
            f"it has {len(table)} classes, and {rows} are needed (the plan's, and none): all of "
            "them start as the mean of its own"
        )

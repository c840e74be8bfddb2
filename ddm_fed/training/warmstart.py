"""Starting from a public checkpoint instead of from chance.

Where the checkpoint was trained for another path or prediction, all is kept but the last layer:
what the blocks know of images serves any objective, only its last linear reading differs. Times
reach the network scaled as they always do.
"""

import hashlib
from io import BufferedReader
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ddm_fed.errors import DigestError, OptionError
from ddm_fed.models import expert_tensors
from ddm_fed.records import BaseSpec, ExpertDesign, Plan
from ddm_fed.storage.files import open_regular
from ddm_fed.storage.tensors import Bounds, TensorSpan, check_tensor_file
from ddm_fed.training.options import RunOptions

LAST_LAYERS = ("head", "conv_out")


def load_base(model: nn.Module, plan: Plan, design: ExpertDesign, options: RunOptions) -> None:
    """Copies the plan's public checkpoint, if it has one, over the fresh weights of `model`.

    Where it was trained for another path or prediction, the last layer of `model` stays as it is.

    Raises:
        OptionError: the plan starts from a checkpoint and none is given, or the other way round.
        DigestError: it is another file than the plan's.
        WeightsError: it does not hold the tensors of `design`.
        ValuesError: it holds values that no expert may have.
    """
    base, path = require_base(plan, options), options.base
    if base is None or path is None:
        return
    limits = plan.submission
    bounds = Bounds(float(limits.max_absolute), float(limits.max_norm))
    with open_regular(path.resolve()) as file:
        _require_digest(file, base, path)  # of the very file that is read
        spans = check_tensor_file(
            file, expert_tensors(plan.data, design), what=str(path), bounds=bounds
        )
        same = (base.path, base.prediction) == (design.path, design.prediction)
        weights = model.state_dict()
        for name, span in spans.items():
            if same or not in_last_layer(name):
                weights[name].copy_(_read(file, span))


def require_base(plan: Plan, options: RunOptions) -> BaseSpec | None:
    """Returns the plan's base checkpoint, if it has one, when `options` name the right file.

    Raises:
        OptionError: the plan starts from a checkpoint and none is given, or the other way round.
        DigestError: it is another file than the plan's.
    """
    base, path = plan.expert.base, options.base
    if base is None:
        if path is not None:
            raise OptionError(
                "--base is given, but the plan's experts start from no checkpoint",
                hint="leave --base out, or ask for a plan with [expert.base]",
            )
        return None
    if path is None or not path.is_file():
        if path is None:
            missing = "--base is missing"
        else:
            reason = "this is a folder" if path.is_dir() else "there is no such file"
            missing = f"--base {path}: {reason}"
        raise OptionError(
            f"{missing}; the plan's experts start from a public checkpoint",
            hint="ask the coordinator where to get that checkpoint, and name it with --base: "
            f"it is the safetensors file whose sha256 is {base.sha256}",
        )
    with open_regular(path.resolve()) as file:  # caches of models are made of links
        _require_digest(file, base, path)
    return base


def _require_digest(file: BufferedReader, base: BaseSpec, path: Path) -> None:
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != base.sha256:
        raise DigestError(
            f"{path} is not the checkpoint of the plan: its sha256 is {found}, the plan names "
            f"{base.sha256}",
            hint="--base names another file, or a damaged copy: `sha256sum FILE` has to say what "
            "the plan names",
        )


def in_last_layer(name: str) -> bool:
    """Returns whether the tensor `name` belongs to the layer whose output is the prediction."""
    return any(part in LAST_LAYERS for part in name.split(".")[:-1])


def _read(file: BufferedReader, span: TensorSpan) -> Tensor:
    file.seek(span.start)
    values = np.frombuffer(file.read(span.size_bytes), dtype="<f4").copy()
    return torch.from_numpy(values).reshape(span.shape)

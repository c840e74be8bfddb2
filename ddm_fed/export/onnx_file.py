"""One expert's velocity as an ONNX file, compared with torch before it gets its name.

Inputs `x (B, C, H, W)` float32, `t (B,)` float32 in [0, 1], and with classes `labels (B,)` int64,
-1 for none. Output `velocity (B, C, H, W)` on the linear path x_t = (1 - t) x_0 + t noise, whatever
the expert was trained on. B is free.
"""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddm_fed.errors import MachineError, StateError
from ddm_fed.flows import ClassCondition, Expert
from ddm_fed.records import DataSpec
from ddm_fed.storage.files import write_atomically

MOST_BYTES = (1 << 31) - (1 << 24)  # one message of protobuf, less what is no weight
CHECKED = (5, 2)  # images at once, neither what was traced
TRACED = 3
CLOSE = 1e-4  # of the largest velocity


class _Velocity(nn.Module):
    """An expert with tensors as its arguments."""

    def __init__(self, expert: Expert, network: nn.Module) -> None:
        super().__init__()
        self.network, self._expert = network, expert

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        return self._expert(x, t, None if labels is None else ClassCondition(labels))


def write_onnx(target: Path, expert: Expert, data: DataSpec, notes: Mapping[str, str]) -> float:
    """Writes the velocity of one expert as an ONNX file, and returns how far off it is at most.

    Args:
        target: Must not exist.
        expert: A network alone, without a mixture.
        data: Its images.
        notes: What the file says of where it is from; nobody signs it.

    Raises:
        StateError: `target` exists, what ONNX needs is not installed, or the expert has no such
            form.
        MachineError: what was written computes something else than torch.
    """
    if target.exists() or target.is_symlink():
        raise StateError(f"{target} exists; nothing was written there", hint="give a new file")
    if data.text is not None:
        raise StateError(
            "experts that read captions have no ONNX form here",
            hint="use `ddm-coord export diffusers`",
        )
    network = expert.network
    if not isinstance(network, nn.Module) or any(
        type(part).__name__ == "MixtureVelocity" for part in network.modules()
    ):
        raise StateError(
            "an expert that is a mixture, or adds to one, has no ONNX form: which classes it asks "
            "depends on the values it is given",
            hint="export an expert of a network alone, or use `ddm-coord export diffusers`",
        )
    size = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    if size > MOST_BYTES:
        raise StateError(
            f"the expert has {size:,} bytes, and an ONNX file holds {MOST_BYTES:,} at most",
            hint="use `ddm-coord export diffusers`",
        )
    whole = _Velocity(expert, network).eval()
    written = _onnx_of(whole, data, notes)
    off = _difference(written, whole, data)
    write_atomically(target, written)
    return off


def _onnx_of(whole: nn.Module, data: DataSpec, notes: Mapping[str, str]) -> bytes:
    try:
        import onnxscript  # noqa: F401 - torch's exporter needs it, and says so late
    except ImportError as error:
        raise _not_installed(error) from None
    batch = torch.export.Dim("batch")
    given = _inputs(TRACED, data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its next versions
        program: Any = torch.onnx.export(
            whole,
            tuple(given.values()),
            input_names=list(given),
            output_names=["velocity"],
            dynamic_shapes={name: {0: batch} for name in given},
            dynamo=True,
            verbose=False,
        )
    model = program.model_proto
    for name, value in notes.items():
        model.metadata_props.add(key=name, value=value)
    found: bytes = model.SerializeToString()
    return found


def _difference(written: bytes, whole: nn.Module, data: DataSpec) -> float:
    """Returns the largest difference of ONNX and torch, relative to the largest velocity."""
    try:
        import onnxruntime
    except ImportError as error:
        raise _not_installed(error) from None
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    off = 0.0
    for count in CHECKED:
        given = _inputs(count, data)
        (said,) = session.run(None, {name: value.numpy() for name, value in given.items()})
        with torch.inference_mode():
            expected = whole(*given.values())
        apart = (torch.from_numpy(said) - expected).abs().max() / expected.abs().max()
        off = max(off, float(apart))
    if math.isnan(off) or off > CLOSE:
        raise MachineError(
            f"the ONNX file computes something else than torch: {off:.2g} of the largest velocity",
            hint="nothing was written; report it with the versions of torch, onnx and onnxruntime",
        )
    return off


def _inputs(count: int, data: DataSpec) -> dict[str, Tensor]:
    """Returns states, times and classes to trace or to compare with."""
    generator = torch.Generator().manual_seed(count)
    given = {
        "x": torch.randn((count, *data.shape), generator=generator),
        "t": torch.linspace(0.1, 0.9, count),
    }
    if data.classes:
        given["labels"] = torch.arange(count) % (len(data.classes) + 1) - 1
    return given


def _not_installed(error: ImportError) -> StateError:
    return StateError(
        f"what writes and checks ONNX files cannot be imported ({error})",
        hint="pip install 'ddm-fed[onnx]'",
    )

"""Tensor files, and what must hold before a library parses one.

The header of a safetensors file is checked here, against the tensors the plan asks for, before
the library sees a byte: the library accepts duplicate names, huge headers and non-finite values.

Source: the safetensors format description; the attacks are listed in docs/format.md.
"""

import math
import os
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ddm_fed.errors import WeightsError
from ddm_fed.records import parse_json

TensorTable = dict[str, tuple[str, tuple[int, ...]]]
"""`{name: (safetensors dtype, shape)}`."""

ITEM_BYTES = {"F32": 4, "I64": 8}
MAX_HEADER_BYTES = 1 << 20
BLOCK_BYTES = 1 << 22
MAX_ABSOLUTE = 1e4  # no trained weight comes near; larger ones only break an ensemble


class TensorSpan(NamedTuple):
    """Where a tensor's bytes lie in its file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int


def check_tensor_file(file: BinaryIO, table: TensorTable, *, what: str) -> dict[str, TensorSpan]:
    """Returns where each tensor of `table` lies in `file`, after checking header and values.

    Memory stays flat: the header is bounded by `table`, and values are read in blocks.

    Args:
        file: The whole tensor file, open for reading.
        table: Exactly the tensors it must hold.
        what: Its name, for messages.

    Raises:
        WeightsError: other tensors, other shapes or dtypes, gaps, overlaps, trailing bytes,
            NaN, infinity, or an absolute value above 10,000.
        MalformedError: the header is not unambiguous JSON.
    """
    spans = _check_header(file, table, what)
    for name, span in spans.items():
        if span.dtype == "F32":
            _check_values(file, span, f"{what}: tensor `{name}`")
    return spans


def _check_header(file: BinaryIO, table: TensorTable, what: str) -> dict[str, TensorSpan]:
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    limit = min(MAX_HEADER_BYTES, 1024 + 512 * len(table), size - 8)
    if length > limit:
        raise _refusal(what, f"its header claims {length} bytes, at most {limit} are possible")
    raw = file.read(length)
    if not raw.startswith(b"{"):
        raise _refusal(what, "its header does not begin with `{`")
    header: Any = parse_json(raw, what=f"the header of {what}")
    if not isinstance(header, dict) or "__metadata__" in header:
        raise _refusal(what, "its header carries metadata, which the plan does not ask for")
    if header.keys() != table.keys():
        missing = sorted(table.keys() - header.keys())
        extra = sorted(header.keys() - table.keys())
        raise _refusal(what, f"it lacks the tensors {missing[:3]} and has {extra[:3]} too many")
    spans = {}
    for name, (dtype, shape) in table.items():
        start, end = _check_entry(header[name], dtype, shape, f"{what}: tensor `{name}`")
        spans[name] = TensorSpan(dtype, shape, 8 + length + start, end - start)
    position = 8 + length
    for span in sorted(spans.values(), key=lambda span: span.start):
        if span.start != position:
            raise _refusal(what, "its tensors overlap or leave a gap")
        position += span.size_bytes
    if position != size:
        raise _refusal(what, f"it has {size} bytes, its tensors end at {position}")
    return spans


def _check_entry(entry: Any, dtype: str, shape: tuple[int, ...], what: str) -> tuple[int, int]:
    match entry:
        case {"dtype": found_dtype, "shape": [*found_shape], "data_offsets": [start, end]} if (
            len(entry) == 3
        ):
            pass
        case _:
            raise _refusal(what, "its header entry does not have the form of safetensors")
    whole = all(type(size) is int for size in found_shape)  # True equals 1, but is no size
    if found_dtype != dtype or not whole or tuple(found_shape) != shape:
        raise _refusal(
            what, f"it is {found_dtype} {found_shape}, the plan asks for {dtype} {list(shape)}"
        )
    expected = math.prod(shape) * ITEM_BYTES[dtype]
    if type(start) is not int or type(end) is not int or start < 0 or end - start != expected:
        raise _refusal(what, f"its offsets do not span the {expected} bytes of its shape")
    return start, end


def _check_values(file: BinaryIO, span: TensorSpan, what: str) -> None:
    file.seek(span.start)
    left = span.size_bytes
    while left:
        wanted = min(left, BLOCK_BYTES)
        block = file.read(wanted)
        if len(block) != wanted:
            raise _refusal(what, "the file ended while it was read")
        left -= len(block)
        values = np.frombuffer(block, dtype="<f4")
        # One pass finds all three: comparisons with NaN are false.
        if not (np.abs(values) <= MAX_ABSOLUTE).all():
            raise _refusal(what, f"it holds NaN, infinity or a value above {MAX_ABSOLUTE:g}")


def _refusal(what: str, reason: str) -> WeightsError:
    return WeightsError(
        f"{what} is refused: {reason}",
        hint="train and submit again with the current plan; weights are never repaired here",
    )


def write_tensors(path: Path, tensors: dict[str, Any]) -> None:
    """Writes torch or numpy `tensors` to `path` as safetensors without metadata, mode 0600."""
    import safetensors.numpy

    arrays = {
        name: np.ascontiguousarray(value.numpy() if hasattr(value, "numpy") else value)
        for name, value in tensors.items()
    }
    safetensors.numpy.save_file(arrays, path)

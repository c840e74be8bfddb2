"""Tensor files, and what must hold before a library parses one.

The header of a safetensors file is checked here, against the tensors the plan asks for, before
the library sees a byte: the library accepts duplicate names, huge headers and non-finite values.

Source: the safetensors format description; the attacks are listed in docs/format.md.
"""

import math
import os
from collections.abc import Iterator
from fractions import Fraction
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddm_fed.errors import ValuesError, WeightsError, not_written
from ddm_fed.limits import MAX_HEADER_BYTES
from ddm_fed.records import parse_json

TensorTable = dict[str, tuple[str, tuple[int, ...]]]
"""`{name: (safetensors dtype, shape)}`."""

ITEM_BYTES = {"F32": 4, "I64": 8}
MAX_SHOWN = 200
BLOCK_BYTES = 1 << 18  # stays in a core's cache between being read and being squared
# How much a float32 sum of a block's squares may lack: 2^16 roundings of 2^-24 each are 0.4 %, and
# squares below 2^-126 may count as zero. Rounding the float64 sums is lost in the difference.
SUM_SLACK = 0.01
SUM_UNDERFLOW = BLOCK_BYTES / 4 * 2.0**-126


class TensorSpan(NamedTuple):
    """Where a tensor's bytes lie in its file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int


class Bounds(NamedTuple):
    """What the values of one float tensor may reach, both inclusive; a plan states its own."""

    max_absolute: float
    max_norm: float  # L2


DEFAULT_BOUNDS = Bounds(1e4, 1e5)  # no trained tensor comes near; larger only break an ensemble


def check_tensor_file(
    file: BufferedReader, table: TensorTable, *, what: str, bounds: Bounds = DEFAULT_BOUNDS
) -> dict[str, TensorSpan]:
    """Returns where each tensor of `table` lies in `file`, after checking header and values.

    Memory stays flat: the header is bounded by `table`, and values are read in blocks. The verdict
    on values is exact, so it does not depend on the machine or on the order of a sum.

    Args:
        file: The whole tensor file, open for reading.
        table: Exactly the tensors it must hold.
        what: Its name, for messages.
        bounds: What every float tensor must keep to.

    Raises:
        WeightsError: other tensors, other shapes or dtypes, gaps, overlaps or trailing bytes.
        ValuesError: NaN, infinity, or a value or norm beyond `bounds`.
        MalformedError: the header is not unambiguous JSON.
    """
    spans = _check_header(file, table, what)
    buffer = np.empty(BLOCK_BYTES // 4, dtype="<f4")
    for name, span in spans.items():
        whose = f"{what}: tensor `{name}`"
        if span.dtype != "F32" or _surely_within(_blocks(file, span, buffer, whose), bounds):
            continue
        _require_within(_blocks(file, span, buffer, whose), bounds, whose)
    return spans


def _check_header(file: BufferedReader, table: TensorTable, what: str) -> dict[str, TensorSpan]:
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
        raise _refusal(
            what, f"it lacks the tensors {_shown(missing[:3])} and has {_shown(extra[:3])} too many"
        )
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
        found = f"{_shown(found_dtype)} {_shown(found_shape)}"
        raise _refusal(what, f"it is {found}, the plan asks for {dtype} {list(shape)}")
    expected = math.prod(shape) * ITEM_BYTES[dtype]
    if type(start) is not int or type(end) is not int or start < 0 or end - start != expected:
        raise _refusal(what, f"its offsets do not span the {expected} bytes of its shape")
    return start, end


def _blocks(
    file: BufferedReader, span: TensorSpan, buffer: NDArray[np.float32], what: str
) -> Iterator[NDArray[np.float32]]:
    """Yields the values of a tensor, each time as a view of `buffer`."""
    file.seek(span.start)
    left = span.size_bytes // 4
    while left:
        block = buffer[:left]
        if file.readinto(block.data) != block.nbytes:
            raise _refusal(what, "the file ended while it was read")
        yield block
        left -= block.size


def _surely_within(blocks: Iterator[NDArray[np.float32]], bounds: Bounds) -> bool:
    """Returns whether even the most that rounding can hide is finite and within `bounds`."""
    norm_squared = 0.0
    with np.errstate(all="ignore"):
        for block in blocks:
            # One pass for all: a NaN or an infinity reaches the sum, and no value exceeds the norm.
            squared = (float(np.dot(block, block)) + SUM_UNDERFLOW) * (1 + SUM_SLACK)
            norm_squared += squared
            if not math.isfinite(squared) or norm_squared > bounds.max_norm * bounds.max_norm:
                return False
            if squared > bounds.max_absolute * bounds.max_absolute and not _all_below(
                block, bounds.max_absolute
            ):
                return False
    return True


def _all_below(block: NDArray[np.float32], limit: float) -> bool:
    """Returns whether no absolute value exceeds `limit`; NaN does."""
    # As Python floats: numpy would round the limit to float32 first.
    return float(block.max()) <= limit and -float(block.min()) <= limit


def _require_within(blocks: Iterator[NDArray[np.float32]], bounds: Bounds, what: str) -> None:
    """Decides without rounding what `_surely_within` leaves open, in some 20 ns per value.

    Raises:
        ValuesError: the values are not finite, or not within `bounds`.
    """
    norm_squared = 0
    for block in blocks:
        if not np.isfinite(block).all() or not _all_below(block, bounds.max_absolute):
            limit = f"{bounds.max_absolute:g}"
            raise _bad_values(what, f"it holds NaN, infinity or an absolute value above {limit}")
        norm_squared += _exact_sum_of_squares(block)
    if norm_squared > Fraction(bounds.max_norm) ** 2 * 2**344:
        raise _bad_values(what, f"its norm is above {bounds.max_norm:g}")


def _exact_sum_of_squares(block: NDArray[np.float32]) -> int:
    """Returns the sum of the squares of finite values, in units of 2^-344.

    A value is an integer below 2^24 times 2^(exponent - 24), with exponents from -148. Squares of
    one exponent are summed in two halves of 24 bits, which stay exact in float64.
    """
    fraction, exponent = np.frexp(block)
    squares = np.ldexp(fraction, 24).astype(np.int64) ** 2
    powers = exponent.astype(np.intp) + 148
    low = np.bincount(powers, weights=squares & 0xFFFFFF)
    high = np.bincount(powers, weights=squares >> 24)
    pairs = zip(low.tolist(), high.tolist(), strict=True)
    return sum(
        (int(low_sum) + (int(high_sum) << 24)) << (2 * power)
        for power, (low_sum, high_sum) in enumerate(pairs)
    )


def _shown(found: Any) -> str:
    """Returns what a header holds, cut so that the rest of the message stays in sight."""
    text = str(found)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _refusal(what: str, reason: str) -> WeightsError:
    return WeightsError(
        f"{what} is refused: {reason}",
        hint="train and submit again with the current plan; weights are never repaired here",
    )


def _bad_values(what: str, reason: str) -> ValuesError:
    return ValuesError(
        f"{what} is refused: {reason}",
        hint="train and submit again, with a smaller `training.learning_rate` if the training "
        "diverged; weights are never repaired here",
    )


def read_own_tensors(path: Path) -> dict[str, Any]:
    """Returns the tensors of a file this site wrote itself, as numpy arrays.

    Nothing is checked: what others sent is read by `ddm_fed.bundle.verify.read_weights`.
    """
    from safetensors.numpy import load_file

    tensors: dict[str, Any] = load_file(path)
    return tensors


def write_tensors(path: Path, tensors: dict[str, Any]) -> None:
    """Writes torch or numpy `tensors` to `path` as safetensors without metadata, mode 0600.

    Raises:
        MachineError: it cannot be written, for one because the disk is full.
    """
    import safetensors.numpy

    arrays = {
        name: np.ascontiguousarray(value.numpy() if hasattr(value, "numpy") else value)
        for name, value in tensors.items()
    }
    try:
        safetensors.numpy.save_file(arrays, path)
    except safetensors.SafetensorError as error:
        raise not_written(path, error) from None

"""Attacks on a tensor file: every malformed header or value is refused before a library sees it."""

import io
import json
import math
import os
import tracemalloc
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from federation import tensor_bytes
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ddm_fed.bundle.verify import view_tensors
from ddm_fed.errors import DdmFedError, MalformedError, ValuesError, WeightsError
from ddm_fed.records.plan import SubmissionSpec
from ddm_fed.storage.tensors import (
    BLOCK_BYTES,
    DEFAULT_BOUNDS,
    MAX_HEADER_BYTES,
    Bounds,
    TensorSpan,
    check_tensor_file,
    write_tensors,
)

TABLE = {"a": ("F32", (2, 3)), "b": ("I64", (4,)), "c": ("F32", (1,))}
A, B, C = bytes(24), bytes(32), bytes(4)
DATA = A + B + C


def header(**changed: Any) -> dict[str, Any]:
    """Returns the honest header with entries replaced; None leaves one out."""
    entries = {
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "I64", "shape": [4], "data_offsets": [24, 56]},
        "c": {"dtype": "F32", "shape": [1], "data_offsets": [56, 60]},
    }
    return {name: entry for name, entry in (entries | changed).items() if entry is not None}


def entry(name: str, **changed: Any) -> dict[str, Any]:
    """Returns the honest header with fields of one entry replaced."""
    return header(**{name: header()[name] | changed})


def check(path: Path, data: bytes, table: Any = TABLE) -> dict[str, TensorSpan]:
    path.write_bytes(data)
    with path.open("rb") as file:
        return check_tensor_file(file, table, what="`w.safetensors`")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "w.safetensors"


@pytest.fixture(scope="session")
def fuzzed(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "w.safetensors"


# What passes


def test_valid_file_passes_and_says_where_its_tensors_lie(path: Path):
    spans = check(path, tensor_bytes(header(), DATA))
    start = 8 + len(json.dumps(header()))
    assert spans == {
        "a": TensorSpan("F32", (2, 3), start, 24),
        "b": TensorSpan("I64", (4,), start + 24, 32),
        "c": TensorSpan("F32", (1,), start + 56, 4),
    }


def test_file_written_by_us_passes(path: Path):
    write_tensors(path, {"a": np.ones((2, 3), np.float32), "b": np.arange(4), "c": np.float32([7])})
    with path.open("rb") as file:
        assert check_tensor_file(file, TABLE, what="w").keys() == TABLE.keys()


def test_tensors_in_another_order_than_their_names_pass(path: Path):
    swapped = header(
        a={"dtype": "F32", "shape": [2, 3], "data_offsets": [36, 60]},
        b={"dtype": "I64", "shape": [4], "data_offsets": [4, 36]},
        c={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    )
    assert check(path, tensor_bytes(swapped, DATA))["c"].size_bytes == 4


def test_header_padded_with_spaces_at_its_end_passes(path: Path):
    assert check(path, tensor_bytes(json.dumps(header()).encode() + b"   ", DATA))


# What does not

NAMES = "it lacks the tensors"
SPAN = "its offsets do not span the"
FORM = "does not have the form of safetensors"
LAYOUT = "its tensors overlap or leave a gap"
LENGTH = "its header claims"
OTHER = "the plan asks for"

MALFORMED = {
    "zero-length-file": (b"", LENGTH),
    "one-byte": (b"\x01", LENGTH),
    "seven-bytes": (bytes(7), LENGTH),
    "eight-zero-bytes": (bytes(8), "does not begin with `{`"),
    "header-claim-beyond-u32": (tensor_bytes(header(), DATA, length=2**63), LENGTH),
    "header-claim-all-ones": (b"\xff" * 8 + DATA, LENGTH),
    "header-claim-one-beyond-file": (tensor_bytes(b"{}", length=3), LENGTH),
    "header-claim-at-library-limit": (tensor_bytes(header(), DATA, length=100_000_000), LENGTH),
    "header-larger-than-plan-needs": (tensor_bytes(b"{" + b" " * 4000 + b"}", DATA), LENGTH),
    "header-shorter-than-json": (
        tensor_bytes(header(), DATA, length=len(json.dumps(header())) - 1),
        "not JSON",
    ),
    "not-an-object": (tensor_bytes(b"[1]"), "does not begin with `{`"),
    "leading-space": (
        tensor_bytes(b" " + json.dumps(header()).encode(), DATA),
        "does not begin with `{`",
    ),
    "pickle": (tensor_bytes(b"\x80\x04N.", DATA), "does not begin with `{`"),
    "zip": (b"PK\x03\x04" + bytes(60), LENGTH),
    "duplicate-names": (
        tensor_bytes(json.dumps(header())[:-1].encode() + b',"a":1}', DATA),
        "the key `a` appears twice",
    ),
    "duplicate-offsets": (
        tensor_bytes(
            json.dumps(header()).replace("[0, 24]", '[0, 24], "data_offsets": [0, 24]').encode(),
            DATA,
        ),
        "the key `data_offsets` appears twice",
    ),
    "metadata": (tensor_bytes(header(__metadata__={"format": "pt"}), DATA), "carries metadata"),
    "empty-metadata": (tensor_bytes(header(__metadata__={}), DATA), "carries metadata"),
    "no-tensors": (tensor_bytes({}, b""), NAMES),
    "missing-tensor": (tensor_bytes(header(c=None), A + B), r"lacks the tensors \['c'\]"),
    "extra-tensor": (
        tensor_bytes(header(d={"dtype": "F32", "shape": [0], "data_offsets": [60, 60]}), DATA),
        r"has \['d'\] too many",
    ),
    "renamed-tensor": (tensor_bytes(header(c=None, C=header()["c"]), DATA), r"\['c'\].*\['C'\]"),
    "name-with-nul": (tensor_bytes(header(**{"a\0": header()["a"]}), DATA), r"\['a\\x00'\] too"),
    "name-with-path": (
        tensor_bytes(header(**{"../../etc/passwd": header()["a"]}), DATA),
        r"\['\.\./\.\./etc/passwd'\] too",
    ),
    "name-with-lone-surrogate": (
        tensor_bytes(header(**{"\ud800": header()["a"]}), DATA),
        r"\['\\ud800'\] too",
    ),
    "other-dtype": (tensor_bytes(entry("a", dtype="F64"), DATA), f"`a`.*{OTHER} F32"),
    "half-dtype": (tensor_bytes(entry("a", dtype="BF16"), DATA), f"`a`.*{OTHER} F32"),
    "dtype-not-text": (tensor_bytes(entry("a", dtype=["F32"]), DATA), f"`a`.*{OTHER} F32"),
    "transposed-shape": (tensor_bytes(entry("a", shape=[3, 2]), DATA), f"`a`.*{OTHER} F32 "),
    "flat-shape": (tensor_bytes(entry("a", shape=[6]), DATA), f"`a`.*{OTHER} F32"),
    "longer-shape": (tensor_bytes(entry("a", shape=[2, 3, 1]), DATA), f"`a`.*{OTHER} F32"),
    "negative-shape": (tensor_bytes(entry("a", shape=[-2, -3]), DATA), f"`a`.*{OTHER} F32"),
    "text-shape": (tensor_bytes(entry("a", shape=["2", "3"]), DATA), f"`a`.*{OTHER} F32"),
    "boolean-shape": (tensor_bytes(entry("c", shape=[True]), DATA), "`c`"),
    "float-shape": (tensor_bytes(entry("c", shape=[1.0]), DATA), "the float 1.0"),
    "shape-is-text": (tensor_bytes(entry("a", shape="23"), DATA), f"`a`.*{FORM}"),
    "shape-is-object": (tensor_bytes(entry("a", shape={"0": 2}), DATA), f"`a`.*{FORM}"),
    "entry-is-null": (tensor_bytes(json.dumps(header()).replace(
        json.dumps(header()["a"]), "null").encode(), DATA), f"`a`.*{FORM}"),
    "entry-is-list": (tensor_bytes(header(a=[1, 2]), DATA), f"`a`.*{FORM}"),
    "entry-with-extra-field": (tensor_bytes(entry("a", x=1), DATA), f"`a`.*{FORM}"),
    "entry-without-offsets": (
        tensor_bytes(header(a={"dtype": "F32", "shape": [2, 3]}), DATA),
        f"`a`.*{FORM}",
    ),
    "one-offset": (tensor_bytes(entry("a", data_offsets=[24]), DATA), f"`a`.*{FORM}"),
    "three-offsets": (tensor_bytes(entry("a", data_offsets=[0, 12, 24]), DATA), f"`a`.*{FORM}"),
    "offsets-are-text": (tensor_bytes(entry("a", data_offsets=["0", "24"]), DATA), f"`a`.*{SPAN}"),
    "offsets-are-null": (tensor_bytes(entry("a", data_offsets=[None, 24]), DATA), f"`a`.*{SPAN}"),
    "negative-offsets": (tensor_bytes(entry("a", data_offsets=[-24, 0]), DATA), f"`a`.*{SPAN}"),
    "float-offsets": (tensor_bytes(entry("a", data_offsets=[0.0, 24]), DATA), "the float 0.0"),
    "boolean-offset": (tensor_bytes(entry("a", data_offsets=[False, 24]), DATA), f"`a`.*{SPAN}"),
    "swapped-offsets": (tensor_bytes(entry("a", data_offsets=[24, 0]), DATA), f"`a`.*{SPAN}"),
    "offsets-of-wrong-size": (tensor_bytes(entry("a", data_offsets=[0, 20]), DATA), f"`a`.*{SPAN}"),
    "offsets-beyond-2-53": (
        tensor_bytes(entry("a", data_offsets=[0, 2**62]), DATA),
        "an integer beyond",
    ),
    "offsets-beyond-file": (
        tensor_bytes(entry("a", data_offsets=[2**52, 2**52 + 24]), DATA),
        LAYOUT,
    ),
    "overlap": (tensor_bytes(entry("b", data_offsets=[20, 52]), A + B), LAYOUT),
    "same-bytes-twice": (tensor_bytes(entry("c", data_offsets=[0, 4]), A + B), LAYOUT),
    "gap": (tensor_bytes(entry("c", data_offsets=[60, 64]), A + B + bytes(8)), LAYOUT),
    "gap-at-the-start": (
        tensor_bytes(
            header(
                a={"dtype": "F32", "shape": [2, 3], "data_offsets": [4, 28]},
                b={"dtype": "I64", "shape": [4], "data_offsets": [28, 60]},
                c={"dtype": "F32", "shape": [1], "data_offsets": [60, 64]},
            ),
            bytes(64),
        ),
        LAYOUT,
    ),
    "trailing-byte": (tensor_bytes(header(), DATA + b"x"), "its tensors end at"),
    "truncated-by-a-byte": (tensor_bytes(header(), DATA[:-1]), "its tensors end at"),
    "no-data": (tensor_bytes(header()), "its tensors end at"),
    "nan-in-json": (tensor_bytes(json.dumps(entry("a", x=float("nan"))).encode(), DATA), "NaN"),
    "invalid-utf8": (tensor_bytes(b'{"\xff":1}', DATA), "not UTF-8"),
    "deep-nesting": (tensor_bytes(b'{"a":' + b"[" * 1200 + b"}", DATA), "nested|not JSON"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "problem"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_tensor_file_is_refused_by_name(path: Path, data: bytes, problem: str):
    with pytest.raises((WeightsError, MalformedError), match=rf"`w\.safetensors`.*{problem}"):
        check(path, data)


def test_header_of_endless_claim_is_refused_without_reading_it(path: Path):
    with path.open("wb") as file:
        file.write((99_000_000).to_bytes(8, "little") + b"{")
        file.truncate(100_000_000)
    tracemalloc.start()
    try:
        with path.open("rb") as file, pytest.raises(WeightsError, match="claims 99000000 bytes"):
            check_tensor_file(file, TABLE, what="w")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_header_bomb_of_many_empty_tensors_is_refused_quickly(path: Path):
    table = {f"tensor.{index}": ("F32", (1,)) for index in range(2100)}
    bomb = ",".join(
        f'"{i:x}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(16_000)
    )
    raw = b"{" + bomb.encode() + b"}"
    assert 800_000 < len(raw) < MAX_HEADER_BYTES
    started = process_time()
    with pytest.raises(WeightsError, match="it lacks the tensors"):
        check(path, tensor_bytes(raw), table)
    assert process_time() - started < 2


def test_largest_header_of_a_plan_with_many_tensors_is_one_mebibyte(path: Path):
    table = {f"tensor.{index}": ("F32", (1,)) for index in range(5000)}
    with pytest.raises(WeightsError, match=f"at most {MAX_HEADER_BYTES} are possible"):
        check(path, tensor_bytes(b"{" + b" " * MAX_HEADER_BYTES + b"}"), table)


def with_value(name: str, index: int, value: float | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else np.float32(value).tobytes()
    start = {"a": 0, "c": 56}[name] + 4 * index
    return tensor_bytes(header(), DATA[:start] + raw + DATA[start + 4 :])


UNUSABLE = {
    "nan": float("nan"),
    "signalling-nan": bytes.fromhex("0100807f"),
    "negative-nan": bytes.fromhex("0000c0ff"),
    "infinity": float("inf"),
    "negative-infinity": float("-inf"),
    "1e30": 1e30,
    "-1e30": -1e30,
    "just-above-1e4": float(np.nextafter(np.float32(1e4), np.float32(2e4))),
    "just-below--1e4": float(np.nextafter(np.float32(-1e4), np.float32(-2e4))),
}


@pytest.mark.parametrize("value", UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize(("name", "index"), [("a", 0), ("a", 5), ("c", 0)])
def test_value_nobody_can_use_is_refused(path: Path, name: str, index: int, value: float | bytes):
    with pytest.raises(ValuesError, match=f"tensor `{name}` is refused: it holds NaN, infinity or"):
        check(path, with_value(name, index, value))


@pytest.mark.parametrize("value", [1e4, -1e4, 0.0, -0.0, 1e-45])
def test_value_at_the_limit_passes(path: Path, value: float):
    assert check(path, with_value("a", 5, value))


def test_nan_in_the_last_element_of_a_tensor_of_several_blocks_is_refused(path: Path):
    values = np.zeros(3 * BLOCK + 3, np.float32)
    values[-1] = np.nan
    with pytest.raises(ValuesError, match="`x` is refused: it holds NaN"):
        check_values(path, values)


# What values pass, against exact arithmetic

BLOCK = BLOCK_BYTES // 4
NORM = "`x` is refused: its norm is above"
ANY = Bounds(1e38, 1e38)


def check_values(path: Path, values: np.ndarray, bounds: Bounds = DEFAULT_BOUNDS) -> None:
    head = {"x": {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, values.nbytes]}}
    path.write_bytes(tensor_bytes(head, values.tobytes()))
    with path.open("rb") as file:
        check_tensor_file(file, {"x": ("F32", values.shape)}, what="w", bounds=bounds)


def passes(path: Path, values: np.ndarray, bounds: Bounds) -> bool:
    try:
        check_values(path, values, bounds)
    except ValuesError:
        return False
    return True


def passes_exactly(values: np.ndarray, bounds: Bounds) -> bool:
    """The oracle: one value after the other, in fractions."""
    numbers = values.tolist()
    if not all(math.isfinite(number) for number in numbers):
        return False
    squares = sum(Fraction(number) ** 2 for number in numbers)
    return (
        max((abs(number) for number in numbers), default=0.0) <= bounds.max_absolute
        and squares <= Fraction(bounds.max_norm) ** 2
    )


def beside(number: float, steps: int) -> float:
    """Returns the float64 `steps` places above `number`, or below it, but never below zero."""
    for _ in range(abs(steps)):
        number = math.nextafter(number, math.copysign(math.inf, steps))
    return max(number, 0.0)


def test_bounds_of_a_plan_that_names_none_are_the_default():
    spec = SubmissionSpec()
    assert Bounds(float(spec.max_absolute), float(spec.max_norm)) == DEFAULT_BOUNDS


@pytest.mark.parametrize("key", ["max_absolute", "max_norm"])
@pytest.mark.parametrize("value", ["0", "-1", "1000000000000000001", "1e19", "NaN", "Infinity"])
def test_plan_cannot_ask_for_a_bound_without_meaning(key: str, value: str):
    with pytest.raises(ValidationError, match=key):
        SubmissionSpec(**{key: Decimal(value)})


@pytest.mark.slow
@given(
    numbers=st.lists(st.floats(width=32), max_size=12),
    steps=st.tuples(st.integers(-2, 2), st.integers(-2, 2)),
)
def test_verdict_is_that_of_exact_arithmetic(fuzzed: Path, numbers, steps):
    values = np.array(numbers, np.float32)
    finite = [abs(float(value)) for value in values if np.isfinite(value)]
    bounds = Bounds(
        beside(max(finite, default=1.0), steps[0]), beside(math.hypot(*finite, 0.0), steps[1])
    )
    assert passes(fuzzed, values, bounds) == passes_exactly(values, bounds)


@pytest.mark.slow
@given(
    numbers=st.lists(st.floats(width=32), min_size=1, max_size=12),
    bounds=st.builds(Bounds, st.floats(0, 1e38), st.floats(0, 1e38)),
)
def test_verdict_is_that_of_exact_arithmetic_far_from_a_bound(fuzzed: Path, numbers, bounds):
    values = np.array(numbers, np.float32)
    assert passes(fuzzed, values, bounds) == passes_exactly(values, bounds)


@pytest.mark.parametrize("scale", [1e-30, 0.02, 30.0, 1e15])
@pytest.mark.parametrize("count", [1000, 3 * BLOCK + 5])
def test_no_rounding_of_a_long_sum_moves_the_norm(path: Path, scale: float, count: int):
    drawn = np.random.default_rng(3).standard_normal(count) * scale
    values = drawn.astype(np.float32)
    norm = math.sqrt(math.fsum(np.square(values.astype(np.float64))))  # each square is exact
    assert passes(path, values, Bounds(1e38, beside(norm, 2)))
    assert not passes(path, values, Bounds(1e38, beside(norm, -2)))


def test_verdict_on_a_norm_does_not_depend_on_the_order_of_the_values(path: Path):
    values = np.random.default_rng(4).standard_normal(2 * BLOCK).astype(np.float32)
    norm = math.sqrt(math.fsum(np.square(values.astype(np.float64))))
    for ordered in (np.sort(values), np.sort(values)[::-1]):
        assert passes(path, ordered, Bounds(10, beside(norm, 2)))
        assert not passes(path, ordered, Bounds(10, beside(norm, -2)))


def test_norm_exactly_at_the_bound_passes_and_the_next_value_does_not(path: Path):
    at_the_bound = np.full(100, 1e4, np.float32)
    check_values(path, at_the_bound)
    with pytest.raises(ValuesError, match=f"{NORM} 100000"):
        check_values(path, np.append(at_the_bound, np.float32(1e-45)))


def test_norm_is_summed_over_all_blocks_of_a_tensor(path: Path):
    values = np.zeros(3 * BLOCK, np.float32)
    values[::BLOCK] = 6000.0
    check_values(path, values, Bounds(1e4, 10393))
    with pytest.raises(ValuesError, match=f"{NORM} 10392"):
        check_values(path, values, Bounds(1e4, 10392))


def test_norm_is_that_of_one_tensor_and_not_of_the_file(path: Path):
    values = np.full(1000, 3e3, np.float32)
    write_tensors(path, {"x": values, "y": values})
    with path.open("rb") as file:
        table = {"x": ("F32", (1000,)), "y": ("F32", (1000,))}
        assert check_tensor_file(file, table, what="w")


@pytest.mark.parametrize("value", UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize("index", [0, BLOCK - 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK, -1])
def test_value_nobody_can_use_is_found_at_the_edge_of_a_block(path: Path, index: int, value):
    values = np.full(2 * BLOCK + 7, 0.02, np.float32)
    raw = value if isinstance(value, bytes) else np.float32(value).tobytes()
    values.view(np.uint8).reshape(-1, 4)[index] = list(raw)
    with pytest.raises(ValuesError, match="`x` is refused: it holds NaN, infinity or"):
        check_values(path, values)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_bound_is_wide_enough_for_a_value_that_is_not_finite(path: Path, value: str):
    for bounds in (ANY, Bounds(math.inf, 1e300), Bounds(1e300, 1e150)):
        with pytest.raises(ValuesError, match="it holds NaN, infinity or"):
            check_values(path, np.array([1, value], np.float32), bounds)


def test_squares_beyond_float32_do_not_refuse_a_tensor_within_its_bounds(path: Path):
    values = np.full(BLOCK + 1, 1e30, np.float32)
    norm = float(np.linalg.norm(values.astype(np.float64)))
    assert passes(path, values, Bounds(1.1e30, norm * 1.001))
    assert not passes(path, values, Bounds(1.1e30, norm * 0.999))
    assert not passes(path, values, Bounds(0.9e30, norm * 1.001))


def test_squares_that_float32_takes_for_zero_are_counted(path: Path):
    values = np.full(100, 1e-30, np.float32)
    norm = float(np.linalg.norm(values.astype(np.float64)))
    assert passes(path, values, Bounds(1e-29, norm * 1.001))
    assert not passes(path, values, Bounds(1e-29, norm * 0.999))
    assert not passes(path, values, Bounds(0.9e-30, 1))


@pytest.mark.parametrize("sign", [1, -1])
def test_smallest_subnormal_is_a_value_like_any_other(path: Path, sign: int):
    smallest = float(np.finfo(np.float32).smallest_subnormal)
    values = np.array([0, sign * smallest, -0.0], np.float32)
    assert passes(path, values, Bounds(smallest, smallest))
    assert not passes(path, values, Bounds(smallest / 2, 1))
    assert not passes(path, values, Bounds(1, smallest / 2))


def test_bound_is_not_rounded_to_the_precision_of_the_values(path: Path):
    limit = math.nextafter(1e4, 0)  # float32 would round it up to 10,000
    assert not passes(path, np.array([1e4], np.float32), Bounds(limit, 1e5))
    assert not passes(path, np.array([-1e4], np.float32), Bounds(limit, 1e5))


def test_negative_zeros_and_empty_tensors_pass_the_narrowest_bounds(path: Path):
    assert passes(path, np.full(BLOCK + 1, -0.0, np.float32), Bounds(0, 0))
    assert passes(path, np.zeros(0, np.float32), Bounds(0, 0))


@pytest.mark.parametrize("max_norm", [1e5, 40.001])  # the second is left to exact arithmetic
def test_memory_for_values_does_not_grow_with_a_tensor(path: Path, max_norm: float):
    count = 40 * BLOCK  # 10 MiB
    write_tensors(path, {"x": np.full(count, 40 / math.sqrt(count), np.float32)})
    tracemalloc.start()
    try:
        with path.open("rb") as file:
            bounds = Bounds(1, max_norm)
            check_tensor_file(file, {"x": ("F32", (count,))}, what="w", bounds=bounds)
        assert tracemalloc.get_traced_memory()[1] < 16 * BLOCK_BYTES
    finally:
        tracemalloc.stop()


class Shrinking(io.FileIO):
    """A file that its owner cuts after the header was read, in the middle of a value."""

    def seek(self, position: int, whence: int = 0) -> int:
        if position > 8:
            os.truncate(self.name, position + 6)
        return super().seek(position, whence)


def test_file_cut_in_the_middle_of_a_value_while_it_is_read_is_refused(path: Path):
    path.write_bytes(tensor_bytes(header(), DATA))
    with Shrinking(path) as file, pytest.raises(WeightsError, match="`a`"):
        check_tensor_file(file, TABLE, what="w")


# Fuzzing


def refused_or_what_the_library_reads(path: Path, data: bytes) -> None:
    """Asserts that `data` is refused, or holds for the library just what we think it holds."""
    try:
        check(path, data)
    except DdmFedError:
        return
    loaded = safetensors.numpy.load(data)
    assert {name: value.shape for name, value in loaded.items()} == {
        name: shape for name, (_, shape) in TABLE.items()
    }


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 255)), min_size=1, max_size=3))
def test_flipped_bytes_are_refused_or_harmless(fuzzed: Path, flips: list[tuple[int, int]]):
    data = bytearray(tensor_bytes(header(), DATA))
    for position, mask in flips:
        data[position % len(data)] ^= mask
    refused_or_what_the_library_reads(fuzzed, bytes(data))


@given(raw=st.binary(max_size=300), length=st.none() | st.integers(0, 2**64 - 1))
def test_random_header_is_refused(fuzzed: Path, raw: bytes, length: int | None):
    with pytest.raises(DdmFedError):
        check(fuzzed, tensor_bytes(b"{" + raw, DATA, length=length))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**54), 2**54) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@pytest.mark.slow
@given(
    name=st.sampled_from(["a", "b", "c", "d", "__metadata__"]),
    field=st.sampled_from(["dtype", "shape", "data_offsets", "other", None]),
    value=json_values,
)
def test_any_json_in_a_header_is_refused_or_harmless(fuzzed: Path, name: str, field, value):
    honest = header().get(name, {})
    changed = header(**{name: value if field is None else honest | {field: value}})
    refused_or_what_the_library_reads(fuzzed, tensor_bytes(changed, DATA))


# Views


@pytest.mark.parametrize("padding", [0, 1, 2, 3, 4, 5, 6, 7])
def test_views_of_a_file_are_what_the_library_reads(padding: int):
    """Also after a header of odd length, which a sender may choose."""
    values = {"a": torch.randn(3, 5), "b": torch.arange(4), "c": torch.randn(1)}
    data = safetensors.torch.save(values)
    length = int.from_bytes(data[:8], "little")
    padded = data[8 : 8 + length] + b" " * padding
    whole = bytearray(len(padded).to_bytes(8, "little") + padded + data[8 + length :])
    found = view_tensors(whole)
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert torch.equal(found[name], value)
        assert found[name].dtype == value.dtype


def test_views_of_a_file_share_its_memory():
    data = bytearray(safetensors.torch.save({"a": torch.zeros(1000)}))
    (tensor,) = view_tensors(data).values()
    tensor.fill_(1.0)
    assert data[-4:] == torch.ones(1).numpy().tobytes()

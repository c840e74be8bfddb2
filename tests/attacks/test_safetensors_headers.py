"""Crafted safetensors files: each is refused by its code, before the library sees it.

Every case also says what the published library makes of the same bytes. Where it reads them, our
check is all that stands between the file and its reader.

Source: the header rules in the safetensors README, and its `attacks` folder.
"""

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import pytest
from federation import tensor_bytes
from safetensors import SafetensorError, safe_open

from ddm_fed.errors import MalformedError, RefusedError, ValuesError, WeightsError
from ddm_fed.storage.tensors import check_tensor_file

TABLE = {"a": ("F32", (2, 3)), "b": ("I64", (4,)), "c": ("F32", (1,))}
WIDE_TABLE = {f"t{index}": ("F32", (1,)) for index in range(600)}  # its header may be large
ZEROS = bytes(24 + 32 + 4)

READS = "reads every tensor"
OPENS = "opens it, and fails when a tensor is asked for"
REFUSES = "refuses it"


def header(**changed: Any) -> dict[str, Any]:
    """Returns the honest header with entries replaced; None leaves one out."""
    entries = {
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "I64", "shape": [4], "data_offsets": [24, 56]},
        "c": {"dtype": "F32", "shape": [1], "data_offsets": [56, 60]},
    }
    return {name: entry for name, entry in (entries | changed).items() if entry is not None}


def text(**changed: Any) -> str:
    return json.dumps(header(**changed), separators=(",", ":"))


def with_header(raw: str | bytes, data: bytes = ZEROS) -> bytes:
    return tensor_bytes(raw if isinstance(raw, bytes) else raw.encode(), data)


def with_entry(name: str, data: bytes = ZEROS, **changed: Any) -> bytes:
    return with_header(text(**{name: header()[name] | changed}), data)


def with_offsets(name: str, start: Any, end: Any, data: bytes = ZEROS) -> bytes:
    return with_entry(name, data, data_offsets=[start, end])


def with_text(found: str, replacement: str) -> bytes:
    """Returns an honest file but for one piece of its header's text."""
    changed = text().replace(found, replacement, 1)
    if changed == text():
        raise ValueError(f"the header has no {found}")
    return with_header(changed)


def with_name(name: str) -> bytes:
    return with_header(text(c=None, **{name: header()["c"]}))


def with_value(value: float) -> bytes:
    return with_header(text(), np.float32(value).tobytes() + ZEROS[4:])


def wide(**changed: Any) -> bytes:
    """Returns a file of the wide table, with fields of its first tensor replaced."""
    entries = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * index, 4 * index + 4]}
        for index, name in enumerate(WIDE_TABLE)
    }
    entries["t0"] |= changed
    return tensor_bytes(entries, bytes(4 * len(entries)))


class Case(NamedTuple):
    """A file, the refusal it must meet, and what the library does with it."""

    data: bytes
    error: type[RefusedError]
    reason: str
    library: str
    table: dict[str, tuple[str, tuple[int, ...]]] = TABLE


CLAIM = "its header claims"
BRACE = "its header does not begin with `{`"
FORM = "does not have the form of safetensors"
SPAN = "its offsets do not span the"
LAYOUT = "its tensors overlap or leave a gap"
OTHER = "the plan asks for"
NAMES = "it lacks the tensors"
END = "its tensors end at"
META = "its header carries metadata"

CASES = {
    # its length
    "empty-file": Case(b"", WeightsError, CLAIM, REFUSES),
    "file-of-seven-bytes": Case(bytes(7), WeightsError, CLAIM, REFUSES),
    "file-of-a-length-only": Case(bytes(8), WeightsError, BRACE, REFUSES),
    "length-zero": Case(bytes(8) + text().encode() + ZEROS, WeightsError, BRACE, REFUSES),
    "length-beyond-the-file": Case(
        tensor_bytes(text().encode(), ZEROS, length=2000), WeightsError, CLAIM, REFUSES
    ),
    "length-of-2^63": Case(
        tensor_bytes(text().encode(), ZEROS, length=2**63), WeightsError, CLAIM, REFUSES
    ),
    "length-of-2^64-1": Case(
        tensor_bytes(text().encode(), ZEROS, length=2**64 - 1), WeightsError, CLAIM, REFUSES
    ),
    "length-that-cuts-the-header": Case(
        tensor_bytes(text().encode(), ZEROS, length=len(text()) - 1),
        MalformedError,
        "not JSON",
        REFUSES,
    ),
    "header-larger-than-the-plan-needs": Case(
        with_header(text() + " " * 4000), WeightsError, CLAIM, READS
    ),
    # its text
    "header-is-a-list": Case(with_header("[]", b""), WeightsError, BRACE, REFUSES),
    "leading-space": Case(with_header(" " + text()), WeightsError, BRACE, READS),
    "leading-byte-order-mark": Case(
        with_header(b"\xef\xbb\xbf" + text().encode()), WeightsError, BRACE, REFUSES
    ),
    "not-json": Case(with_text('"a":', '"a"='), MalformedError, "not JSON", REFUSES),
    "second-document-after-the-first": Case(
        with_header(text() + "{}"), MalformedError, "not JSON", REFUSES
    ),
    "invalid-utf-8": Case(
        with_header(text().encode().replace(b'"c"', b'"\xff"')),
        MalformedError,
        "not UTF-8",
        REFUSES,
    ),
    "deep-nesting": Case(
        with_text("[2,3]", "[" * 1100 + "]" * 1100), MalformedError, "nested|not JSON", REFUSES
    ),
    "nan-as-a-size": Case(with_text("[2,3]", "[2,NaN]"), MalformedError, "NaN", REFUSES),
    "infinity-as-a-size": Case(
        with_text("[2,3]", "[2,Infinity]"), MalformedError, "Infinity", REFUSES
    ),
    "integer-beyond-2^53": Case(
        with_text("[2,3]", f"[2,{2**53}]"), MalformedError, "an integer beyond", REFUSES
    ),
    "integer-of-a-thousand-digits": Case(
        with_text("[2,3]", f"[2,{'9' * 1000}]"), MalformedError, "an integer beyond", REFUSES
    ),
    "duplicate-tensor-name": Case(
        with_header(text()[:-1] + ',"a":' + json.dumps(header()["a"]) + "}"),
        MalformedError,
        "`a` appears twice",
        READS,
    ),
    "duplicate-key-within-a-tensor": Case(
        with_text('"dtype":"F32"', '"dtype":"F32","dtype":"F32"'),
        MalformedError,
        "`dtype` appears twice",
        REFUSES,
    ),
    "duplicate-key-within-metadata": Case(
        with_header('{"__metadata__":{"k":"1","k":"2"},' + text()[1:]),
        MalformedError,
        "`k` appears twice",
        READS,
    ),
    # metadata
    "metadata": Case(with_header(text(__metadata__={"k": "v"})), WeightsError, META, READS),
    "empty-metadata": Case(with_header(text(__metadata__={})), WeightsError, META, READS),
    "null-metadata": Case(
        with_header('{"__metadata__":null,' + text()[1:]), WeightsError, META, READS
    ),
    "metadata-that-is-no-text": Case(
        with_header(text(__metadata__={"k": 1})), WeightsError, META, REFUSES
    ),
    # names
    "name-that-climbs-out-of-a-folder": Case(
        with_name("../../etc/passwd"), WeightsError, NAMES, READS
    ),
    "name-with-a-nul": Case(with_name("c\0"), WeightsError, NAMES, READS),
    "name-with-a-newline-and-an-escape-sequence": Case(
        with_name("c\n\x1b[2J"), WeightsError, NAMES, READS
    ),
    "empty-name": Case(with_name(""), WeightsError, NAMES, READS),
    "name-that-only-looks-the-same": Case(with_name("\u0441"), WeightsError, NAMES, READS),
    "extra-tensor": Case(
        with_header(text(d={"dtype": "F32", "shape": [0], "data_offsets": [60, 60]})),
        WeightsError,
        NAMES,
        READS,
    ),
    "missing-tensor": Case(with_header(text(c=None), ZEROS[:-4]), WeightsError, NAMES, READS),
    "no-tensors": Case(with_header("{}", b""), WeightsError, NAMES, READS),
    # fields
    "extra-field-of-a-tensor": Case(with_entry("a", x=1), WeightsError, FORM, READS),
    "tensor-without-dtype": Case(
        with_text('"dtype":"F32",', ""), WeightsError, f"`a`.*{FORM}", REFUSES
    ),
    "tensor-without-shape": Case(
        with_text('"shape":[2,3],', ""), WeightsError, f"`a`.*{FORM}", REFUSES
    ),
    "tensor-without-offsets": Case(
        with_text(',"data_offsets":[0,24]', ""), WeightsError, f"`a`.*{FORM}", REFUSES
    ),
    "tensor-that-is-a-list": Case(
        with_header(text(a=["F32", [2, 3], [0, 24]])), WeightsError, f"`a`.*{FORM}", READS
    ),
    # dtype and shape
    "unknown-dtype": Case(with_entry("a", dtype="F33"), WeightsError, OTHER, REFUSES),
    "dtype-in-lower-case": Case(with_entry("a", dtype="f32"), WeightsError, OTHER, REFUSES),
    "other-dtype-of-the-same-size": Case(with_entry("a", dtype="I32"), WeightsError, OTHER, READS),
    "floats-for-integers-of-the-same-size": Case(
        with_entry("b", dtype="F64"), WeightsError, OTHER, READS
    ),
    "transposed-shape": Case(with_entry("a", shape=[3, 2]), WeightsError, OTHER, READS),
    "flattened-shape": Case(with_entry("a", shape=[6]), WeightsError, OTHER, READS),
    "scalar-for-a-vector-of-one": Case(with_entry("c", shape=[]), WeightsError, OTHER, READS),
    "smaller-shape": Case(with_entry("a", shape=[2, 2]), WeightsError, OTHER, REFUSES),
    "negative-sizes": Case(with_entry("a", shape=[-2, -3]), WeightsError, OTHER, REFUSES),
    "float-size": Case(with_entry("c", shape=[1.0]), MalformedError, "the float 1.0", REFUSES),
    "boolean-size": Case(with_entry("c", shape=[True]), WeightsError, OTHER, REFUSES),
    "huge-size": Case(with_entry("a", shape=[2**62]), MalformedError, "an integer beyond", REFUSES),
    "huge-size-hidden-by-a-zero": Case(
        with_header(text(a={"dtype": "F32", "shape": [0, 2**53 - 1], "data_offsets": [0, 0]})),
        WeightsError,
        OTHER,
        REFUSES,
    ),
    "sizes-whose-product-overflows": Case(
        with_entry("a", shape=[2**33, 2**33]), WeightsError, OTHER, REFUSES
    ),
    "65537-dimensions": Case(wide(shape=[1] * 65537), WeightsError, OTHER, OPENS, WIDE_TABLE),
    # offsets
    "negative-offset": Case(with_offsets("a", -24, 0), WeightsError, SPAN, REFUSES),
    "reversed-offsets": Case(with_offsets("a", 24, 0), WeightsError, SPAN, REFUSES),
    "float-offsets": Case(with_offsets("a", 0.0, 24.0), MalformedError, "the float", REFUSES),
    "boolean-offset": Case(with_offsets("a", False, 24), WeightsError, SPAN, REFUSES),
    "offsets-as-text": Case(with_offsets("a", "0", "24"), WeightsError, SPAN, REFUSES),
    "offsets-past-the-end": Case(with_offsets("c", 60, 64), WeightsError, LAYOUT, REFUSES),
    "offsets-near-2^53": Case(
        with_offsets("c", 2**53 - 5, 2**53 - 1), WeightsError, LAYOUT, REFUSES
    ),
    "offsets-longer-than-the-shape": Case(
        with_offsets("c", 56, 64, bytes(64)), WeightsError, SPAN, REFUSES
    ),
    "overlap": Case(with_offsets("c", 52, 56, ZEROS[:-4]), WeightsError, LAYOUT, REFUSES),
    "two-tensors-on-the-same-bytes": Case(
        with_offsets("c", 0, 4, ZEROS[:-4]), WeightsError, LAYOUT, REFUSES
    ),
    "hole": Case(with_offsets("c", 60, 64, bytes(64)), WeightsError, LAYOUT, REFUSES),
    # the file behind the header
    "trailing-bytes": Case(with_header(text(), bytes(64)), WeightsError, END, REFUSES),
    "missing-bytes": Case(with_header(text(), ZEROS[:-1]), WeightsError, END, REFUSES),
    "no-bytes-at-all": Case(with_header(text(), b""), WeightsError, END, REFUSES),
    # values
    "nan": Case(with_value(float("nan")), ValuesError, "NaN", READS),
    "infinity": Case(with_value(float("inf")), ValuesError, "infinity", READS),
    "1e30": Case(with_value(1e30), ValuesError, "above 10000", READS),
}


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A file that does not outlive its test: some are large."""
    file = tmp_path / "w.safetensors"
    yield file
    file.unlink(missing_ok=True)


def check(path: Path, table: Any = TABLE) -> None:
    with path.open("rb") as file:
        check_tensor_file(file, table, what="`w.safetensors`")


def what_the_library_does(path: Path) -> str:
    try:
        reader = safe_open(path, "numpy")
    except SafetensorError:
        return REFUSES
    with reader:
        try:
            for name in reader.keys():  # noqa: SIM118 - it is no mapping
                reader.get_tensor(name)
        except Exception:  # noqa: BLE001 - numpy's, of any kind
            return OPENS
    return READS


def test_honest_file_of_which_the_cases_are_variations_passes(path: Path):
    path.write_bytes(with_header(text()))
    check(path)
    assert what_the_library_does(path) == READS


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_crafted_file_is_refused_with_its_code(path: Path, case: Case):
    path.write_bytes(case.data)
    with pytest.raises(RefusedError, match=rf"`w\.safetensors`.*({case.reason})") as refused:
        check(path, case.table)
    assert refused.value.code == case.error.code


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_library_does_with_the_crafted_file_what_the_case_says(path: Path, case: Case):
    path.write_bytes(case.data)
    assert what_the_library_does(path) == case.library


def test_library_takes_the_last_of_two_tensors_of_one_name(path: Path):
    first, last = ({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for _ in range(2))
    last["data_offsets"] = [4, 8]
    raw = f'{{"a":{json.dumps(last)},"b":{json.dumps(first)},"a":{json.dumps(last)}}}'
    path.write_bytes(with_header(raw, np.float32([1, 2]).tobytes()))
    with safe_open(path, "numpy") as reader:
        assert reader.get_tensor("a") == 2
    with pytest.raises(MalformedError, match="`a` appears twice"):
        check(path, {"a": ("F32", (1,)), "b": ("F32", (1,))})


HOSTILE = "c\n\x1b[2J" + "x" * 60_000
MESSAGES = {
    "name": tensor_bytes({HOSTILE: header()["c"]}, bytes(4)),
    "dtype": wide(dtype=HOSTILE),
    "shape": wide(shape=[HOSTILE]),
    "dimensions": wide(shape=[1] * 60_000),
}


@pytest.mark.parametrize("data", MESSAGES.values(), ids=MESSAGES)
def test_refusal_shows_no_more_of_a_header_than_a_person_can_read(path: Path, data: bytes):
    path.write_bytes(data)
    with pytest.raises(WeightsError) as refused:
        check(path, WIDE_TABLE)
    shown = str(refused.value)
    assert len(shown) < 1000
    assert "\x1b" not in shown


FIRST = """
import sys
from ddm_fed.errors import RefusedError
from ddm_fed.storage.tensors import check_tensor_file
with open(sys.argv[1], "rb") as file:
    try:
        check_tensor_file(file, {"a": ("F32", (6,))}, what="w")
    except RefusedError:
        print(sorted(name for name in sys.modules if name.startswith("safetensors")))
"""


def test_library_is_not_even_loaded_when_a_file_is_refused(path: Path):
    path.write_bytes(with_header(text()))
    command = [sys.executable, "-c", FIRST, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# A header bomb: tensors without a value, as many as the library's limit of 100 MB holds. The
# library needs 17 s and 1.4 GiB to open it.


def write_bomb(path: Path, count: int) -> int:
    """Writes a file of `count` empty tensors; returns the bytes of its header."""
    entry = '"{:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'.format
    raw = f"{{{','.join(map(entry, range(count)))}}}".encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little"))
        file.write(raw)
    return len(raw)


def test_library_opens_a_small_bomb(path: Path):
    write_bomb(path, 1000)
    with safe_open(path, "numpy") as reader:
        assert len(reader.keys()) == 1000


@pytest.mark.slow
def test_bomb_of_1_77_million_tensors_is_refused_at_once_in_flat_memory(path: Path):
    assert 95_000_000 < write_bomb(path, 1_770_000) < 100_000_000
    seconds = []
    for _ in range(3):
        started = perf_counter()
        with pytest.raises(WeightsError, match=CLAIM):
            check(path)
        seconds.append(perf_counter() - started)
    assert min(seconds) < 0.1
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match=CLAIM):
            check(path)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()

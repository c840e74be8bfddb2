"""docs/errors.md explains every code, docs/plan.md every key, and every error is worth reading."""

import ast
import inspect
import re
from pathlib import Path
from types import NoneType
from typing import get_args

import pytest
from pydantic import BaseModel

from ddm_fed import errors
from ddm_fed.errors import DdmFedError
from ddm_fed.records import HeadsRouterSpec, MixtureRouterSpec, Plan, PriorRouterSpec

ROOT = Path(__file__).parents[2]
ERRORS = (ROOT / "docs" / "errors.md").read_text()
PLAN = (ROOT / "docs" / "plan.md").read_text()
SECTION = re.compile(r"^## (DDM\d{3}) (\w+)\n\n(.+?)(?=\n## |\Z)", re.MULTILINE | re.DOTALL)

ALL = {
    name: kind
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, DdmFedError)
}
CONCRETE = {
    name: kind for name, kind in ALL.items() if "code" in vars(kind) and kind is not DdmFedError
}


def raised():
    """Returns every place that makes an error, as `file:line` and the call."""
    packages = ("ddm_fed", "sites", "coordinator")
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno}", node)
        for package in packages
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ALL
    ]


def endings(node: ast.expr) -> list[str]:
    """Returns the literal texts that `node` may end with; none where it ends with a value."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=[*_, last]):
            return endings(last)
        case ast.BinOp(op=ast.Add(), right=right):
            return endings(right)
        case ast.IfExp(body=body, orelse=orelse):
            return endings(body) + endings(orelse)
        case _:
            return []


def keys_of(record: type[BaseModel], prefix: str = ""):
    """Yields the dotted name of every key that a person may write."""
    parts = {"router": (PriorRouterSpec, MixtureRouterSpec, HeadsRouterSpec)}
    for name, field in record.model_fields.items():
        optional = [kind for kind in get_args(field.annotation) if kind is not NoneType]
        inner = parts.get(name, tuple(optional) or (field.annotation,))
        if all(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in inner):
            for kind in inner:
                yield from keys_of(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


RAISED = raised()
KEYS = sorted(set(keys_of(Plan)))


def test_page_has_a_section_for_every_concrete_error_and_no_other():
    on_page = [(code, name) for code, name, _ in SECTION.findall(ERRORS)]
    assert on_page == sorted((kind.code, name) for name, kind in CONCRETE.items())


def test_every_section_is_short():
    lines = {code: len(text.strip().splitlines()) for code, _, text in SECTION.findall(ERRORS)}
    assert {code: count for code, count in lines.items() if not 2 <= count <= 5} == {}


def test_docstring_of_the_errors_module_lists_the_same_codes():
    listed = re.findall(r"(\w+)\s+(DDM\d{3})", errors.__doc__)
    assert sorted(listed) == sorted((name, kind.code) for name, kind in CONCRETE.items())


def test_codes_are_unique():
    codes = [kind.code for kind in CONCRETE.values()]
    assert len(set(codes)) == len(codes)


def test_every_code_is_stated_by_the_class_itself():
    stated = {name: vars(kind)["code"] for name, kind in CONCRETE.items()}
    assert [name for name in stated if not re.fullmatch(r"DDM[1-9]\d\d", stated[name])] == []


def test_code_of_a_group_is_the_reserved_one():
    assert {kind.code for name, kind in ALL.items() if name not in CONCRETE} == {"DDM000"}


def test_every_error_class_is_used_somewhere():
    used = {ast.unparse(node.func).split(".")[-1] for _, node in RAISED}
    assert set(CONCRETE) - used == set()


def test_errors_are_raised_by_their_concrete_class():
    groups = ALL.keys() - CONCRETE.keys()
    assert [place for place, node in RAISED if ast.unparse(node.func) in groups] == []


def has_message_and_hint(call: ast.Call) -> bool:
    hint = next((item.value for item in call.keywords if item.arg == "hint"), None)
    return len(call.args) == 1 and hint is not None and ast.unparse(hint) not in ("''", "None")


def test_every_error_has_a_message_and_a_hint():
    assert [place for place, call in RAISED if not has_message_and_hint(call)] == []


def test_no_error_text_ends_with_a_full_stop():
    assert [
        (place, end)
        for place, call in RAISED
        for text in [*call.args, *(item.value for item in call.keywords)]
        for end in endings(text)
        if end.rstrip().endswith(".")
    ] == []


# these name what was typed, or an option that the code has in a variable
NAMED_OTHERWISE = (
    "ddm_fed/commands/options.py",
    "ddm_fed/remote/url.py",
    "ddm_fed/training/private_loop.py",
    "ddm_fed/training/warmstart.py",
    "sites/train/shown.py",
    "sites/transport/address.py",
    "sites/transport/grpc.py",
)
OPTION_ERRORS = [
    (place, node)
    for place, node in RAISED
    if ast.unparse(node.func) == "OptionError" and not place.startswith(NAMED_OTHERWISE)
]


@pytest.mark.parametrize(
    ("place", "call"), OPTION_ERRORS, ids=[place for place, _ in OPTION_ERRORS]
)
def test_option_error_names_the_option(place, call):
    assert re.search(r"--[a-z]|\b(PLAN|REQUEST)\b|param\.opts", ast.unparse(call.args[0]))


def test_wrong_usage_is_an_error_of_ours_and_never_of_click():
    found = [
        str(path.relative_to(ROOT))
        for package in ("ddm_fed", "sites", "coordinator")
        for path in sorted((ROOT / package).rglob("*.py"))
        if re.search(r"\b(BadParameter|UsageError)\(", path.read_text())
    ]
    assert found == []


def test_error_shows_code_message_and_hint():
    shown = str(errors.DataError("what and why", hint="what to do"))
    assert shown == "error[DDM102]: what and why\n\nhint: what to do"


def test_plan_page_has_a_row_for_every_key():
    rows = [line.split("|")[1] for line in PLAN.splitlines() if line.startswith("| `")]
    found = {key: sum(f"`{key}`" in row for row in rows) for key in KEYS}
    assert found == dict.fromkeys(KEYS, 1)


def test_plan_page_has_no_row_for_a_key_that_is_gone():
    rows = "".join(line.split("|")[1] for line in PLAN.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`([a-z0-9_.]+)`", rows)) == set(KEYS)


def test_keys_of_the_plan_are_all_found():
    assert {"expires_at", "data.width", "router.radius", "submission.valid_days"} <= set(KEYS)
    assert "router" not in KEYS

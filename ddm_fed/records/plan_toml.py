"""`plan.toml`, as people write it: read strictly, with every problem named at once."""

import codecs
import tomllib
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ddm_fed.errors import PlanError
from ddm_fed.records.canonical import canonical_json
from ddm_fed.records.plan import Plan
from ddm_fed.records.problems import all_problems


def read_plan_file(path: Path) -> Plan:
    """Returns the plan that people wrote into the file `path`.

    Raises:
        PlanError: it is not UTF-8, not TOML, or not a valid plan.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        reason = "it is UTF-16"
    else:
        try:
            return read_plan_toml(data.decode("utf-8-sig"), name=path.name)
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            reason = f"byte {data[error.start]:#04x} in line {line} is none"
    raise PlanError(
        f"{path.name} is not written in UTF-8: {reason}",
        hint="if it is no plan at all, give the path of one; else save it as UTF-8 in your editor; "
        "iconv -f LATIN1 -t UTF-8, or -f UTF-16, does it too",
    )


def read_plan_toml(text: str, *, name: str = "plan.toml") -> Plan:
    """Returns the plan that `text` describes.

    Raises:
        PlanError: `text` is not TOML, or not a valid plan; every problem is named at once.

    Example:
        >>> plan = read_plan_toml(Path("examples/digits/plan.toml").read_text())
        >>> plan.data.shape, plan.expert.default.architecture, plan.router.kind
        ((1, 8, 8), 'DiT-Nano/4', 'mixture')
        >>> read_plan_toml('federation = "digits"')
        Traceback (most recent call last):
        ddm_fed.errors.PlanError: error[DDM101]: plan.toml is not a valid plan: `expires_at`: ...
    """
    try:
        values = tomllib.loads(text, parse_float=Decimal)
    except ValueError as error:  # TOMLDecodeError, or an integer without end
        raise PlanError(
            f"{name} is not TOML: {error}", hint="see examples/digits/plan.toml"
        ) from None
    if "version" in values:
        raise PlanError(
            f"{name} is not a valid plan: `version`: it is given by `ddm-coord publish`",
            hint="leave it out: every change of a published plan counts one higher by itself",
        )
    try:
        return Plan.model_validate_json(canonical_json(_jsonable(values)))
    except ValidationError as error:
        raise PlanError(
            f"{name} is not a valid plan",
            details=all_problems(_jsonable(values), Plan, error),
            hint="docs/plan.md explains every key; examples/digits/plan.toml is a complete plan",
        ) from None


def _jsonable(value: Any) -> Any:
    match value:
        case dict():
            return {key: _jsonable(item) for key, item in value.items()}
        case list():
            return [_jsonable(item) for item in value]
        case Decimal():
            return format(value, "f") if value.is_finite() else str(value)
        case datetime():
            return value.isoformat()
        case time():  # no key is a time of day: the validator will say so
            return value.isoformat()
        case date():  # a bare day in TOML means its first second, UTC
            return datetime.combine(value, time()).isoformat() + "Z"
        case _:
            return value

"""Every problem of a document that people write, at once: also those behind the first ones.

pydantic stops where fields do not hold: what they would have to fit is not looked at. Here the
checks of each record are made again on the fields that do hold. One that needs a field that does
not is left out, since nobody can judge it yet.
"""

from contextlib import suppress
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from ddm_fed.records.base import locate, problems_of, records_in, tags_of
from ddm_fed.records.canonical import canonical_json

Path = tuple[str, ...]


def all_problems(
    values: dict[str, Any], model: type[BaseModel], error: ValidationError
) -> list[str]:
    """Returns every problem of `values` as `field: problem`, without repetition.

    Args:
        values: The document, as JSON has it.
        model: What it should be.
        error: What pydantic found.
    """
    found = problems_of(error, model)
    bad = {tuple(locate(item["loc"], model)[0]) for item in error.errors(include_url=False)}
    partial = _partial(model, values, (), bad)
    if partial is not None:
        _check(partial, (), found)
    return list(dict.fromkeys(found))


def _partial(model: type[BaseModel], values: Any, path: Path, bad: set[Path]) -> BaseModel | None:
    """Returns a record that has the fields of `values` that hold, and lacks those in `bad`."""
    if not isinstance(values, dict):
        return None
    kept: dict[str, Any] = {}
    for name in model.model_fields:
        if name not in values:
            continue
        inside = (*path, name)
        if not any(where[: len(inside)] == inside for where in bad):
            with suppress(ValidationError):  # said already, of another place
                kept[name] = _field(model, name, values[name])
            continue
        inner = _record_of(model, name, values[name])
        part = None if inner is None else _partial(inner, values[name], inside, bad)
        if part is not None:
            kept[name] = part
    record = model.model_construct(**kept)
    for name in values.keys() & model.model_fields.keys() - kept.keys():
        record.__dict__.pop(name, None)  # its default is not what people wrote
    return record


def _field(model: type[BaseModel], name: str, value: Any) -> Any:
    field = model.model_fields[name]
    kind: Any = field.annotation
    if field.metadata:
        kind = Annotated[(kind, *field.metadata)]
    return TypeAdapter[Any](kind).validate_json(canonical_json(value), strict=True)


def _record_of(model: type[BaseModel], field: str, value: Any) -> type[BaseModel] | None:
    """Returns which record `value` should be: the one its tag names, where there are several."""
    found = records_in(model, field)
    if len(found) > 1 and isinstance(value, dict):
        found = [each for each in found if value.get("kind") in tags_of(each)]
    return found[0] if len(found) == 1 else None


def _check(record: BaseModel, path: Path, found: list[str]) -> None:
    for name in type(record).__pydantic_decorators__.model_validators:
        try:
            getattr(record, name)()
        except AttributeError:  # it asks for a field that does not hold
            continue
        except ValueError as error:
            text = str(error)
            found.append(f"`{'.'.join(path) or 'document'}`: {text[:1].lower() + text[1:]}")
    for name, value in record.__dict__.items():
        if isinstance(value, BaseModel):
            _check(value, (*path, name), found)

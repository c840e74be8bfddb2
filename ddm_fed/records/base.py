"""What every record is: frozen, strict about types, and closed to fields it does not know."""

import re
import unicodedata
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidationError,
    ValidationInfo,
)

from ddm_fed.errors import MalformedError, guess
from ddm_fed.records.canonical import canonical_json, parse_json

MAX_DECIMAL = 64  # characters
MAX_SHOWN = 64  # characters of a word that is none of a list
UNSEEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")  # categories of Unicode


_SHOWN_DECIMAL = re.compile(r"Decimal\('([^']*)'\)")  # a number, as people write it
_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")


def _ascii_decimal(value: Any, info: ValidationInfo) -> Any:
    """Returns the decimal in a string of JSON, which is written with the digits 0 to 9.

    `Decimal` reads the digits of every script, and underscores: a person and a program could read
    two numbers in one text.
    """
    if info.mode != "json" or not isinstance(value, str):
        return Decimal(value) if info.mode == "json" and type(value) is int else value
    if len(value) > MAX_DECIMAL or _DECIMAL.fullmatch(value) is None:
        raise ValueError("a finite number is written with the digits 0 to 9, such as 0.25")
    return Decimal(value)


def _plain_text(text: str) -> str:
    """Returns `text` if all of it can be seen: signed words must not steer a screen."""
    for character in text:
        if unicodedata.category(character) in UNSEEN:
            raise ValueError(f"it holds the invisible character U+{ord(character):04X}")
    return text


def is_plain(text: str) -> bool:
    """Returns whether `text` holds no control, direction or other unseen character."""
    return all(unicodedata.category(character) not in UNSEEN for character in text)


def _plain_lines(text: str) -> str:
    _plain_text(text.replace("\n", " ").replace("\t", " "))
    return text


def is_sha256(text: str) -> bool:
    """Returns whether `text`, which a peer sent, is a digest: then it may be part of a path."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def _utc_second(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("a date needs a time zone, for example 2026-11-23T00:00:00Z")
    try:
        return moment.astimezone(UTC).replace(microsecond=0)
    except OverflowError:
        raise ValueError("the date lies outside the calendar") from None


def _whole_day(moment: datetime) -> datetime:
    if (moment.hour, moment.minute, moment.second) != (0, 0, 0):
        raise ValueError("a day is its midnight in UTC, for example 2026-11-23T00:00:00Z")
    return moment


_HEX = r"^[0-9a-f]{64}$"
_ROOT_PIN = r"^sha256:[0-9a-f]{64}$"
_NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"
# What people read in place of the pattern that does not fit.
_IN_WORDS = {
    _HEX: "should be 64 hex digits in lower case",
    _ROOT_PIN: "should be `sha256:` and 64 hex digits in lower case",
    _NAME: "should be 1 to 63 of a to z, 0 to 9 and -, not beginning with -",
}

Sha256 = Annotated[str, StringConstraints(pattern=_HEX)]
PublicKeyHex = Annotated[str, StringConstraints(pattern=_HEX)]
# The digest of the first roster: the one thing a verifier learns from a person.
RootPin = Annotated[str, StringConstraints(pattern=_ROOT_PIN)]
# Text for people that is signed: without control, direction or other unseen characters.
PlainText = Annotated[str, AfterValidator(_plain_text)]
PlainLines = Annotated[str, AfterValidator(_plain_lines)]
# A decimal that was rounded for people, as it stands in signed documents.
Figure = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]*)(\.[0-9]+)?$", max_length=40)]
Name = Annotated[str, StringConstraints(pattern=_NAME)]
Moment = Annotated[
    datetime,
    AfterValidator(_utc_second),
    PlainSerializer(lambda moment: moment.isoformat().replace("+00:00", "Z"), return_type=str),
]
# What is signed about training knows no time of day: the difference of two would tell how long it
# took, and so how many images there are.
Day = Annotated[Moment, AfterValidator(_whole_day)]
# A decimal is a string on the wire, so that no float round trip can change a signed number.
Number = Annotated[
    Decimal,
    BeforeValidator(_ascii_decimal),
    Field(allow_inf_nan=False, max_digits=20),
    PlainSerializer(lambda number: format(number.normalize(), "f"), return_type=str),
]
NonNegative = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]
Probability = Annotated[Number, Field(ge=0, lt=1)]
MAX_COUNT = 2**53 - 1
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Epsilon = Annotated[Number, Field(ge=Decimal("0.001"), le=1000)]
LogSize = Annotated[int, Field(ge=0, le=MAX_COUNT)]


class Record(BaseModel):
    """A frozen, strictly validated fact. Equal records have equal bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)

    def to_json(self) -> bytes:
        """Returns the canonical bytes: sorted keys, compact, UTF-8."""
        return canonical_json(self.model_dump(mode="json", by_alias=True))

    @classmethod
    def from_json(cls, data: bytes, *, what: str) -> Self:
        """Returns the record in `data`.

        Raises:
            MalformedError: `data` is not unambiguous JSON, or not this record. The message names
                the field, the value's problem, and the nearest known field for a misspelt one.
        """
        parse_json(data, what=what)
        try:
            # by alias alone: a field has one spelling, or two parsers could differ
            return cls.model_validate_json(data, by_alias=True, by_name=False)
        except ValidationError as error:
            raise MalformedError(
                f"{what} is not a valid {cls.__name__}: {explain(error, cls)}",
                hint="it may come from a newer version of this program; compare versions",
            ) from None


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Returns every problem of `error` as `field: problem`, with a guess at misspelt fields."""
    return "; ".join(problems_of(error, model))


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Returns every problem of `error` as `explain` words it, each by itself."""
    problems = []
    for item in error.errors(include_url=False):
        path, siblings = locate(item["loc"], model)
        problem = _SHOWN_DECIMAL.sub(r"\1", item["msg"].removeprefix("Value error, "))
        if item["type"] == "string_pattern_mismatch":
            problem = _IN_WORDS.get(item["ctx"]["pattern"], problem)
        if item["type"] == "extra_forbidden":
            known = f", known are {', '.join(siblings)}" if siblings else ", none is known here"
            near = guess(path[-1], siblings)
            places = [] if near else sorted(set(_places_of(path[-1], model)))
            near = near or (f", it belongs in `{'`, `'.join(places)}`" if places else known)
            problem = f"unknown key{near}"
        if item["type"] == "union_tag_invalid":
            path = [*path, item["ctx"]["discriminator"].strip("'")]
            problem = _none_of(item["ctx"]["tag"], item["ctx"]["expected_tags"])
        if item["type"] == "literal_error" and "'" in item["ctx"]["expected"]:
            problem = _none_of(str(item["input"]), item["ctx"]["expected"])
        problems.append(f"`{'.'.join(path) or 'document'}`: {problem[:1].lower() + problem[1:]}")
    return problems


def _places_of(name: str, record: type[BaseModel], inside: str = "") -> list[str]:
    """Returns where in `record` a key called `name` may stand."""
    found = [f"{inside}{name}"] if name in record.model_fields else []
    for field in record.model_fields:
        for inner in records_in(record, field):
            found += _places_of(name, inner, f"{inside}{field}.")
    return found


def _none_of(given: str, expected: str) -> str:
    """Returns what to say of a word that is none of those in `expected`, as pydantic lists them."""
    given = given[:MAX_SHOWN]
    near = guess(given, re.findall("'([^']*)'", expected))
    return f"`{given}` is not one of {expected}{near}"


def locate(location: tuple[Any, ...], model: type[BaseModel]) -> tuple[list[str], list[str]]:
    """Returns the path of a field as its author wrote it, and the fields that may stand there.

    pydantic's own location also names the member of a union, which nobody wrote.
    """
    path: list[str] = []
    records: list[Any] = [model]
    for part in location:
        chosen = [record for record in records if part in tags_of(record)]
        if chosen and not any(part in record.model_fields for record in records):
            records = chosen
            continue
        path.append(str(part))
        if part is not location[-1]:
            records = [inner for record in records for inner in records_in(record, part)]
    siblings = sorted({name for record in records for name in record.model_fields})
    return path, siblings


def records_in(record: type[BaseModel], field: Any) -> list[type[BaseModel]]:
    """Returns the records a field can hold: none, one, or the members of a union."""
    if field not in record.model_fields:
        return []
    kinds = _leaves(record.model_fields[field].annotation)
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def tags_of(record: type[BaseModel]) -> list[Any]:
    """Returns the literal values in a record's fields, by which a union may choose it."""
    return [leaf for field in record.model_fields.values() for leaf in _leaves(field.annotation)]


def _leaves(annotation: Any) -> list[Any]:
    arguments = get_args(annotation)
    return [leaf for item in arguments for leaf in _leaves(item)] if arguments else [annotation]


def today() -> datetime:
    """Returns the present day, as its midnight in UTC."""
    return now().replace(hour=0, minute=0, second=0)


def now() -> datetime:
    """Returns the current time in UTC, to the second, as records hold it."""
    return datetime.now(UTC).replace(microsecond=0)

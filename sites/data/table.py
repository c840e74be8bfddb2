"""Tables of files: what their columns are called, and how they are read, row by row."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ddm_fed.errors import DataError, printable
from ddm_fed.limits import MIB

MAX_LINE_BYTES = MIB
# how others call the same thing: Hugging Face, WebDataset, exports of hospitals
COLUMNS = {
    "file": ("file", "file_name", "filename", "path", "image"),
    "label": ("label", "labels", "class", "class_name", "cls"),
    "caption": ("caption", "text", "description", "txt"),
    "unit": ("unit", "unit_id", "patient", "patient_id"),
}


class Row(NamedTuple):
    """What a table says of one image.

    Attributes:
        file: Its path, as written; empty where the image lies in the table.
        label: Name of its class, or an index; None if nothing says.
        caption: What a person wrote about it.
        unit: The unit it belongs to.
        line: Where in the table.
    """

    file: str
    label: str | int | None
    caption: str | None
    unit: str | None
    line: int


def read_table(path: Path, unused: set[str]) -> Iterator[Row]:
    """Yields the rows of a `.csv` or `.jsonl`; names of columns that nobody reads go to `unused`.

    Raises:
        DataError: it is malformed; the message names the line and none of its captions or units.
    """
    lines = _json_lines(path) if path.suffix.lower() == ".jsonl" else _csv_rows(path)
    try:
        for number, values in lines:
            row = to_row(values, path, number, unused)
            if not row.file:
                raise DataError(
                    f"{path} names no file in line {number}",
                    hint=f"give every row a value for `{'` or `'.join(COLUMNS['file'][:2])}`",
                )
            yield row
    except (OSError, UnicodeDecodeError, csv.Error):  # their messages may quote what they read
        raise DataError(f"{path} cannot be read", hint="save it as CSV or JSON in UTF-8") from None


def to_row(values: Mapping[str, Any], path: Path, number: int, unused: set[str]) -> Row:
    """Returns what named values say of one image.

    Raises:
        DataError: two columns say the same thing, or a value is of another kind.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        plain = str(name).strip().lower()
        meant = next((column for column, names in COLUMNS.items() if plain in names), None)
        if meant is None:
            unused.add(printable(str(name)))
        elif meant in found:
            raise DataError(
                f"{path} has several columns for the {meant}: {', '.join(COLUMNS[meant])} mean the "
                "same",
                hint="keep one of them",
            )
        else:
            found[meant] = value
    label = found.get("label")
    texts = {name: found.get(name) for name in ("file", "caption", "unit")}
    if isinstance(texts["unit"], int) and not isinstance(texts["unit"], bool):
        texts["unit"] = str(texts["unit"])
    wrong = [name for name, value in texts.items() if not isinstance(value, str | None)]
    if isinstance(label, bool) or not isinstance(label, str | int | None):
        wrong.append("label")
    if wrong:
        raise DataError(
            f"{path} has a {wrong[0]} in line {number} that is neither text nor a whole number",
            hint="write one value in each column",
        )
    if isinstance(label, str):
        label = label.strip() or None
    caption = texts["caption"]
    return Row(texts["file"] or "", label, caption or None, texts["unit"] or None, number)


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    with path.open(encoding="utf-8-sig", newline="") as opened:
        reader = csv.DictReader(opened, strict=True)
        names = reader.fieldnames or []
        if not {name.strip().lower() for name in names} & set(COLUMNS["file"]):
            raise DataError(
                f"{path} does not begin with the names of its columns",
                hint="the first line names them: file,label,caption,unit (all but the file are "
                "optional)",
            )
        for values in reader:
            if None in values or None in values.values():
                raise DataError(
                    f"{path} has another number of columns in line {reader.line_num}",
                    hint="put text that holds a comma into quotes",
                )
            yield reader.line_num, values


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as opened:
        number = 0
        while line := opened.readline(MAX_LINE_BYTES + 1):
            number += 1
            if not line.strip():
                continue
            values = json_object(line, MAX_LINE_BYTES)
            if values is None:
                raise DataError(
                    f"{path} holds no JSON object in line {number}",
                    hint='one object a line: {"file": "a.png", "label": "cat"}',
                )
            yield number, values


def json_object(data: bytes, limit: int) -> dict[str, Any] | None:
    """Returns the object that bytes are in JSON; None if they are none, or more than `limit`."""
    try:
        values = json.loads(data.decode("utf-8-sig")) if len(data) <= limit else None
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None

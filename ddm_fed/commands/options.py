"""Options that both programs have, and how one that cannot be used is named."""

import re
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddm_fed.errors import OptionError

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

EmbedderOption = Annotated[
    Path | None,
    typer.Option(
        "--embedder-weights",
        help="Safetensors file of the embedder that the plan's centroids name by its digest.",
    ),
]
PART = re.compile(r"([1-9][0-9]*)/([1-9][0-9]*)")
PdfOption = Annotated[
    Path | None,
    typer.Option(
        "--pdf",
        help="Also write the page as a PDF, by the print of Chromium or Chrome if installed.",
        dir_okay=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")]


def finite(param: typer.CallbackParam, value: float | None) -> float | None:
    """Returns `value`; for the callback of a number, since NaN passes every check of a range.

    Raises:
        OptionError: it is NaN or infinite.
    """
    if value is not None and not isfinite(value):
        raise OptionError(f"{param.opts[0]} {value}: not a finite number", hint="give a number")
    return value


def part_of(text: str | None) -> tuple[int, int] | None:
    """Returns the I-th of N parts that `--part I/N` names, `(I, N)`; None if it is all.

    Raises:
        OptionError: there is no such part.
    """
    if text is None:
        return None
    match = PART.fullmatch(text)
    if match is None or int(match[1]) > int(match[2]):
        raise OptionError(
            f"--part {text} is no part", hint="give I/N with I from 1 to N, such as 3/8"
        )
    return int(match[1]), int(match[2])


def options_error(error: "ValidationError", model: type["BaseModel"], hint: str) -> OptionError:
    """Returns the error of options that do not make a valid record.

    Args:
        error: What pydantic found.
        model: The record, whose fields are called like the options.
        hint: What to do.
    """
    from ddm_fed.records import explain

    # pydantic's place of a problem is the field, which people gave as an option
    named = re.sub(r"`(\w+)`: ", lambda at: f"--{at[1].replace('_', '-')}: ", explain(error, model))
    return OptionError(named.replace("--document: ", ""), hint=hint)


def listening_address(param: typer.CallbackParam, text: str | None) -> str | None:
    """Returns HOST:PORT as it was given, if it is that; none stays none.

    Raises:
        OptionError: it is something else.
    """
    if text is None:
        return None
    host, colon, port = text.rpartition(":")
    number = int(port) if re.fullmatch(r"[0-9]{1,5}", port) else 1 << 16
    if not colon and number < 1 << 16:
        raise OptionError(
            f"{param.opts[0]} {text}: the host is missing",
            hint=f"give 127.0.0.1:{port} to be reached from this machine only, or 0.0.0.0:{port} "
            "to be reached from every network it is in",
        )
    if not host or number >= 1 << 16 or (":" in host and host[0] + host[-1] != "[]"):
        raise OptionError(
            f"{param.opts[0]} {text}: cannot listen on this",
            hint="give HOST:PORT, for example 0.0.0.0:8443 or [::1]:8443, with a port up to 65535",
        )
    return text

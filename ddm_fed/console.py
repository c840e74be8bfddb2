"""What people see: errors with hints, tables, progress. The only code that prints.

stdout carries results (tables, or JSON with --json); everything else goes to stderr. Bars appear
on a terminal only, and NO_COLOR is respected (both by Rich).
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from ddm_fed.errors import DdmFedError, MachineError

# into a pipe or a file, lines are as long as they are: nothing is folded that a program looks for
WIDE = 240
out = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
err = Console(stderr=True, highlight=False)


class Sheet(NamedTuple):
    """A table before it is drawn."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def run(command: Callable[[], object]) -> None:
    """Runs a command line; errors are shown and end with exit status 1.

    Wrong usage, which the command line itself finds, ends with 2.
    """
    try:
        _refuse_empty(sys.argv[1:])
        command()
    except DdmFedError as error:
        show_error(error)
        sys.exit(1)
    except OSError as error:
        show_error(
            MachineError(
                f"the operating system refused: {error}",
                hint="make room or correct the permissions, then run the same command again: "
                "nothing half-written is ever taken for whole",
            )
        )
        sys.exit(1)


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Ends with 2 if an argument is empty: an unset variable in a script would mean this folder."""
    option = ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not argument.strip() or (name.startswith("--") and equals and not value.strip()):
            where = (
                f"the value of {name if equals else option} is" if equals or option else "one is"
            )
            err.print(
                Panel(
                    f"An argument is empty: {escape(where)} perhaps a variable that is not set. "
                    "Give a value, or leave the option out.",
                    title="Error",
                    title_align="left",
                    border_style="red",
                )
            )
            sys.exit(2)
        option = argument if argument.startswith("-") else ""


def say(message: str) -> None:
    """Writes one line of progress to stderr."""
    err.print(escape(message), soft_wrap=True)


def next_step(*commands: str) -> None:
    """Writes what to do next to stderr."""
    for command in commands:
        err.print(f"[bold]next:[/bold] {escape(command)}", soft_wrap=True)


def show_error(error: DdmFedError) -> None:
    """Writes an error as `error[CODE]: what and why`, a blank line, and the hint."""
    count = f": {len(error.details)} problems" if len(error.details) > 1 else ""
    text = f"{error.title}{count}" if count else error.message
    err.print(f"[bold red]error\\[{error.code}][/bold red]: {escape(text)}", soft_wrap=True)
    for line in error.details if count else ():
        err.print(f"  - {escape(line)}", soft_wrap=True)
    err.print(f"\n[bold]hint:[/bold] {escape(error.hint)}", soft_wrap=True)


def show_json(value: Any) -> None:
    """Writes `value` to stdout as JSON."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def log_line(facts: dict[str, Any]) -> None:
    """Writes `facts` and the present time to stderr as one line of JSON."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    sys.stderr.write(json.dumps({"at": at, **facts}) + "\n")


def show_json_line(value: Any) -> None:
    """Writes `value` to stdout as one line of JSON, at once."""
    try:
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        out.on_broken_pipe()  # whoever read has what it wanted; nothing is left to say


def show_text(text: str) -> None:
    """Writes lines to stdout as they are, for people to paste."""
    out.print(escape(text), soft_wrap=True)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Writes a table to stdout, readable without colour."""
    out.print(_drawn(Sheet(title, columns, rows)))


def _drawn(sheet: Sheet) -> Table:
    table = Table(title=escape(sheet.title), title_justify="left")
    for number, column in enumerate(sheet.columns):
        # the name of a row stays readable, and nothing is cut that people compare
        table.add_column(column, no_wrap=number == 0, overflow="fold")
    for row in sheet.rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


@contextmanager
def refreshing() -> Iterator[Callable[[Sequence[Sheet]], None]]:
    """Yields `show(sheets)`: drawn in place on a terminal, elsewhere written where they changed."""
    if not out.is_terminal:
        last: list[Sheet] = []

        def write(sheets: Sequence[Sheet]) -> None:
            if last != list(sheets):
                last[:] = sheets
                out.print(*map(_drawn, sheets))
                out.print()  # so that a reader sees where one ends
                out.file.flush()

        yield write
        return
    with Live(console=out, auto_refresh=False, vertical_overflow="ellipsis") as live:
        yield lambda sheets: live.update(Group(*map(_drawn, sheets)), refresh=True)


@contextmanager
def counting(description: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
    """Shows a bar of `total` things; yields `update(completed, note)`."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=err,
        disable=not err.is_terminal,
    ) as progress:
        task = progress.add_task(description, total=total, note="")

        def update(completed: int, note: str = "") -> None:
            progress.update(task, completed=completed, note=note)

        yield update


@contextmanager
def moving_bytes(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar of `total` bytes; yields `advance(count)`."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=err,
        disable=not err.is_terminal,
    ) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.advance(task, count)

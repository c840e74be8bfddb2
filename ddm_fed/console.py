"""What people see: errors with hints, tables, progress. The only code that prints.

stdout carries results (tables, or JSON with --json); everything else goes to stderr. Bars appear
on a terminal only, elsewhere a line a minute does, and NO_COLOR is respected (by Rich). No text is
ever read as markup: names, paths and messages are shown as they are.
"""

import codecs
import io
import json
import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from ddm_fed.errors import DdmFedError, MachineError, not_installed
from ddm_fed.progress import Advance, Heartbeat

# into a pipe or a file, lines are as long as they are: nothing is folded that a program looks for
WIDE = 240
out = Console(
    highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else WIDE
)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)
HELP_COLUMNS = 80
BORDERS = 3  # columns of a table that each of its cells needs besides its words
PLAIN = {"…": "...", "·": "-", "→": "->"}  # what our own texts have beyond ASCII
INTERRUPTED = 128 + signal.SIGINT  # as shells count


class Sheet(NamedTuple):
    """A table before it is drawn."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def run(command: Callable[[], object], *, role: str = "coordinator") -> None:
    """Runs a command line; errors are shown and end with exit status 1.

    `role` is the extra to install where something is missing.

    Wrong usage ends with 2, whoever finds it: the command line itself, or the command by an
    `OptionError`. Ctrl-C, where the command has no
    end of its own for it, ends with 130, and SIGTERM by that signal, both with a word.
    """
    write_what_can_be_written()
    with _ends_by_sigterm() as terminated:
        try:
            _refuse_empty(sys.argv[1:])
            command()
        except DdmFedError as error:
            show_error(error)
            sys.exit(error.exit_status)
        except ModuleNotFoundError as error:
            missing = not_installed(error, role)
            if missing is None:
                raise
            show_error(missing)
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
        except KeyboardInterrupt:
            _say_interrupted(terminated)
        except SystemExit as end:
            if end.code == INTERRUPTED:  # what Typer makes of it
                _say_interrupted(terminated)
            raise


def _say_interrupted(terminated: threading.Event) -> None:
    by = "SIGTERM" if terminated.is_set() else "Ctrl-C"
    say(
        f"ended by {by}: nothing half-written is taken for whole, and the same command can be run "
        "again"
    )
    if terminated.is_set():  # whoever sent it sees that the signal did it
        sys.stdout.flush()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    sys.exit(INTERRUPTED)


@contextmanager
def _ends_by_sigterm() -> Iterator[threading.Event]:
    """Makes SIGTERM end commands as Ctrl-C does, with a word; yields whether it came."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def end(*_: object) -> None:
        came.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before)


def has_room_for_tables() -> bool:
    """Returns whether help may be a table: in a narrow one the names of options would be cut."""
    return shutil.get_terminal_size().columns >= HELP_COLUMNS


def write_what_can_be_written() -> None:
    """Makes stdout and stderr write what their encoding lacks in another way, never fail."""
    codecs.register_error("ddm_fed.plain", _plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="ddm_fed.plain")


def _plainly(error: UnicodeError) -> tuple[str | bytes, int]:
    """Returns plain letters, or else escapes, for what an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    plain = "".join(
        PLAIN.get(letter) or letter.encode("ascii", "backslashreplace").decode()
        for letter in lacking
    )
    return plain, error.end


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
                    f"An argument is empty: {where} perhaps a variable that is not set. "
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
    err.print(message, soft_wrap=True)


def typed(*words: str | Path) -> str:
    """Returns a command as a shell takes it, whatever blanks its paths have."""
    return shlex.join(map(str, words))


def next_step(*commands: str) -> None:
    """Writes what to do next to stderr; what is to be typed comes from `typed`."""
    for command in commands:
        err.print(Text.assemble(("next:", "bold"), f" {command}"), soft_wrap=True)


def show_error(error: DdmFedError) -> None:
    """Writes an error as `error[CODE]: what and why`, a blank line, and the hint."""
    count = f": {len(error.details)} problems" if len(error.details) > 1 else ""
    text = f"{error.title}{count}" if count else error.message
    err.print(Text.assemble((f"error[{error.code}]", "bold red"), f": {text}"), soft_wrap=True)
    for line in error.details if count else ():
        err.print(f"  - {line}", soft_wrap=True)
    err.print(Text.assemble("\n", ("hint:", "bold"), f" {error.hint}"), soft_wrap=True)


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
    out.print(text, soft_wrap=True)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Writes a table to stdout, readable without colour."""
    _print_sheet(Sheet(title, columns, rows))


def _print_sheet(sheet: Sheet) -> None:
    drawn = _drawn(sheet)
    out.print(drawn, soft_wrap=isinstance(drawn, Text))


def _drawn(sheet: Sheet) -> RenderableType:
    """Returns a table if no word of it has to be cut here; else its cells line by line."""
    columns = list(zip(sheet.columns, *sheet.rows, strict=True))
    # the name of a row stays in one line; all else may break between words
    names = max(map(len, columns[0][1:]), default=0)
    words = [max(len(word) for cell in cells for word in cell.split() or [""]) for cells in columns]
    if max(names, words[0]) + sum(words[1:]) + BORDERS * len(columns) + 1 > out.width:
        return _lines(sheet)
    table = Table(title=Text(sheet.title), title_justify="left")
    for number, column in enumerate(sheet.columns):
        # the name of a row stays readable, and nothing is cut that people compare
        table.add_column(Text(column), no_wrap=number == 0, overflow="fold")
    for row in sheet.rows:
        table.add_row(*map(Text, row))
    return table


def _lines(sheet: Sheet) -> Text:
    """Returns a table as lines of one cell each, for terminals that are too narrow for it."""
    shown = [Text(sheet.title, "italic")]
    for row in sheet.rows:
        shown.append(Text(row[0], "bold"))
        shown += [
            Text(f"  {column}: {line}")
            for column, cell in zip(sheet.columns[1:], row[1:], strict=True)
            for line in cell.splitlines()
        ]
    return Text("\n").join(shown)


@contextmanager
def refreshing() -> Iterator[Callable[[Sequence[Sheet]], None]]:
    """Yields `show(sheets)`: drawn in place on a terminal, elsewhere written where they changed."""
    if not out.is_terminal:
        last: list[Sheet] = []

        def write(sheets: Sequence[Sheet]) -> None:
            if last != list(sheets):
                last[:] = sheets
                for sheet in sheets:
                    _print_sheet(sheet)
                out.print()  # so that a reader sees where one ends
                out.file.flush()

        yield write
        return
    with Live(console=out, auto_refresh=False, vertical_overflow="ellipsis") as live:
        yield lambda sheets: live.update(Group(*map(_drawn, sheets)), refresh=True)


def _has_bars() -> bool:
    """Whether bars can move here: in a terminal, and in a notebook that has ipywidgets."""
    return err.is_terminal or (err.is_jupyter and find_spec("ipywidgets") is not None)


@contextmanager
def counting(description: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
    """Shows how far a count of `total` things has come; yields `update(completed, note)`.

    On a terminal it is a bar; elsewhere a line a minute, also where nothing has moved. A `total` of
    0 says that nobody can tell.
    """
    if not total:
        with waiting(description):
            yield lambda *_: None
        return
    if not _has_bars():
        with Heartbeat(description, total, unit, say) as beats:
            yield beats.update
        return
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit, markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=err,
    ) as progress:
        task = progress.add_task(description, total=total, note="")

        def update(completed: int, note: str = "") -> None:
            progress.update(task, completed=completed, note=note)

        yield update


@contextmanager
def advancing(description: str, total: int, unit: str) -> Iterator[Advance]:
    """As `counting`, for what tells how many more are done; yields `advance(more)`."""
    with counting(description, total, unit) as update:
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            update(done)

        yield advance


@contextmanager
def waiting(description: str) -> Iterator[None]:
    """Shows that something is under way whose end nobody can tell, as `counting` does."""
    if err.is_terminal:
        with err.status(Text(description)):
            yield
        return
    with Heartbeat(description, 0, "", say):
        yield


@contextmanager
def moving_bytes(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how far `total` bytes have come; yields `advance(count)`.

    On a terminal it is a bar; elsewhere a line a minute, also where nothing has moved.
    """
    if not _has_bars():
        with Heartbeat(description, total, "bytes", say) as beats:
            yield beats.advance
        return
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=err,
    ) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.advance(task, count)

"""`ddm-coord status`: who is where, once or until Ctrl-C, for people and for machines."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import count as counting
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli.options import CoordinatorOption
from ddm_fed import console
from ddm_fed.commands.options import JsonOption, finite
from ddm_fed.errors import OptionError

if TYPE_CHECKING:
    from coordinator.status.report import StatusReport
    from coordinator.workspace import CoordinatorFolder

WATCHED_REFUSALS = 5  # the newest; a terminal has few lines


def status(
    coordinator: CoordinatorOption = Path(),
    as_json: JsonOption = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show what changes, until Ctrl-C.")
    ] = False,
    every: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="With --watch: how often to look again.",
            min=0.1,
            max=3600,
            callback=finite,
            show_default="2",
        ),
    ] = None,
    prometheus: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Instead, write metrics for Prometheus to this file, for the textfile "
            "collector of node_exporter. It reads files whose name ends in .prom.",
            dir_okay=False,
        ),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--count", help="Look so many times.", min=1, hidden=True)
    ] = None,
) -> None:
    """Show who is enrolled, what arrived, what was admitted or refused, and what comes next.

    With --watch it only looks, so it may run while other commands work, as often as you like.

    Examples: ddm-coord status · ddm-coord status --watch · ddm-coord status --prometheus
    /var/lib/node_exporter/ddm_fed.prom
    """
    if as_json and prometheus is not None:
        raise OptionError(
            "--json and --prometheus are two forms of one answer", hint="leave one of them out"
        )
    if every is not None and not watch:
        raise OptionError("--every belongs to --watch", hint="give --watch as well")
    every = 2.0 if every is None else every
    with suppress(KeyboardInterrupt):  # the way to end --watch
        if prometheus is not None:
            _write_metrics(coordinator, prometheus, every, rounds if watch else 1)
        elif watch:
            _watch(coordinator, every, rounds, as_json=as_json)
        else:
            _show_once(coordinator, as_json=as_json)


def _show_once(coordinator: Path, *, as_json: bool) -> None:
    from coordinator.inbox.admission import recover_if_published
    from coordinator.status.report import settled_states
    from coordinator.workspace import CoordinatorFolder

    home = CoordinatorFolder.open(coordinator)
    if not home.is_busy():  # then a kill may have left something to finish
        with home.changing():
            recover_if_published(home)
    report = settled_states(home)
    if as_json:
        console.show_json(report.as_json())
        return
    for sheet in _sheets(report):
        console.show_table(*sheet)


def _watch(coordinator: Path, every: float, rounds: int | None, *, as_json: bool) -> None:
    from coordinator.workspace import CoordinatorFolder

    home, last = CoordinatorFolder.open(coordinator), None
    if as_json:
        for report in _reports(home, every, rounds):
            if report != last:
                console.show_json_line(report.as_json())
            last = report
        return
    with console.refreshing() as show:
        for report in _reports(home, every, rounds):
            show(_sheets(report, newest=WATCHED_REFUSALS))


def _write_metrics(coordinator: Path, file: Path, every: float, rounds: int | None) -> None:
    from coordinator.status.metrics import exposition, write_textfile
    from coordinator.workspace import CoordinatorFolder

    home = CoordinatorFolder.open(coordinator)
    for report in _reports(home, every, rounds):
        write_textfile(file, exposition(home, report))


def _reports(
    home: "CoordinatorFolder", every: float, rounds: int | None
) -> "Iterator[StatusReport]":
    """Yields what is the case, again and again. It takes no lock: nobody has to wait for it."""
    from coordinator.status.report import settled_states

    for number in counting(1):
        yield settled_states(home)
        if number == rounds:
            return
        sleep(every)


def _sheets(report: "StatusReport", *, newest: int | None = None) -> list[console.Sheet]:
    from coordinator.status.tables import (
        REFUSED_COLUMNS,
        REQUEST_COLUMNS,
        SITE_COLUMNS,
        refused_cells,
        request_cells,
        site_cells,
    )
    from ddm_fed.records import now

    moment, refused = now(), report.refused
    sites = [site_cells(row, moment) for row in report.sites]
    sheets = [console.Sheet(f"{report.federation}: sites", SITE_COLUMNS, sites)]
    if report.requests:
        rows = [request_cells(row) for row in report.requests]
        sheets.append(console.Sheet("Requests that wait for you", REQUEST_COLUMNS, rows))
    if refused:
        shown = refused if newest is None else refused[-newest:]
        title = "Refused" if len(shown) == len(refused) else f"Refused, the last of {len(refused)}"
        sheets.append(console.Sheet(title, REFUSED_COLUMNS, [refused_cells(e) for e in shown]))
    return sheets

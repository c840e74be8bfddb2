"""What the web page answers: five paths, no input but the path, nothing that changes anything.

One reading of the folder serves everybody who asks at about the same time, so that many who ask
cost no more than one. Samples are shown only from a plain file that is a PNG of bounded size.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from coordinator.status.bundles import RefusalRow
from coordinator.status.metrics import CONTENT_TYPE, ServerMetrics, exposition
from coordinator.status.report import RequestRow, StatusReport, settled_states
from coordinator.status.tables import (
    REFUSED_COLUMNS,
    SITE_COLUMNS,
    clock,
    is_stalled,
    refused_cells,
    site_cells,
    site_detail,
)
from coordinator.workspace import CoordinatorFolder
from ddm_fed.errors import DdmFedError, FileSetError, printable
from ddm_fed.records import BundleState, now
from ddm_fed.report.page import with_code
from ddm_fed.storage.files import read_bounded

TEMPLATES = Path(__file__).with_name("templates")
REFRESH_S = 10
KEPT_S = 2.0  # how long a reading serves; longer where reading takes long
MAX_REFUSED = 50  # shown, the newest first; `ddm-coord status` has all
MAX_ARRIVALS = 50
MAX_PICTURE_BYTES = 16 << 20
MAX_SUMMARY_BYTES = 1 << 20
MAX_FOLDERS = 1000
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", b"IEND\xaeB`\x82"
GRID, SUMMARY = "grid.png", "samples.json"


@dataclass(frozen=True)
class Response:
    """An answer: its status, and what it is."""

    status: int
    content_type: str
    body: bytes


def text_response(status: int, text: str) -> Response:
    """Returns an answer of one line."""
    return Response(status, "text/plain; charset=utf-8", f"{text}\n".encode())


class Pages:
    """The pages of one coordinator.

    Args:
        home: The coordinator.
        metrics: What a server counts, where one runs.
        samples: A folder that `ddm-coord sample` made, or one that has such folders in it.
    """

    def __init__(
        self, home: CoordinatorFolder, metrics: ServerMetrics | None, samples: Path | None
    ) -> None:
        self._home, self._metrics, self._samples = home, metrics, samples
        self._reading = Lock()
        self._report: StatusReport | None = None
        self._fresh_until = 0.0
        environment = Environment(
            loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined
        )
        environment.filters |= {"clock": clock, "words": with_code}
        self._page = environment.get_template("status.html")
        self._style = (TEMPLATES / "status.css").read_bytes()
        self._routes: dict[str, Callable[[], Response]] = {
            "/": self._html,
            "/status.css": lambda: Response(200, "text/css; charset=utf-8", self._style),
            "/status.json": self._json,
            "/metrics": self._exposition,
            "/samples.png": self._picture,
            "/healthz": lambda: text_response(200, "ok"),
        }

    def answer(self, path: str) -> Response:
        """Returns the page at exactly `path`."""
        route = self._routes.get(path)
        if route is None:
            return text_response(404, "there is no such page")
        try:
            return route()
        except DdmFedError as error:  # its message may name folders of this machine
            return text_response(
                503, f"error {error.code}: `ddm-coord status` says what is wrong and what to do"
            )

    def _read(self) -> StatusReport:
        with self._reading:
            started = monotonic()
            if self._report is None or started >= self._fresh_until:
                self._report = settled_states(self._home)
                took = monotonic() - started
                self._fresh_until = started + took + max(KEPT_S, 5 * took)
            return self._report

    def _public(self, report: StatusReport) -> StatusReport:
        """Returns the report without what only this machine's people need, the newest first."""
        here = (str(self._home.path.resolve()),)
        names = ("at", "arrival", "claimed_site", "claim_signed", "code", "message")
        refused = [
            {name: _without(event.get(name), here) for name in names}
            for event in report.refused[: -MAX_REFUSED - 1 : -1]
        ]
        sites = [replace(row, refusal=_without_names(row.refusal, here)) for row in report.sites]
        return replace(
            report, sites=sites, refused=refused, arrivals=report.arrivals[:MAX_ARRIVALS]
        )

    def _json(self) -> Response:
        report = self._read()
        counts = {
            "refused_count": len(report.refused),
            "arrivals_count": len(report.arrivals),
        }
        body = json.dumps(self._public(report).as_json() | counts, indent=2).encode()
        return Response(200, "application/json", body)

    def _exposition(self) -> Response:
        return Response(200, CONTENT_TYPE, exposition(self._home, self._read(), self._metrics))

    def _html(self) -> Response:
        whole, moment = self._read(), now()
        report = self._public(whole)
        sites = [
            {
                "cells": list(zip(SITE_COLUMNS, site_cells(row, moment), strict=True)),
                "row": row,
                "detail": site_detail(row, moment),
                "stalled": row.upload is not None and is_stalled(row.upload, moment),
            }
            for row in report.sites
        ]
        text = self._page.render(
            report=report,
            sites=sites,
            site_columns=SITE_COLUMNS,
            admitted=sum(row.state is BundleState.ADMITTED for row in report.sites),
            refused_columns=REFUSED_COLUMNS,
            refused=[
                list(zip(REFUSED_COLUMNS, refused_cells(event), strict=True))
                for event in report.refused
            ],
            requests=[_words(request) for request in report.requests],
            refused_count=len(whole.refused),
            arrivals_count=len(whole.arrivals),
            picture=self._caption(report),
            read_at=f"{moment:%Y-%m-%dT%H:%M:%SZ}",
            refresh_s=REFRESH_S,
        )
        return Response(200, "text/html; charset=utf-8", text.encode())

    def _picture(self) -> Response:
        grid = self._grid()
        if grid is None:
            return text_response(404, "no samples were drawn yet")
        return Response(200, "image/png", grid[1])

    def _grid(self) -> tuple[Path, bytes] | None:
        """Returns the newest picture of samples that is one, and its folder."""
        for folder in _sample_folders(self._samples) if self._samples else ():
            with suppress(FileSetError, OSError):
                data = read_bounded(folder / GRID, MAX_PICTURE_BYTES)
                whole = data.startswith(PNG_START) and data.endswith(PNG_END)
                if whole and len(data) <= MAX_PICTURE_BYTES:
                    return folder, data
        return None

    def _caption(self, report: StatusReport) -> dict[str, Any] | None:
        """Returns what `samples.json` says about the picture: a digest, a number, staleness."""
        grid = self._grid()
        if grid is None:
            return None
        count, digest = None, None
        with suppress(FileSetError, OSError, ValueError, KeyError, TypeError, RecursionError):
            summary = json.loads(read_bounded(grid[0] / SUMMARY, MAX_SUMMARY_BYTES))
            count, digest = int(summary["count"]), printable(str(summary["ensemble_sha256"]))
        return {"count": count, "ensemble": digest, "stale": digest in report.stale_ensembles}


def _sample_folders(folder: Path) -> Iterator[Path]:
    """Yields the folder itself if it has a picture, else those in it, the newest first."""
    if os.path.lexists(folder / GRID):
        yield folder
        return
    found: list[tuple[int, Path]] = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in islice(entries, MAX_FOLDERS):
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                with suppress(OSError):
                    grid = Path(entry.path) / GRID
                    found.append((grid.lstat().st_mtime_ns, Path(entry.path)))
    yield from (path for _, path in sorted(found, reverse=True))


def _words(request: RequestRow) -> str:
    """Returns one line about a request that waits for approval."""
    facts = (f"{name.replace('_', ' ')}: {value}" for name, value in asdict(request).items())
    return printable(", ".join(facts))


def _without(value: Any, folders: tuple[str, ...]) -> Any:
    """Returns a text with the names of folders of this machine left out."""
    if not isinstance(value, str):
        return value
    for folder in folders:
        value = value.replace(f"{folder}/", "")
    return value


def _without_names(refusal: RefusalRow | None, folders: tuple[str, ...]) -> RefusalRow | None:
    if refusal is None:
        return None
    return replace(refusal, message=_without(refusal.message, folders))

"""A small read-only web server: the status of a coordinator, for a browser and for Prometheus.

It answers GET and HEAD of the pages in `coordinator.server.web_pages` and nothing else. Whoever
connects costs little: a gate (`coordinator.server.gate`) lets few in at a time, and a request is
at most 16 KiB and has five seconds to arrive. A name in `Host` that is not ours is
refused, so that no web site can make a visitor's browser read the page under its own name.
"""

import io
import re
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from threading import Thread
from time import monotonic
from types import TracebackType
from typing import Any, Self

from coordinator.server.gate import Gate
from coordinator.server.seats import seats
from coordinator.server.web_pages import Pages, Response, text_response
from coordinator.status.metrics import ServerMetrics
from coordinator.workspace import CoordinatorFolder
from ddm_fed import console

MAX_REQUEST_BYTES = 16 << 10
REQUEST_S, ANSWER_S = 5.0, 30.0
HEAD_S = 0.05  # it comes at once; there is no handshake
MAX_CONNECTIONS = 64  # that are answered at a time
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
HOST = re.compile(r"(?P<name>\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(?::[0-9]{1,5})?")
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class WebServer:
    """A web server at work in a thread of its own, until `close`; also a context manager."""

    url: str
    port: int
    _gate: Gate
    _server: "_Server"
    _thread: Thread

    def close(self) -> None:
        """Stops answering and frees the port."""
        self._gate.close()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def start_web(
    home: CoordinatorFolder,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    metrics: ServerMetrics | None = None,
    samples: Path | None = None,
    names: Sequence[str] = (),
) -> WebServer:
    """Returns a web server that shows `home` at `host` and `port`, already answering.

    Args:
        home: The coordinator. It is only read, and no lock is taken.
        host: The address to listen at.
        port: The port; 0 takes a free one.
        metrics: What a server counts, for `/metrics`.
        samples: A folder that `ddm-coord sample` made, or one that has such folders in it.
        names: Further names the page may be asked for by, such as that of a reverse proxy.

    Raises:
        MachineError: nobody can listen there.
    """
    own = f"[{host}]" if ":" in host else host
    allowed = frozenset(name.lower() for name in (*LOCAL_NAMES, own, *names))
    gate = Gate(
        f"{own}:{port}",
        seats(1 / 8, MAX_CONNECTIONS, 0, REQUEST_S + ANSWER_S, desk_s=HEAD_S),
        None if metrics is None else metrics.ended,
    )
    gate.open()
    behind = gate.folder / "web"
    server = _Server(str(behind), Pages(home, metrics, samples), allowed)
    thread = Thread(target=server.serve_forever, name="web", daemon=True)
    thread.start()
    gate.lead_to(behind)
    return WebServer(f"http://{own}:{gate.port}/", gate.port, gate, server, thread)


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    request_queue_size = 2 * MAX_CONNECTIONS

    def __init__(self, behind: str, pages: Pages, names: frozenset[str]) -> None:
        self.pages, self.names = pages, names
        super().__init__(behind, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        del request, client_address
        error = sys.exception()
        if not isinstance(error, OSError):  # those who hang up are no news
            console.say(f"the web page failed to answer: {type(error).__name__}: {error}")


class _TooLargeError(Exception):
    """A request went on beyond what any of ours needs."""


class _BoundedReader(io.RawIOBase):
    """Reads a socket up to a moment and up to a number of bytes, however slowly they drip."""

    def __init__(self, source: socket.socket) -> None:
        self._source, self._deadline = source, monotonic() + REQUEST_S
        self._left = MAX_REQUEST_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._left <= 0:
            raise _TooLargeError
        left_s = self._deadline - monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._source.settimeout(left_s)
        count = self._source.recv_into(memoryview(buffer)[: self._left])
        self._left -= count
        return count


class _Handler(BaseHTTPRequestHandler):
    """One request, then the connection closes."""

    server: _Server

    def setup(self) -> None:
        super().setup()
        self.rfile.close()  # it would wait as long as a peer likes
        self.rfile = io.BufferedReader(_BoundedReader(self.connection))
        self.command, self.close_connection = "", True

    def handle(self) -> None:
        try:
            self.raw_requestline = self.rfile.readline()
            if not self.raw_requestline:
                return
            if not self.raw_requestline.endswith(b"\n"):
                self._send(text_response(400, "the request broke off"))
            elif self.parse_request():
                self._send(self._answer())
        except _TooLargeError:
            self._send(text_response(431, f"a request is at most {MAX_REQUEST_BYTES} bytes"))
        except TimeoutError:
            self._send(text_response(408, "the request took too long"))

    def _answer(self) -> Response:
        if self.request_version not in ("HTTP/1.0", "HTTP/1.1"):
            return text_response(505, "HTTP/1.1 is spoken here")
        hosts = self.headers.get_all("Host") or []
        found = HOST.fullmatch(hosts[0].strip().lower()) if len(hosts) == 1 else None
        if found is None or found["name"] not in self.server.names:
            return text_response(421, "this name is not served here; see --web-name")
        if self.command not in ("GET", "HEAD"):
            return text_response(405, "this page is only read: GET or HEAD")
        return self.server.pages.answer(self.path)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers what the parser of the standard library refuses; never with its words."""
        del message, explain
        self._send(text_response(code, HTTPStatus(code).phrase.lower()))

    def _send(self, response: Response) -> None:
        lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}"]
        fields = HEADERS | {
            "Content-Type": response.content_type,
            "Content-Length": str(len(response.body)),
            "Date": self.date_time_string(),
            "Connection": "close",
        }
        if response.status == HTTPStatus.METHOD_NOT_ALLOWED:
            fields["Allow"] = "GET, HEAD"
        lines += [f"{name}: {value}" for name, value in fields.items()]
        head = "\r\n".join([*lines, "", ""]).encode("ascii")
        self.connection.settimeout(ANSWER_S)  # for all of it
        self.connection.sendall(head if self.command == "HEAD" else head + response.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Writes nothing: who asks for a status is no event."""

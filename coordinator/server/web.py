"""A small read-only web server: the status of a coordinator, for a browser and for Prometheus.

It answers GET and HEAD of the pages in `coordinator.server.web_pages` and nothing else. Whoever
connects costs little: a gate (`ddm_fed.listening.gate`) lets few in at a time, and a request is
at most 16 KiB and has five seconds to arrive. A name in `Host` that is not ours is
refused, so that no web site can make a visitor's browser read the page under its own name.
"""

import asyncio
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, Self

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from coordinator.server.web_pages import Pages, Response, text_response
from coordinator.status.metrics import ServerMetrics
from coordinator.workspace import CoordinatorFolder
from ddm_fed import console
from ddm_fed.listening import Gate, seats

MAX_REQUEST_BYTES, MAX_FIELDS = 16 << 10, 100
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
    _server: uvicorn.Server
    _thread: Thread

    def close(self) -> None:
        """Stops answering and frees the port."""
        self._gate.close()
        self._server.should_exit = True
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
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(behind))
    listener.listen(2 * MAX_CONNECTIONS)
    server = uvicorn.Server(
        uvicorn.Config(
            _Application(Pages(home, metrics, samples), allowed),
            http=_Protocol,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # those who hang up or talk nonsense are no news
            access_log=False,
            server_header=False,
            proxy_headers=False,
        )
    )
    thread = Thread(target=server.run, args=([listener],), name="web", daemon=True)
    thread.start()
    gate.lead_to(behind)
    return WebServer(f"http://{own}:{gate.port}/", gate.port, gate, server, thread)


class _Application:
    """Answers for uvicorn, as ASGI wants it."""

    def __init__(self, pages: Pages, names: frozenset[str]) -> None:
        self._pages, self._names = pages, names

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Sends the one answer to the request in `scope`, whatever its body is."""
        del receive
        response = await self._answer(scope)
        head = {"status": response.status, "headers": _fields(response)}
        await send({"type": "http.response.start", **head})
        await send({"type": "http.response.body", "body": response.body})

    async def _answer(self, scope: dict[str, Any]) -> Response:
        if scope["http_version"] not in ("1.0", "1.1"):
            return text_response(505, "HTTP/1.1 is spoken here")
        if len(scope["headers"]) > MAX_FIELDS:
            return text_response(431, f"a request has at most {MAX_FIELDS} header fields")
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        found = HOST.fullmatch(hosts[0].decode("latin-1").lower()) if len(hosts) == 1 else None
        if found is None or found["name"] not in self._names:
            return text_response(421, "this name is not served here; see --web-name")
        if scope["method"] not in ("GET", "HEAD"):
            return text_response(405, "this page is only read: GET or HEAD")
        path, query = scope["raw_path"].decode(), scope["query_string"].decode()
        answer = partial(self._pages.answer, f"{path}?{query}" if query else path)
        asked = asyncio.get_running_loop().run_in_executor(None, answer)
        await asyncio.wait([asked])
        error = asked.exception()
        if error is None:
            return asked.result()
        console.say(f"the web page failed to answer: {type(error).__name__}: {error}")
        return text_response(500, "the page failed; whoever runs this server can read why")


class _Protocol(H11Protocol):
    """One request that comes in time, one answer that is read in time, then the end."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._left = MAX_REQUEST_BYTES
        self._timer = self.loop.call_later(
            REQUEST_S, self._refuse, text_response(408, "the request took too long")
        )

    def data_received(self, data: bytes) -> None:
        if self.conn.their_state is not h11.IDLE:  # the head is here, and the rest is not read
            return
        self._left -= len(data)
        if self._left < 0:
            self._refuse(text_response(431, f"a request is at most {MAX_REQUEST_BYTES} bytes"))
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._give_time_to_read()

    def send_400_response(self, msg: str) -> None:
        """Answers what h11 refuses; never with its words."""
        del msg
        self._refuse(text_response(400, "this is no request of HTTP/1.1"))

    def _refuse(self, response: Response) -> None:
        fields = [*self.server_state.default_headers, *_fields(response)]
        reason = HTTPStatus(response.status).phrase.encode()
        head = h11.Response(status_code=response.status, headers=fields, reason=reason)
        for event in (head, h11.Data(data=response.body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._give_time_to_read()

    def _give_time_to_read(self) -> None:
        self._timer.cancel()
        self._timer = self.loop.call_later(ANSWER_S, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)


def _fields(response: Response) -> list[tuple[bytes, bytes]]:
    fields = HEADERS | {
        "Content-Type": response.content_type,
        "Content-Length": str(len(response.body)),
        "Connection": "close",
    }
    if response.status == HTTPStatus.METHOD_NOT_ALLOWED:
        fields["Allow"] = "GET, HEAD"
    return [(name.encode(), value.encode()) for name, value in fields.items()]

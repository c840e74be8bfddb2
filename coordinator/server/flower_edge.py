"""A small TLS edge in front of a SuperLink: it forwards what SuperNodes need, and nothing else.

A SuperLink serves three interfaces on one port. Through two of them, `/v1/control/` and
`/v1/runtime/`, whoever reaches the port can run a program on this machine. So it listens on
loopback, and only this listens to the world, through a gate (`ddm_fed.listening.gate`): whoever
has sent no whole head of a request waits there, on few seats and not for long. For large consortia
examples/flower holds the same as a configuration of nginx and of Caddy.

    python -m coordinator.server.flower_edge --listen 0.0.0.0:443 --superlink https://127.0.0.1:18000
        --superlink-ca ca.crt --certificate server.pem --key server.key
"""

import argparse
import asyncio
import re
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ddm_fed import console
from ddm_fed.errors import OptionError, SizeError
from ddm_fed.exchange.flower import MIB, missing_flower
from ddm_fed.listening import Gate, seats

try:
    import httpx
    import uvicorn
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import PlainTextResponse, Response, StreamingResponse
    from starlette.routing import Route
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ModuleNotFoundError:  # they come with Flower
    raise missing_flower() from None

FLEET = re.compile(rb"/v1/fleet/[a-z-]+")
"""The whole of a path that is forwarded: no dots, no escapes, no second slash, no query."""
MAX_BODY_BYTES = 32 * MIB  # Flower sends objects of at most 5 MiB
MAX_HEADER_BYTES = 16 << 10
TIMEOUT_S, PROGRESS_BYTES = 60.0, 64 << 10  # a body that brings less in that time is ended
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization te trailer trailers "
    b"transfer-encoding upgrade host forwarded x-forwarded-for x-forwarded-host x-forwarded-proto "
    b"x-real-ip expect".split()
)


@dataclass(frozen=True)
class Edge:
    """Where the edge stands.

    Attributes:
        host: Address to listen at.
        port: Port to listen at.
        certificate: PEM chain it shows to SuperNodes.
        key: Its private key.
        superlink: Address of the SuperLink, `https://127.0.0.1:PORT`.
        superlink_ca: PEM of whoever signed the SuperLink's certificate; None for `http://`.
        connections: Most connections at once.
    """

    host: str
    port: int
    certificate: Path
    key: Path
    superlink: str
    superlink_ca: Path | None
    connections: int = 256


def make_edge(
    superlink: str, superlink_ca: Path | None, gate: Gate, *, connections: int = 256
) -> Starlette:
    """Returns the web application that forwards to `superlink`.

    Args:
        superlink: Its address.
        superlink_ca: PEM of whoever signed its certificate.
        gate: In front of it; learns who sent a whole head.
        connections: Most at once.

    Raises:
        OptionError: `superlink` is not an address on this machine.
    """
    if not re.fullmatch(r"https?://(127\.0\.0\.1|\[::1\]|localhost):\d{1,5}", superlink):
        raise OptionError(
            f"--superlink {superlink}: not the address of a SuperLink on this machine",
            hint="start it with --host 127.0.0.1, and name it as https://127.0.0.1:PORT",
        )
    verify = ssl.create_default_context(cafile=superlink_ca) if superlink_ca else False
    client = httpx.AsyncClient(
        base_url=superlink,
        verify=verify,
        trust_env=False,  # no proxy between this and loopback
        follow_redirects=False,
        timeout=httpx.Timeout(60.0, connect=5.0, pool=30.0),
        limits=httpx.Limits(max_connections=connections),
    )

    async def forward(request: Request) -> Response:
        if request.client is not None:
            gate.judged(request.client.host, gate.address(request.client.host))
        return await _forward(client, request)

    @asynccontextmanager
    async def closing(_: Starlette) -> AsyncIterator[None]:
        yield
        await client.aclose()

    return Starlette(
        routes=[Route("/{path:path}", forward, methods=["POST"])],
        exception_handlers={404: _refuse, 405: _refuse},
        lifespan=closing,
    )


async def _refuse(_: Request, __: Exception | None = None) -> Response:
    return PlainTextResponse("only SuperNodes are served here\n", status_code=403)


async def _forward(client: httpx.AsyncClient, request: Request) -> Response:
    path = bytes(request.scope["raw_path"])
    if not FLEET.fullmatch(path) or request.scope["query_string"]:
        return await _refuse(request)
    headers = request.headers.raw
    if sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        return PlainTextResponse("the headers are too large\n", status_code=431)
    length = request.headers.get("content-length")
    if length is not None and "transfer-encoding" in request.headers:
        return PlainTextResponse("the body has two lengths\n", status_code=400)
    if length is not None and (not length.isdecimal() or int(length) > MAX_BODY_BYTES):
        return PlainTextResponse("the body is too large\n", status_code=413)
    outgoing = client.build_request(
        "POST",
        path.decode(),
        headers=[pair for pair in headers if pair[0].lower() not in HOP_BY_HOP],
        content=_bounded(request),
    )
    try:
        answer = await client.send(outgoing, stream=True)
    except SizeError:
        return PlainTextResponse("the body is too large\n", status_code=413)
    except TimeoutError:
        return PlainTextResponse("the body comes too slowly\n", status_code=408)
    except ClientDisconnect:
        return Response(status_code=499)
    except httpx.HTTPError:
        return PlainTextResponse("the SuperLink does not answer\n", status_code=502)
    response = StreamingResponse(
        answer.aiter_raw(), answer.status_code, background=BackgroundTask(answer.aclose)
    )
    response.raw_headers = [
        (name.lower(), value)
        for name, value in answer.headers.raw
        if name.lower() not in HOP_BY_HOP
    ]
    return response


async def _bounded(request: Request) -> AsyncIterator[bytes]:
    """Yields the body as it comes, so that nothing of it is kept here."""
    taken = marked = 0
    chunks = aiter(request.stream())
    loop = asyncio.get_running_loop()
    until = loop.time() + TIMEOUT_S
    while True:
        async with asyncio.timeout_at(until):
            chunk = await anext(chunks, None)
        if chunk is None:
            return
        taken += len(chunk)
        if taken - marked >= PROGRESS_BYTES:
            marked, until = taken, loop.time() + TIMEOUT_S
        if taken > MAX_BODY_BYTES:
            raise SizeError(
                f"a body of more than {MAX_BODY_BYTES} bytes",
                hint="a SuperNode sends objects of 5 MiB; this is none",
            )
        yield chunk


class _NamedProtocol(H11Protocol):
    """HTTP/1.1 whose client is the name that the gate gave to the connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.client = str(transport.get_extra_info("peername")), 0


def serve(edge: Edge) -> None:
    """Listens until it is stopped. Connections beyond the limit get 503.

    Raises:
        MachineError: nobody can listen there.
    """
    own = f"[{edge.host}]" if ":" in edge.host else edge.host
    gate = Gate(f"{own}:{edge.port}", seats(1, edge.connections, edge.connections))
    gate.open()
    behind = gate.folder / "edge"
    server = uvicorn.Server(
        uvicorn.Config(
            make_edge(edge.superlink, edge.superlink_ca, gate, connections=edge.connections),
            uds=str(behind),
            http=_NamedProtocol,
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ssl_certfile=edge.certificate,
            ssl_keyfile=str(edge.key),
            limit_concurrency=2 * edge.connections,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=5,
        )
    )
    gate.lead_to(behind)
    # uvicorn sends itself the signal again that ended it: as this, it still lets us tidy up
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt):
            server.run()
    finally:
        gate.close()


def main() -> None:
    """Runs the edge from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m coordinator.server.flower_edge", description=__doc__
    )
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--certificate", required=True, type=Path)
    parser.add_argument("--key", required=True, type=Path)
    parser.add_argument("--superlink", required=True, metavar="https://127.0.0.1:PORT")
    parser.add_argument("--superlink-ca", type=Path)
    parser.add_argument("--connections", type=int, default=256)
    given = parser.parse_args()
    host, _, port = given.listen.rpartition(":")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        parser.error("--listen is HOST:PORT, for example 0.0.0.0:443 or [::]:443")
    edge = Edge(
        host=host.strip("[]"),
        port=int(port),
        certificate=given.certificate,
        key=given.key,
        superlink=given.superlink,
        superlink_ca=given.superlink_ca,
        connections=given.connections,
    )
    console.run(lambda: serve(edge))


if __name__ == "__main__":
    main()

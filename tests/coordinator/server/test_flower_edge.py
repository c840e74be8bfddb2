"""An edge by itself, in front of a server that says what reached it: paths, bodies, headers.

The same table for our own small edge and for the configurations of nginx and Caddy in examples/,
where those programs are installed.
"""

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flower_deployment import APP, write_tls
from hostile import attacking
from ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
MIB = 1 << 20
DEPLOY = APP.parent / "deploy"
OTHERS = ("nginx", "caddy")
UPSTREAM = """
import hashlib, sys
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

async def said(request):
    digest, size = hashlib.sha256(), 0
    async for chunk in request.stream():
        digest.update(chunk)
        size += len(chunk)
    if request.headers.get("x-answer-mib"):
        async def many():
            for _ in range(int(request.headers["x-answer-mib"])):
                yield bytes(1 << 20)
        return StreamingResponse(many(), 207)
    return JSONResponse({
        "method": request.method, "path": request.url.path, "bytes": size,
        "sha256": digest.hexdigest(), "headers": dict(request.headers),
    })

app = Starlette(routes=[Route("/{path:path}", said, methods=["GET", "POST", "PUT", "DELETE"])])
uvicorn.run(
    app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning",
    ssl_certfile="server.pem", ssl_keyfile="server.key",
)
"""


class Edge:
    """A running edge; requests are written as they are, nothing is tidied on the way."""

    def __init__(self, kind: str, folder: Path, port: int, process: subprocess.Popen) -> None:
        self.kind, self.folder, self.port, self.process = kind, folder, port, process
        self._trusted = ssl.create_default_context(cafile=str(folder / "ca.crt"))

    def connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(
            "localhost", self.port, timeout=30, context=self._trusted
        )

    def ask(self, path, body=b"", method="POST", headers=(), **options):
        connection = self.connect()
        try:
            connection.request(method, path, body, dict(headers), **options)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def raw(self, text: bytes) -> bytes:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        with self._trusted.wrap_socket(plain, server_hostname="localhost") as secure:
            secure.sendall(text)
            return secure.recv(100)

    def peak_mib(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) >> 10


def wait_for_port(port: int) -> None:
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(port)


def adapted(name: str, folder: Path, port: int, upstream: int) -> str:
    """Returns a configuration of examples/ with the paths and ports of this test."""
    text = (DEPLOY / name).read_text()
    for found, put in (
        ("/etc/ddm/", f"{folder}/"),
        ("/var/log/nginx/", f"{folder}/"),
        ("listen 443", f"listen 127.0.0.1:{port}"),
        ("127.0.0.1:18000", f"127.0.0.1:{upstream}"),
        ("server_name fleet.example.org", "server_name localhost"),
        ("\n:443 {", f"\n:{port} {{\nbind 127.0.0.1\n"),
    ):
        text = text.replace(found, put)
    return text


def start_edge(kind: str, folder: Path, upstream: int) -> tuple[subprocess.Popen, int]:
    port = free_port()
    match kind:
        case "ours":
            words = [
                sys.executable,
                "-m",
                "coordinator.server.flower_edge",
                "--listen",
                f"127.0.0.1:{port}",
            ]
            words += ["--certificate", "server.pem", "--key", "server.key"]
            words += ["--superlink", f"https://localhost:{upstream}", "--superlink-ca", "ca.crt"]
        case "nginx":
            inner = adapted("nginx.conf", folder, port, upstream)
            temporary = "".join(
                f"{name}_temp_path {folder}/{name};"
                for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            )
            whole = f"daemon off; pid {folder}/pid; error_log {folder}/errors; worker_processes 1;"
            if os.geteuid() == 0:
                whole += "user root;"
            whole += f"events {{}} http {{ {temporary} {inner} }}"
            (folder / "whole.conf").write_text(whole)
            words = ["nginx", "-c", str(folder / "whole.conf"), "-e", str(folder / "errors")]
        case _:
            (folder / "Caddyfile").write_text(adapted("Caddyfile", folder, port, upstream))
            words = ["caddy", "run", "--config", "Caddyfile", "--adapter", "caddyfile"]
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(words, cwd=folder, stdout=said, stderr=said)
    wait_for_port(port)
    return process, port


@pytest.fixture(scope="module", params=["ours", *filter(shutil.which, OTHERS)])
def edge(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("edge")
    write_tls(folder)
    (folder / "upstream.py").write_text(UPSTREAM)
    upstream = free_port()
    server = subprocess.Popen([sys.executable, "upstream.py", str(upstream)], cwd=folder)
    wait_for_port(upstream)
    process, port = start_edge(request.param, folder, upstream)
    yield Edge(request.param, folder, port, process)
    for one in (process, server):
        one.terminate()
        one.wait(20)


@pytest.fixture
def ours(edge):
    if edge.kind != "ours":
        pytest.skip("only our own edge promises it")
    return edge


FLEET = "/v1/fleet/push-object"


@pytest.mark.parametrize("program", OTHERS)
def test_configuration_of_another_program_is_tried(program):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed: its configuration was not tried")


def test_fleet_request_arrives_as_it_was_sent(edge):
    status, answer = edge.ask(FLEET, b"abc", headers={"flwr-public-key": "k", "x-other": "1"})

    found = json.loads(answer)
    assert status == 200
    assert (found["method"], found["path"], found["bytes"]) == ("POST", FLEET, 3)
    assert found["headers"]["flwr-public-key"] == "k"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/runtime/get-nodes",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/..%2fcontrol/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/.",
        "/v1/fleet//x",
        "/v1/fleet/x/y",
        "/v1/fleet/x;y",
        "/v1/fleet/x\\y",
        "/v1/fleet/X",
        "/v1/fleet/x?y",
        "/v1/fleet/x#y",
        "/v1%2ffleet/x",
        "/v1/fleet",
        "/v1/fleet/",
        "//v1/fleet/x",
        "http://127.0.0.1/v1/control/x",
        "*",
    ],
)
def test_any_other_path_is_refused_whatever_it_looks_like(edge, path):
    answer = edge.raw(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())

    assert answer.startswith((b"HTTP/1.1 403", b"HTTP/1.1 400"))


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT"])
def test_any_other_method_is_refused(edge, method):
    status, _ = edge.ask(FLEET, method=method)

    assert status == 403 if edge.kind == "ours" else status in (400, 403, 405)


def test_large_body_passes_and_is_not_held_in_memory(edge):
    before = edge.peak_mib()
    body = bytes(30 * MIB)
    for _ in range(4):
        status, answer = edge.ask(FLEET, body)
        assert (status, json.loads(answer)["bytes"]) == (200, len(body))

    assert edge.peak_mib() - before < 20


def test_large_answer_passes_and_is_not_held_in_memory(edge):
    before = edge.peak_mib()
    status, answer = edge.ask(FLEET, headers={"x-answer-mib": "100"})

    assert (status, len(answer)) == (207, 100 * MIB)
    assert edge.peak_mib() - before < 30


def test_body_that_says_it_is_too_large_is_refused_before_it_is_read(edge):
    head = f"POST {FLEET} HTTP/1.1\r\nHost: x\r\nContent-Length: {33 * MIB}\r\n\r\n"

    if edge.kind == "caddy":
        pytest.skip("Caddy counts what it reads; see the next test")
    assert edge.raw(head.encode()).startswith(b"HTTP/1.1 413")


def test_body_that_grows_too_large_is_refused(edge):
    chunks = (bytes(MIB) for _ in range(40))
    try:
        status, _ = edge.ask(FLEET, chunks, encode_chunked=True)
    except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
        return  # it hung up while we were sending
    assert status == 413


def test_header_that_is_too_large_is_refused(edge):
    head = f"POST {FLEET} HTTP/1.1\r\nHost: x\r\nX-Long: {'a' * 40_000}\r\n\r\n"

    assert edge.raw(head.encode()).startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))


def test_two_lengths_are_refused(edge):
    head = f"POST {FLEET} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 40\r\n\r\nabc"

    assert edge.raw(head.encode()).startswith(b"HTTP/1.1 400")


def test_length_and_chunks_at_once_do_not_smuggle_a_request(edge):
    body = b"0\r\n\r\nPOST /v1/control/start-run HTTP/1.1\r\nHost: x\r\n\r\n"
    head = (
        f"POST {FLEET} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )

    answer = edge.raw(head.encode() + body)

    if edge.kind == "caddy":  # takes the chunks, drops the length, and refuses the second by itself
        assert answer.startswith(b"HTTP/1.1 200 OK\r\nContent-Length: 2")
    else:
        assert answer.startswith(b"HTTP/1.1 400")


def test_headers_between_proxies_are_not_passed_on(edge):
    told = {"x-forwarded-for": "127.0.0.1", "forwarded": "for=127.0.0.1", "x-real-ip": "127.0.0.1"}

    _, answer = edge.ask(FLEET, headers={**told, "connection": "close"})

    assert not told.keys() & json.loads(answer)["headers"].keys()


def test_plain_http_gets_nothing(edge):
    with socket.create_connection(("127.0.0.1", edge.port), timeout=10) as plain:
        plain.sendall(f"POST {FLEET} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        try:
            answer = plain.recv(100)
        except ConnectionResetError:
            answer = b""

    assert not answer.startswith(b"HTTP/1.1 2")


def test_superlink_that_does_not_answer_is_a_bad_gateway_and_the_edge_stays(ours):
    process, port = start_edge("ours", ours.folder, free_port())
    try:
        lonely = Edge("ours", ours.folder, port, process)
        assert [lonely.ask(FLEET)[0] for _ in range(2)] == [502, 502]
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize(("kind", "count"), [("tcp", 1200), ("hello", 200), ("body", 300)])
def test_clients_that_never_finish_keep_no_other_waiting(ours, kind, count):
    with attacking(kind, ours.port, count, path=FLEET):
        for _ in range(3):
            began = time.monotonic()
            assert ask_again(ours) == 200
            assert time.monotonic() - began < 10


def ask_again(edge: Edge) -> int:
    """Asks as a SuperNode does: again, when it was turned away."""
    for _ in range(20):
        try:
            return edge.ask(FLEET, b"abc")[0]
        except (OSError, http.client.HTTPException):
            time.sleep(0.2)
    raise TimeoutError


def test_body_that_drips_is_ended(monkeypatch):
    """What the edge reads bodies with, from a client that sends a byte now and then."""
    import asyncio

    from starlette.requests import Request

    from coordinator.server import flower_edge as module

    monkeypatch.setattr(module, "TIMEOUT_S", 0.5)

    async def drips():
        await asyncio.sleep(0.1)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def read() -> None:
        async for _ in module._bounded(Request({"type": "http", "headers": []}, drips)):
            pass

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        asyncio.run(read())
    assert time.monotonic() - began < 3

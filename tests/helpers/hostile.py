"""Clients that mean harm, as programs of their own: they hold what they can get and never finish.

    python hostile.py KIND --port PORT [--count N] [--certificate PEM --key PEM] [--path /S/Method]

Each keeps N of its kind open until stdin is closed, and begins anew whatever the server ended, so
that a limit in time alone does not hold them. They speak HTTP/2 by themselves: a library would keep
to what the server asks for. Loaded by conftest.py; `benchmarks/hostile_waiting.py` starts them too.

    tcp        connections that say nothing
    hello      connections that stop after the first message of a TLS handshake
    call       calls whose message never comes, STREAMS of them on each connection
    greedy     the same, all on one connection, whose SETTINGS are never acknowledged
    unread     whole calls whose answer is never read: no window is opened for it
    head       the beginning of an HTTP/1.1 request in the clear
    body       HTTP/1.1 over TLS: a whole head, then a byte of the body a second
"""

import argparse
import json
import select
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STREAMS = 8
DATA, HEADERS, RESET, SETTINGS = 0, 1, 3, 4
NO_WINDOW = b"\x00\x04\x00\x00\x00\x00"
ACK, END_STREAM, END_HEADERS = 1, 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Returns an HTTP/2 frame."""
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


def opened_call(stream: int, path: str) -> bytes:
    """Returns the head of a gRPC call; its message would have to follow."""
    fields = {
        ":method": "POST",
        ":scheme": "https",
        ":path": path,
        ":authority": "coordinator.ddm-fed",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    return frame(HEADERS, END_HEADERS, stream, block)


def tls_context(certificate: str | None, key: str | None, alpn: str = "h2") -> ssl.SSLContext:
    """Returns what a client needs that believes everybody."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    if certificate:
        context.load_cert_chain(certificate, key)
    return context


def first_message_of_tls() -> bytes:
    """Returns a true ClientHello."""
    outgoing = ssl.MemoryBIO()
    ours = tls_context(None, None).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="x")
    with suppress(ssl.SSLWantReadError):
        ours.do_handshake()
    return outgoing.read()


def connected(options: argparse.Namespace) -> socket.socket:
    """Returns a TCP connection from the address that was asked for."""
    source = (options.source, 0) if options.source else None
    return socket.create_connection(("127.0.0.1", options.port), 5, source)


def opener(options: argparse.Namespace) -> "Callable[[], Held]":
    """Returns what opens one connection of this kind and brings it to where it stays."""
    kind, path = options.kind, options.path
    hello = first_message_of_tls()
    alpn = "http/1.1" if kind == "body" else "h2"
    context = tls_context(options.certificate, options.key, alpn)
    streams = {"greedy": options.count, "call": min(options.count, STREAMS), "unread": 1}.get(
        kind, 0
    )

    def begin() -> Held:
        peer = connected(options)
        if kind == "hello":
            peer.sendall(hello)
        elif kind == "head":
            peer.sendall(b"GET / HT")
        elif kind != "tcp":
            peer = context.wrap_socket(peer, server_hostname="coordinator.ddm-fed")
            if kind == "body":
                lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Length: 9000", "", ""]
                peer.sendall("\r\n".join(lines).encode())
            else:
                asked = NO_WINDOW if kind == "unread" else b""
                acknowledged = b"" if kind == "greedy" else frame(SETTINGS, ACK, 0)
                peer.sendall(PREFACE + frame(SETTINGS, 0, 0, asked) + acknowledged)
                peer.sendall(b"".join(opened_call(1 + 2 * n, path) for n in range(streams)))
                if kind == "unread":
                    wish = bytes.fromhex(options.message)
                    whole = b"\x00" + len(wish).to_bytes(4, "big") + wish
                    peer.sendall(frame(DATA, END_STREAM, 1, whole))
        peer.setblocking(False)
        return Held(peer, path if kind in ("call", "greedy") else None, streams)

    return begin


class Held:
    """One connection that is kept, and the calls on it, which begin anew when they are ended."""

    def __init__(self, connection: socket.socket, path: str | None, streams: int) -> None:
        self.connection, self._path = connection, path
        self._next, self._buffer = 1 + 2 * streams, b""

    def goes_on(self) -> bool:
        """Reads what there is; returns whether the other side still keeps the connection."""
        try:
            while data := self.connection.recv(65536):
                if self._path is not None:
                    self._answer(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return True
        except OSError:
            return False
        else:
            return False

    def _answer(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 9:
            size = int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < 9 + size:
                return
            kind, flags = self._buffer[3], self._buffer[4]
            if kind == RESET or (kind == HEADERS and flags & END_STREAM):
                self.connection.send(opened_call(self._next, self._path))
                self._next += 2
            self._buffer = self._buffer[9 + size :]


def hold(options: argparse.Namespace) -> None:
    """Keeps the connections of one kind open until stdin ends; says once when they first were."""
    begin, held = opener(options), dict[int, Held]()
    wanted = {"call": -(-options.count // STREAMS), "greedy": 1}.get(options.kind, options.count)
    said, began, dripped = False, time.monotonic(), time.monotonic()
    while not select.select([sys.stdin], [], [], 0.02)[0]:
        for number in [n for n, item in held.items() if not item.goes_on()]:
            held.pop(number).connection.close()
        for number in range(wanted):
            if number not in held:
                with suppress(OSError):
                    held[number] = begin()
        if options.kind == "body" and time.monotonic() - dripped > 1:
            dripped = time.monotonic()
            for item in held.values():
                with suppress(OSError):
                    item.connection.send(b"x")
        if not said and (len(held) >= wanted or time.monotonic() - began > 3):
            said = True
            sys.stdout.write(json.dumps({"held": len(held)}) + "\n")
            sys.stdout.flush()


@contextmanager
def attacking(kind: str, port: int, count: int, **options: str | Path | None) -> Iterator[int]:
    """Runs one of these clients as a process during the block; yields how many it first held.

    Args:
        kind: See above.
        port: Of the server, on this machine.
        count: How many it tries to hold.
        options: `certificate`, `key`, `path`, `message`, `source`.
    """
    words = [sys.executable, __file__, kind, "--port", str(port), "--count", str(count)]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield json.loads(process.stdout.readline())["held"]
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def main() -> None:
    """Runs one attack from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "kind", choices=["tcp", "hello", "call", "greedy", "unread", "head", "body"]
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--certificate")
    parser.add_argument("--key")
    parser.add_argument("--path", default="/ddm_fed.exchange.v1.ExchangeService/GetPlan")
    parser.add_argument("--message", default="", help="of a whole call, as hex")
    parser.add_argument("--source", help="address of this machine to come from")
    hold(parser.parse_args())


if __name__ == "__main__":
    main()

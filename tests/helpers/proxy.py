"""A bad link: a TCP proxy on loopback that cuts, freezes and refuses. Loaded by conftest.py."""

import socket
import threading
from collections.abc import Iterable
from contextlib import suppress
from time import sleep


class BadLink:
    """Forwards connections to a port of this machine, badly.

    Args:
        port: Where to.
        cuts: Bytes that went to the server in all, at each of which every connection is cut.
        bytes_per_s: Speed towards the server; None is as fast as it goes.
    """

    def __init__(self, port: int, *, cuts: Iterable[int] = (), bytes_per_s: float | None = None):
        self.target, self.cuts, self.bytes_per_s = port, sorted(cuts), bytes_per_s
        self.carried = self.cut = 0
        self.frozen = threading.Event()
        self.refusing = False
        self._lock, self._ended = threading.Lock(), False
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "BadLink":
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self.frozen.clear()
        self._listener.close()
        self.drop()

    def drop(self) -> None:
        """Cuts everything that is connected now, as a dead router does: with a reset."""
        with self._lock:
            ended, self._open = self._open, set()
        for end in ended:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        while not self._ended:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refusing:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.target), timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self._lock:
                self._open |= {client, server}
            for source, uploads, counted in ((client, server, True), (server, client, False)):
                threading.Thread(
                    target=self._carry, args=(source, uploads, counted), daemon=True
                ).start()

    def _carry(self, source: socket.socket, uploads: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(16_384):
                while self.frozen.is_set() and not self._ended:
                    sleep(0.05)
                if counted:
                    with self._lock:
                        self.carried += len(data)
                        hit = bool(self.cuts) and self.carried >= self.cuts[0]
                        if hit:
                            self.cuts.pop(0)
                            self.cut += 1
                    if hit:
                        self.drop()
                        return
                    if self.bytes_per_s is not None:
                        sleep(len(data) / self.bytes_per_s)
                uploads.sendall(data)
        for end in (source, uploads):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

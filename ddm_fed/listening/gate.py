"""The gate in front of a port: who may hold a connection, before anything behind it is theirs.

A server gives whoever connects a descriptor, buffers and a handshake, and only then learns who it
is. So no server of ours listens itself. The gate does, and carries bytes, unread, to a server
behind a socket in a folder of our own user:

    lobby    it is connected: one descriptor, nothing behind the gate
    desk     it said something: carried to the server, which has to find out who it is
    known    the server did (`Gate.judged`)

Each has so many seats, and they are shared fairly: by address in the lobby and at the desk, by name
among those who are known. In the lobby who says nothing goes first. The rest stand in line, and are
called to the desk by turns of addresses. There everybody has a moment for its handshake, then
whoever holds most seats gives one up to who is in line, one that never answered the server first.
So a flood ends its own connections, and who is about to say who it is has the time to do so.
"""

import asyncio
import ipaddress
import os
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Any, cast

from ddm_fed import console
from ddm_fed.errors import MachineError, QuotaError
from ddm_fed.listening.connection_limits import Room, Seats

BACKLOG = 1024
MOST_REFUSED = 200  # calls of one connection
TELL_S = 1.0  # at most so often a line says what was ended
ACCEPT_AT_ONCE, ACCEPT_PAUSE_S = 8, 0.1  # what is here already is served between two such
REACH_TRIES, REACH_PAUSE_S = 100, 0.01
MAX_SOCKET_PATH = 100  # bytes; the system takes little more


class Gate:
    """Listens at a public port. Its methods may be called from any thread.

    Args:
        address: HOST:PORT; port 0 takes a free one.
        room: How many connections it keeps.
        ended: Counts connections that were ended, by the reason.
    """

    def __init__(
        self, address: str, room: Seats, ended: Callable[[str, int], None] | None = None
    ) -> None:
        self._address, self._count = address, ended
        self.wait_s, self._desk_s = room.wait_s, room.desk_s
        self._lobby: Room[_Inbound] = Room(room.lobby)
        self._desk: Room[_Inbound] = Room(room.desk)
        self._known: Room[_Inbound] = Room(room.known)
        self._line: dict[str, dict[_Inbound, None]] = {}
        self._calling: asyncio.TimerHandle | None = None
        self._there: dict[str, _Inbound] = {}
        self._numbers = 0
        self._behind: Path | None = None
        self._ended: Counter[str] = Counter()
        self._from: Counter[str] = Counter()
        self._entering: set[asyncio.Task[None]] = set()
        self.port = 0

    def open(self) -> None:
        """Begins to listen; until `lead_to` whoever connects waits.

        Raises:
            MachineError: it cannot.
        """
        try:
            listener = _listener(self._address)
        except (OSError, ValueError, OverflowError) as error:
            raise MachineError(
                f"cannot listen on {self._address}: {getattr(error, 'strerror', None) or error}",
                hint="another program listens there, or the host is not this machine's: choose "
                "another port or host",
            ) from None
        self.folder = Path(tempfile.mkdtemp(prefix="ddm-fed-"))  # for our user alone
        if len(os.fsencode(self.folder)) > MAX_SOCKET_PATH - 20:
            listener.close()
            self._drop_folder()
            raise MachineError(
                f"the path of {self.folder} is too long for sockets",
                hint="set TMPDIR to a folder with a shorter path, such as /tmp",
            )
        self._listener, self._loop = listener, asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="gate", daemon=True)
        self._thread.start()
        self._loop.call_soon_threadsafe(self._listen)
        self.port = listener.getsockname()[1]

    def _run(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result()

    def _listen(self) -> None:
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPT_AT_ONCE):
            try:
                taken, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:  # no descriptor is left: what waits outside goes on waiting
                self._loop.remove_reader(self._listener)
                self._loop.call_later(ACCEPT_PAUSE_S, self._listen)
                return
            taken.setblocking(False)
            entering = self._loop.create_task(self._enter(taken))
            self._entering.add(entering)
            entering.add_done_callback(self._entering.discard)

    async def _enter(self, taken: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: _Inbound(self), taken)
        except OSError:
            taken.close()

    def lead_to(self, behind: Path) -> None:
        """Brings whoever connects from now on to the server at this socket."""
        self._behind = behind

    def judged(self, peer: str, holder: str) -> None:
        """Says who is at the other end; what gRPC calls `peer`, or the name of the socket."""
        self._soon(lambda connection: connection.sit_down(holder), peer)

    def _soon(self, do: Callable[["_Inbound"], None], peer: str) -> None:
        connection = self._there.get(peer.rpartition("/")[2])
        if connection is not None and not self._loop.is_closed():
            with suppress(RuntimeError):  # it was closed just now
                self._loop.call_soon_threadsafe(do, connection)

    @contextmanager
    def counting_refusals(self, peer: str) -> Iterator[None]:
        """Ends a connection of which so many calls were refused that it is no mistake."""
        try:
            yield
        except QuotaError:
            self._soon(lambda connection: connection.was_refused(), peer)
            raise

    def address(self, peer: str) -> str:
        """Returns where a connection came from: an address, or the network of one of IPv6."""
        connection = self._there.get(peer.rpartition("/")[2])
        return "gone" if connection is None else connection.address

    def close(self) -> None:
        """Takes no more connections, and ends those there are."""
        if self.port == 0 or self._loop.is_closed():
            return
        self._run(self._leave())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._drop_folder()

    async def _leave(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()
        if self._entering:
            await asyncio.wait(self._entering)
        for connection in list(self._there.values()):
            connection.close()
        self._tell()
        for _ in range(3):
            await asyncio.sleep(0)  # what was closed says so in the next rounds

    def _drop_folder(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    # What connections ask, in the gate's thread

    def enter(self, connection: "_Inbound") -> str:
        """Gives a new connection a name and a seat; somebody else may lose one."""
        self._numbers += 1
        name = str(self._numbers)
        self._there[name] = connection
        self._lobby.sit(connection, connection.address)
        if self._lobby.is_over():
            _, seated = self._lobby.most()
            silent = next((one for one in seated if not one.in_line), connection)
            # if all but the last have spoken, it is the last of these
            (silent if silent is not connection else next(reversed(seated))).end("gave way")
        return name

    def line_up(self, connection: "_Inbound") -> None:
        """Puts a connection that has said something in the line of its address."""
        self._line.setdefault(connection.address, {})[connection] = None
        self._call_in()

    def _call_in(self) -> None:
        """Calls from the line to the desk whom there is a seat for."""
        while self._line:
            holder = min(self._line, key=self._desk.count)
            if self._desk.is_full():
                most, seated = self._desk.most()
                late = next((one for one in seated if not one.answered), next(iter(seated)))
                left_s = self._desk_s - (monotonic() - seated[late])
                if most == holder and left_s > 0:
                    self._call_in_after(left_s)
                    return
                late.end("gave way")
            connection = next(iter(self._line[holder]))
            self._leave_line(connection)
            self._lobby.leave(connection, holder)
            self._desk.sit(connection, holder)
            connection.go_on()

    def _call_in_after(self, seconds: float) -> None:
        if self._calling is None:
            self._calling = self._loop.call_later(seconds, self._call_in_again)

    def _call_in_again(self) -> None:
        self._calling = None
        self._call_in()

    def _leave_line(self, connection: "_Inbound") -> None:
        line = self._line.get(connection.address, {})
        line.pop(connection, None)
        if not line:
            self._line.pop(connection.address, None)

    def know(self, connection: "_Inbound", holder: str) -> None:
        """Gives a connection a seat among those who are known."""
        self._desk.leave(connection, connection.address)
        self._known.sit(connection, holder)
        if self._known.is_over():
            next(iter(self._known.most()[1])).end("gave way")
        self._call_in_after(0)

    def leave(self, connection: "_Inbound") -> None:
        """Forgets a connection."""
        self._leave_line(connection)
        self._lobby.leave(connection, connection.address)
        self._desk.leave(connection, connection.address)
        self._known.leave(connection, connection.holder)
        if self._line:
            self._call_in_after(0)
        self._there.pop(connection.name, None)

    def note(self, connection: "_Inbound", why: str) -> None:
        """Counts a connection that was ended; a line says it soon, together with others."""
        if not self._ended:
            self._loop.call_later(TELL_S, self._tell)
        self._ended[why] += 1
        self._from[connection.holder or connection.address] += 1

    def _tell(self) -> None:
        if not self._ended:
            return
        for why, number in self._ended.items():
            if self._count is not None:
                self._count(why, number)
        console.log_line(
            {
                "event": "connections ended",
                "port": self.port,
                **{why.replace(" ", "_"): number for why, number in self._ended.items()},
                "most_of": [holder for holder, _ in self._from.most_common(3)],
            }
        )
        self._ended.clear()
        self._from.clear()

    async def reach(self, name: str, outbound: "_Outbound") -> None:
        """Connects to the server behind, under a name that it sees as its peer's.

        Raises:
            OSError: it does not answer.
        """
        ours = socket.socket(socket.AF_UNIX)
        try:
            ours.setblocking(False)
            ours.bind(str(self.folder / name))
            for left in reversed(range(REACH_TRIES)):
                try:
                    ours.connect(str(self._behind))
                    break
                except OSError:  # it is opened anew, or has many to take at once
                    if not left:
                        raise
                    await asyncio.sleep(REACH_PAUSE_S)
            await self._loop.create_unix_connection(lambda: outbound, sock=ours)
        except BaseException:
            ours.close()
            raise
        finally:
            (self.folder / name).unlink(missing_ok=True)


def _listener(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    found = socket.getaddrinfo(
        host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    if not 0 <= int(port) <= 0xFFFF:  # some systems count on from 0
        raise ValueError("ports end at 65535")
    family, *_, place = min(found, key=lambda item: item[0] != socket.AF_INET)
    both = host == "::" and socket.has_dualstack_ipv6()
    listener = socket.create_server(place[:2], family=family, backlog=BACKLOG, dualstack_ipv6=both)
    listener.setblocking(False)
    return listener


def _network(address: str) -> str:
    """Returns what one party has: an address of IPv4, or the /64 that one of IPv6 lies in."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)


class _Inbound(asyncio.Protocol):
    """The end towards whoever connected."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.name = self.holder = ""
        self.in_line = self.answered = False
        self._first, self._refused = b"", 0
        self._other: _Outbound | None = None
        self._reaching: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.address = _network(peer[0]) if peer else "gone"
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._gate.wait_s, self.end, "waited too long")
        self.name = self._gate.enter(self)

    def data_received(self, data: bytes) -> None:
        if self._other is not None:
            self.answered = self.answered or self._other.spoke
            self._other.transport.write(data)
            return
        self.transport.pause_reading()
        self.in_line, self._first = True, data
        self._gate.line_up(self)

    def go_on(self) -> None:
        """Is carried to the server from now on."""
        self._reaching = asyncio.get_running_loop().create_task(self._reach())

    async def _reach(self) -> None:
        other = _Outbound(self)
        try:
            await self._gate.reach(self.name, other)
        except OSError:
            self.end("not answered")
            return
        self._other = other
        other.transport.write(self._first)
        self._first = b""
        self.transport.resume_reading()

    def sit_down(self, holder: str) -> None:
        """Takes a seat among those who are known."""
        if self.holder or self.transport.is_closing():
            return
        self.holder = holder
        self._timer.cancel()
        self._gate.know(self, holder)

    def was_refused(self) -> None:
        """Counts a call that was refused for its number."""
        self._refused += 1
        if self._refused == MOST_REFUSED:
            self.end("asked too often")

    def pause_writing(self) -> None:
        if self._other is not None:
            self._other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._other is not None:
            self._other.transport.resume_reading()

    def end(self, why: str) -> None:
        """Ends it at once, for a reason that is counted."""
        if not self.transport.is_closing():
            self._gate.note(self, why)
        self._gate.leave(self)  # the seat is free at once
        self.transport.abort()

    def close(self) -> None:
        """Ends it once all that was said is passed on."""
        self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self._timer.cancel()
        self._gate.leave(self)
        if self._reaching is not None:
            self._reaching.cancel()
        if self._other is not None:
            self._other.transport.close()


class _Outbound(asyncio.Protocol):
    """The end towards the server behind."""

    def __init__(self, inbound: _Inbound) -> None:
        self._inbound, self.spoke = inbound, False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self._inbound.transport.is_closing():
            transport.close()

    def data_received(self, data: bytes) -> None:
        self.spoke = True
        self._inbound.transport.write(data)

    def pause_writing(self) -> None:
        self._inbound.transport.pause_reading()

    def resume_writing(self) -> None:
        self._inbound.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self._inbound.close()

"""The gate in front of a port: who keeps a connection, and who loses it, over real sockets."""

import socket
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress

import pytest

from ddm_fed.errors import MachineError
from ddm_fed.listening import gate as gates
from ddm_fed.listening.connection_limits import Seats, descriptors, seats
from ddm_fed.listening.gate import Gate, _network

HERE, THERE = "127.0.0.1", "127.0.0.2"


class Behind:
    """A server behind a gate that says the name of every connection, and then echoes."""

    def __init__(self, gate: Gate) -> None:
        self._gate, self.names = gate, []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(gate.folder / "echo"))
        self._socket.listen(100)
        threading.Thread(target=self._serve, daemon=True).start()
        gate.lead_to(gate.folder / "echo")

    def _serve(self) -> None:
        while True:
            try:
                connection, name = self._socket.accept()
            except OSError:
                return
            self.names.append(name)
            threading.Thread(target=self._echo, args=[connection], daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@contextmanager
def opened(room: Seats):
    ended = Counter()
    gate = Gate("127.0.0.1:0", room, lambda why, count: ended.update({why: count}))
    gate.open()
    behind = Behind(gate)
    try:
        yield gate, behind, ended
    finally:
        behind.close()
        gate.close()


def connect(gate: Gate, source: str = HERE, said: bytes = b"") -> socket.socket:
    found = socket.create_connection(("127.0.0.1", gate.port), 10, (source, 0))
    found.sendall(said)
    return found


def is_open(connection: socket.socket) -> bool:
    """Returns whether an echo still comes back."""
    try:
        connection.sendall(b"x")
        return connection.recv(1) == b"x"
    except OSError:
        return False


def wait_for(condition) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_bytes_pass_the_gate_both_ways_unchanged_and_in_order():
    data = bytes(range(256)) * 40_000
    with opened(Seats(4, 4, 4)) as (gate, _, _):
        connection, got = connect(gate), bytearray()
        sending = threading.Thread(target=connection.sendall, args=[data])
        sending.start()
        while len(got) < len(data):
            got += connection.recv(1 << 16)
        sending.join()
        connection.close()
    assert bytes(got) == data


def test_silent_connection_reaches_nothing_behind_the_gate():
    with opened(Seats(4, 4, 4)) as (gate, behind, _):
        silent = connect(gate)
        with connect(gate, said=b"x") as other:
            assert other.recv(1) == b"x"
        assert len(behind.names) == 1
        silent.close()


def test_connection_that_is_not_known_in_time_is_ended():
    with opened(Seats(4, 4, 4, wait_s=0.5)) as (gate, behind, ended):
        silent, speaking, known = connect(gate), connect(gate, said=b"x"), connect(gate)
        known.sendall(b"x")
        assert known.recv(1) == speaking.recv(1) == b"x"
        gate.judged(behind.names[1], "hospital-a")
        assert silent.recv(1) == b""
        wait_for(lambda: not is_open(speaking))
        assert is_open(known)
        for item in (silent, speaking, known):
            item.close()
    assert ended["waited too long"] == 2


def test_silent_flood_ends_its_own_connections_and_not_one_that_speaks():
    with opened(Seats(8, 4, 4)) as (gate, _, ended):
        speaking = connect(gate, said=b"x")
        assert speaking.recv(1) == b"x"
        flood = [connect(gate) for _ in range(100)]
        assert is_open(speaking)
        wait_for(lambda: ended["gave way"] == 92)
        for item in (speaking, *flood):
            item.close()


def test_flood_that_speaks_ends_no_connection_of_another_address():
    with opened(Seats(8, 4, 4)) as (gate, _, _):
        honest = connect(gate, HERE, b"x")
        assert honest.recv(1) == b"x"
        flood = [connect(gate, THERE, b"y") for _ in range(60)]
        time.sleep(1)
        assert is_open(honest)
        late = connect(gate, HERE, b"z")  # not at the end of the others' line
        began = time.monotonic()
        assert late.recv(1) == b"z"
        assert time.monotonic() - began < 2
        for item in (honest, late, *flood):
            item.close()


def test_whoever_is_called_to_the_desk_has_its_time_there():
    with opened(Seats(8, 2, 4, desk_s=1.0)) as (gate, behind, _):
        held = [connect(gate, said=b"x") for _ in range(6)]
        for item in held[:2]:
            assert item.recv(1) == b"x"
        time.sleep(0.3)
        assert len(behind.names) == 2
        wait_for(lambda: len(behind.names) >= 4)
        for item in held:
            item.close()


def test_site_with_the_most_connections_gives_one_up_to_another():
    with opened(Seats(8, 8, 4)) as (gate, behind, _):
        greedy = []
        for number in range(4):
            greedy.append(connect(gate, said=b"x"))
            assert greedy[-1].recv(1) == b"x"
            gate.judged(behind.names[number], "hospital-a")
        modest = connect(gate, said=b"x")
        assert modest.recv(1) == b"x"
        gate.judged(behind.names[4], "hospital-b")
        wait_for(lambda: not is_open(greedy[0]))
        assert all(map(is_open, [*greedy[1:], modest]))
        for item in (*greedy, modest):
            item.close()


@pytest.mark.parametrize(
    ("address", "holder"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_addresses_of_one_party_are_one_holder(address, holder):
    assert _network(address) == holder


def test_seats_never_need_more_descriptors_than_there_are():
    found = [seats(1 / 2, 512, 1024), seats(3 / 8, 64, 0), seats(1 / 8, 64, 0)]
    needed = sum(item.lobby + 3 * item.desk + 3 * item.known for item in found)
    assert needed <= 0.75 * descriptors()
    assert min(item.desk for item in found) > 1


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "127.0.0.1:x", "192.0.2.1:0", ":"])
def test_address_nobody_can_listen_at_is_an_error_with_a_hint(address):
    with pytest.raises(MachineError, match="cannot listen on"):
        Gate(address, Seats(4, 4, 4)).open()


def test_folder_of_sockets_is_private_and_gone_after_close():
    with opened(Seats(4, 4, 4)) as (gate, _, _):
        assert gate.folder.stat().st_mode & 0o077 == 0
        folder = gate.folder
    assert not folder.exists()


def test_path_too_long_for_sockets_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    monkeypatch.setattr(gates.tempfile, "tempdir", str(folder))
    with pytest.raises(MachineError, match="too long"):
        Gate("127.0.0.1:0", Seats(4, 4, 4)).open()
    assert list(folder.iterdir()) == []

"""Clients that hold what they can get and never finish, against a real server.

It has 1,024 descriptors. Attackers are processes of their own (`hostile.py`) that begin anew
whatever is ended; the honest side is the program that sites run. All come from one address, unless
a test says otherwise.
"""

import http.client
import json
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from commands import Started
from federation import SITES, Federation
from hostile import attacking

from coordinator.ensembles.assemble import assemble
from ddm_fed.errors import SizeError
from ddm_fed.exchange import failure_of, messages, services
from ddm_fed.signing import server_certificates_pem
from sites.outbox.released import read_released
from sites.outbox.stages import find_bundles
from sites.transport import submit
from sites.transport.address import Address
from sites.transport.grpc import GrpcTransport, channel_to, enroll
from sites.workspace import SiteFolder, SiteSettings

A, B, _ = SITES
DESCRIPTORS, TIMEOUT_S = 1024, 3
SOON_S = 10.0  # on a machine that does much else; see benchmarks/hostile_waiting.py
PLAN = "/ddm_fed.exchange.v1.ExchangeService/GetPlan"
LOG = "/ddm_fed.exchange.v1.ExchangeService/GetLog"
ENROLL = "/ddm_fed.exchange.v1.EnrolmentService/Enroll"
HEALTH = "/grpc.health.v1.Health/Check"


class Server(NamedTuple):
    """A running `ddm-coord serve`."""

    fed: Federation
    port: int
    enroll_port: int
    web_port: int
    fingerprint: str
    log: Path

    def lines(self) -> list[dict]:
        text = self.log.read_text()
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def identity(self, name: str) -> dict[str, Path]:
        key = self.fed.site(name).tls(self.fed.trust.roster.site(name))
        files = {kind: self.fed.path / f"{name}.{kind}" for kind in ("certificate", "key")}
        files["certificate"].write_bytes(key.certificate_pem)
        files["key"].write_bytes(key.private_pem)
        return files


@contextmanager
def serving(fed: Federation, log: Path, *options: str) -> Iterator[Server]:
    words = ["--coordinator", fed.home.path, "--reserve", 0, "--timeout", TIMEOUT_S, *options]
    for port in ("listen", "enroll", "web"):
        words += [f"--{port}", "127.0.0.1:0"]
    with log.open("w") as errors:
        process = Started("ddm-coord", "serve", "--json", *words, stderr=errors.fileno())
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    try:
        facts = json.loads(process.stdout.readline())
        listen, _, pin = facts["listen"].partition("#")
        ports = [
            int(text.partition("#")[0].rstrip("/").rpartition(":")[2])
            for text in (listen, facts["enroll"], facts["web"])
        ]
        yield Server(fed, *ports, pin, log)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        process.stdout.close()


@pytest.fixture
def server(copy_of, scratch) -> Iterator[Server]:
    with serving(copy_of("released", *SITES), scratch / "serve.jsonl") as found:
        yield found


@contextmanager
def as_member(server: Server, name: str):
    key = server.fed.site(name).tls(server.fed.trust.roster.site(name))
    pem = server_certificates_pem(server.fed.trust.roster)
    client = (key.private_pem, key.certificate_pem)
    with channel_to(Address("127.0.0.1", server.port, None), pem, client) as channel:
        yield services.ExchangeServiceStub(channel)


def member_gets_through(server: Server) -> None:
    site = server.fed.site(B)
    transport = GrpcTransport(
        Address("127.0.0.1", server.port, None), site, server.fed.trust, timeout_s=60
    )
    began = time.monotonic()
    assert [item.state for item in submit.submit(site, server.fed.trust, transport)] == ["admitted"]
    assert time.monotonic() - began < 2 * SOON_S  # an offer, a stream, a verdict


def newcomer_gets_through(server: Server) -> None:
    settings = SiteSettings(name="newcomer", root=server.fed.root, max_epsilon=Decimal(1))
    site = SiteFolder.create(server.fed.path / "newcomer", settings)
    data = (site.path / "enrolment.dsse.json").read_bytes()
    began = time.monotonic()
    address = Address("127.0.0.1", server.enroll_port, server.fingerprint)
    assert enroll(address, data, timeout_s=60) is False
    assert time.monotonic() - began < SOON_S


def browser_gets_through(server: Server) -> None:
    began = time.monotonic()
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", server.web_port, timeout=30)
        try:
            connection.request("GET", "/healthz")
            assert connection.getresponse().read() == b"ok\n"
            break
        except (OSError, http.client.HTTPException):
            assert time.monotonic() - began < SOON_S  # turned away: as browsers do, once more
        finally:
            connection.close()
    assert time.monotonic() - began < SOON_S


def wait_for(condition, seconds: float = 20.0):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


@pytest.mark.parametrize(
    ("kind", "count", "path"),
    [
        ("call", 8, PLAN),
        ("call", 136, PLAN),
        ("call", 136, LOG),
        ("call", 136, HEALTH),
        ("greedy", 1200, PLAN),
        ("unread", 136, LOG),
    ],
)
def test_calls_of_one_member_that_never_end_keep_no_other_waiting(server, kind, count, path):
    with attacking(kind, server.port, count, path=path, **server.identity(A)):
        member_gets_through(server)


@pytest.mark.parametrize(("kind", "count"), [("call", 8), ("call", 136), ("greedy", 1200)])
def test_silent_calls_of_strangers_keep_no_newcomer_waiting(server, kind, count):
    with attacking(kind, server.enroll_port, count, path=ENROLL):
        newcomer_gets_through(server)


@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.2"])
@pytest.mark.parametrize(("kind", "count"), [("tcp", 1200), ("hello", 200)])
def test_silent_connections_keep_no_member_waiting(server, kind, count, source):
    with attacking(kind, server.port, count, source=source):
        member_gets_through(server)


@pytest.mark.parametrize(("kind", "count"), [("tcp", 1200), ("hello", 200)])
def test_silent_connections_keep_no_newcomer_waiting(server, kind, count):
    with attacking(kind, server.enroll_port, count):
        newcomer_gets_through(server)


@pytest.mark.parametrize(("kind", "count"), [("tcp", 1200), ("head", 200)])
def test_silent_connections_keep_no_browser_waiting(server, kind, count):
    began = time.monotonic()
    with attacking(kind, server.web_port, count):
        for _ in range(3):
            browser_gets_through(server)
        assert time.monotonic() - began < SOON_S


def test_flood_at_one_port_keeps_nobody_waiting_at_the_others(server):
    with attacking("tcp", server.enroll_port, 1200), attacking("tcp", server.web_port, 1200):
        member_gets_through(server)


def test_call_whose_message_never_comes_is_ended_and_logged(server):
    with attacking("call", server.port, 1, **server.identity(A)):
        found = wait_for(lambda: [x for x in server.lines() if x.get("code") == "TOO_SLOW"])
    assert (found[0]["rpc"], found[0]["site"]) == ("GetPlan", A)
    assert found[0]["ms"] < 1000 * TIMEOUT_S + 2000


def test_answer_that_is_never_read_is_ended_and_logged(copy_of, scratch):
    fed = copy_of("admitted", *SITES)
    made = assemble(fed.home, scratch / "made", router=None, without=())
    name = next(path for path in sorted((scratch / "made").rglob("expert.safetensors")))
    asked = messages.ReadEnsembleRequest(
        ensemble_sha256=made.sha256, name=str(name.relative_to(scratch / "made"))
    )
    with (
        serving(fed, scratch / "serve.jsonl", "--share-ensemble") as server,
        attacking(
            "unread",
            server.port,
            1,
            path="/ddm_fed.exchange.v1.ExchangeService/ReadEnsemble",
            message=asked.SerializeToString().hex(),
            **server.identity(A),
        ),
    ):
        found = wait_for(lambda: [x for x in server.lines() if x.get("rpc") == "ReadEnsemble"])
    assert (found[0]["code"], found[0]["site"]) == ("TOO_SLOW", A)


def test_connections_that_are_ended_are_logged_together_and_counted(server):
    with attacking("tcp", server.port, 1200):
        line = wait_for(
            lambda: [x for x in server.lines() if x.get("event") == "connections ended"]
        )[0]
        assert line["port"] == server.port
        assert line["gave_way"] > 100
        assert line["most_of"] == ["127.0.0.1"]
    events = [x for x in server.lines() if x.get("event") == "connections ended"]
    assert len(events) < 20
    connection = http.client.HTTPConnection("127.0.0.1", server.web_port, timeout=30)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    assert 'ddm_fed_connections_ended_total{reason="gave_way"}' in text


def write(server: Server, pieces) -> grpc.RpcError:
    (folder,) = find_bundles(server.fed.site(A).released)
    bundle = read_released(folder)
    with as_member(server, A) as stub:
        offer = messages.BeginUploadRequest(submission_envelope=bundle.envelope)
        stub.BeginUpload(offer, timeout=10)
        with pytest.raises(grpc.RpcError) as caught:
            stub.WriteUpload(pieces(bundle), timeout=40)
    return caught.value


def test_piece_of_no_bytes_is_refused(server):
    def pieces(bundle):
        while True:
            yield messages.WriteUploadRequest(submission_sha256=bundle.digest)
            time.sleep(0.5)

    began = time.monotonic()
    assert isinstance(failure_of(write(server, pieces)).error, SizeError)
    assert time.monotonic() - began < TIMEOUT_S


def test_pieces_of_a_byte_at_a_time_are_no_progress(server):
    stop = threading.Event()

    def pieces(bundle):
        with bundle.reading() as reader:
            for at in range(1000):
                yield messages.WriteUploadRequest(
                    submission_sha256=bundle.digest, offset=at, data=reader.read(at, 1)
                )
                if stop.wait(0.2):
                    return

    began = time.monotonic()
    failure = failure_of(write(server, pieces))
    stop.set()
    assert failure.status == grpc.StatusCode.CANCELLED
    assert time.monotonic() - began < TIMEOUT_S + 5
    found = wait_for(lambda: [x for x in server.lines() if x.get("code") == "TOO_SLOW"])
    assert (found[0]["rpc"], found[0]["site"]) == ("WriteUpload", A)


def test_calls_refused_for_their_number_are_logged_together(server):
    with attacking("call", server.port, 136, path=PLAN, **server.identity(A)):
        lines = wait_for(lambda: [x for x in server.lines() if x.get("calls", 0) > 20])
        time.sleep(2)
    refused = [x for x in server.lines() if x.get("ddm") == "DDM503"]
    assert len(refused) < 20
    assert (lines[0]["site"], lines[0]["code"]) == (A, "RESOURCE_EXHAUSTED")


def test_handshakes_with_odd_names_write_nothing_into_the_log(server):
    with attacking("hello", server.port, 50):
        member_gets_through(server)
    assert [x for x in server.log.read_text().splitlines() if not x.startswith("{")] == []

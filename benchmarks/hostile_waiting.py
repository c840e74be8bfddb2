"""How long does an honest member wait while others hold what they can get of the server?

    python benchmarks/hostile_waiting.py [--tries N] [--only NAME]

A real `ddm-coord serve` with 1,024 descriptors, attackers and the honest member in processes of
their own on loopback, all from one address unless another is named, which is the worst case:
nothing tells them apart before they say who they are. A try is a new connection, its handshake, and
one call of a member (`GetStatus`), of somebody who asks to be enrolled (the bytes of a true
request), or of a browser that asks for the status page; as a site does, it tries again when it is
turned away. A try that takes longer than GIVEN_UP_S counts as that. Last answer:
results/hostile_waiting_cpu_20261128.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from decimal import Decimal
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import NamedTuple

import grpc

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))  # the tests' own

from federation import SITES, Federation, create_federation, random_images, train
from hostile import attacking

from ddm_fed.errors import DdmFedError
from ddm_fed.exchange import client_options, messages, services
from ddm_fed.signing import server_certificates_pem
from sites.outbox import stages
from sites.outbox.released import read_released
from sites.outbox.stages import find_bundles
from sites.transport.address import Address
from sites.transport.grpc import channel_to, enroll, retried
from sites.workspace import SiteFolder, SiteSettings

BIN = Path(sys.executable).parent
DESCRIPTORS, GIVEN_UP_S, PAUSE_S = 1024, 30.0, 0.1
A, B, _ = SITES
SERVICE = "/ddm_fed.exchange.v1."
UPLOAD_S, ELSEWHERE = 1.0, "127.0.0.2"


class Running(NamedTuple):
    """A server at work, and who its members are."""

    fed: Federation
    process: subprocess.Popen
    port: int
    enroll_port: int
    web_port: int
    fingerprint: str
    newcomer: SiteFolder


@contextmanager
def serving(folder: Path) -> Iterator[Running]:
    """A real server with few descriptors."""
    fed = create_federation(folder)
    settings = SiteSettings(name="newcomer", root=fed.root, max_epsilon=Decimal(1))
    newcomer = SiteFolder.create(folder / "newcomer", settings)
    train(fed.site(A), fed.trust, random_images(0))
    stages.review(fed.site(A), fed.trust)
    stages.release(fed.site(A), fed.trust)
    for name in SITES:
        key = fed.site(name).tls(fed.trust.roster.site(name))
        (folder / f"{name}.pem").write_bytes(key.certificate_pem)
        (folder / f"{name}.key").write_bytes(key.private_pem)
    command = [BIN / "ddm-coord", "serve", "--json", "--coordinator", fed.home.path]
    command += ["--reserve", "0"]
    for door in ("listen", "enroll", "web"):
        command += [f"--{door}", "127.0.0.1:0"]
    with (folder / "serve.jsonl").open("w") as log:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "sh", *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        facts = json.loads(process.stdout.readline())
        listen, _, fingerprint = facts["listen"].partition("#")
        ports = [
            int(text.partition("#")[0].rstrip("/").rpartition(":")[2])
            for text in (listen, facts["enroll"], facts["web"])
        ]
        yield Running(fed, process, *ports, fingerprint, newcomer)
    finally:
        process.terminate()
        process.wait(60)


def ask_as_member(server: Running) -> None:
    """One call of an honest member over a new connection."""
    fed, address = server.fed, Address("127.0.0.1", server.port, None)
    key = fed.site(B).tls(fed.trust.roster.site(B))
    pem = server_certificates_pem(fed.trust.roster)
    options = [*client_options(), ("grpc.use_local_subchannel_pool", 1)]
    credentials = grpc.ssl_channel_credentials(pem, key.private_pem, key.certificate_pem)

    def call() -> None:
        with grpc.secure_channel(address.target, credentials, options) as channel:
            stub = services.ExchangeServiceStub(channel)
            stub.GetStatus(messages.GetStatusRequest(), timeout=GIVEN_UP_S)

    retried(call, address, timeout_s=GIVEN_UP_S)


def ask_as_newcomer(server: Running) -> None:
    """One honest request to be enrolled."""
    data = (server.newcomer.path / "enrolment.dsse.json").read_bytes()
    address = Address("127.0.0.1", server.enroll_port, server.fingerprint)
    enroll(address, data, timeout_s=GIVEN_UP_S)


def ask_for_page(server: Running) -> None:
    """One request for the status page, again until it is answered."""
    until = time.monotonic() + GIVEN_UP_S
    while time.monotonic() < until:
        connection = HTTPConnection("127.0.0.1", server.web_port, timeout=GIVEN_UP_S)
        try:
            connection.request("GET", "/healthz")
            if connection.getresponse().read() == b"ok\n":
                return
        except (OSError, HTTPException):
            time.sleep(0.1)
        finally:
            connection.close()


def waits(ask: Callable[[Running], None], server: Running, tries: int) -> list[float]:
    """Returns the seconds of every try; at most two that were given up."""
    found: list[float] = []
    while len(found) < tries and sum(item >= GIVEN_UP_S for item in found) < 2:
        began = time.monotonic()
        try:
            ask(server)
        except (DdmFedError, grpc.RpcError):
            found.append(GIVEN_UP_S)
        else:
            found.append(min(GIVEN_UP_S, time.monotonic() - began))
        time.sleep(PAUSE_S)
    return found


@contextmanager
def empty_pieces(server: Running) -> Iterator[None]:
    """A member's upload, with a piece of no bytes a second, begun anew when it is ended."""
    fed, ended = server.fed, threading.Event()
    (folder,) = find_bundles(fed.site(A).released)
    bundle = read_released(folder)

    def pieces() -> Iterator[messages.WriteUploadRequest]:
        while not ended.wait(UPLOAD_S):
            yield messages.WriteUploadRequest(submission_sha256=bundle.digest)

    def hold(stub: services.ExchangeServiceStub) -> None:
        while not ended.wait(0.02):
            with suppress(grpc.RpcError):
                stub.BeginUpload(messages.BeginUploadRequest(submission_envelope=bundle.envelope))
                stub.WriteUpload(pieces())

    key = fed.site(A).tls(fed.trust.roster.site(A))
    pem = server_certificates_pem(fed.trust.roster)
    with channel_to(
        Address("127.0.0.1", server.port, None), pem, (key.private_pem, key.certificate_pem)
    ) as channel:
        holding = threading.Thread(target=hold, args=[services.ExchangeServiceStub(channel)])
        holding.start()
        try:
            yield
        finally:
            ended.set()
            holding.join()


Attack = Callable[[Running], AbstractContextManager[object]]


def attacks() -> dict[str, tuple[Callable[[Running], None], Attack]]:
    """Returns who waits, and what is done meanwhile, by the words of the table."""

    def by_member(kind: str, count: int, path: str) -> Attack:
        return lambda server: attacking(
            kind,
            server.port,
            count,
            path=path,
            certificate=server.fed.path / f"{A}.pem",
            key=server.fed.path / f"{A}.key",
        )

    def by_stranger(kind: str, count: int, door: str, **options: str) -> Attack:
        return lambda server: attacking(kind, getattr(server, door), count, **options)

    plan, enrolment = f"{SERVICE}ExchangeService/GetPlan", f"{SERVICE}EnrolmentService/Enroll"
    member, newcomer, page = ask_as_member, ask_as_newcomer, ask_for_page
    return {
        "member: no attack": (member, lambda _: nullcontext()),
        "member: 8 silent unary calls": (member, by_member("call", 8, plan)),
        "member: 136 silent unary calls": (member, by_member("call", 136, plan)),
        "member: 2,000 silent calls on one connection": (member, by_member("greedy", 2000, plan)),
        "member: 136 silent health checks": (
            member,
            by_member("call", 136, "/grpc.health.v1.Health/Check"),
        ),
        "member: an upload of pieces of no bytes": (member, empty_pieces),
        "member: 1,200 silent TCP connections": (member, by_stranger("tcp", 1200, "port")),
        "member: 1,200 silent TCP connections of another address": (
            member,
            by_stranger("tcp", 1200, "port", source=ELSEWHERE),
        ),
        "member: 200 silent TLS handshakes": (member, by_stranger("hello", 200, "port")),
        "member: 200 silent TLS handshakes of another address": (
            member,
            by_stranger("hello", 200, "port", source=ELSEWHERE),
        ),
        "newcomer: no attack": (newcomer, lambda _: nullcontext()),
        "newcomer: 8 silent unary calls": (
            newcomer,
            by_stranger("call", 8, "enroll_port", path=enrolment),
        ),
        "newcomer: 136 silent unary calls": (
            newcomer,
            by_stranger("call", 136, "enroll_port", path=enrolment),
        ),
        "newcomer: 2,000 silent calls on one connection": (
            newcomer,
            by_stranger("greedy", 2000, "enroll_port", path=enrolment),
        ),
        "newcomer: 1,200 silent TCP connections": (
            newcomer,
            by_stranger("tcp", 1200, "enroll_port"),
        ),
        "newcomer: 200 silent TLS handshakes": (newcomer, by_stranger("hello", 200, "enroll_port")),
        "page: no attack": (page, lambda _: nullcontext()),
        "page: 1,200 silent TCP connections": (page, by_stranger("tcp", 1200, "web_port")),
        "page: 200 requests that stop": (page, by_stranger("head", 200, "web_port")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--only", default="", help="attacks whose name has this in it")
    options = parser.parse_args()
    print(
        f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, grpcio {grpc.__version__}, ",
        end="",
    )
    print(f"{DESCRIPTORS} descriptors, {options.tries} tries\n")
    print("| who waits: attack | median s | worst s | given up |\n| --- | --- | --- | --- |")
    for name, (ask, attack) in attacks().items():
        if options.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as server:
            ask(server)  # what is imported at the first call is imported
            with attack(server):
                found = waits(ask, server, options.tries)
        lost = sum(item >= GIVEN_UP_S for item in found)
        print(
            f"| {name} | {statistics.median(found):.2f} | {max(found):.2f} | {lost} |", flush=True
        )


if __name__ == "__main__":
    main()

"""A member that attacks: real bundles, truly signed, over connections to a real server."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
from commands import Started
from federation import Federation, chain, forge_manifest

from ddm_fed.errors import DdmFedError
from ddm_fed.exchange import failure_of, messages, services
from ddm_fed.signing import server_certificates_pem
from sites.outbox.released import Released, read_released
from sites.outbox.stages import find_bundles
from sites.transport import submit
from sites.transport.address import Address
from sites.transport.grpc import GrpcTransport, channel_to

PIECE = 250_000


@contextmanager
def served(fed: Federation, *options: str) -> Iterator[int]:
    """A real `ddm-coord serve`; yields the port of its members."""
    words = ("serve", "--json", "--listen", "127.0.0.1:0", "--coordinator", fed.home.path)
    process = Started("ddm-coord", *words, *options)
    try:
        facts = json.loads(process.stdout.readline())
        yield int(facts["listen"].partition("#")[0].rpartition(":")[2])
    finally:
        process.kill()
        process.wait(20)
        process.stdout.close()


def honest_wait(fed: Federation, port: int, name: str, *, timeout_s: float = 200.0) -> float:
    """Returns the seconds from the first word of an honest site until its bundle is admitted."""
    site = fed.site(name)
    started = time.monotonic()
    transport = GrpcTransport(
        Address("127.0.0.1", port, None), site, fed.trust, timeout_s=timeout_s
    )
    (found,) = submit.submit(site, fed.trust, transport)
    assert found.state == "admitted", found
    return time.monotonic() - started


class Member:
    """A site that keeps to the protocol and to no good manners.

    Args:
        fed: The federation.
        port: Where the coordinator listens.
        name: Who it is.
    """

    def __init__(self, fed: Federation, port: int, name: str) -> None:
        self._fed, self._port, self.name = fed, port, name
        (self.original,) = find_bundles(fed.site(name).released)

    @contextmanager
    def calling(self) -> Iterator[services.ExchangeServiceStub]:
        """Yields the calls, over a connection of its own."""
        key = self._fed.site(self.name).tls(self._fed.trust.roster.site(self.name))
        pem = server_certificates_pem(self._fed.trust.roster)
        client = (key.private_pem, key.certificate_pem)
        with channel_to(Address("127.0.0.1", self._port, None), pem, client) as channel:
            yield services.ExchangeServiceStub(channel)

    def forged(self, folder: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
        """Returns a copy of its released bundle with an edited manifest, truly signed."""
        shutil.copytree(self.original, folder)
        forge_manifest(folder, edit, self._fed.key(self.name))
        return folder

    def bring(self, bundle: Released) -> DdmFedError | str:
        """Offers a bundle, sends it and asks for the verdict; returns that, or the refusal."""
        with self.calling() as service:
            try:
                offer = messages.BeginUploadRequest(submission_envelope=bundle.envelope)
                found = service.BeginUpload(offer, timeout=400)
                if found.state == messages.BUNDLE_STATE_UPLOADING:
                    service.WriteUpload(_parts(bundle, found.committed_bytes), timeout=100)
                end = messages.CommitUploadRequest(submission_sha256=bundle.digest)
                verdict = service.CommitUpload(end, timeout=400)
            except grpc.RpcError as raised:
                failure = failure_of(raised)
                return failure.error or f"{failure.status}: {failure.details}"
        return verdict.refusal.code or str(verdict.state)


def _parts(bundle: Released, start: int) -> Iterator[messages.WriteUploadRequest]:
    with bundle.reading() as reader:
        while data := reader.read(start, PIECE):
            yield messages.WriteUploadRequest(
                submission_sha256=bundle.digest, offset=start, data=data
            )
            start += len(data)


def hostile_ledger(fields: dict[str, Any], number: int) -> None:
    """Makes the ledger one of fifty kinds of sampled events, other ones for every number."""
    ledger = fields["privacy"]["ledger"]
    for kind in range(50):
        noise = Decimal("0.5") + Decimal(kind) / 1000 + Decimal(number) / 10**6
        event = {
            "kind": "poisson_gaussian",
            "sampling_rate": "0.0001",
            "noise_multiplier": str(noise),
            "steps": 3,
        }
        entry = {"purpose": "expert", "mechanism": "dp-sgd", "event": event}
        ledger.append(ledger[0] | entry)
    fields["privacy"]["ledger"] = chain(ledger)
    fields["sequence"] += number


def bundles_of(member: Member, folder: Path, count: int, edit) -> list[Released]:
    """Returns `count` forged bundles of `member`, numbered from 1 on."""
    found = []
    for number in range(1, count + 1):
        path = member.forged(folder / str(number), lambda fields, n=number: edit(fields, n))
        found.append(read_released(path))
    return found


@contextmanager
def at_work(jobs: list[Callable[[], object]]) -> Iterator[list[object]]:
    """Runs `jobs`, each in a thread of its own, during the block; yields what they returned."""
    answers: list[object] = []
    threads = [threading.Thread(target=lambda job=job: answers.append(job())) for job in jobs]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        for thread in threads:
            thread.join(600)

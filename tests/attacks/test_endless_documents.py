"""Documents without end: from a coordinator on a network, from a share, in files that grew."""

import os
import resource
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from federation import SITES, Federation

from ddm_fed import limits
from ddm_fed.bundle.verify import read_weights, verify_bundle
from ddm_fed.errors import DigestError, ExchangeError, QuotaError, RefusedError, SizeError
from ddm_fed.exchange import messages, server_options, services
from ddm_fed.limits import MAX_DOCUMENT_BYTES, MAX_LEAF_BYTES, MAX_LOG_BYTES
from ddm_fed.records import now
from ddm_fed.remote import open_folder
from ddm_fed.storage.files import copy_bounded, list_regular_files
from ddm_fed.trust.log import read_log
from ddm_fed.trust.published import read_published
from sites.published import look
from sites.transport import fetch
from sites.transport.address import Address
from sites.transport.fetch import fetch_ensemble, fetch_published

A, B, C = SITES
SPARSE = 40 << 30
MEMORY = 6 << 30  # of addresses; a fortieth of what the files claim
MIB = 1 << 20
ENDLESS = 3000  # messages: 3 GB of them, more than any bound


@pytest.fixture
def fed(copy_of) -> Federation:
    return copy_of("released", *SITES)


class Endless(services.ExchangeServiceServicer):
    """A coordinator that goes on for as long as anybody listens, in one of its answers."""

    def __init__(self, fed: Federation, what: str) -> None:
        self._published, self._what, self.sent = fed.published, what, 0

    def _junk(self) -> bytes:
        self.sent += 1
        return b"x" * (MIB - 64)

    def GetRoster(self, request, context):
        if self._what == "rosters" and self.sent < ENDLESS:
            return messages.GetRosterResponse(roster_envelopes=[self._junk()], has_more=True)
        names = sorted(self._published.glob("roster-*"))[request.known_version :]
        return messages.GetRosterResponse(roster_envelopes=[name.read_bytes() for name in names])

    def GetPlan(self, request, context):
        return messages.GetPlanResponse(
            plan_envelope=(self._published / "plan.dsse.json").read_bytes()
        )

    def GetLog(self, request, context):
        while self._what == "log" and self.sent < ENDLESS:
            leaf = self._junk()[:MAX_LEAF_BYTES]
            yield messages.GetLogResponse(leaf_envelopes=[leaf] * 15)
        checkpoint = (self._published / "checkpoint").read_bytes()
        yield messages.GetLogResponse(checkpoint=checkpoint)

    def GetStatus(self, request, context):
        return messages.GetStatusResponse(has_reference=self._what == "reference")

    def GetReference(self, request, context):
        while self.sent < ENDLESS:
            yield messages.GetReferenceResponse(data=self._junk())

    def GetEnsemble(self, request, context):
        size = {"ensemble": 1 << 50, "many": 1, "disk": 1 << 34}[self._what]
        count = limits.MAX_ENSEMBLE_FILES // 20 if self._what == "many" else 1
        files = [messages.EnsembleFile(name=f"f{n}", size_bytes=size) for n in range(count)]
        return messages.GetEnsembleResponse(ensemble_sha256="0" * 64, files=files)


@pytest.fixture
def endless(fed: Federation):
    """`endless("log")`: the lying coordinator, and where it listens, with its true certificate."""
    servers = []

    def start(what: str):
        liar, key = Endless(fed, what), fed.home.tls(fed.home.chain())
        server = grpc.server(ThreadPoolExecutor(4), options=server_options(calls_at_once=8))
        services.add_ExchangeServiceServicer_to_server(liar, server)
        pair = [(key.private_pem, key.certificate_pem)]
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair))
        server.start()
        servers.append(server)
        return liar, Address("127.0.0.1", port, None)

    yield start
    for server in servers:
        server.stop(0).wait()


@pytest.mark.parametrize(
    ("what", "bound"),
    [
        ("rosters", "MAX_ROSTERS_BYTES"),
        ("log", "MAX_LOG_BYTES"),
        ("reference", "MAX_REFERENCE_BYTES"),
    ],
)
def test_fetch_from_a_coordinator_without_end_stops_at_the_bound(
    fed, endless, monkeypatch, what, bound
):
    monkeypatch.setattr(fetch, bound, 20 * MIB)  # the true one takes seconds more
    liar, address = endless(what)
    with pytest.raises(ExchangeError, match="without end"):
        fetch_published(fed.site(A), address, fed.trust, timeout_s=5)
    assert liar.sent < 60
    assert not (fed.site(A).path / ".fetched").exists()


def test_stated_bounds_of_a_fetch_are_below_what_was_taken_before():
    assert limits.MAX_ROSTERS_BYTES <= 256 * MIB
    assert MAX_LOG_BYTES <= 256 * MIB
    assert limits.MAX_REFERENCE_BYTES <= 256 * MIB


def test_ensemble_of_any_size_is_refused_before_a_byte(fed, endless, tmp_path):
    _, address = endless("ensemble")
    with pytest.raises(ExchangeError, match="are possible"):
        fetch_ensemble(fed.site(A), address, fed.trust, tmp_path / "e", timeout_s=5)
    assert not list(tmp_path.glob("*ensemble*"))


def test_ensemble_of_more_files_than_are_possible_is_refused(fed, endless, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "MAX_ENSEMBLE_FILES", 1000)
    _, address = endless("many")
    with pytest.raises(ExchangeError, match="5000 files"):
        fetch_ensemble(fed.site(A), address, fed.trust, tmp_path / "e", timeout_s=5)


def test_ensemble_that_the_disk_cannot_hold_is_refused_before_a_byte(
    fed, endless, tmp_path, monkeypatch
):
    _, address = endless("disk")
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(QuotaError, match="are free"):
        fetch_ensemble(fed.site(A), address, fed.trust, tmp_path / "e", timeout_s=5)


# A share: files of 40 GB that hold nothing, read by a process which may not have that much memory

READING = """
import resource, sys
from pathlib import Path
from ddm_fed.errors import DdmFedError
from sites.workspace import SiteFolder
from sites.published import look
site = SiteFolder.open(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[3]),) * 2)
try:
    look(site, Path(sys.argv[2]))
except DdmFedError as error:
    # of this program alone: what `getrusage` says, a process inherits from the one that starts it
    peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1]
    print(error.code, peak)
"""


@pytest.mark.parametrize(
    "name", ["leaves.jsonl", "checkpoint", "plan.dsse.json", "roster-0001.dsse.json"]
)
def test_sparse_file_on_a_share_is_refused_and_not_read_into_memory(fed, scratch, name):
    share = Path(shutil.copytree(fed.published, scratch / "share"))
    os.truncate(share / name, SPARSE)
    command = [sys.executable, "-c", READING, str(fed.site(A).path), str(share), str(MEMORY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    code, kib = done.stdout.split()
    assert code == SizeError.code
    assert int(kib) < 600_000
    assert not (fed.site(A).path / ".offered").exists()


@pytest.mark.parametrize("name", ["leaves.jsonl", "checkpoint", "plan.dsse.json"])
def test_sparse_file_in_a_verified_folder_is_refused(fed, scratch, name):
    share = Path(shutil.copytree(fed.published, scratch / "share"))
    os.truncate(share / name, SPARSE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def read() -> None:
        trust = read_published(share, fed.root)
        read_log(share, trust.chain)

    with pytest.raises(RefusedError):
        read()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 100_000


def test_line_of_the_log_without_end_is_refused(copy_of):
    fed = copy_of("admitted")
    leaves = fed.published / "leaves.jsonl"
    lines = leaves.read_bytes().split(b"\n")
    leaves.write_bytes(b"\n".join([lines[0] + b" " * MAX_LEAF_BYTES, *lines[1:]]))
    with pytest.raises(RefusedError, match="goes beyond"):
        read_log(fed.published, fed.trust.chain)


def test_weights_that_grew_after_they_were_verified_are_not_read(fed):
    (bundle,) = fed.site(A).released.iterdir()
    verified = verify_bundle(bundle, fed.trust, now())
    os.truncate(bundle / "expert.safetensors", SPARSE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DigestError):
        read_weights(verified, "expert.safetensors")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 100_000


def test_copy_stops_at_its_bound_and_leaves_nothing(tmp_path):
    (tmp_path / "source").write_bytes(bytes(11))
    copy_bounded(tmp_path / "source", tmp_path / "same", 11)
    with pytest.raises(SizeError):
        copy_bounded(tmp_path / "source", tmp_path / "less", 10)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "same"}


def test_folder_of_more_files_than_may_be_is_refused(tmp_path, monkeypatch):
    for number in range(30):
        (tmp_path / str(number)).touch()
    with pytest.raises(SizeError, match="more than 20 files"):
        list_regular_files(tmp_path, what="it", most=20)
    monkeypatch.setattr("ddm_fed.remote.local.MAX_ENTRIES", 20)
    monkeypatch.setattr("ddm_fed.remote.base.MAX_ENTRIES", 20)
    with pytest.raises(SizeError, match="more than 20"):
        open_folder(str(tmp_path)).entries("")


def test_every_bound_of_the_module_stands_in_the_table_of_the_docs():
    table = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    names = [name for name in vars(limits) if name.startswith("MAX_")]
    assert [name for name in names if f"`{name}`" not in table] == []
    assert MAX_DOCUMENT_BYTES == 1 << 20


def test_published_folder_within_the_bounds_is_looked_at(fed):
    assert look(fed.site(A), fed.published).log.size == 0

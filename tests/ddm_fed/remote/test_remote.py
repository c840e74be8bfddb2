"""Folders elsewhere: a bundle arrives whole or is recognisably partial, wherever its way is cut."""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import fsspec
import moto.server
import paramiko
import pytest
from federation import SITES, Federation, flip, snapshot
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from coordinator.inbox.admission import admit_arrivals
from coordinator.inbox.removable_medium import Found, Importer, candidates
from ddm_fed.bundle.verify import ENVELOPE_FILE, EXPERT_FILE, ROUTER_FILE, verify_bundle
from ddm_fed.errors import (
    DigestError,
    ExchangeError,
    FileSetError,
    MachineError,
    OptionError,
    StateError,
)
from ddm_fed.records import now
from ddm_fed.remote import RemoteFolder, open_folder, shown
from ddm_fed.storage.files import PART_PREFIX
from sites.outbox import stages
from sites.transport import submit
from sites.transport.remote_folder import RemoteFolderTransport
from sites.workspace import SiteFolder

A = "hospital-a"
FILES = (EXPERT_FILE, ROUTER_FILE, ENVELOPE_FILE)


class Flaky:
    """The link of a file system that breaks after some bytes, and then is there again.

    Attributes:
        budget: Bytes until the next break; None while it holds.
        breaks: How often it broke.
        stays_broken: It is not there again.
    """

    budget: ClassVar[int | None] = None
    breaks: ClassVar[int] = 0
    stays_broken: ClassVar[bool] = False

    def open(self, path, mode="rb", **options):
        file = super().open(path, mode, **options)
        return Wire(file, type(self)) if mode in ("wb", "ab") else file

    def pipe_file(self, path, value, **options):
        with self.open(path, "wb") as file:
            file.write(value)


class Wire:
    """A file on the other side of a link."""

    def __init__(self, file, link):
        self._file, self._link = file, link

    def write(self, data):
        if self._link.budget is not None and len(data) > self._link.budget:
            self._file.write(bytes(data[: self._link.budget]))
            self._link.budget = 0 if self._link.stays_broken else None
            self._link.breaks += 1
            raise ConnectionResetError("connection reset by peer")
        if self._link.budget is not None:
            self._link.budget -= len(data)
        return self._file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not isinstance(self._file, fsspec.implementations.memory.MemoryFile):
            self._file.close()


class FlakyMemory(Flaky, MemoryFileSystem):
    protocol = "flakymemory"
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("flakymemory://"))


class FlakyDisk(Flaky, LocalFileSystem):
    protocol = "flakydisk"


class FlakyBucket(FlakyMemory):
    """Objects: nothing can be continued, nothing renamed."""

    protocol = "flakybucket"
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(str(path).removeprefix("flakybucket://"))


KINDS = {"flakymemory": FlakyMemory, "flakydisk": FlakyDisk, "flakybucket": FlakyBucket}
for protocol, kind in KINDS.items():
    fsspec.register_implementation(protocol, kind, clobber=True)


@pytest.fixture
def fed(copy_of) -> Federation:
    return copy_of("drafted", *SITES)


@pytest.fixture
def site(fed: Federation) -> SiteFolder:
    stages.review(fed.site(A), fed.trust)
    stages.release(fed.site(A), fed.trust)
    return fed.site(A)


@pytest.fixture
def memory() -> Iterator[str]:
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield "memory://exchange"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(params=sorted(KINDS))
def flaky(request, scratch: Path, monkeypatch) -> tuple[str, type[Flaky]]:
    kind = KINDS[request.param]
    kind.budget, kind.breaks, kind.stays_broken = None, 0, False
    if kind is FlakyDisk:
        (scratch / "far").mkdir()
        return f"flakydisk://{scratch / 'far'}", kind
    kind.store.clear()
    kind.pseudo_dirs[:] = [""]
    if kind is FlakyBucket:
        monkeypatch.setattr("ddm_fed.remote.url.APPENDING", set())
    fsspec.filesystem(request.param).makedirs("/exchange", exist_ok=True)
    return f"{request.param}://exchange", kind


def send(fed: Federation, site: SiteFolder, text: str, **options) -> str:
    transport = RemoteFolderTransport(text, **{"timeout_s": 5, **options})
    (found,) = submit.submit(site, fed.trust, transport)
    return found.state


def released(site: SiteFolder) -> Path:
    (folder,) = site.released.iterdir()
    return folder


def sizes(folder: RemoteFolder, place: str) -> dict[str, int]:
    return {entry.name: entry.size_bytes for entry in folder.entries(place)}


def take(fed: Federation, text: str) -> list[Found]:
    medium = open_folder(text)
    importer = Importer(fed.home, medium, reserve_bytes=0)
    return [importer.take(entry) for entry in candidates(medium)[0]]


def whole(site: SiteFolder) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in released(site).iterdir()}


# What arrives


@pytest.mark.parametrize("kind", ["memory", "file", "path"])
def test_bundle_sent_to_a_url_is_admitted_with_the_digest_of_the_folder_way(
    fed, site, kind, memory, scratch
):
    (scratch / "far").mkdir()
    text = {"memory": memory, "file": f"file://{scratch}/far", "path": f"{scratch}/far"}[kind]
    digest = released(site).name
    assert send(fed, site, text) == "sent"
    assert sizes(open_folder(text), f"incoming/{digest}") == whole(site)
    assert send(fed, site, text) == "waiting"
    (found,) = take(fed, text)
    assert (found.state, found.digest, found.site) == ("admitted", digest, A)
    open_folder(text).write(f"receipts/{digest}.dsse.json", found.receipt)
    assert send(fed, site, text) == "admitted"
    assert [entry.submission_sha256 for entry in fed.log.receipts()] == [digest]


def test_folder_under_way_has_no_name_that_a_coordinator_would_take(fed, site, scratch):
    inbox = fed.inbox

    class StopError(Exception):
        pass

    def look(_):
        (place,) = (inbox / "incoming").iterdir()
        assert place.name.startswith(PART_PREFIX)
        raise StopError

    with pytest.raises(StopError):
        submit.submit(site, fed.trust, RemoteFolderTransport(f"file://{inbox}"), advance=look)
    assert admit_arrivals(fed.home, fed.trust) == []
    assert send(fed, site, f"file://{inbox}") == "sent"
    (verdict,) = admit_arrivals(fed.home, fed.trust)
    assert verdict.admitted is not None


def test_manifest_is_written_last_in_a_bucket(fed, site, flaky):
    text, link = flaky
    total = sum(whole(site).values())
    link.budget, link.stays_broken = total - 1, True  # within the manifest
    with pytest.raises(ExchangeError):
        send(fed, site, text, timeout_s=0.1)
    remote = open_folder(text)
    (place,) = remote.entries("incoming")
    found = sizes(remote, f"incoming/{place.name}")
    expected = whole(site)
    assert all(found[name] == expected[name] for name in (EXPERT_FILE, ROUTER_FILE))
    assert found.get(ENVELOPE_FILE, 0) < expected[ENVELOPE_FILE]


# Breaks


def test_link_that_breaks_within_and_after_every_file_is_taken_up_again(fed, site, flaky):
    text, link = flaky
    expected, ends, done = whole(site), [], 0
    for name in FILES:
        ends += [done + expected[name] // 2, done + expected[name] - 1, done + expected[name]]
        done += expected[name]
    for number, budget in enumerate(ends):
        link.budget, link.breaks = budget, 0
        own = f"{text}/{number}"
        fsspec.filesystem(link.protocol).makedirs(own, exist_ok=True)
        assert send(fed, site, own) == "sent"
        assert link.breaks == (1 if budget < done else 0)
        link.budget = None
        digest = released(site).name
        assert sizes(open_folder(own), f"incoming/{digest}") == expected
    (found,) = take(fed, own)
    assert found.state == "admitted"


def test_file_system_that_appends_sends_no_byte_twice(fed, site, flaky):
    text, link = flaky
    expected = whole(site)
    link.budget, link.stays_broken = expected[EXPERT_FILE] // 2, True
    with pytest.raises(ExchangeError):
        send(fed, site, text, timeout_s=0.1)
    link.budget = None
    wrote = []
    original = Wire.write
    try:
        Wire.write = lambda self, data: (wrote.append(len(data)), original(self, data))[1]
        assert send(fed, site, text) == "sent"
    finally:
        Wire.write = original
    again = expected[EXPERT_FILE] // 2 if link is FlakyBucket else 0
    assert sum(wrote) == sum(expected.values()) - expected[EXPERT_FILE] // 2 + again


def test_progress_counts_every_byte_once_however_often_the_link_breaks(fed, site, flaky):
    text, link = flaky
    link.budget = 5000
    seen = []
    submit.submit(site, fed.trust, RemoteFolderTransport(text, timeout_s=5), advance=seen.append)
    assert link.breaks == 1
    assert sum(seen) == whole(site)[EXPERT_FILE] + whole(site)[ROUTER_FILE]


def test_silence_longer_than_the_timeout_is_an_error_and_the_bundle_stays(fed, site, flaky):
    text, link = flaky
    before, link.budget, link.stays_broken = snapshot(site.released), 0, True
    began = time.monotonic()
    with pytest.raises(ExchangeError, match="connection reset by peer"):
        send(fed, site, text, timeout_s=0.3)
    assert 0.3 <= time.monotonic() - began < 20
    assert link.breaks > 1
    assert snapshot(site.released) == before


# What is damaged


@pytest.mark.parametrize("way", ["memory", "file"])
def test_file_damaged_here_on_its_way_is_refused_and_its_copy_removed(
    fed, site, way, memory, scratch
):
    (scratch / "medium").mkdir()
    text = memory if way == "memory" else f"file://{scratch / 'medium'}"
    verified = verify_bundle(released(site), fed.trust, now())
    flip(released(site) / EXPERT_FILE, -1)  # after it was verified, while it is read
    transport = RemoteFolderTransport(text)
    with pytest.raises(DigestError, match="no longer what was signed"):
        transport.send(verified, released(site), lambda _: None)
    remote = open_folder(text)
    (place,) = [entry.name for entry in remote.entries("incoming")] or [""]
    assert EXPERT_FILE not in sizes(remote, f"incoming/{place}")


def test_copy_damaged_on_a_medium_is_written_again(fed, site, scratch):
    medium = scratch / "medium"
    medium.mkdir()
    assert send(fed, site, str(medium)) == "sent"
    copy = medium / "incoming" / released(site).name
    for name in FILES:
        flip(copy / name, 100)
        assert send(fed, site, str(medium)) == "sent"
        assert snapshot(copy) == snapshot(released(site))
    assert send(fed, site, str(medium)) == "waiting"


def test_copy_that_somebody_cut_short_is_completed(fed, site, memory):
    assert send(fed, site, memory) == "sent"
    remote, place = open_folder(memory), f"incoming/{released(site).name}"
    data = remote.read(f"{place}/{EXPERT_FILE}", 1 << 30)
    remote.write(f"{place}/{EXPERT_FILE}", data[:1000])
    assert send(fed, site, memory) == "sent"
    assert sizes(remote, place) == whole(site)


# Links on a medium


@pytest.mark.parametrize("link", ["incoming", "receipts"])
def test_link_in_place_of_a_folder_is_never_followed(fed, site, scratch, link):
    elsewhere, medium = scratch / "elsewhere", scratch / "medium"
    elsewhere.mkdir()
    medium.mkdir()
    (medium / link).symlink_to(elsewhere)
    opened = open_folder(str(medium))
    if link == "incoming":
        (found,) = submit.submit(site, fed.trust, RemoteFolderTransport(str(medium), timeout_s=5))
        assert (found.state, type(found.error)) == ("refused", FileSetError)
        assert "symbolic link" in str(found.error)
    else:
        with pytest.raises(FileSetError, match="symbolic link"):
            opened.write("receipts/x.dsse.json", b"x")
    assert list(elsewhere.iterdir()) == []


def test_link_in_place_of_a_file_is_not_written_through(fed, site, scratch):
    victim = scratch / "victim"
    victim.write_text("mine")
    place = scratch / "medium" / "incoming" / f"{PART_PREFIX}{released(site).name}"
    place.mkdir(parents=True)
    (place / EXPERT_FILE).symlink_to(victim)
    with pytest.raises(MachineError):
        send(fed, site, str(scratch / "medium"))
    assert victim.read_text() == "mine"


# Errors


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file:///nonexistent/folder", "there is no folder"),
        ("/nonexistent/folder", "there is no folder"),
        ("smb://server/share", "no driver for smb://"),
    ],
)
def test_place_that_cannot_be_is_refused_at_once(text, says):
    with pytest.raises(StateError, match=says):
        RemoteFolderTransport(text, timeout_s=30)


@pytest.mark.parametrize("text", ["nonsense://x", "sftp://host:port/x"])
def test_url_that_is_none_is_wrong_usage(text):
    with pytest.raises(OptionError, match="does not know this kind of URL"):
        RemoteFolderTransport(text, timeout_s=30)


@pytest.mark.parametrize(("protocol", "extra"), [("s3", "s3"), ("sftp", "sftp")])
def test_missing_driver_names_the_extra_that_brings_it(protocol, extra, monkeypatch):
    for module in ("s3fs", "paramiko", "fsspec.implementations.sftp"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(StateError) as caught:
        open_folder(f"{protocol}://somewhere/folder")
    assert f"pip install 'ddm-fed[{extra}]'" in caught.value.hint


SECRET = "sesame%2Fopen"


@pytest.mark.parametrize(
    "text",
    [
        f"nonsense://user:{SECRET}@host/x",
        f"sftp://user:{SECRET}@127.0.0.1:1/x",
        f"sftp://user:{SECRET}@127.0.0.1:port/x",
        f"sftp://user:{SECRET}/@host/x",
    ],
)
def test_password_in_a_url_is_in_no_message(text):
    with pytest.raises((StateError, OptionError, ExchangeError)) as caught:
        RemoteFolderTransport(text, timeout_s=0.1)
    assert "sesame" not in str(caught.value)
    assert "user" not in str(caught.value).partition("hint:")[0]
    assert "sesame" not in repr(caught.value.__context__ and str(caught.value))


def test_shown_url_has_no_user_and_no_password():
    assert shown("sftp://me:secret@host:22/x") == "sftp://host:22/x"
    assert shown("s3://bucket/folder") == "s3://bucket/folder"


def test_host_that_does_not_answer_is_tried_for_as_long_as_the_timeout_says():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # bound, and nobody listens
        began = time.monotonic()
        with pytest.raises(ExchangeError, match="cannot be reached"):
            RemoteFolderTransport(f"sftp://127.0.0.1:{port}/x", timeout_s=1.2)
    assert 0.4 < time.monotonic() - began < 20


# A real SFTP server


class Served(str):
    """A URL, and the process that answers there."""

    pid: int


@pytest.fixture
def sftp(scratch: Path, monkeypatch) -> Iterator[Served]:
    """An sshd of our own on loopback, whose key is in known_hosts; yields the URL of a folder."""
    sshd = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
    if sshd is None or os.getuid() != 0:
        pytest.skip("needs sshd, and root to start it")
    home = scratch / "ssh"
    home.mkdir(mode=0o700)
    for name in ("host", "user"):
        key = paramiko.RSAKey.generate(2048)
        key.write_private_key_file(str(home / name))
        (home / f"{name}.pub").write_text(f"{key.get_name()} {key.get_base64()}\n")
    shutil.copyfile(home / "user.pub", home / "authorized")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (home / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {home}/host\nStrictModes no\n"
        f"AuthorizedKeysFile {home}/authorized\nPermitRootLogin yes\nUsePAM no\n"
        f"PidFile {home}/pid\nSubsystem sftp internal-sftp\nPasswordAuthentication no\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen([sshd, "-D", "-f", home / "config"], stderr=subprocess.DEVNULL)
    known = home / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {(home / 'host.pub').read_text()}")
    monkeypatch.setattr("ddm_fed.remote.hosts.KNOWN_HOSTS", (known,))
    monkeypatch.setenv("HOME", str(home))
    (home / ".ssh").mkdir()
    shutil.copyfile(home / "user", home / ".ssh" / "id_rsa")
    (home / ".ssh" / "id_rsa").chmod(0o600)
    (scratch / "far").mkdir()
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        url = Served(f"sftp://root@127.0.0.1:{port}{scratch / 'far'}")
        url.pid = server.pid
        yield url
    finally:
        server.terminate()
        server.wait()


def test_bundle_travels_over_sftp_and_the_receipt_comes_back(fed, site, sftp, scratch):
    digest = released(site).name
    assert send(fed, site, sftp) == "sent"
    assert snapshot(scratch / "far" / "incoming" / digest) == snapshot(released(site))
    assert send(fed, site, sftp) == "waiting"
    (found,) = take(fed, sftp)
    assert found.state == "admitted"
    open_folder(sftp).write(f"receipts/{digest}.dsse.json", found.receipt)
    assert send(fed, site, sftp) == "admitted"


def test_bundle_half_way_over_sftp_is_continued(fed, site, sftp, scratch):
    part = scratch / "far" / "incoming" / f"{PART_PREFIX}{released(site).name}"
    part.mkdir(parents=True)
    data = (released(site) / EXPERT_FILE).read_bytes()
    (part / EXPERT_FILE).write_bytes(data[:5000])
    inode = (part / EXPERT_FILE).stat().st_ino
    assert send(fed, site, sftp) == "sent"
    copy = scratch / "far" / "incoming" / released(site).name
    assert snapshot(copy) == snapshot(released(site))
    assert (copy / EXPERT_FILE).stat().st_ino == inode


def test_ssh_session_that_is_killed_in_the_middle_of_a_file_is_opened_again(
    fed, site, sftp, scratch, monkeypatch
):
    monkeypatch.setattr("sites.transport.remote_folder.BLOCK_BYTES", 4096)
    seen, killed = [], []

    def kill_once(count):
        seen.append(count)
        if len(seen) == 5:
            for child in Path(f"/proc/{sftp.pid}/task/{sftp.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
                killed.append(child)

    transport = RemoteFolderTransport(sftp, timeout_s=30)
    (found,) = submit.submit(site, fed.trust, transport, advance=kill_once)
    assert killed
    assert found.state == "sent"
    copy = scratch / "far" / "incoming" / released(site).name
    assert snapshot(copy) == snapshot(released(site))
    assert sum(seen) == whole(site)[EXPERT_FILE] + whole(site)[ROUTER_FILE]


def test_ssh_server_with_an_unknown_key_gets_nothing(fed, site, sftp, scratch, monkeypatch):
    monkeypatch.setattr("ddm_fed.remote.hosts.KNOWN_HOSTS", ())
    with pytest.raises(StateError, match="is not in known_hosts"):
        send(fed, site, sftp)
    assert list((scratch / "far").iterdir()) == []


def test_sftp_user_without_a_key_is_told_so(fed, site, sftp, scratch):
    (scratch / "ssh" / "authorized").write_text("")
    with pytest.raises(StateError, match="refused us"):
        send(fed, site, sftp)


def test_sftp_folder_that_is_not_there_is_named(sftp):
    with pytest.raises(StateError, match="there is no folder at sftp://127"):
        open_folder(f"{sftp}/nowhere")


def test_message_about_a_folder_shows_where_but_not_who(sftp):
    remote = open_folder(sftp)
    assert re.fullmatch(r"sftp://127\.0\.0\.1:\d+/.*", remote.name)


# A real S3 interface


@pytest.fixture
def bucket(monkeypatch) -> Iterator[str]:
    """A server that speaks S3 on loopback; yields the URL of a folder in a bucket."""
    server = moto.server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    name = f"consortium-{secrets.token_hex(4)}"  # moto keeps its buckets while the process lasts
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(name)
    yield f"s3://{name}/exchange"
    server.stop()


def test_bundle_travels_over_s3_and_the_receipt_comes_back(fed, site, bucket):
    digest = released(site).name
    assert send(fed, site, bucket) == "sent"
    assert sizes(open_folder(bucket), f"incoming/{digest}") == whole(site)
    assert send(fed, site, bucket) == "waiting"
    (found,) = take(fed, bucket)
    assert found.state == "admitted"
    open_folder(bucket).write(f"receipts/{digest}.dsse.json", found.receipt)
    assert send(fed, site, bucket) == "admitted"


def test_bundle_half_way_in_a_bucket_is_partial_and_then_completed(fed, site, bucket):
    assert send(fed, site, bucket) == "sent"
    remote, place = open_folder(bucket), f"incoming/{released(site).name}"
    remote.remove(f"{place}/{ENVELOPE_FILE}")
    data = remote.read(f"{place}/{EXPERT_FILE}", 1 << 30)
    remote.write(f"{place}/{EXPERT_FILE}", data[:1000])
    (found,) = take(fed, bucket)
    assert found.state == "partial"
    assert send(fed, site, bucket) == "sent"
    (found,) = take(fed, bucket)
    assert found.state == "admitted"


@pytest.mark.slow
def test_bucket_that_is_not_there_is_named(bucket):
    with pytest.raises(StateError, match="no bucket at s3://elsewhere"):
        open_folder("s3://elsewhere/exchange")


def test_bucket_without_credentials_says_so(bucket, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StateError) as caught:
        open_folder(bucket)
    # without a name, S3 does not even say that the bucket exists
    assert "allowed to see it" in caught.value.hint

"""How fast and in how much memory does a large bundle reach the coordinator over gRPC?

    python benchmarks/exchange.py               # a bundle of 2.7 GB, three rounds; then 32 sites
    python benchmarks/exchange.py --quick       # 0.5 GB, one round, 8 sites

Every round sends the same files, one way after the other, each end in a process of its own on
loopback: `ddm-site submit` to `ddm-coord serve` (checked, hashed and flushed to disk), and a plain
TLS 1.3 socket with the same kind of key, whose receiver throws the bytes away, or hashes, writes
and flushes them (Flower next to both: flower.py). The rate of gRPC is that of the bytes until they
are safe, as the server's own log says. Memory is the peak of each end over what it has after its
imports. Last answer: results/exchange_cpu_20261128.md.
"""

import argparse
import json
import os
import re
import shutil
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import torch
from memory import build  # the folder of this script comes first on the path

from coordinator.roster import changes
from coordinator.workspace import CoordinatorFolder
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import NonPrivateEvent
from ddm_fed.signing import TlsKey
from sites.outbox import stages
from sites.outbox.stages import find_bundles
from sites.privacy.ledger import open_ledger
from sites.published import look
from sites.train.expert import TrainingOptions
from sites.train.pipeline import run_plan
from sites.transport import submit
from sites.transport.address import Address
from sites.transport.grpc import GrpcTransport
from sites.workspace import SiteFolder, SiteSettings

BIN = Path(sys.executable).parent
CHUNK = 256 * 1024
IMPORTS = {
    "site": "import sites.cli.main, sites.transport.grpc, sites.transport.submit, "
    "sites.published, sites.transport.address",
    "coordinator": "import coordinator.cli.main, coordinator.server.server, "
    "coordinator.status.metrics, coordinator.roster.waiting",
}


def memory_mib(pid: int, key: str) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(key + r":\s+(\d+) kB", text)[1]) / 1024


def after_imports_mib(side: str) -> float:
    code = f"{IMPORTS[side]}; print(open('/proc/self/status').read())"
    text = subprocess.check_output([sys.executable, "-c", code], text=True)
    return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) / 1024


@contextmanager
def serving(hub: Path, log: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """A real `ddm-coord serve`; yields the process and its port."""
    command = [BIN / "ddm-coord", "serve", "--json", "--listen", "127.0.0.1:0", "--reserve", "0"]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*map(str, command), "--coordinator", str(hub)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            listen = json.loads(process.stdout.readline())["listen"]
            yield process, int(listen.partition("#")[0].rpartition(":")[2])
        finally:
            process.terminate()
            process.wait(60)


def over_grpc(folder: Path, size_bytes: int) -> dict[str, float]:
    """Returns rates in MB/s and peaks in MiB of one bundle, sent with the real commands."""
    hub = Path(shutil.copytree(folder / "hub", folder / "hub-now"))
    site = Path(shutil.copytree(folder / "site", folder / "site-now", symlinks=True))
    log = folder / "serve.jsonl"
    peak = 0.0
    with serving(hub, log) as (server, port):
        began = time.perf_counter()
        command = [BIN / "ddm-site", "submit", "--site", site, "--plan", hub / "published"]
        command += ["--to", f"grpcs://127.0.0.1:{port}"]
        client = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
        while client.poll() is None:
            with suppress(OSError, TypeError):  # it has just ended
                peak = max(peak, memory_mib(client.pid, "VmHWM"))
            time.sleep(0.02)
        whole = time.perf_counter() - began
        server_peak = memory_mib(server.pid, "VmHWM")
    if client.returncode:
        raise RuntimeError("submit failed")
    events = [json.loads(line) for line in log.read_text().splitlines() if line[0] == "{"]
    milliseconds = {event["rpc"]: event["ms"] for event in events if "rpc" in event}
    shutil.rmtree(hub)
    shutil.rmtree(site)
    return {
        "grpc": size_bytes / milliseconds["WriteUpload"] / 1e3,
        "admission s": milliseconds["CommitUpload"] / 1e3,
        "command s": whole,
        "site MiB": peak,
        "coordinator MiB": server_peak,
    }


RECEIVER = """
import hashlib, os, socket, ssl, sys
certificate, key, path = sys.argv[1:4]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
connection = context.wrap_socket(listener.accept()[0], server_side=True)
block, digest = memoryview(bytearray(262144)), hashlib.sha256()
file = open(path, "wb", buffering=0) if path else None
while count := connection.recv_into(block):
    if file:
        digest.update(block[:count])
        file.write(block[:count])
if file:
    os.fsync(file.fileno())
"""


def over_socket(folder: Path, files: list[Path], *, keeps: bool) -> float:
    """Returns the rate in MB/s of the files through one TLS connection."""
    key = TlsKey.for_coordinator()
    (folder / "c.pem").write_bytes(key.certificate_pem)
    (folder / "k.pem").write_bytes(key.private_pem)
    target = folder / "received"
    arguments = [folder / "c.pem", folder / "k.pem", target if keeps else ""]
    process = subprocess.Popen(
        [sys.executable, "-c", RECEIVER, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    port = int(process.stdout.readline())
    context = ssl.create_default_context(cadata=key.certificate_pem.decode())
    context.check_hostname = False
    total = 0
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port))) as connection:
        began = time.perf_counter()
        for path in files:
            with path.open("rb", buffering=0) as file:
                while data := file.read(CHUNK):
                    connection.sendall(data)
                    total += len(data)
        connection.shutdown(socket.SHUT_WR)
        process.wait(120)
        seconds = time.perf_counter() - began
    target.unlink(missing_ok=True)
    return total / seconds / 1e6


def large(architecture: str, rounds: int) -> None:
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, grpcio {grpc.__version__}\n")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _, bundle = build(folder, architecture)
        files = sorted(bundle.glob("*.safetensors"))
        size_bytes = sum(path.stat().st_size for path in files)
        found: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name, rate in (
                ("socket", over_socket(folder, files, keeps=False)),
                ("socket, kept", over_socket(folder, files, keeps=True)),
                *over_grpc(folder, size_bytes).items(),
            ):
                found.setdefault(name, []).append(rate)
            print({name: round(values[-1], 1) for name, values in found.items()}, file=sys.stderr)
    ratios = {
        base: statistics.median(a / b for a, b in zip(found["grpc"], found[base], strict=True))
        for base in ("socket", "socket, kept")
    }
    middle = {name: statistics.median(values) for name, values in found.items()}
    print(f"A bundle of {size_bytes / 1e6:,.0f} MB, {rounds} rounds, medians\n")
    print("| way | MB/s | gRPC's is so much of it |\n| --- | --- | --- |")
    print(f"| gRPC: verified manifest, hashed, flushed | {middle['grpc']:.0f} | |")
    print(f"| plain TLS socket, thrown away | {middle['socket']:.0f} | {ratios['socket']:.2f} |")
    kept = ratios["socket, kept"]
    print(f"| plain TLS socket, hashed, flushed | {middle['socket, kept']:.0f} | {kept:.2f} |")
    print(f"\nVerified once more and admitted in {middle['admission s']:.1f} s; the whole command,")
    print(f"its own verification before sending included, took {middle['command s']:.1f} s.\n")
    for side in ("site", "coordinator"):
        base, peak = after_imports_mib(side), middle[f"{side} MiB"]
        print(f"{side}: peak {peak:.0f} MiB, {peak - base:.0f} over the {base:.0f} after imports")


def many(count: int, architecture: str) -> None:
    """Lets `count` sites send at once, and prints when each was done."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _, bundle = build(folder, architecture)
        hub, sites = enlarge(folder, count)
        size = sum(path.stat().st_size for path in bundle.iterdir()) / 1e6
        done: dict[str, float] = {}
        with serving(hub.path, folder / "serve.jsonl") as (server, port):
            idle = memory_mib(server.pid, "VmRSS")
            began = time.perf_counter()

            def send(site: SiteFolder) -> None:
                transport = GrpcTransport(
                    Address("127.0.0.1", port), site, hub.trust(), timeout_s=600
                )
                (found,) = submit.submit(site, hub.trust(), transport)
                if found.state == "admitted":
                    done[site.settings.name] = time.perf_counter() - began

            threads = [threading.Thread(target=send, args=[site]) for site in sites]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            whole, peak = time.perf_counter() - began, memory_mib(server.pid, "VmHWM")
        if len(done) != count:
            raise RuntimeError(f"{len(done)} of {count} were admitted")
        events = [
            json.loads(line)
            for line in (folder / "serve.jsonl").read_text().splitlines()
            if line[0] == "{"
        ]
        writes = sorted(e["ms"] / 1e3 for e in events if e.get("rpc") == "WriteUpload")
        times = sorted(done.values())
        print(
            f"\n{count} sites at once, {size:.0f} MB each: {len(done)} admitted in {whole:.1f} s,"
        )
        print(f"{count * size / whole:.0f} MB/s in all, the admission of each included.")
        print(f"First done after {times[0]:.1f} s, median {statistics.median(times):.1f} s, ")
        print(f"last {times[-1]:.1f} s; streams took {writes[0]:.1f} to {writes[-1]:.1f} s.")
        print(f"Coordinator: {idle:.0f} MiB idle, peak {peak:.0f} MiB.")


def enlarge(folder: Path, count: int) -> tuple[CoordinatorFolder, list[SiteFolder]]:
    """Returns a coordinator with `count` sites, each with a released bundle of its own."""
    home = CoordinatorFolder.open(folder / "hub")
    first = SiteFolder.open(folder / "site")
    work = first.work(home.trust().plan_sha256)
    sites = []
    for number in range(count):
        name = f"site-{number:02}"
        text = f'{{"name":"{name}","root":"{home.settings.root}","max_epsilon":"10"}}'
        sites.append(SiteFolder.create(folder / name, SiteSettings.model_validate_json(text)))
    changes.add(home, [site.path / "enrolment.dsse.json" for site in sites])
    for number, site in enumerate(sites):
        published = look(site, home.published)
        target = site.work(published.trust.plan_sha256)
        shutil.copy(work / "trained.json", target)
        expert = (work / "expert.safetensors").read_bytes()
        # the last weight differs: nobody may send a file that was admitted for another site
        last = struct.pack("<f", number / 1024)
        (target / "expert.safetensors").write_bytes(expert[: -len(last)] + last)
        sha256 = published.trust.plan_sha256
        open_ledger(site).append(sha256, "expert", "no-noise", NonPrivateEvent())
        images = Private(ImageSet(torch.zeros(10, 1, 8, 8), None))
        run_plan(site, published.trust, published.log, images, TrainingOptions())
        stages.review(site, published.trust)
        stages.release(site, published.trust)
        if len(find_bundles(site.released)) != 1:
            raise RuntimeError("a site has no bundle")
    return home, sites


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=["large", "many"])
    options = parser.parse_args()
    if options.only != "many":
        large(*(("DiT-B/8", 1) if options.quick else ("DiT-XL/8", 3)))
    if options.only != "large":
        many(*((8, "DiT-Ti/8") if options.quick else (32, "DiT-Ti/8")))


if __name__ == "__main__":
    main()

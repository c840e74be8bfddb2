"""How fast and how big is `verify_bundle` on a bundle of a gigabyte, beside a plain SHA-256?

    python benchmarks/verification.py

Builds a federation of one site around experts of half a gigabyte and nearly two (no architecture
lies between), and hashes and verifies each bundle in turn, in one process, with its files in the
page cache. Memory is measured in processes of their own. Also times the refusal of a header bomb.
Last answer: at 0.89 of its speed, in flat memory; see results/verification_cpu_20261123.md.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from memory import build  # the folder of this script comes first on the path

from coordinator.workspace import CoordinatorFolder
from ddm_fed.bundle.verify import EXPERT_FILE, TENSOR_FILES, verify_bundle
from ddm_fed.errors import RefusedError
from ddm_fed.records import now
from ddm_fed.storage.tensors import check_tensor_file
from ddm_fed.trust import Trust

ARCHITECTURES = ("DiT-B/8", "DiT-L/8")
PAIRS = 9
BLOCK_BYTES = 1 << 20
BOMB_TENSORS = 1_770_000


def federation(folder: Path, architecture: str) -> tuple[Trust, Path]:
    """Returns what a verifier trusts and a bundle to verify. All that depends on roles is here."""
    hub, bundle = build(folder, architecture)
    return trust_of(hub), bundle


def trust_of(hub: Path) -> Trust:
    return CoordinatorFolder.open(hub).trust()


def hash_plainly(bundle: Path) -> None:
    """Hashes the tensor files and does nothing else."""
    block = memoryview(bytearray(BLOCK_BYTES))
    for name in TENSOR_FILES:
        digest = hashlib.sha256()
        with (bundle / name).open("rb", buffering=0) as file:
            while count := file.readinto(block):
                digest.update(block[:count])


def seconds(job: Callable[[], object]) -> float:
    started = perf_counter()
    job()
    return perf_counter() - started


def in_turn(first: Callable[[], object], second: Callable[[], object]) -> list[tuple[float, float]]:
    """Returns the times of `PAIRS` pairs, after one pair that loads libraries and files."""
    return [(seconds(first), seconds(second)) for _ in range(PAIRS + 1)][1:]


# A process of its own, started by a small one: imports first, then two verifications. The peak is
# set back before each (clear_refs), and is that of this program image only (VmHWM).
VERIFIER = """
import json, re, sys
from pathlib import Path
from coordinator.workspace import CoordinatorFolder
from ddm_fed.bundle.verify import verify_bundle
from ddm_fed.records import now

def status(key):
    return int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

after_imports = status("VmRSS")
trust = CoordinatorFolder.open(Path(sys.argv[1])).trust()
peaks = []
for _ in range(2):
    Path("/proc/self/clear_refs").write_text("5")
    verify_bundle(Path(sys.argv[2]), trust, now())
    peaks.append(status("VmHWM"))
print(json.dumps([after_imports, *peaks]))
"""
LAUNCHER = """
import os, sys
os.waitpid(os.posix_spawn(sys.executable, [sys.executable, "-c", *sys.argv[1:]], os.environ), 0)
"""


def memory_mib(hub: Path, bundle: Path) -> tuple[float, float, float]:
    """Returns resident memory after imports, and the peaks of a first and a second verification."""
    command = [sys.executable, "-S", "-c", LAUNCHER, VERIFIER, str(hub), str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after_imports, first, second = json.loads(done.stdout)
    return after_imports, first, second


def measure(folder: Path, architecture: str) -> dict[str, str]:
    """Returns one row of the table."""
    trust, bundle = federation(folder, architecture)
    megabytes = sum((bundle / name).stat().st_size for name in TENSOR_FILES) / 1e6
    times = in_turn(lambda: hash_plainly(bundle), lambda: verify_bundle(bundle, trust, now()))
    hashing, verifying = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = sorted(hashed / verified for hashed, verified in times)
    after_imports, first, second = memory_mib(folder / "hub", bundle)
    return {
        "architecture": architecture,
        "MB": f"{megabytes:.0f}",
        "SHA-256 s": f"{hashing:.3f}",
        "SHA-256 MB/s": f"{megabytes / hashing:.0f}",
        "verify s": f"{verifying:.3f}",
        "verify MB/s": f"{megabytes / verifying:.0f}",
        "speed ratio": f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        "MiB after imports": f"{after_imports:.0f}",
        "peak above, first verify": f"{first - after_imports:.0f}",
        "peak above, second": f"{second - after_imports:.0f}",
    }


def write_bomb(path: Path) -> int:
    """Writes a file of 1.77 million empty tensors; returns the bytes of its header."""
    entry = '"{:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'.format
    raw = f"{{{','.join(map(entry, range(BOMB_TENSORS)))}}}".encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)
    return len(raw)


def refuse(path: Path) -> None:
    """Has the file at `path` refused."""
    with path.open("rb") as file:
        try:
            check_tensor_file(file, {"a": ("F32", (1,))}, what="the bomb")
        except RefusedError:
            return
    raise RuntimeError("the bomb was not refused")


def main() -> None:
    """Prints the table, then the time of the bomb."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    for number, architecture in enumerate(ARCHITECTURES):
        with tempfile.TemporaryDirectory() as scratch:
            row = measure(Path(scratch) / architecture.replace("/", "-"), architecture)
        if number == 0:
            print("| " + " | ".join(row) + " |")
            print("| --- " * len(row) + "|")
        print("| " + " | ".join(row.values()) + " |", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        bomb = Path(scratch) / EXPERT_FILE
        size = write_bomb(bomb)
        slowest = max(seconds(lambda: refuse(bomb)) for _ in range(10))
    print(f"\nHeader bomb of {size / 1e6:.1f} MB: refused in {slowest * 1e3:.2f} ms or less")


if __name__ == "__main__":
    main()

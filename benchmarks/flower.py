"""How fast does a bundle come over Flower, next to gRPC and a plain socket, and in how much memory?

    python benchmarks/flower.py               # DiT-L/8: 1.8 GB, parts of 32 and of 128 MiB
    python benchmarks/flower.py --quick       # DiT-B/8: 0.5 GB

One run, the same files, real processes on loopback. Flower: SuperLink with TLS and registered keys
behind our edge, one SuperNode, `flwr run`. The rate over Flower is from the first question for a
part to the last byte written; memory is the peak of the resident sizes of all its processes
together. Last answer: results/flower_cpu_20261128.md.
"""

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))  # the tests' own

from exchange import over_grpc, over_socket  # the folder of this script comes first on the path
from flower_deployment import Deployment, deployment
from memory import build

RUN_S = 1200


class Memory:
    """Peak of the resident sizes of everything that has this deployment's folder in its path."""

    def __init__(self, folder: Path) -> None:
        self._mark = f"{folder}/bin".encode()
        self.peak_mib: dict[str, float] = {}
        self.together_mib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.25):
            sizes = dict(self._sizes())
            self.together_mib = max(self.together_mib, sum(sizes.values()))
            for name, size in sizes.items():
                self.peak_mib[name] = max(size, self.peak_mib.get(name, 0.0))

    def _sizes(self):
        for process in Path("/proc").iterdir():
            if not process.name.isdigit():
                continue
            try:
                if self._mark not in (process / "environ").read_bytes():
                    continue
                words = (process / "cmdline").read_bytes().split(b"\0")
                pages = int((process / "statm").read_text().split()[1])
            except (OSError, ValueError, IndexError):  # it has just ended
                continue
            names = [Path(os.fsdecode(word)).name for word in words[1:3]]
            if len(names) == 2:  # a program of Python: its script, or the module after -m
                name = names[1] if names[0] == "-m" else names[0]
                yield name, pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def over_flower(folder: Path, flower: Deployment, part_mib: int, size_bytes: int) -> dict:
    """Returns the rate in MB/s and the peaks in MiB of one run that admits the bundle."""
    hub = Path(shutil.copytree(folder / "hub", folder / f"hub-{part_mib}"))
    receipts = folder / f"receipts-{part_mib}"
    receipts.mkdir()
    node = flower.start_node("site", folder / "site" / "outbox" / "released", receipts)
    flower.wait_for(lambda: flower.statuses()["site"] == "online", "node-site", 120)
    name = f"run-{part_mib}"
    began = time.perf_counter()
    with Memory(flower.path) as memory:
        run = flower.start_run(name, coordinator=str(hub), part_mib=float(part_mib), parallel=1)
        if run.wait(RUN_S):
            raise RuntimeError(flower.log(name)[-3000:])
    whole = time.perf_counter() - began
    node.terminate()
    node.wait(30)
    events = flower.events(name)
    if [event["state"] for event in events if event["state"]] != ["admitted"]:
        raise RuntimeError(flower.log(name)[-3000:])
    moments = [
        datetime.fromisoformat(event["at"])
        for event in events
        if event.get("event") in ("from", "part")
    ]
    shutil.rmtree(hub)
    return {
        "rate": size_bytes / (moments[-1] - moments[0]).total_seconds() / 1e6,
        "parts": len(moments) - 1,
        "whole s": whole,
        "together MiB": memory.together_mib,
        "peaks": memory.peak_mib,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", type=int, nargs="+", default=[32, 128])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _, bundle = build(folder, "DiT-B/8" if given.quick else "DiT-L/8")
        files = sorted(bundle.glob("*.safetensors"))
        size_bytes = sum(path.stat().st_size for path in files)
        rows = [("plain TLS socket, hashed, flushed", over_socket(folder, files, keeps=True), "")]
        grpc = over_grpc(folder, size_bytes)
        both = f"site {grpc['site MiB']:.0f}, coordinator {grpc['coordinator MiB']:.0f}"
        rows.append(("gRPC", grpc["grpc"], both))
        with deployment(folder / "flower") as flower:
            flower.register("site")
            for part_mib in given.parts:
                found = over_flower(folder, flower, part_mib, size_bytes)
                print(found, file=sys.stderr)
                peaks = ", ".join(f"{n} {m:.0f}" for n, m in sorted(found["peaks"].items()))
                note = f"together {found['together MiB']:.0f} ({peaks})"
                name = f"Flower, {found['parts']} parts of {part_mib} MiB"
                rows.append((name, found["rate"], note))
    load = os.getloadavg()[2]
    print(
        f"\nA bundle of {size_bytes / 1e6:,.0f} MB, one run, {os.cpu_count()} cores, load "
        f"average of the last 15 minutes {load:.1f}.\n"
    )
    print("| way | MB/s | gRPC is so much faster | peak memory, MiB |\n| --- | --- | --- | --- |")
    for name, rate, note in rows:
        print(f"| {name} | {rate:.1f} | {grpc['grpc'] / rate:.1f} | {note} |")


if __name__ == "__main__":
    main()

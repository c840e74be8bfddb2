"""How fast and in how much memory are shards of many small images decoded, and does a kill matter?

Shards of PNG files of noise are written, 1,000 and 100,000 images by default, and decoded
into the store by a process of its own, which tells its most memory. Beside it stands a process that
does nothing but decode the same entries with Pillow. The larger one is killed once midway, and
goes on; what it then holds is compared with what one go gives.

    python benchmarks/sources.py --images 1000 100000 --pixels 64
"""

import argparse
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

OURS = """
import resource, sys, time
from pathlib import Path
from ddm_fed.records import DataSpec
from sites.data import load_images
side = int(sys.argv[3])
began = time.process_time()
images, _ = load_images(sys.argv[1], DataSpec(channels=3, height=side, width=side),
                        store=Path(sys.argv[2]))
cpu = time.process_time() - began
print(cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
PILLOW = """
import io, sys, tarfile, time
import numpy as np
from PIL import Image
began = time.process_time()
for path in sys.argv[1].split(","):
    with tarfile.open(path, "r|") as tar:
        for member in tar:
            np.asarray(Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB"))
print(time.process_time() - began)
"""


def write(folder: Path, count: int, side: int, per_shard: int = 10_000) -> list[Path]:
    """Writes shards; noise of few frequencies, so that PNG has something to do."""
    rng, shards = np.random.default_rng(0), []
    rough = [
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side))
        for _ in range(500)
    ]
    encoded = []
    for image in rough:
        data = io.BytesIO()
        image.save(data, "PNG")
        encoded.append(data.getvalue())
    for first in range(0, count, per_shard):
        shards.append(folder / f"{count}-{first // per_shard:03}.tar")
        with tarfile.open(shards[-1], "w") as tar:
            for index in range(first, min(count, first + per_shard)):
                info = tarfile.TarInfo(f"{index:07}.png")
                info.size = len(encoded[index % len(encoded)])
                tar.addfile(info, io.BytesIO(encoded[index % len(encoded)]))
    return shards


def run(code: str, *words: object) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], check=True, capture_output=True, text=True
    )
    return [float(each) for each in done.stdout.split()]


def killed(source: str, store: Path, side: int, blocks: int) -> int:
    """Kills a decoding after some blocks; returns how many images were kept."""
    child = subprocess.Popen([sys.executable, "-c", OURS, source, store, str(side)])
    lines: list[bytes] = []
    while len(lines) < blocks and child.poll() is None:
        time.sleep(0.05)
        for path in store.glob("*/blocks.jsonl"):
            lines = path.read_bytes().splitlines()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    return sum(json.loads(line)["images"] for line in lines[:-1])


def digest(store: Path) -> str:
    (path,) = store.glob("*/pixels.bin")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--pixels", type=int, default=64)
    options = parser.parse_args()
    with TemporaryDirectory() as place:
        folder = Path(place)
        for count in options.images:
            shards = write(folder, count, options.pixels)
            source = str(folder / f"{count}-*.tar")
            cpu, memory = run(OURS, source, folder / f"store-{count}", options.pixels)
            (pillow,) = run(PILLOW, ",".join(map(str, shards)))
            facts = {
                "images": count,
                "cpu_s": round(cpu, 1),
                "images_per_s": round(count / cpu),
                "pillow_images_per_s": round(count / pillow),
                "most_memory_MiB": round(memory / 1024),
            }
            print(json.dumps(facts), flush=True)
        stopped = folder / "store-killed"
        kept = killed(source, stopped, options.pixels, max(2, count // 512 // 2))
        cpu, _ = run(OURS, source, stopped, options.pixels)
        same = digest(stopped) == digest(folder / f"store-{count}")
        print(json.dumps({"kept_at_the_kill": kept, "cpu_s_after": round(cpu, 1), "same": same}))


if __name__ == "__main__":
    main()

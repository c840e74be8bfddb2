"""A command that takes `--part`, spread over the machines of Ray and then put together here.

    python examples/islands/ray_parts.py --parts 8 ddm-coord sample e --root sha256:… --out samples

Machines share the folders that the command names, and have this project installed at the same
place. Without `--address` Ray is started on this machine alone, with as many cores as it has. Ray
listens at every address without any key (docs/flower.md): have it behind a wall. A part that fails
is tried twice more, and goes on where it was.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray

AGAIN = 2


def run(words: list[str]) -> None:
    """Runs one of our commands, or any other, where this is called."""
    own = Path(sys.executable).with_name(words[0])
    subprocess.run([str(own) if own.exists() else words[0], *words[1:]], check=True)


def main() -> None:
    """Runs a command in parts, and then without `--part`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", type=int, required=True)
    parser.add_argument("--cpus", type=float, default=1, help="of each part")
    parser.add_argument("--gpus", type=float, default=0, help="of each part")
    parser.add_argument("--address", help="of a Ray that runs; auto finds it")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if not options.command:
        parser.error("name a command")
    if options.address is None:
        ray.init(include_dashboard=False, _node_ip_address="127.0.0.1")
    else:
        ray.init(address=options.address)
    task = ray.remote(
        num_cpus=options.cpus, num_gpus=options.gpus, max_retries=AGAIN, retry_exceptions=True
    )(run)
    parts = [f"{index}/{options.parts}" for index in range(1, options.parts + 1)]
    try:
        ray.get([task.remote([*options.command, "--part", part]) for part in parts])
    finally:
        ray.shutdown()
    run(options.command)


if __name__ == "__main__":
    main()

"""Keeps one command running: `python supervise.py [--max-hours H] -- flower-supernode …`.

What systemd does with `Restart=always` and `RuntimeMaxSec=`, for machines without it. A SuperNode
whose link broke ends, or stays and is offline for ever; so it is started again when it ends, and
also every few hours whatever it says. Flower's calls to its makers are switched off here.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
PAUSE_S = 5.0
STOP_S = 10.0


def main() -> int:
    """Runs the command again and again until this process is told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-hours", type=float, default=24.0)
    parser.add_argument("--pause", type=float, default=PAUSE_S, help="seconds before a new start")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    while True:
        child = subprocess.Popen(given.command, env=os.environ | QUIET)
        sys.stderr.write(f"supervise: started {given.command[0]} as {child.pid}\n")
        try:
            status = child.wait(given.max_hours * 3600)
        except subprocess.TimeoutExpired:
            status = end(child)
        except (SystemExit, KeyboardInterrupt):
            end(child)
            return 0
        sys.stderr.write(f"supervise: it ended with {status}; again in {given.pause:g} s\n")
        time.sleep(given.pause)


def stop(*_: object) -> None:
    """Ends the loop; `main` then ends the command."""
    raise SystemExit(0)


def end(child: subprocess.Popen) -> int:
    """Stops the command, at first politely, so that the SuperLink hears that it leaves."""
    child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        return child.wait(STOP_S)
    child.kill()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main())

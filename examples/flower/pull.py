"""Pulls once, with an exit status that says how it went, for timers: `pull.py -c "KEY=VALUE …"`.

`flwr run --stream` ends with 0 also if the run failed. This starts the same run with the same
arguments, shows its lines, and ends with 0 if everything that was offered is admitted, else with 1.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

APP = Path(__file__).with_name("app")
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "NO_COLOR": "1"}
PAUSE_S = 2.0


def main() -> int:
    """Starts a run, shows what it says, and waits until the SuperLink calls it finished."""
    command = ["flwr", "run", str(APP), "--stream", *sys.argv[1:]]
    process = subprocess.Popen(
        command, env=os.environ | QUIET, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    run_id = None
    for line in process.stdout:
        sys.stdout.write(line)
        sys.stdout.flush()
        found = re.search(r"Successfully started run (\d+)", line)
        run_id = run_id or (found and found[1])
    if process.wait() != 0 or run_id is None:
        sys.stderr.write("error: the run could not be started; the lines above say why\n")
        return 1
    while not (status := status_of(run_id)).startswith("finished"):
        time.sleep(PAUSE_S)  # the stream of lines ended before the run
    sys.stderr.write(f"run {run_id}: {status}\n")
    return 0 if status == "finished:completed" else 1


def status_of(run_id: str) -> str:
    """Returns what the SuperLink says of a run; `finished:unknown` if it knows it no longer."""
    done = subprocess.run(
        ["flwr", "list", "--run-id", run_id, "--format", "json"],
        env=os.environ | QUIET,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        return "finished:unknown"
    runs = json.loads(done.stdout).get("runs", [])
    return next((run["status"] for run in runs if str(run["run-id"]) == run_id), "finished:unknown")


if __name__ == "__main__":
    sys.exit(main())

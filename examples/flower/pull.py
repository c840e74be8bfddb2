"""Pulls once, with an exit status that says how it went, for timers: `pull.py -c "KEY=VALUE …"`.

`flwr run --stream` ends with 0 also if the run failed, and waits without a word and without an end
for a run that the SuperLink cannot start. This starts the same run with the same arguments, shows
its lines, says what it waits for, and ends with 0 if everything that was offered is admitted, else
with 1. A run that has not started within `--start-s` seconds is stopped.
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

APP = Path(__file__).with_name("app")
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "NO_COLOR": "1"}
AT_ONCE = {
    "PYTHONUNBUFFERED": "1"
}  # into a pipe, Python keeps lines back until it has 8 KiB of them
PAUSE_S, LONGEST_S, START_S, NEWS_S, ASK_S = 2.0, 10.0, 120.0, 10.0, 60.0
FAILED = "error: the run could not be started; the lines above say why\n"
NOT_STARTED = """\
error: run {run_id} was still {status} after {seconds:.0f} s and is stopped: the SuperLink could not
start the app

hint: the SuperLink's own lines say why. Most often its certificate does not name the address
127.0.0.1, at which the programs that it starts reach it (subjectAltName=DNS:localhost,IP:127.0.0.1;
README.md has the commands), or `flower-superexec` is not on its PATH
"""
UNREACHED = """\
error: flwr has not started a run within {seconds:.0f} s

hint: it asks the SuperLink that FLWR_HOME/config.toml (else ~/.flwr/config.toml) names: check its
address and its root certificate, that `flower-superlink` runs there, and that NO_PROXY names this
machine where a proxy is set
"""


class Pull:
    """One run: what Flower printed of it, and what it is waiting for.

    Args:
        words: What `flwr run` is asked besides the app.
        start_s: Seconds within which the SuperLink has to start it.
    """

    def __init__(self, words: list[str], start_s: float) -> None:
        self._start_s, self._run_id = start_s, ""
        self._process = subprocess.Popen(
            ["flwr", "run", str(APP), "--stream", *words],
            env=os.environ | QUIET | AT_ONCE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._heard = time.monotonic()
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stdout:
            found = re.search(r"Successfully started run (\d+)", line)
            if found:
                self._run_id = found[1]
            self._heard = time.monotonic()
            sys.stdout.write(line)
            sys.stdout.flush()

    def finish(self) -> int:
        """Waits until the SuperLink calls the run finished; returns the exit status."""
        begun, started, waited = time.monotonic(), False, 0.0
        while True:
            self._pause(waited)
            waited = time.monotonic() - begun
            if not self._run_id:
                if self._process.poll() is not None and not self._reader.is_alive():
                    sys.stderr.write(FAILED)
                    return 1
                if waited > self._start_s:
                    sys.stderr.write(UNREACHED.format(seconds=waited))
                    return self._give_up()
                self._say(f"waiting for the SuperLink to take the run, {waited:.0f} s")
                continue
            status = status_of(self._run_id)
            if status.startswith("finished"):
                self._reader.join(PAUSE_S)
                sys.stderr.write(f"run {self._run_id}: {status}\n")
                return 0 if status == "finished:completed" else 1
            started = started or status == "running"
            if not started and waited > self._start_s:
                facts = {"run_id": self._run_id, "status": status, "seconds": waited}
                sys.stderr.write(NOT_STARTED.format(**facts))
                return self._give_up()
            self._say(
                f"run {self._run_id} is {status}, {waited:.0f} s: "
                + (
                    "waiting for what the app prints next"
                    if started
                    else f"waiting for the SuperLink to start the app, until {self._start_s:.0f} s"
                )
            )

    def _pause(self, waited: float) -> None:
        """Pauses before the next question, for longer the longer the run has taken.

        Each question is a `flwr` of its own, which computes for a second. `flwr run` ends with the
        run, and is then not waited for.
        """
        pause = min(max(PAUSE_S, waited / 4), LONGEST_S)
        if waited < self._start_s:
            pause = min(pause, max(PAUSE_S, self._start_s - waited))
        if self._process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(pause)
        else:
            time.sleep(PAUSE_S)

    def _say(self, news: str) -> None:
        """Writes what it waits for, where nothing was written for a while."""
        if time.monotonic() - self._heard >= NEWS_S:
            self._heard = time.monotonic()
            sys.stderr.write(news + "\n")

    def _give_up(self) -> int:
        self._process.terminate()
        if self._run_id:
            flwr("stop", self._run_id)
        return 1


def flwr(*words: str) -> subprocess.CompletedProcess:
    """Runs `flwr`; one that does not come back in a minute counts as one that failed."""
    command = ["flwr", *words]
    try:
        return subprocess.run(
            command,
            env=os.environ | QUIET,
            stdout=subprocess.PIPE,
            text=True,
            timeout=ASK_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "")


def status_of(run_id: str) -> str:
    """Returns what the SuperLink says of a run; `finished:unknown` if it knows it no longer."""
    done = flwr("list", "--run-id", run_id, "--format", "json")
    if done.returncode != 0:
        return "finished:unknown"
    runs = json.loads(done.stdout).get("runs", [])
    return next((run["status"] for run in runs if str(run["run-id"]) == run_id), "finished:unknown")


def main() -> int:
    """Starts a run, shows what it says, and waits for its end."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="All else goes to `flwr run`, such as -c 'min-nodes=3'."
    )
    parser.add_argument(
        "--start-s",
        type=float,
        default=START_S,
        metavar="SECONDS",
        help="how long the SuperLink may take to start the run (default: %(default)s)",
    )
    given, words = parser.parse_known_args()
    return Pull(words, given.start_s).finish()


if __name__ == "__main__":
    sys.exit(main())

"""Flower's programs as forks of one process that has imported them.

A program of Flower imports for more than a second before it does anything, and a deployment starts
dozens: SuperNodes, and a `flwr-clientapp` for every message. Here each is a process as before, with
its own arguments, environment, folder and streams, but it is a fork. What stands on PATH is a small
program that asks for the fork, passes signals on to it and ends as it ends; when that one is
killed, the fork is killed too. The installed programs themselves are run by
tests/whole/test_flower_readme.py.
"""

import atexit
import contextlib
import gc
import importlib.metadata
import json
import os
import signal
import socket
import sys
import threading
from importlib import import_module
from pathlib import Path

# read when Flower is imported, so before the forks have their own environment
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
IMPORTED = (
    "flwr.cli.app",
    "flwr.clientapp",
    "flwr.serverapp",
    "flwr.supercore.cli",
    "flwr.superlink.cli",
    "flwr.supernode.cli",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.auto",
)
MOST = 1 << 20  # bytes of arguments and environment
ASKING = """\
#!{python} -IS
import json, os, signal, socket, sys
asked = json.dumps([{name!r}, sys.argv[1:], dict(os.environ), os.getcwd()]).encode() + b"\\n"
with socket.socket(socket.AF_UNIX) as fork:
    fork.connect({address!r})
    socket.send_fds(fork, [asked[:1]], [0, 1, 2])
    fork.sendall(asked[1:])
    said = fork.makefile("r")
    pid = int(said.readline())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    os._exit(int(said.readline() or 137))
"""


def write_programs(folder: Path, address: str) -> None:
    """Writes programs with the names of Flower's into `folder`, which ask the server for forks."""
    folder.mkdir()
    for name in entry_points():
        program = folder / name
        program.write_text(ASKING.format(python=sys.executable, name=name, address=address))
        program.chmod(0o755)


def entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    """Returns Flower's programs by name."""
    found = importlib.metadata.distribution("flwr").entry_points
    return {entry.name: entry for entry in found if entry.group == "console_scripts"}


def serve(address: str) -> None:
    """Imports Flower, then forks for everybody who asks at `address`, for ever."""
    os.environ.update(QUIET)
    for name in IMPORTED:
        import_module(name)
    gc.collect()
    gc.freeze()  # looking through what was imported costs every fork a third of a second
    signal.signal(signal.SIGCHLD, _forget)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(100)
        while True:
            asking, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                _become(asking)
            asking.close()


def _forget(*_: object) -> None:
    """Lets the forks that have ended be gone: Flower looks whether a process is still there."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _become(asking: socket.socket) -> None:
    code = 1
    try:
        begun, streams, *_ = socket.recv_fds(asking, 1, 3)
        name, words, environment, folder = json.loads(begun + asking.makefile("rb").readline(MOST))
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.path[:1] = [path for path in environment.get("PYTHONPATH", "").split(":") if path]
        asking.sendall(b"%d\n" % os.getpid())
        threading.Thread(target=_end_with, args=(asking,), daemon=True).start()
        code = _run(name, words)
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        asking.sendall(b"%d\n" % code)
        os._exit(code)


def _end_with(asking: socket.socket) -> None:
    """Kills this process when the program that asked for it is gone."""
    asking.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)


def _run(name: str, words: list[str]) -> int:
    sys.argv = [name, *words]
    try:
        found = entry_points()[name].load()()
    except SystemExit as ended:
        found = ended.code
    except BaseException:  # noqa: BLE001  as the end of any Python
        sys.excepthook(*sys.exc_info())
        return 1
    if isinstance(found, str):
        sys.stderr.write(f"{found}\n")
        return 1
    return found or 0


if __name__ == "__main__":
    serve(sys.argv[1])

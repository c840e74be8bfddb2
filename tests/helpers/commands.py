"""The real commands, as a person types them: in this process, or in one of their own.

A process of its own costs seconds of importing torch and its like before it does anything, and one
more for our own records. So these start as forks of a server that has imported the libraries and
the modules that most commands need, and nothing of a command line: the program, its environment,
its streams and its end are those of any process, and it can be killed like one. What the installed
script itself does, from the first line of Python on, tests/repository shows.
"""

import atexit
import gc
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from importlib import import_module
from io import StringIO
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest
import typer

BIN = Path(sys.executable).parent
MAIN = {"ddm-site": "sites.cli.main", "ddm-coord": "coordinator.cli.main"}
LIBRARIES = (
    "cryptography.x509",
    "dp_accounting.rdp",
    "fsspec",
    "google.protobuf.message",
    "matplotlib.figure",
    "opendp.measurements",
    "PIL.Image",
    "pydantic.main",
    "pydantic.type_adapter",
    "pytest",
    "rich.progress",
    "safetensors.torch",
    "scipy.stats",
    "sklearn.datasets",
    "torch._dynamo",  # an optimizer imports it: three seconds
    "torch.nn.functional",
    "typer",
)
OURS = (  # none of them reads the environment or starts a thread when it is imported
    "coordinator.ensembles.assemble",
    "coordinator.inbox.admission",
    "coordinator.roster.changes",
    "ddm_fed.ensemble.folder",
    "ddm_fed.ensemble.sampling",
    "sites.data",
    "sites.outbox.stages",
    "sites.rotation",
    "sites.train.pipeline",
    "sites.transport.submit",
)


def load() -> None:
    """Imports what the server does, so that it is compiled once; see .ci/run."""
    for name in (*LIBRARIES, *OURS):
        import_module(name)


_described = cache(typer.main.get_command)


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def main_of(program: str) -> Callable[[], None]:
    """Returns what the installed script calls.

    Typer describes all commands to click whenever one is run; in this process it does so once.
    """
    with warnings.catch_warnings():  # typer 0.20 imports a name that click 8.5 deprecates
        warnings.simplefilter("ignore", DeprecationWarning)
        main: Callable[[], None] = import_module(MAIN[program]).main
    typer.main.get_command = _described
    return main


def here(program: str, *words: object) -> Ended:
    """Runs a command in this process, to its end."""
    out, err, before = StringIO(), StringIO(), sys.argv
    sys.argv = [program, *map(str, words)]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as caught:
            main_of(program)()
    finally:
        sys.argv = before
    return Ended(int(caught.value.code or 0), out.getvalue(), err.getvalue())


def done_here(program: str, *words: object) -> Ended:
    """Runs a command in this process that must end well."""
    return _well(here(program, *words), program, *words)


def environment(**variables: str) -> dict[str, str]:
    """Returns an environment without anything of ours but `variables`."""
    names = ("PATH", "HOME", "LANG", "TMPDIR", "OMP_NUM_THREADS", "PYTHON_KEYRING_BACKEND")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return kept | {"COLUMNS": "300", "NO_COLOR": "1"} | variables


def run(program: str | Path, *words: object, timeout: float = 250, **options: Any) -> Ended:
    """Runs a command as a process of its own, to its end; `options` are those of `Started`."""
    with Started(program, *words, **options) as started:
        out, err = started.communicate(timeout)
    return Ended(started.returncode, out, err)


def done(program: str | Path, *words: object, **options: Any) -> Ended:
    """Runs a command as a process of its own that must end well."""
    return _well(run(program, *words, **options), program, *words)


def _well(ended: Ended, program: str | Path, *words: object) -> Ended:
    assert ended.code == 0, f"{program} {' '.join(map(str, words))}: {ended.out}\n{ended.err}"
    return ended


class Started:
    """A command in a process of its own, with the methods of `subprocess.Popen`.

    Args:
        program: `ddm-site` or `ddm-coord`, or the whole path of a script in Python.
        words: What follows it.
        cwd: Where; here, by default.
        env: Its whole environment; `environment()` by default.
        stdin: An open file number; by default nothing can be read.
        stdout: An open file number; by default a pipe, which is `stdout` here.
        stderr: An open file number; by default a file, which `said` reads.
        most: How many bytes it may write into a file, as if the disk were full then.
        interpreter: What it takes for the Python it runs in, beside which its programs are.
    """

    def __init__(
        self,
        program: str | Path,
        *words: object,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        most: int | None = None,
        interpreter: Path | None = None,
    ) -> None:
        ours, theirs = os.pipe() if stdout is None else (None, stdout)
        self.stdout: IO[str] | None = None if ours is None else open(ours, encoding="utf-8")  # noqa: PTH123, SIM115
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        nothing = os.open(os.devnull, os.O_RDONLY)
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload([*LIBRARIES, *OURS])
        self._process = server.Process(
            target=_become,
            args=(str(program), tuple(map(str, words)), str(cwd or Path.cwd())),
            kwargs={
                "env": environment() if env is None else env,
                "most": most,
                "interpreter": interpreter,
                "streams": _Streams(
                    nothing if stdin is None else stdin,
                    theirs,
                    self._said.fileno() if stderr is None else stderr,
                ),
            },
            daemon=True,
        )
        self._process.start()
        os.close(nothing)
        if stdout is None:
            os.close(theirs)

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *_: object) -> None:
        if self.stdout is not None:
            self.stdout.close()
        self.wait()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, minus the signal that ended it, or None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Returns `returncode`."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end.

        Raises:
            TimeoutError: it goes on.
        """
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutError(f"still running after {timeout} s: {self.said()}")
        if not self._said.closed:
            self._err = self.said()
            self._said.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends it a signal."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it at once, in the middle of whatever it does."""
        self.send_signal(signal.SIGKILL)

    def said(self) -> str:
        """Returns what it has written to stderr."""
        if self._said.closed:
            return self._err
        self._said.seek(0)
        return self._said.read()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for its end; returns what was still to be read of stdout, and all of stderr."""
        found: list[str] = []
        if self.stdout is not None:
            reader = threading.Thread(target=lambda: found.append(self.stdout.read()), daemon=True)
            reader.start()
            reader.join(timeout)
        self.wait(timeout)
        if self.stdout is not None:
            self.stdout.close()
        return "".join(found), self.said()


class _Streams:
    """Open files on their way into the process."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def __reduce__(self) -> tuple[Any, ...]:
        return _taken, tuple(DupFd(number) for number in self.numbers)


def _taken(*streams: Any) -> _Streams:
    return _Streams(*(stream.detach() for stream in streams))


def _become(
    program: str,
    words: tuple[str, ...],
    cwd: str,
    *,
    env: dict[str, str],
    most: int | None,
    interpreter: Path | None,
    streams: _Streams,
) -> None:
    gc.freeze()  # what was imported stays: looking through it again takes a third of a second
    for number, stream in enumerate(streams.numbers):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[1:1] = [folder for folder in env.get("PYTHONPATH", "").split(os.pathsep) if folder]
    if most is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    if interpreter is not None:
        sys.executable = str(interpreter)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [str(BIN / program), *words]
    try:
        if program in MAIN:
            main_of(program)()
        else:
            sys.path.insert(0, str(Path(program).parent))
            runpy.run_path(program, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # as at the end of any Python; multiprocessing skips them

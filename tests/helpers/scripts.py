"""Shell scripts as a person starts them, whose commands are processes of the tests' kind.

A script finds `ddm-site`, `ddm-coord` and `python` on its PATH, as ever. What it finds there hands
its words, its folder, its environment and its open streams to the test, which starts the real
command, or the script in Python, with them (`commands.Started`) and hands back its exit status:
five seconds of imports less, each time. `python3` is an interpreter that starts from nothing.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import commands

ASK = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect({address!r})
    words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
    if words[0] == "python":
        words[:2] = [os.path.abspath(words[1])]
    told = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(asked, [len(told).to_bytes(4, "big")], [0, 1, 2])
    asked.sendall(told)
    os._exit(asked.recv(1)[0])
"""
REFUSED = 70


@contextmanager
def programs() -> Iterator[str]:
    """Yields a PATH on which the programs are, and this environment's Python beside them."""
    with tempfile.TemporaryDirectory() as made, socket.socket(socket.AF_UNIX) as door:
        environment = Path(made)  # one that has the packages of this one
        folder = environment / "bin"
        folder.mkdir()
        (environment / "lib").symlink_to(Path(sys.prefix) / "lib")
        (interpreter := folder / "python3").symlink_to(sys.executable)
        shutil.copy(Path(sys.prefix) / "pyvenv.cfg", environment)
        address = str(environment / "s")
        door.bind(address)
        door.listen()
        threading.Thread(target=_answer, args=(door, interpreter), daemon=True).start()
        for name in (*commands.MAIN, "python"):
            program = folder / name
            program.write_text(ASK.format(python=sys.executable, address=address))
            program.chmod(0o755)
        yield f"{folder}:{commands.BIN}:{os.environ['PATH']}"
        door.shutdown(socket.SHUT_RDWR)


def run(
    *words: object,
    cwd: Path,
    timeout: float = 500,
    expect: int = 0,
    answers: str = "",
    variables: dict[str, str] | None = None,
) -> str:
    """Runs a script or any other program to its end; returns all that it said.

    Args:
        words: What is typed.
        cwd: Where.
        timeout: In seconds.
        expect: Its exit status.
        answers: What is typed at its terminal; without any there is none, and nothing is read.
        variables: More of its environment.
    """
    typed, terminal = os.openpty() if answers else (None, subprocess.DEVNULL)
    if typed is not None:
        os.write(typed, answers.encode())
    with programs() as path, tempfile.TemporaryFile("w+", encoding="utf-8") as told:
        script = subprocess.Popen(
            [str(word) for word in words],
            cwd=cwd,
            env=commands.environment(PATH=path, **(variables or {})),
            stdin=terminal,
            stdout=told,
            stderr=subprocess.STDOUT,
        )
        try:
            status: int | None = script.wait(timeout)
        except subprocess.TimeoutExpired:
            script.kill()
            script.wait()
            status = None
        told.seek(0)
        said = told.read()
    for end in (typed, terminal):
        if typed is not None:
            os.close(end)
    assert status == expect, f"{words} ended with {status}\n{said[-6000:]}"
    return said


def _answer(door: socket.socket, interpreter: Path) -> None:
    while True:
        try:
            asked, _ = door.accept()
        except OSError:
            return
        threading.Thread(target=_start, args=(asked, interpreter), daemon=True).start()


def _start(asked: socket.socket, interpreter: Path) -> None:
    status = REFUSED
    with asked:
        size, streams, _, _ = socket.recv_fds(asked, 4, 3)
        try:
            with asked.makefile("rb") as file:
                words, cwd, environment = json.loads(file.read(int.from_bytes(size, "big")))
            given: dict[str, Any] = dict(zip(("stdin", "stdout", "stderr"), streams, strict=True))
            given |= {"cwd": Path(cwd), "env": environment, "interpreter": interpreter}
            with commands.Started(*words, **given) as started:
                status = started.wait(500)
        finally:
            for stream in streams:
                os.close(stream)
            asked.sendall(bytes([status if status >= 0 else 128 - status]))

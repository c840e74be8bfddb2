"""Runs our commands as processes of their own, several at a time, and shows what they say.

A command that runs beside others says each of its lines after the name of who runs it. One that
fails ends the others, and what it said is shown once more; so do Ctrl-C and SIGTERM end all.
"""

import asyncio
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

from ddm_fed import console

LAST_LINES = 15  # of what a failed command said
GRACE_S = 15.0  # for a command that was told to end
ONE_CORE = {"OMP_NUM_THREADS": "1"}
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class CommandFailedError(Exception):
    """A command ended with a status other than 0."""

    def __init__(self, who: str, command: str, status: int, said: list[str]) -> None:
        super().__init__(f"`{command}` ended with status {status}")
        self.who, self.status, self.said = who, status, said


def run_all(journey: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a demo to its end; a failure or an interruption ends this process with its status."""
    try:
        asyncio.run(_until_terminated(journey()))
    except (CommandFailedError, BaseExceptionGroup) as error:
        failed = first_of(error)
        if failed.who:
            console.say(f"\n{failed.who} failed. What it said last:")
            for line in failed.said[-LAST_LINES:]:
                console.say(f"  {line}")
        console.say(f"\n{failed}. Run this again once that is mended: it goes on from here.")
        sys.exit(failed.status if failed.status > 0 else 1)
    except KeyboardInterrupt:
        _say_ended("Ctrl-C")
        sys.exit(128 + signal.SIGINT)
    except asyncio.CancelledError:
        _say_ended("SIGTERM")
        sys.exit(128 + signal.SIGTERM)


async def together(jobs: Iterable[Awaitable[object]], most: int | None = None) -> None:
    """Runs jobs at the same time, at most `most` of them; the first that fails ends the others."""
    free = asyncio.Semaphore(most) if most else contextlib.nullcontext()

    async def seated(job: Awaitable[object]) -> None:
        async with free:
            await job

    async with asyncio.TaskGroup() as group:
        for job in jobs:
            group.create_task(seated(job))


async def run(program: str, *arguments: object, who: str = "") -> str:
    """Runs one of our commands and returns its stdout.

    Args:
        program: Its name; it lies beside this Python.
        arguments: Of the command line.
        who: Stands before each of its lines, and gives it one core, where it runs beside others.
            Without it the command has all cores and writes progress to this terminal itself.

    Raises:
        CommandFailedError: its status is not 0.
    """
    words = [program, *map(str, arguments)]
    show = _with_name(who)
    show(f"$ {shlex.join(words)}")
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name(program),
        *words[1:],
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE if who else None,
        env=os.environ | (ONE_CORE if who else {}),
        start_new_session=True,  # Ctrl-C reaches this process, which ends every other by itself
    )
    told, answer = [], []

    def notice(line: str) -> None:
        told.append(line)
        show(line)

    try:
        await together(
            [_read(process.stdout, answer.append), _read(process.stderr, notice), process.wait()]
        )
    finally:
        await _end(process)
    if process.returncode:
        raise CommandFailedError(who, f"{program} {arguments[0]}", process.returncode, told)
    if "--json" not in words:
        for line in answer:
            (show if who else console.show_text)(line)
    return "\n".join(answer)


def first_of(error: BaseException) -> CommandFailedError:
    """Returns the failure that came first; whatever it ended is no failure of its own."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, CommandFailedError):
        raise error
    return error


async def _until_terminated(journey: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(journey)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await task


def _say_ended(by: str) -> None:
    console.say(
        f"\nEnded by {by}, and every command with it. Run this again: it goes on from here."
    )


async def _read(stream: asyncio.StreamReader | None, take: Callable[[str], None]) -> None:
    if stream is None:
        return
    async for line in stream:
        take(line.decode(errors="replace").rstrip("\n"))


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ends a command that still runs: it is asked to, and killed if it does not."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), GRACE_S)
    except TimeoutError:
        process.kill()
        await process.wait()


def _with_name(who: str) -> Callable[[str], None]:
    if not who:
        return lambda line: console.say(f"\n{line}" if line.startswith("$ ") else line)
    return lambda line: console.say(f"{who} | {line}")

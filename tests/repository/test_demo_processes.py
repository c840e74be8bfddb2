"""How the demos run commands at the same time: what fails or is interrupted ends all of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "digits"
SLEEPER = "import os, time; open({file!r}, 'w').write(str(os.getpid())); time.sleep(100)"


def start(tmp_path: Path, journey: str) -> subprocess.Popen:
    """Starts a program that takes `journey`; `sleep(who)` is a command that takes too long."""
    code = f"""
from processes import run, run_all, together

def sleep(who):
    program = {SLEEPER!r}.format(file=who)
    return run("python", "-c", program, who=who)

async def journey():
    {journey}

run_all(journey)
"""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def sleeper(file: Path) -> int:
    """Returns the process of a sleeping command, once it sleeps."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if file.exists() and file.read_text():
            return int(file.read_text())
        time.sleep(0.02)
    raise AssertionError("the command did not start")


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_lines_of_commands_that_run_together_name_who_says_them(tmp_path):
    done = start(
        tmp_path,
        "await together(run('ddm-site', '--version', who=name) for name in ('one', 'two'))",
    )
    _, said = done.communicate(timeout=60)
    assert done.returncode == 0
    for who in ("one", "two"):
        assert f"{who} | $ ddm-site --version" in said
        assert f"{who} | ddm-site 0" in said


@pytest.mark.slow
def test_failure_of_one_is_shown_with_its_output_and_ends_the_others(tmp_path):
    done = start(
        tmp_path,
        "await together([sleep('two'), run('ddm-site', 'ledger', '--site', 'gone', who='one')])",
    )
    _, said = done.communicate(timeout=60)
    assert done.returncode == 1
    last = said.partition("one failed. What it said last:")[2]
    assert "error[DDM" in last
    assert "`ddm-site ledger` ended with status 1" in last
    if (tmp_path / "two").exists():
        assert not is_running(int((tmp_path / "two").read_text()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_ends_every_command(tmp_path, number):
    started = start(tmp_path, "await together([sleep('one'), sleep('two')])")
    processes = [sleeper(tmp_path / who) for who in ("one", "two")]
    started.send_signal(number)
    _, said = started.communicate(timeout=30)
    assert started.returncode == 128 + number
    assert "and every command with it" in said
    assert "Traceback" not in said
    assert not any(map(is_running, processes))


def test_no_more_run_at_once_than_are_asked_for(tmp_path):
    done = start(
        tmp_path,
        "await together([run('python', '-c', 'print(1)', who=str(n)) for n in range(3)], most=1)",
    )
    _, said = done.communicate(timeout=60)
    kinds = ["$" if "| $" in line else "1" for line in said.splitlines()]
    assert kinds == ["$", "1"] * 3

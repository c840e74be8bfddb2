"""Fixtures: one real federation, built once; every test works on copies of it."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import commands
import federation as helpers
import pytest
import torch
from hypothesis import settings

from ddm_fed.records import DIT_SIZES

# the tests' keys are no business of the keyring of whoever runs them
os.environ["PYTHON_KEYRING_BACKEND"] = "keyring.backends.null.Keyring"

NANO = DIT_SIZES["Nano"]
WHOLE = Path(__file__).parent / "whole"
MEMORY = Path("/dev/shm")
MEMORY_BYTES = 6 << 30  # twice what one run was seen to hold at a time


def in_memory() -> bool:
    """Whether folders of tests can be in memory: enough of it, and programs run from there.

    Every document is flushed to the disk, and its folder too: 13 ms each on a busy disk, nothing
    in memory. What a power cut would leave is asked of the calls themselves, not of a disk.
    """
    try:
        if shutil.disk_usage(MEMORY).free < MEMORY_BYTES:
            return False
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            program = Path(folder) / "program"
            program.write_text("#!/bin/sh\n")
            program.chmod(0o700)
            return subprocess.run([program], check=False).returncode == 0
    except OSError:
        return False


# for what must take its time; workers inherit it beside the other
DISK = os.environ.setdefault("DDM_TESTS_DISK", tempfile.gettempdir())
if "TMPDIR" not in os.environ and in_memory():
    os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)

# a shell ignores Ctrl-C for what it starts in the background, and every process started here would
# inherit that; a handler is not inherited, so they end as they do in a terminal
signal.signal(signal.SIGINT, signal.default_int_handler)

# the same examples in every run: a failure here is a failure everywhere
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what works on a federation, so that `make check` can do without.

    What takes longest, tests/whole, comes first: at the end, where one worker waits for the other,
    the tests that are left are short.
    """
    items.sort(key=lambda item: not item.path.is_relative_to(WHOLE))
    for item in items:
        if "stages" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.federation)


def pytest_collection_finish() -> None:
    """Leaves what was imported and collected out of every search for garbage: a second each."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def run(capsys, monkeypatch) -> Callable[..., commands.Ended]:
    """`run("ddm-site", "init", folder)`: a real command in this process, and how it ended."""
    passphrases = ("DDM_FED_PASSPHRASE", "DDM_FED_PASSPHRASE_FILE")
    for name in ("DDM_SITE", "DDM_COORDINATOR", *passphrases, "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "500")

    def run_here(program: str, *words: object) -> commands.Ended:
        monkeypatch.setattr(sys, "argv", [program, *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            commands.main_of(program)()
        return commands.Ended(caught.value.code or 0, *capsys.readouterr())

    return run_here


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory):
    """The federation after every stage. Never change it: ask for a copy."""
    threads = torch.get_num_threads()
    built = helpers.build_stages(tmp_path_factory.mktemp("federation"))
    torch.set_num_threads(threads)
    return built


@pytest.fixture(scope="module")
def one_block() -> Iterator[None]:
    """DiT-Nano with one block instead of three, for tests of what goes on around a network.

    Only in this process: what a test gives to a command, or takes from `stages`, has three.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DIT_SIZES, "Nano", NANO._replace(depth=1))
        yield


@pytest.fixture
def all_blocks(monkeypatch) -> None:
    """Its three blocks, for a test that tells them apart in a file that has `one_block`."""
    monkeypatch.setitem(DIT_SIZES, "Nano", NANO)


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """An empty folder that is gone after the test, since copies of a federation are large."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def disk() -> Iterator[Path]:
    """A folder on the disk, where what writes large files can be caught half-way."""
    with tempfile.TemporaryDirectory(prefix="ddm-tests-", dir=DISK) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def trust(stages):
    """The published plan and roster of the federation."""
    return stages.submitted.trust


@pytest.fixture(scope="session")
def site_keys(stages) -> dict:
    """The signing key of every site."""
    return {name: stages.submitted.key(name) for name in helpers.SITES}


@pytest.fixture
def bundle(stages, scratch: Path) -> Path:
    """A copy of hospital-a's valid bundle."""
    source = stages.submitted.arrival("hospital-a")
    return Path(shutil.copytree(source, scratch / "bundle"))


@pytest.fixture
def ensemble(stages, scratch: Path) -> Path:
    """A copy of the valid ensemble, alone in a folder."""
    return Path(shutil.copytree(stages.ensemble, scratch / "ensemble"))


@pytest.fixture(scope="session")
def distilled(stages, tmp_path_factory) -> tuple["helpers.Federation", Path]:
    """A federation that made a student, and the student. Never change them."""
    from students import make_student  # what it imports, few tests need

    path = tmp_path_factory.mktemp("students")
    fed = stages.admitted.copy(path / "fed", "consortium")
    return fed, make_student(fed, stages.ensemble, path / "student")


@pytest.fixture
def copy_of(stages, scratch: Path) -> Callable:
    """`copy_of("submitted", "hospital-a")`: a copy of that stage with coordinator and sites."""

    def copy(stage: str, *parts: str):
        return getattr(stages, stage).copy(scratch / stage, "consortium", *parts)

    return copy

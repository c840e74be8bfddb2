"""Somebody else may write to the folder we write to: no link of theirs leads us anywhere."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddm_fed.errors import DdmFedError, FileSetError
from ddm_fed.remote import open_folder
from ddm_fed.storage.files import append_durably, exclusive, new_folder, write_atomically

pytestmark = pytest.mark.slow

VICTIM = b"what somebody else relies on"
WRITES = 400

# Puts a link wherever a name appears, and in the place of every file and folder it can.
PLANTING = """
import os, sys

folder, victim = sys.argv[1], sys.argv[2]
guesses = [f".part-{name}" for name in ("f", "document", "bundle", "deep")]
guesses += [f"{name}.new" for name in guesses]
print("planting", flush=True)
while True:
    names = set(guesses)
    try:
        names |= {name for name in os.listdir(folder) if name.startswith(".part-")}
    except OSError:
        pass
    for name in names:
        path = os.path.join(folder, name)
        for remove in (os.unlink, lambda p: os.rename(p, p + ".moved")):
            try:
                remove(path)
            except OSError:
                continue
        try:
            os.symlink(victim, path)
        except OSError:
            pass
"""


@pytest.fixture
def shared(tmp_path: Path):
    """A folder in which another process plants links to `victim`."""
    folder, victim = tmp_path / "shared", tmp_path / "victim"
    folder.mkdir()
    victim.write_bytes(VICTIM)
    command = [sys.executable, "-c", PLANTING, str(folder), str(victim)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "planting\n"  # alive, and at it
    try:
        yield folder
    finally:
        process.kill()
        process.wait(20)
        process.stdout.close()
    assert victim.read_bytes() == VICTIM


def attempts(action) -> int:
    """Calls `action` often; returns how often it succeeded. It may be refused, never misled."""
    until, done = time.monotonic() + 4, 0
    for _ in range(WRITES):
        if time.monotonic() > until:
            break
        try:
            action()
            done += 1
        except (DdmFedError, OSError):  # what was ours was taken away: it is said, and no more
            continue
    return done


def test_document_written_beside_planted_links_overwrites_nothing_else(shared):
    attempts(lambda: write_atomically(shared / "f", b"ours" * 1000))


def test_document_on_a_medium_overwrites_nothing_else(shared):
    medium = open_folder(str(shared))
    attempts(lambda: medium.write("document", b"ours" * 1000))


def test_folder_written_beside_planted_links_overwrites_nothing_else(shared):
    count = iter(range(10**6))

    def write() -> None:
        with new_folder(shared / f"bundle-{next(count)}") as folder:
            write_atomically(folder / "f", b"ours")

    attempts(write)


def test_planted_lock_and_log_are_refused(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(VICTIM)
    (tmp_path / "lock").symlink_to(victim)
    with pytest.raises(FileSetError, match="symbolic link"), exclusive(tmp_path / "lock"):
        pass
    with pytest.raises(FileSetError, match="symbolic link"):
        append_durably(tmp_path / "lock", b"line")
    assert victim.read_bytes() == VICTIM


@pytest.mark.parametrize("at", ["incoming", "incoming/deep"])
@pytest.mark.parametrize("action", ["read", "write", "reading", "writing", "remove", "entries"])
def test_folder_of_a_medium_that_is_a_link_leads_nowhere(tmp_path, at, action):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "f").write_bytes(VICTIM)
    medium = tmp_path / "medium"
    (medium / at).parent.mkdir(parents=True)
    (medium / at).symlink_to(elsewhere)
    medium = open_folder(str(medium))

    def act() -> None:
        match action:
            case "read":
                medium.read(f"{at}/f", 100)
            case "write":
                medium.write(f"{at}/f", b"ours")
            case "reading" | "writing":
                with getattr(medium, action)(f"{at}/f"):
                    pass
            case "remove":
                medium.remove(f"{at}/f")
            case "entries":
                medium.entries(at)

    with pytest.raises(FileSetError, match="symbolic link"):
        act()
    assert (elsewhere / "f").read_bytes() == VICTIM
    assert [path.name for path in elsewhere.iterdir()] == ["f"]

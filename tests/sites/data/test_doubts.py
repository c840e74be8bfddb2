"""Doubtful data are shown, and asked about, before anything is spent: the real command."""

import os
import pty
import re
import select
import time
from pathlib import Path

import commands
import numpy as np
import pytest
from federation import PLAN_TOML, create_federation
from PIL import Image

from coordinator.roster import proposals
from ddm_fed.records import read_plan_toml
from sites.privacy.ledger import open_ledger

SITE = "hospital-a"
PLAN = PLAN_TOML.replace(
    "width = 8", 'width = 8\nconditioning = "class"\nclasses = ["cat", "dog", "owl"]'
)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    fed = create_federation(tmp_path_factory.mktemp("doubts"), sites=(SITE,))
    proposals.publish_plan(fed.home, read_plan_toml(PLAN))
    return fed


@pytest.fixture
def fed(published, scratch):
    return published.copy(scratch / "team", "consortium", SITE)


@pytest.fixture
def pets(tmp_path):
    for kind in ("cat", "dog"):
        (tmp_path / "pets" / kind).mkdir(parents=True)
        for i in range(8):
            pixels = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / kind / f"{i}.png")
    (tmp_path / "owls").mkdir()
    (tmp_path / "pets" / "owl").symlink_to(tmp_path / "owls")
    return tmp_path / "pets"


def command(fed, data, *more):
    at = ("--site", fed.path / SITE, "--plan", fed.published, "--data", data)
    return ("ddm-site", "train", *at, "--precision", "float32", "--seed", "0", *more)


def run(fed, data, *more):
    return commands.run(*command(fed, data, *more), timeout=120)


def answered(fed, data, answer):
    """Runs the command on a terminal, where it asks; returns the exit status and what it showed."""
    leader, terminal = pty.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    process = commands.Started(*command(fed, data), **streams)
    os.close(terminal)
    shown, deadline, asked = b"", time.monotonic() + 120, False
    while time.monotonic() < deadline:
        if not select.select([leader], [], [], 1)[0]:
            continue
        try:
            block = os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
        shown += block
        if not block:
            break
        if not asked and b"[y/N]" in shown:
            assert spent(fed) == 0
            os.write(leader, answer)
            asked = True
    os.close(leader)
    try:
        return process.wait(timeout=30), asked, shown.decode()
    finally:
        process.kill()


def spent(fed):
    return len(open_ledger(fed.site(SITE)).entries())


@pytest.mark.slow
def test_class_without_images_is_refused_before_anything_is_spent_where_nobody_can_be_asked(
    fed, pets
):
    done = run(fed, pets)
    assert done.code == 1
    assert "error[DDM102]" in done.err
    assert "1 of the plan's 3 classes have no image here: owl" in done.err
    assert "1 links were not followed: owl" in done.err
    assert "--yes" in done.err
    assert spent(fed) == 0


@pytest.mark.processes
def test_class_without_images_that_is_meant_so_is_trained_with_yes(fed, pets):
    (pets / "notes.txt").write_text("")
    done = run(fed, pets, "--yes")
    assert done.code == 0, done.err
    assert "of the classes: cat 8, dog 8, owl 0" in done.err
    assert "of 18 files seen 16 were taken, 2 left out" in done.err
    assert "1 .txt files are not images: notes.txt" in done.err
    assert spent(fed) > 0


@pytest.mark.processes
@pytest.mark.parametrize(("answer", "goes_on"), [(b"n\n", False), (b"\n", False), (b"y\n", True)])
def test_person_at_a_terminal_is_asked_before_anything_is_spent(fed, pets, answer, goes_on):
    status, asked, shown = answered(fed, pets, answer)
    assert asked, shown
    assert "LOOK: " in shown
    assert (status == 0, spent(fed) > 0) == (goes_on, goes_on), shown


@pytest.mark.processes
def test_data_without_doubts_are_trained_without_a_question(fed, pets):
    (pets / "owl").unlink()
    (pets / "owl").mkdir()
    (pets / "cat" / "0.png").rename(pets / "owl" / "0.png")
    done = run(fed, pets)
    assert done.code == 0, done.err
    assert "LOOK" not in done.err


def test_every_command_that_spends_privacy_on_images_settles_their_doubts():
    # `audit`, `data check`, `doctor` and `report` open images as well, and spend nothing
    found = {}
    for path in (Path(__file__).parents[3] / "sites" / "cli").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if re.search(r"(read|load)_images\(", text) and path.name != "options.py":
            found[path.name] = "settle_doubts(" in text
    spends = {"train.py": True, "head.py": True}
    opening = ("audit.py", "data.py", "doctor.py", "report.py")
    assert found == spends | dict.fromkeys(opening, False)

"""The quick starts of docs/, as they stand: four people, each in a folder of their own.

Whoever has to hand something over puts it into `exchange`, which is carried from one folder to the
next. What people read to one another, fingerprint and key, stands as `…` in the pages. What asks is
asked at a terminal, and answered with yes.
"""

import re
import shutil
from pathlib import Path

import pytest
import scripts
from documents import ROOT, blocks_of

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]

SITE, COORDINATOR = "quickstart_site.md", "quickstart_coordinator.md"
OFFICER, RESEARCHER = "quickstart_officer.md", "quickstart_researcher.md"
INSTALL = """\
python3 -m venv .venv && .venv/bin/pip install --constraint constraints.txt '.[{}]'
. .venv/bin/activate
"""
# test_roles.py holds that these bring what the commands need
EXTRAS = {SITE: "site", OFFICER: "site", COORDINATOR: "coordinator", RESEARCHER: "report"}
# who acts, by which section of whose page
PLAY = (
    ("coordinator", COORDINATOR, "Keys"),
    ("officer", OFFICER, "Your key"),
    ("site", SITE, "A key, and what this site allows"),
    ("officer", OFFICER, "Who may speak for the site"),
    ("coordinator", COORDINATOR, "Members, and what is agreed"),
    ("site", SITE, "Before anything is spent"),
    ("site", SITE, "Train, and look at what would leave"),
    ("site", OFFICER, "With the data scientist, at the site"),
    ("officer", OFFICER, "Decide"),
    ("site", SITE, "Release, and hand in"),
    ("coordinator", COORDINATOR, "Bundles, and the ensemble"),
    ("site", SITE, "The receipt"),
    ("coordinator", COORDINATOR, "What you give to others"),
    ("researcher", RESEARCHER, "Is it what it claims to be?"),
    ("researcher", RESEARCHER, "Samples"),
)


def blocks(page: str, section: str) -> list[tuple[str, str]]:
    found = blocks_of(ROOT / "docs" / page)
    return [(block.kind, block.text) for block in found if block.section == section]


@pytest.mark.parametrize("page", [SITE, COORDINATOR, OFFICER, RESEARCHER])
def test_page_is_a_page_and_every_block_of_it_is_run(page):
    lines = (ROOT / "docs" / page).read_text("utf-8").splitlines()
    assert len(lines) < 85
    sections = [block.section for block in blocks_of(ROOT / "docs" / page)]
    played = [section for _, of_page, section in PLAY if of_page == page]
    assert list(dict.fromkeys(sections)) == ["Install", *played]
    assert blocks(page, "Install") == [("sh", INSTALL.format(EXTRAS[page]))]


@pytest.fixture
def people(scratch):
    """A folder for each of them; the coordinator's is a checkout, as far as its page needs one."""
    for name in ("coordinator", "site", "officer", "researcher"):
        (scratch / name).mkdir()
    plan = scratch / "coordinator" / "examples" / "digits" / "plan-private.toml"
    plan.parent.mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "digits" / plan.name, plan)
    (scratch / "coordinator" / "exchange").mkdir()
    return scratch


def carry(people: Path, to: str) -> None:
    """Carries the medium from whoever has it."""
    (has,) = people.glob("*/exchange")
    if has.parent.name != to:
        shutil.move(has, people / to / "exchange")


def test_four_people_by_their_pages_end_with_samples_of_a_verified_ensemble(people):
    root, keys = "", []  # what people read to one another
    for who, page, section in PLAY:
        carry(people, who)
        folder = people / who
        if who == "researcher" and not (folder / "ensemble").exists():
            shutil.move(folder / "exchange" / "ensemble", folder / "ensemble")
        for kind, text in blocks(page, section):
            text = text.replace("sha256:…", root)
            for key in keys:
                text = text.replace("ed25519:…", key, 1)
            assert "…" not in text
            file = folder / f"typed.{kind}"
            file.write_text(text, "utf-8")
            words = ("python", file) if kind == "python" else ("bash", "-eu", file)
            said = scripts.run(*words, cwd=folder, answers="y\n" * 4)
            root = root or re.findall("sha256:[0-9a-f]{64}", said)[0]
            found = re.findall("ed25519:[0-9a-f]{64}", said)
            keys += [key for key in dict.fromkeys(found) if key not in keys]

    assert any((people / "site" / "hospital-a" / "receipts").iterdir())
    assert (people / "coordinator" / "report.html").is_file()
    assert (people / "researcher" / "grid.png").is_file()
    assert (people / "researcher" / "samples" / "grid.png").is_file()

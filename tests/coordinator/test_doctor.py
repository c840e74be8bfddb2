"""`ddm-coord doctor`: what is not in order has a line that says so, and nothing changes."""

import json
import shutil
from collections import namedtuple
from datetime import timedelta
from pathlib import Path

import pytest
from federation import SITES, Federation, a_plan, create_federation

import ddm_fed.doctor
from coordinator.roster import changes
from coordinator.workspace import CoordinatorFolder
from ddm_fed.records import now
from ddm_fed.signing import PLAN_PAYLOAD, seal
from ddm_fed.trust.published import PLAN_FILE

A = SITES[0]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Federation:
    return create_federation(tmp_path_factory.mktemp("doctor"), sites=(A,))


@pytest.fixture
def fed(built, scratch) -> Federation:
    return built.copy(scratch / "fed", "consortium")


@pytest.fixture
def ask(run, fed):
    """Returns the findings, by what they are of, and which fail."""

    def asked(*words):
        home = fed.path / "consortium"
        ended = run("ddm-coord", "doctor", "--coordinator", home, "--json", *words)
        found = json.loads(ended.out)
        lines = {line["what"]: line for line in found["findings"]}
        bad = [what for what, line in lines.items() if line["verdict"] == "fails"]
        assert (ended.code, found["fails"]) == (min(1, len(bad)), len(bad))
        assert all(line["advice"] for line in lines.values() if line["verdict"] != "ok")
        return lines, bad

    return asked


def facts_of(folder: Path) -> dict[str, tuple[int, ...]]:
    found = {}
    for path in (folder, *folder.rglob("*")):
        facts = path.lstat()
        found[str(path)] = (facts.st_mode, facts.st_ino, facts.st_mtime_ns, facts.st_size)
    return found


def test_coordinator_in_order_has_no_line_that_fails_and_nothing_is_changed(fed, ask):
    copy = Path(shutil.copytree(fed.path / "consortium", fed.path / "copy"))
    before = facts_of(fed.path)
    lines, bad = ask("--backup", copy)
    assert bad == []
    assert {what for what, line in lines.items() if line["verdict"] != "ok"} <= {"disk"}
    assert facts_of(fed.path) == before


@pytest.mark.parametrize(
    "name", ["keys/root.pem", "keys/coordinator.pem", "keys/export.pem", "keys/tls.pem", "store"]
)
def test_private_file_that_others_can_read_fails_with_the_command_that_closes_it(fed, ask, name):
    path = fed.home.path / name
    path.chmod(0o755)
    lines, bad = ask()
    what = f"key {path.name}" if path.suffix else f"folder {name}"
    assert what in bad
    assert "chmod" in lines[what]["advice"]


def test_key_that_is_lost_is_missed(fed, ask):
    (fed.home.keys / "coordinator.pem").unlink()
    assert ask()[1] == ["signing key"]


def test_plan_that_has_expired_fails(fed, ask):
    plan = a_plan(expires_at="expires_at = 2026-01-01T00:00:00Z").model_copy(update={"version": 2})
    envelope = seal(plan.to_json(), PLAN_PAYLOAD, [fed.coordinator_key()])
    (fed.published / PLAN_FILE).write_bytes(envelope)
    lines, bad = ask()
    assert bad == ["plan"]
    assert "2026-01-01" in lines["plan"]["why"]


def test_roster_and_certificate_that_end_are_seen_in_time(ask, monkeypatch):
    moment = now()
    monkeypatch.setattr(ddm_fed.doctor, "now", lambda: moment + timedelta(days=350))
    assert ask()[0]["roster"]["verdict"] == "doubt"
    monkeypatch.setattr(ddm_fed.doctor, "now", lambda: moment + timedelta(days=4000))
    assert ask()[1] == ["roster", "server certificate", "plan"]


def test_clock_behind_what_was_signed_fails(ask, monkeypatch):
    early = now() - timedelta(hours=2)
    monkeypatch.setattr(ddm_fed.doctor, "now", lambda: early)
    assert ask()[1] == ["clock"]


@pytest.mark.parametrize(
    ("free", "verdict"), [(10**9, "fails"), (4 << 30, "doubt"), (10**12, "ok")]
)
def test_room_is_held_against_what_members_may_send(ask, monkeypatch, free, verdict):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free, 0, free))
    assert ask()[0]["disk"]["verdict"] == verdict


def test_bundle_that_waits_is_named(fed, ask):
    (fed.home.incoming / ("a" * 64)).mkdir()
    lines, bad = ask()
    assert (bad, lines["inbox"]["verdict"]) == ([], "doubt")
    assert "ddm-coord admit" in lines["inbox"]["advice"]


def test_backup_that_lacks_what_came_since_is_for_a_person_to_judge(fed, ask):
    copy = Path(shutil.copytree(fed.path / "consortium", fed.path / "copy"))
    changes.renew(fed.home)
    lines, bad = ask("--backup", copy)
    assert (bad, lines["backup"]["verdict"]) == ([], "doubt")
    assert "1 rosters" in lines["backup"]["why"]


def test_backup_that_knows_more_than_the_folder_or_is_anothers_fails(fed, ask, scratch):
    newer = Path(shutil.copytree(fed.path / "consortium", fed.path / "copy"))
    changes.renew(CoordinatorFolder.open(newer))
    lines, bad = ask("--backup", newer)
    assert bad == ["backup"]
    assert "was seen before" in lines["backup"]["why"]
    lines, bad = ask("--backup", fed.path / "consortium")
    assert bad == ["backup"]
    assert "the folder itself" in lines["backup"]["why"]
    other = create_federation(scratch / "other", sites=(A,)).home.path
    lines, bad = ask("--backup", other)
    assert bad == ["backup"]
    assert "another federation" in lines["backup"]["why"]

"""`ddm-site doctor`: what is not in order has a line that says so, and nothing changes."""

import json
import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from federation import PLAN_TOML, PRIVATE, SITES, Federation, a_plan, create_federation, snapshot
from member import served

import ddm_fed.doctor
import sites.transport.fetch
from coordinator.roster import proposals
from ddm_fed.doctor import gigabytes
from ddm_fed.records import now, read_plan_toml
from ddm_fed.signing import PLAN_PAYLOAD, seal
from ddm_fed.storage.files import append_durably
from ddm_fed.training import training_cost
from ddm_fed.trust.published import PLAN_FILE
from sites.workspace import SiteFolder, write_site_settings

A = SITES[0]
COUNT = 20


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Federation:
    return create_federation(tmp_path_factory.mktemp("doctor"), sites=(A,))


@pytest.fixture
def fed(built, scratch) -> Federation:
    """One site is enrolled, the plan is published, and nothing is trained."""
    return built.copy(scratch / "fed", "consortium", A)


@pytest.fixture
def images(scratch) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8), np.uint8)
    np.savez(scratch / "images.npz", images=pixels)
    return scratch / "images.npz"


@pytest.fixture
def ask(run, fed):
    """Returns the findings, by what they are of, how it ended, and the figures."""

    def asked(*words, site=fed.path / A):
        ended = run("ddm-site", "doctor", "--site", site, "--json", *words)
        found = json.loads(ended.out)
        lines = {line["what"]: line for line in found.pop("findings")}
        bad = [what for what, line in lines.items() if line["verdict"] == "fails"]
        assert (ended.code, found["fails"]) == (min(1, len(bad)), len(bad))
        assert all(line["advice"] for line in lines.values() if line["verdict"] != "ok")
        return lines, bad, found

    return asked


def marks(folder: Path) -> dict[str, tuple[int, ...]]:
    """Returns what a write, a rename or a lock would change of everything in `folder`."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        facts = path.lstat()
        found[str(path)] = (facts.st_mode, facts.st_ino, facts.st_mtime_ns, facts.st_size)
    return found


def test_site_in_order_has_no_line_that_fails_and_nothing_is_changed(run, fed, images):
    before, temporary = marks(fed.path), set(Path(os.environ["TMPDIR"]).glob("ddm-fed-images-*"))
    ended = run(
        *("ddm-site", "doctor", "--site", fed.path / A),
        *("--plan", fed.published, "--data", images),
    )
    assert ended.code == 0, ended.out
    assert "0 fail, 0 are for a person" in ended.err
    assert f"{COUNT} images are read and fit the plan" in ended.out
    assert marks(fed.path) == before
    assert set(Path(os.environ["TMPDIR"]).glob("ddm-fed-images-*")) == temporary


def test_site_that_has_seen_no_plan_is_told_to_fetch_one(run, ask, fed, scratch):
    site = scratch / "new"
    run("ddm-site", "init", site, "--name", "new", "--root", fed.root)
    lines, bad, _ = ask(site=site)
    assert bad == []
    assert lines["plan"]["verdict"] == "doubt"
    assert "ddm-site fetch" in lines["plan"]["advice"]


@pytest.mark.parametrize("name", ["keys/site.pem", "keys/tls.pem", "keys", "private"])
def test_private_file_that_others_can_read_fails_with_the_command_that_closes_it(fed, ask, name):
    path = fed.path / A / name
    path.chmod(0o755)
    lines, bad, _ = ask()
    of_key = [f"key {path.name}", "roster"] if name == "keys/site.pem" else [f"key {path.name}"]
    assert bad[0] == (of_key[0] if path.suffix else f"folder {name}")
    assert "0755" in lines[bad[0]]["why"]
    assert f"{path}" in lines[bad[0]]["advice"]
    assert "chmod" in lines[bad[0]]["advice"]


def test_folder_that_anybody_may_change_fails(fed, ask):
    (fed.path / A).chmod(0o777)
    assert ask()[1] == ["folder"]


def test_plan_that_has_expired_fails_signed_or_not(fed, ask, scratch):
    ended = "expires_at = 2026-01-01T00:00:00Z"
    plan = a_plan(expires_at=ended).model_copy(update={"version": 2})
    envelope = seal(plan.to_json(), PLAN_PAYLOAD, [fed.coordinator_key()])
    (fed.published / PLAN_FILE).write_bytes(envelope)
    lines, bad, _ = ask("--plan", fed.published)
    assert bad == ["plan"]
    assert "it expired on 2026-01-01" in lines["plan"]["why"]
    (scratch / "plan.toml").write_text(PLAN_TOML.replace("expires_at = 2036", "expires_at = 2026"))
    lines, bad, _ = ask("--plan", scratch / "plan.toml")
    assert (bad, "it expired" in lines["plan"]["why"]) == (["plan"], True)


def test_plan_that_goes_back_behind_one_that_was_seen_fails_and_is_not_remembered(fed, ask):
    older = Path(shutil.copytree(fed.published, fed.path / "older"))
    proposals.publish_plan(fed.home, a_plan(steps="steps = 4"))
    fed.look(A)
    seen = snapshot(fed.path / A / "seen")
    lines, bad, _ = ask("--plan", older)
    assert bad == ["plan"]
    assert "2 was seen before" in lines["plan"]["why"]
    assert snapshot(fed.path / A / "seen") == seen


def test_plan_of_a_forged_signature_fails(fed, ask):
    (fed.published / PLAN_FILE).write_bytes(b"{}")
    assert ask("--plan", fed.published)[1] == ["plan"]


def test_clock_behind_what_was_signed_fails(fed, ask, monkeypatch):
    early = now() - timedelta(days=2)
    monkeypatch.setattr(ddm_fed.doctor, "now", lambda: early)
    lines, bad, _ = ask()
    assert bad == ["clock"]
    assert "roster" in lines["clock"]["why"]


def test_ledger_that_was_cut_fails(fed, ask):
    append_durably(fed.path / A / "keys" / "ledger.jsonl", b'{"index":0}')
    assert "ledger" in ask()[1]


def test_plan_that_costs_more_than_the_site_allows_fails_before_anything_is_spent(fed, ask):
    home = SiteFolder.open(fed.path / A)
    settings = home.settings.model_copy(update={"max_epsilon": home.settings.max_epsilon / 10})
    write_site_settings(SiteFolder(home.path, settings))
    lines, bad, _ = ask()
    assert bad == ["budget"]
    assert "this site (`max_epsilon` in site.toml) allows 1" in lines["budget"]["why"]


@pytest.mark.parametrize("kind", ["missing", "broken", "labels"])
def test_data_that_train_would_refuse_fail(fed, ask, scratch, images, kind):
    plan, data = fed.published, scratch / "pictures"
    if kind == "broken":
        data.mkdir()
        (data / "scan.png").write_bytes(b"no picture")
    if kind == "labels":
        plan, data = scratch / "plan.toml", images
        classes = 'width = 8\nconditioning = "class"\nclasses = ["a", "b"]'
        plan.write_text(PLAN_TOML.replace("width = 8", classes))
    lines, bad, found = ask("--plan", plan, "--data", data)
    assert bad == ["data"]
    assert "run" not in lines
    assert "run" not in found


def test_data_that_look_like_a_mistake_are_for_a_person_to_judge(fed, ask, scratch):
    np.savez(scratch / "dark.npz", images=np.zeros((COUNT, 8, 8), np.uint8))
    lines, bad, _ = ask("--data", scratch / "dark.npz")
    assert (bad, lines["data"]["verdict"]) == ([], "doubt")
    assert "nearly one shade" in lines["data"]["why"]


@pytest.fixture
def small_disk(scratch, monkeypatch):
    """A file system of 2 MB; where none may be mounted, what says how much is free lies."""
    place = scratch / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    mounted = os.getuid() == 0 and subprocess.run(mount, check=False).returncode == 0
    if not mounted:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2, 0, 2 << 20))
    yield place
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


def test_disk_without_room_for_a_checkpoint_fails(fed, ask, small_disk):
    site = Path(shutil.copytree(fed.path / A, small_disk / A))
    lines, bad, _ = ask(site=site)
    assert bad == ["disk"]
    assert "MB free" in lines["disk"]["why"]


@pytest.mark.slow
def test_run_is_measured_and_costs_what_budget_says_and_no_image_is_trained_on(
    run, fed, ask, scratch, images
):
    plan = scratch / "plan.toml"
    plan.write_text(
        PLAN_TOML.replace("max_epsilon = 3\n", PRIVATE).replace("steps = 3", "steps = 40")
    )
    before = snapshot(fed.path / A)
    lines, bad, found = ask("--plan", plan, "--data", images)
    assert bad == []
    assert lines["plan"]["verdict"] == "doubt"  # nobody has signed it
    run_facts = found["run"]
    assert run_facts["steps"] == 40
    assert run_facts["total_s"] >= run_facts["begin_s"] + 39 * run_facts["step_s"] > 0
    assert run_facts["memory_bytes"] > 1e8
    words = ("budget", "--site", fed.path / A, "--plan", plan, "--json")
    asked = json.loads(run("ddm-site", *words).out)
    assert found["epsilon"]["plan"] == asked["plan_epsilon"]
    assert found["epsilon"]["after"] == asked["total_epsilon"]
    assert snapshot(fed.path / A) == before


def test_run_that_would_end_after_its_plan_fails(fed, ask, scratch, images):
    plan, soon = scratch / "plan.toml", datetime.now(UTC) + timedelta(minutes=10)
    text = PLAN_TOML.replace("2036-01-01T00:00:00Z", f"{soon:%Y-%m-%dT%H:%M:%SZ}")
    plan.write_text(text.replace("steps = 3", "steps = 1000000"))
    lines, bad, _ = ask("--plan", plan, "--data", images)
    assert bad == ["run"]
    assert "the plan expires before" in lines["run"]["why"]


def test_server_that_is_not_there_fails_and_says_what_to_look_at(fed, ask):
    lines, bad, _ = ask("--from", "grpcs://127.0.0.1:9", "--timeout", 1)
    assert bad == ["server"]
    assert "127.0.0.1:9" in lines["server"]["why"]
    assert "ddm-coord serve" in lines["server"]["advice"]


@pytest.mark.slow
def test_server_is_asked_as_a_member_asks_and_its_clock_is_compared(fed, ask, monkeypatch):
    with served(fed) as port:
        lines, bad, _ = ask("--from", f"grpcs://127.0.0.1:{port}")
        assert bad == []
        assert "this site is in the roster there, and the clocks agree" in lines["server"]["why"]
        for off, verdict in ((timedelta(minutes=10), "doubt"), (timedelta(hours=2), "fails")):
            monkeypatch.setattr(sites.transport.fetch, "now", lambda off=off: now() + off)
            lines, bad, _ = ask("--from", f"grpcs://127.0.0.1:{port}")
            assert lines["server"]["verdict"] == verdict
            assert "ahead of its clock" in lines["server"]["why"]


@pytest.mark.parametrize("part", ["last-1", "lora-8"])
def test_memory_is_counted_of_the_part_that_the_plan_trains(ask, scratch, part):
    base = f'"DiT-Nano/2"\nbase = {{ sha256 = "{"0" * 64}", prediction = "velocity" }}'
    whole = PLAN_TOML.replace('"DiT-Nano/2"', base)
    said = []
    for text in (whole, whole.replace("steps = 3", f'steps = 3\ntrainable = "{part}"')):
        (scratch / "plan.toml").write_text(text)
        cost = training_cost(read_plan_toml(text), "DiT-Nano/2")
        why = ask("--plan", scratch / "plan.toml")[0]["memory"]["why"]
        assert f"in training takes {gigabytes(cost.training_bytes())} by count" in why
        said.append(cost.training_bytes())
    assert said[1] < 0.75 * said[0]


def test_network_of_a_package_that_is_not_installed_is_a_line_among_the_others(ask, scratch):
    written = PLAN_TOML.replace("DiT-Nano/2", "no-such-net==1.0:Waves")
    (scratch / "other.toml").write_text(written)
    lines, bad, _ = ask("--plan", scratch / "other.toml")
    assert "network" in bad
    assert "no-such-net" in lines["network"]["why"]
    assert lines["keys"]["verdict"] == "ok"

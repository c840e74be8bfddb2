"""A coordinator, or whoever carries its published folder, brings back a plan that was replaced."""

import shutil
from pathlib import Path

import pytest
from federation import PLAN_TOML, Federation

from ddm_fed.records import read_plan_toml
from ddm_fed.signing import PLAN_PAYLOAD, seal
from ddm_fed.trust.published import PLAN_FILE, read_published

A = "hospital-a"


@pytest.fixture
def fed(copy_of) -> Federation:
    return copy_of("admitted", A)


def publish(run, fed: Federation, scratch: Path, epsilon: str) -> int:
    """Publishes the plan with another `max_epsilon`; returns its number."""
    file = scratch / "plan.toml"
    file.write_text(PLAN_TOML.replace("max_epsilon = 3", f"max_epsilon = {epsilon}"))
    code, _, err = run("ddm-coord", "publish", file, "--coordinator", fed.home.path)
    assert code == 0, err
    return fed.trust.plan.version


def see(run, fed: Federation, folder: Path):
    return run("ddm-site", "budget", "--site", fed.path / A, "--plan", folder)


def test_every_change_of_a_plan_counts_one_higher_and_the_same_plan_does_not(run, fed, scratch):
    first = fed.trust.plan.version
    assert first == 1
    assert publish(run, fed, scratch, "4") == 2
    digest = fed.trust.plan_sha256
    assert publish(run, fed, scratch, "4") == 2
    assert fed.trust.plan_sha256 == digest
    assert publish(run, fed, scratch, "3") == 3  # as the first, and yet a new decision


def test_number_is_not_given_again_after_the_published_plan_was_lost(run, fed, scratch):
    assert publish(run, fed, scratch, "4") == 2
    (fed.published / PLAN_FILE).unlink()
    assert publish(run, fed, scratch, "5") == 3


def test_older_plan_beside_the_newest_rosters_and_log_is_refused(run, fed, scratch):
    older = (fed.published / PLAN_FILE).read_bytes()
    publish(run, fed, scratch, "4")
    offered = Path(shutil.copytree(fed.published, scratch / "offered"))
    assert see(run, fed, offered)[0] == 0
    (offered / PLAN_FILE).write_bytes(older)
    assert read_published(offered, fed.root).plan.version == 1  # truly signed
    for command in (
        ("budget", "--site", fed.path / A, "--plan", offered),
        ("train", "--site", fed.path / A, "--plan", offered, "--data", scratch / "none.npz"),
        ("review", "--site", fed.path / A, "--plan", offered),
        ("release", "--site", fed.path / A, "--plan", offered),
        ("submit", "--site", fed.path / A, "--plan", offered, "--to", fed.inbox),
    ):
        code, _, err = run("ddm-site", *command)
        assert (code, "error[DDM217]" in err) == (1, True), command
        assert "its plan has the number 1, 2 was seen before" in err
    assert read_published(fed.path / A / "seen", fed.root).plan.version == 2


def test_older_plan_on_a_medium_is_left_alone(run, fed, scratch):
    older = (fed.published / PLAN_FILE).read_bytes()
    publish(run, fed, scratch, "4")
    assert see(run, fed, fed.published)[0] == 0
    medium = scratch / "medium"
    shutil.copytree(fed.published, medium / "published")
    (medium / "published" / PLAN_FILE).write_bytes(older)
    code, _, err = run("ddm-site", "import", medium, "--site", fed.path / A)
    assert code == 0, err
    assert read_published(fed.path / A / "seen", fed.root).plan.version == 2


def test_two_plans_with_one_number_are_named_by_a_site_and_by_an_audit(run, fed, scratch):
    publish(run, fed, scratch, "4")
    assert see(run, fed, fed.published)[0] == 0
    other = read_plan_toml(PLAN_TOML.replace("max_epsilon = 3", "max_epsilon = 9"))
    payload = other.model_copy(update={"version": 2}).to_json()
    offered = Path(shutil.copytree(fed.published, scratch / "offered"))
    (offered / PLAN_FILE).write_bytes(seal(payload, PLAN_PAYLOAD, [fed.coordinator_key()]))
    code, _, err = see(run, fed, offered)
    assert (code, "error[DDM204]" in err) == (1, True)
    assert "there are two plans 2" in err
    words = ("check-consistency", fed.path / A, offered, "--root", fed.root)
    code, _, err = run("ddm-coord", *words)
    assert (code, "there are two plans 2" in err) == (1, True)


def test_numbered_plan_is_taken_after_one_of_an_earlier_version_and_never_the_other_way(
    run, fed, scratch
):
    unnumbered = read_plan_toml(PLAN_TOML).to_json()
    assert b"version" not in unnumbered
    envelope = seal(unnumbered, PLAN_PAYLOAD, [fed.coordinator_key()])
    old = Path(shutil.copytree(fed.published, scratch / "old"))
    (old / PLAN_FILE).write_bytes(envelope)
    shutil.rmtree(fed.path / A / "seen")
    assert see(run, fed, old)[0] == 0
    assert see(run, fed, fed.published)[0] == 0
    code, _, err = see(run, fed, old)
    assert (code, "error[DDM217]" in err) == (1, True)


def test_number_in_a_plan_file_is_refused_with_the_reason(run, fed, scratch):
    file = scratch / "plan.toml"
    file.write_text(f"version = 7\n{PLAN_TOML}")
    code, _, err = run("ddm-coord", "publish", file, "--coordinator", fed.home.path)
    assert (code, "error[DDM101]" in err) == (1, True)
    assert "it is given by `ddm-coord publish`" in err

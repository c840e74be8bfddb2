"""The ledger of a site: durable before anything leaves, never forgetting, never overspent."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import pytest
from commands import run
from federation import Federation, a_plan, random_images, train

from ddm_fed.errors import BudgetError, CheckpointError, MalformedError, PolicyError, StateError
from ddm_fed.privacy import epsilon
from ddm_fed.records import GaussianEvent, LedgerEntry, NonPrivateEvent, Plan
from ddm_fed.trust import Trust
from sites.privacy.ledger import SiteLedger, open_ledger
from sites.workspace import SiteFolder

A = "hospital-a"
PLAN_SHA = "a" * 64
NOISE = GaussianEvent(noise_multiplier=Decimal("2.3023"))


def event(noise: str) -> GaussianEvent:
    return GaussianEvent(noise_multiplier=Decimal(noise))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


@pytest.fixture
def ledger(path: Path) -> SiteLedger:
    """A ledger of three entries."""
    found = SiteLedger(path, 10)
    for purpose in ("expert", "router-location", "router-shape"):
        append(found, purpose)
    return found


def append(ledger: SiteLedger, purpose: str = "router-shape") -> LedgerEntry:
    return ledger.append(
        PLAN_SHA,
        purpose,
        "no-noise" if purpose == "expert" else "discrete-gaussian",
        NonPrivateEvent() if purpose == "expert" else NOISE,
    )


# On disk


def test_ledger_that_does_not_exist_has_no_entries(path: Path):
    assert SiteLedger(path, 10).entries() == ()


def test_entry_is_in_the_file_when_append_returns(ledger: SiteLedger, path: Path):
    entry = append(ledger, "router-shape")
    assert path.read_bytes().splitlines()[-1] == entry.to_json()


KILLED = """
import os, pathlib, signal
from ddm_fed.records import NonPrivateEvent
from sites.privacy.ledger import SiteLedger
ledger = SiteLedger(pathlib.Path("ledger.jsonl"), 10)
ledger.append("a" * 64, "expert", "no-noise", NonPrivateEvent())
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_entry_survives_a_kill_right_after_append(ledger: SiteLedger, path: Path):
    script = path.parent / "append.py"
    script.write_text(KILLED)
    assert run(script, cwd=path.parent).code == -9
    assert [entry.purpose for entry in ledger.entries()][3:] == ["expert"]


def test_entries_are_numbered_and_chained(ledger: SiteLedger):
    entries = ledger.entries()
    assert [entry.index for entry in entries] == [0, 1, 2]
    assert entries[0].previous_sha256 is None
    assert len({entry.previous_sha256 for entry in entries}) == 3


def test_another_reader_sees_the_same_entries(ledger: SiteLedger, path: Path):
    assert SiteLedger(path, 10).entries() == ledger.entries()


# Torn by a kill


@pytest.mark.parametrize("left", [1, 20, -1], ids=["first-byte", "a-part", "all-but-line-feed"])
def test_torn_last_line_is_ignored_then_dropped(ledger: SiteLedger, path: Path, left: int):
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:left])
    assert [entry.index for entry in ledger.entries()] == [0, 1]
    assert append(ledger).index == 2
    assert [entry.index for entry in ledger.entries()] == [0, 1, 2]


@contextmanager
def full_disk(size_bytes: int) -> Iterator[None]:
    """Lets no file grow beyond `size_bytes`, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_loses_no_entry(ledger: SiteLedger, path: Path):
    before = ledger.entries()
    with full_disk(path.stat().st_size + 10), pytest.raises(OSError, match="too large"):
        append(ledger)
    assert ledger.entries() == before
    assert append(ledger).index == 3


def test_full_disk_loses_no_entry_while_a_torn_line_is_dropped(ledger: SiteLedger, path: Path):
    before = ledger.entries()
    with path.open("ab") as file:
        file.write(b"torn")
    with full_disk(10), pytest.raises(OSError, match="too large"):
        append(ledger)
    assert ledger.entries() == before


# Altered


def edit_line(path: Path, number: int, old: bytes, new: bytes) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    assert old in lines[number - 1]
    lines[number - 1] = lines[number - 1].replace(old, new)
    path.write_bytes(b"".join(lines))


def test_altered_line_is_refused(ledger: SiteLedger, path: Path):
    edit_line(path, 2, b"2.3023", b"9.3023")
    with pytest.raises(PolicyError, match="ledger entry 2 does not follow"):
        ledger.entries()


@pytest.mark.parametrize("removed", [0, 1])
def test_removed_line_is_refused(ledger: SiteLedger, path: Path, removed: int):
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[removed]
    path.write_bytes(b"".join(lines))
    with pytest.raises(PolicyError, match=f"ledger entry {removed} does not follow"):
        ledger.entries()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"index":1', b'"index":1.0'),
        (b"{", b""),
        (b'"unit":"image"', b'"unit":"image","y":1'),
        (b"gaussian", b"free"),
    ],
)
def test_line_that_is_no_entry_is_refused_by_its_number(
    ledger: SiteLedger, path: Path, old: bytes, new: bytes
):
    edit_line(path, 2, old, new)
    with pytest.raises(MalformedError, match="ledger line 2"):
        ledger.entries()


def test_append_to_an_altered_ledger_is_refused(ledger: SiteLedger, path: Path):
    edit_line(path, 1, b'"recorded_at":"20', b'"recorded_at":"19')
    before = path.read_bytes()
    with pytest.raises(PolicyError, match="ledger entry 1 does not follow"):
        append(ledger)
    assert path.read_bytes() == before


# Budget


@pytest.fixture(scope="module")
def plan() -> Plan:
    return a_plan()


def test_release_within_both_limits_is_allowed(ledger: SiteLedger, plan: Plan):
    ledger.require_budget([event("20")], plan)


def test_release_over_the_plans_limit_is_refused_with_both_figures(ledger: SiteLedger, plan: Plan):
    spent = epsilon([NOISE, NOISE], 1e-5)
    after = epsilon([NOISE, NOISE, event("2")], 1e-5)
    with pytest.raises(BudgetError) as caught:
        ledger.require_budget([event("2")], plan)
    assert f"to epsilon {after:.4f}; {spent:.4f} is spent" in caught.value.message
    assert "the plan (`privacy.max_epsilon`) allows 3" in caught.value.message


def test_release_over_the_sites_own_limit_is_refused_with_both_figures(
    ledger: SiteLedger, path: Path, plan: Plan
):
    spent = epsilon([NOISE, NOISE], 1e-5)
    after = epsilon([NOISE, NOISE, event("10")], 1e-5)
    assert spent < 2.52 < after < 3
    with pytest.raises(BudgetError) as caught:
        SiteLedger(path, 2.52).require_budget([event("10")], plan)
    assert f"to epsilon {after:.4f}; {spent:.4f} is spent" in caught.value.message
    assert "this site (`max_epsilon` in site.toml) allows 2.52" in caught.value.message


def test_first_release_over_the_limit_is_refused_with_nothing_spent(path: Path, plan: Plan):
    with pytest.raises(BudgetError, match=r"0\.0000 is spent"):
        SiteLedger(path, 10).require_budget([event("1")], plan)


def test_entries_of_every_plan_count(ledger: SiteLedger, path: Path, plan: Plan):
    ledger.append("b" * 64, "router-shape", "discrete-gaussian", event("2"))
    with pytest.raises(BudgetError, match="the plan"):
        ledger.require_budget([event("2")], plan)


def test_release_with_next_to_no_noise_is_refused_without_endless_arithmetic(
    path: Path, plan: Plan
):
    with pytest.raises(BudgetError):
        SiteLedger(path, 10).require_budget([event("0.01")], plan)


# The whole job


@pytest.fixture
def fed(copy_of) -> Federation:
    return copy_of("drafted", A)


@pytest.fixture
def site(fed: Federation) -> SiteFolder:
    return fed.site(A)


def purposes(site: SiteFolder) -> list[str]:
    return [entry.purpose for entry in open_ledger(site).entries()]


def test_training_and_every_message_are_in_the_ledger(site: SiteFolder):
    assert purposes(site) == ["expert", "router-location", "router-shape"]


def test_running_again_returns_the_same_draft_and_spends_nothing(site: SiteFolder, trust: Trust):
    (draft,) = site.drafts.iterdir()
    assert train(site, trust, random_images(0)) == draft
    assert purposes(site) == ["expert", "router-location", "router-shape"]
    assert list(site.drafts.iterdir()) == [draft]


def test_restart_trains_again_but_keeps_the_release(site: SiteFolder, trust: Trust):
    work = site.work(trust.plan_sha256)
    before = {name: (work / f"{name}.safetensors").read_bytes() for name in ("expert", "router")}
    train(site, trust, random_images(0), restart=True, seed=99)
    assert purposes(site) == ["expert", "router-location", "router-shape", "expert"]
    assert (work / "router.safetensors").read_bytes() == before["router"]
    assert (work / "expert.safetensors").read_bytes() != before["expert"]


def test_other_images_spend_again(site: SiteFolder, trust: Trust):
    train(site, trust, random_images(50), restart=True)
    assert purposes(site)[3:] == ["expert", "router-location", "router-shape"]


def test_other_images_are_never_paired_with_the_expert_of_the_first(site: SiteFolder, trust: Trust):
    with pytest.raises(CheckpointError, match="trained on other images"):
        train(site, trust, random_images(50))
    assert purposes(site) == ["expert", "router-location", "router-shape"]


def test_third_release_over_the_plans_limit_is_refused_before_training(
    site: SiteFolder, trust: Trust
):
    ledger = open_ledger(site)
    for noise in ("3.9877", "2.3023"):
        ledger.append(trust.plan_sha256, "router-shape", "discrete-gaussian", event(noise))
    checkpoint = site.work(trust.plan_sha256) / "checkpoint.safetensors"
    before = checkpoint.stat().st_mtime_ns
    with pytest.raises(BudgetError, match=r"the plan \(`privacy.max_epsilon`\) allows 3"):
        train(site, trust, random_images(50))
    assert checkpoint.stat().st_mtime_ns == before
    assert len(purposes(site)) == 5


def test_restart_that_the_budget_refuses_costs_no_expert(site: SiteFolder, trust: Trust):
    ledger = open_ledger(site)
    for noise in ("3.9877", "2.3023"):
        ledger.append(trust.plan_sha256, "router-shape", "discrete-gaussian", event(noise))
    work = site.work(trust.plan_sha256)
    before = {path.name: path.read_bytes() for path in work.iterdir()}
    with pytest.raises(BudgetError):
        train(site, trust, random_images(50), restart=True)
    assert {path.name: path.read_bytes() for path in work.iterdir()} == before


def test_site_that_is_not_in_the_roster_does_no_work(fed: Federation, site: SiteFolder):
    settings = json.loads(site.settings.to_json()) | {"name": "hospital-x"}
    stranger = SiteFolder(site.path, type(site.settings).model_validate_json(json.dumps(settings)))
    with pytest.raises(StateError, match="`hospital-x` is not in the roster of `test`"):
        train(stranger, fed.trust, random_images(0))


def test_site_with_another_key_than_enrolled_does_no_work(
    fed: Federation, site: SiteFolder, site_keys
):
    (site.path / "keys" / "site.pem").unlink()
    site_keys["hospital-b"].write(site.path / "keys" / "site.pem")
    with pytest.raises(StateError, match=f"`{A}` is enrolled with another key"):
        train(site, fed.trust, random_images(0))


def test_private_folders_of_a_site_are_closed_to_others(site: SiteFolder):
    for name in ("keys", "private"):
        assert (site.path / name).stat().st_mode & 0o077 == 0

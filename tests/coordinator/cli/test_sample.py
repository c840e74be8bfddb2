"""`ddm-coord sample` on a real ensemble whose sites have different classes, and one nobody has."""

import json
import shutil
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from federation import Federation, train
from typer.testing import CliRunner

from coordinator.cli.main import app
from coordinator.ensembles.assemble import assemble
from coordinator.ensembles.remove import remove
from coordinator.inbox.admission import admit_arrivals
from coordinator.roster import changes, proposals
from coordinator.workspace import CoordinatorFolder
from ddm_fed.ensemble.folder import verify_ensemble
from ddm_fed.ensemble.load import load_releases
from ddm_fed.errors import OptionError, RefusedError, StateError
from ddm_fed.mixture import released_totals
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import read_plan_toml
from sites.outbox import stages
from sites.transport import submit
from sites.transport.base import FolderTransport
from sites.workspace import SiteFolder, SiteSettings

pytestmark = pytest.mark.slow

PLAN = read_plan_toml("""
federation = "test"
expires_at = 2036-01-01T00:00:00Z
[data]
channels = 1
height = 8
width = 8
conditioning = "class"
classes = ["cat", "dog", "owl"]
[expert]
architecture = "DiT-Nano/2"
[training]
steps = 2
batch_size = 16
label_dropout = 0
[router]
kind = "mixture"
epsilon = 8
frequencies = 4
radius = 3
[privacy]
max_epsilon = 20
""")
HELD = {"north": (0, 300), "south": (1, 100)}  # class and number of images; nobody has an owl


def images(site, seed=0):
    label, count = HELD[site]
    draws = torch.Generator().manual_seed(seed + label)
    pixels = torch.rand((count, 1, 8, 8), generator=draws) * 2 - 1
    return Private(ImageSet(pixels, torch.full((count,), label)))


def deliver(fed, site, seed=0):
    fed.look(site)
    train(fed.site(site), fed.trust, images(site, seed), seed=seed, restart=seed > 0)
    stages.review(fed.site(site), fed.trust)
    stages.release(fed.site(site), fed.trust)
    submit.submit(fed.site(site), fed.trust, FolderTransport(fed.inbox))
    admit_arrivals(fed.home, fed.trust)


def build(path, attempts):
    """Returns the federation, its ensemble in `path / "ensemble"`, whose releases show no owls."""
    home = CoordinatorFolder.create(path / "consortium", "test")
    proposals.complete_genesis(home)
    for name in HELD:
        settings = SiteSettings(name=name, root=home.settings.root, max_epsilon=Decimal(50))
        SiteFolder.create(path / name, settings)
    changes.add(home, [path / name / "enrolment.dsse.json" for name in HELD])
    proposals.publish_plan(home, PLAN)
    fed = Federation(path)
    for name in HELD:
        deliver(fed, name)
    assemble(fed.home, path / "ensemble", router=None, without=())
    if owls_are_said(fed) and attempts > 1:
        shutil.rmtree(path)
        return build(path, attempts - 1)
    return fed


def owls_are_said(fed):
    """Whether the noise of the releases looks like a class, as it does in 5 of 100."""
    verified = verify_ensemble(fed.path / "ensemble", fed.root)
    return bool(released_totals(PLAN, load_releases(verified))[2] > 0)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The federation, and its ensemble in `path / "ensemble"`."""
    return build(tmp_path_factory.mktemp("classes") / "fed", attempts=5)


@pytest.fixture
def mine(built, scratch):
    """A copy whose coordinator may change its mind."""
    shutil.copytree(built.path, scratch / "fed", symlinks=True)
    return Federation(scratch / "fed")


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def sample(fed, out, *more, coordinator=True, count=40):
    known = ("--coordinator", fed.path / "consortium") if coordinator else ("--root", fed.root)
    done = run(
        *("sample", fed.path / "ensemble", *known, "--out", out, "--count", count),
        *("--steps", 2, "--no-png", *more),
    )
    summary = None
    if (out / "samples.json").exists():
        summary = json.loads((out / "samples.json").read_text())
    return SimpleNamespace(done=done, summary=summary, said=" ".join(done.output.split()))


# --- classes ---


def test_classes_are_drawn_as_often_as_the_sites_released_them(built, scratch):
    found = sample(built, scratch / "out")
    assert found.done.exit_code == 0, found.done.output
    with np.load(scratch / "out" / "samples.npz") as archive:
        counts = np.bincount(archive["labels"], minlength=3)
    # 300 cats and 100 dogs, with the release's noise of some images
    assert abs(counts[0] - 30) <= 2
    assert counts[2] == 0
    assert found.summary["class_shares"]["cat"] == pytest.approx(0.75, abs=0.05)
    assert found.summary["class_shares"]["owl"] == 0
    assert "NOTE: no site is known to have owl: none were drawn" in found.said


def test_class_that_no_site_has_is_refused_by_its_name(built, scratch):
    found = sample(built, scratch / "out", "--class", "owl")
    assert isinstance(found.done.exception, OptionError)
    assert "--class owl: no site released a count of `owl`" in found.done.exception.message
    assert found.done.exception.hint.endswith("cat, dog")
    assert not (scratch / "out").exists()


def test_class_restricts_what_is_drawn(built, scratch):
    found = sample(built, scratch / "out", "--class", "dog")
    with np.load(scratch / "out" / "samples.npz") as archive:
        assert set(archive["labels"].tolist()) == {1}
        # a class that does not stand out at a site has a little of what noise left open there
        assert (archive["sites"] == 1).mean() > 0.9
    assert found.summary["notes"] == []


def test_attribution_table_shows_the_shares_intended_for_the_class(built, scratch):
    found = sample(built, scratch / "out", "--class", "dog", "--attribution")
    assert found.summary["intended_shares"]["north"] > 0.6
    lines = [line.replace("│", " ").split() for line in found.done.output.splitlines()]
    rows = {words[0]: float(words[1]) for words in lines if words and words[0] in HELD}
    # of dogs, not of all its images; noise leaves open whether north has a few, as above
    assert rows["south"] > 0.9
    assert sum(rows.values()) == pytest.approx(1, abs=2e-3)


# --- what the router sees, and guidance ---


def test_default_is_sticky_and_other_strategies_say_what_the_router_does_not_see(built, scratch):
    assert sample(built, scratch / "a").summary["strategy"] == "sticky"
    found = sample(built, scratch / "b", "--strategy", "sticky-then-routed")
    assert "sees 4 of 64 frequencies" in found.said
    assert "--strategy sticky keeps it" in found.said


def test_guidance_is_refused_where_no_expert_learnt_to_go_without_a_class(built, scratch):
    found = sample(built, scratch / "out", "--guidance", 2)
    assert isinstance(found.done.exception, OptionError)
    assert "label_dropout = 0" in found.done.exception.message
    assert not (scratch / "out").exists()


# --- what its coordinator knows of it ---


def test_ensemble_of_a_removed_member_is_refused_by_all_that_would_use_it(mine, scratch):
    remove(mine.home, "south", reason="consent withdrawn", delete_weights=False)
    home = ("--coordinator", mine.path / "consortium")
    for words in (
        ("sample", mine.path / "ensemble", *home, "--out", scratch / "out"),
        ("router", "build", mine.path / "ensemble", *home, "--out", scratch / "router"),
        ("router", "compare", mine.path / "ensemble", *home),
        ("sign-model", mine.path / "ensemble", *home),
    ):
        done = run(*words)
        assert isinstance(done.exception, StateError), words
        assert "stale" in done.exception.message
        assert "`south` was removed on" in done.exception.message
        assert "consent withdrawn" in done.exception.message
        assert "ddm-coord assemble" in done.exception.hint
    assert not (scratch / "out").exists()
    assert not (scratch / "router").exists()


def test_ensemble_of_a_replaced_bundle_is_sampled_with_a_warning_and_the_way_on(mine, scratch):
    before = sample(mine, scratch / "before")
    assert "WARNING" not in before.said
    deliver(mine, "south", seed=5)
    found = sample(mine, scratch / "out")
    assert found.done.exit_code == 0, found.done.output
    assert "WARNING: `south` has a newer submission" in found.said
    assert "consent was withdrawn" in found.said
    assert "ddm-coord assemble NEW_FOLDER --coordinator" in found.said


def test_ensemble_without_its_coordinator_at_hand_is_sampled_offline(mine, scratch, monkeypatch):
    remove(mine.home, "south", reason="consent withdrawn", delete_weights=False)
    monkeypatch.chdir(scratch)
    assert sample(mine, scratch / "out", coordinator=False).done.exit_code == 0


def test_coordinator_of_another_federation_says_nothing_of_it(mine, scratch, monkeypatch):
    other = CoordinatorFolder.create(scratch / "other", "other")
    proposals.complete_genesis(other)
    monkeypatch.chdir(scratch / "other")
    assert sample(mine, scratch / "out", coordinator=False).done.exit_code == 0


def test_ensemble_that_is_no_part_of_its_coordinators_history_is_refused(mine, scratch):
    older = scratch / "older"
    shutil.copytree(mine.path / "consortium", older)
    deliver(mine, "south", seed=5)
    assemble(mine.home, mine.path / "newer", router=None, without=())
    done = run(*("sample", mine.path / "newer", "--coordinator", older, "--out", scratch / "out"))
    assert isinstance(done.exception, RefusedError)
    assert not (scratch / "out").exists()

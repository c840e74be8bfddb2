"""Where people used to get stuck or be misled: the real commands, and what they say."""

import json
from pathlib import Path
from typing import NamedTuple

import commands
import pytest
from federation import PLAN_TOML, Federation, random_images, snapshot

from ddm_fed.storage.junk import is_junk
from sites.outbox.stages import find_bundles
from sites.workspace import SiteFolder

pytestmark = pytest.mark.slow

A, B, C = "hospital-a", "hospital-b", "hospital-c"


class Ended(NamedTuple):
    code: int
    said: str


def run(command: str, *arguments: object, **options: Path) -> Ended:
    """Runs the command as a process of its own."""
    ended = commands.run(command, *arguments, **options)
    assert "Traceback" not in ended.err
    return Ended(ended.code, ended.out + ended.err)


@pytest.fixture
def fed(copy_of) -> Federation:
    return copy_of("released", A)


@pytest.fixture
def site(fed: Federation) -> SiteFolder:
    return fed.site(A)


@pytest.fixture
def images(scratch: Path) -> Path:
    """A folder of somebody's private images."""
    folder = scratch / "private"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "patient-1.png").write_bytes(b"png")
    (folder / "README.txt").write_text("ours")
    return folder


# The plan


def test_plan_that_has_expired_is_not_published_and_the_live_one_stays(fed: Federation):
    before = snapshot(fed.published)
    plan = fed.path / "old.toml"
    plan.write_text(PLAN_TOML.replace("2036-01-01", "2020-01-01"))
    ended = run("ddm-coord", "publish", plan, "--coordinator", fed.home.path)
    assert ended.code == 1
    assert "error[DDM101]: the plan expired on 2020-01-01" in ended.said
    assert snapshot(fed.published) == before


def test_problems_of_a_plan_are_shown_one_a_line(fed: Federation):
    plan = fed.path / "bad.toml"
    bad = PLAN_TOML.replace("steps = 3", "steps = 0").replace("epsilon = 2", "epsilon = 9")
    plan.write_text(bad.replace("channels = 1", "channels = 2"))
    ended = run("ddm-coord", "publish", plan, "--coordinator", fed.home.path)
    assert ended.code == 1
    assert "error[DDM101]: bad.toml is not a valid plan: 3 problems" in ended.said
    assert [line[:9] for line in ended.said.splitlines() if line.startswith("  - ")] == [
        "  - `data",
        "  - `trai",
        "  - `docu",
    ]


def test_plan_in_place_of_another_says_what_becomes_of_that(fed: Federation):
    before = fed.trust.plan_sha256
    plan = fed.path / "new.toml"
    plan.write_text(PLAN_TOML.replace("steps = 3", "steps = 4"))
    ended = run("ddm-coord", "publish", plan, "--coordinator", fed.home.path)
    assert ended.code == 0
    assert f"replaces the plan {before[:16]}…" in ended.said
    assert "stays spent" in ended.said


@pytest.mark.parametrize(
    ("given", "words", "hint"),
    [
        ("plan.toml", "is the plan as people wrote it", "published folder"),
        ("nowhere", "there is no", "published folder"),
        ("consortium", "there is no plan.dsse.json", "consortium/published"),
        ("notes.txt", "is neither a published folder", "published folder"),
    ],
)
def test_plan_option_that_points_elsewhere_says_where_to_point(
    fed: Federation, site: SiteFolder, given: str, words: str, hint: str
):
    (fed.path / "plan.toml").write_text(PLAN_TOML)
    (fed.path / "notes.txt").touch()
    arguments = ["review", "--site", site.path, "--plan", given]
    ended = run("ddm-site", *arguments, cwd=fed.path)
    assert ended.code == 1
    assert words in ended.said
    assert given in ended.said
    assert hint in ended.said.split("hint: ")[1]


# Revoked


def test_revoked_site_is_told_so_and_the_status_says_it(copy_of):
    fed = copy_of("admitted", A)
    at = ("--coordinator", fed.home.path)
    ended = run("ddm-coord", "roster", "revoke", A, *at)
    assert ended.code == 0
    assert f"`{A}` signs nothing more and cannot connect" in ended.said
    assert f"`ddm-coord remove {A}` ends that" in ended.said
    assert "--lost" in ended.said
    states = json.loads(run("ddm-coord", "status", "--json", *at).said)["sites"]
    (row,) = [row for row in states if row["site"] == A]
    assert (row["state"], row["sequence"]) == ("revoked", 1)
    assert "ddm-coord remove" in row["waiting_for"]
    told = run("ddm-site", "rotate", "--site", fed.path / A, "--plan", fed.published)
    assert told.code == 1
    assert "error[DDM214]" in told.said
    assert f"every key of `{A}` was revoked" in told.said
    assert "rotate --lost" in told.said
    assert "another key" not in told.said


def test_revoking_as_compromised_says_how_much_no_longer_counts(copy_of):
    fed = copy_of("admitted", A)
    where = ["roster", "revoke", A, "--coordinator", fed.home.path, "--compromised-since", 0]
    ended = run("ddm-coord", *where)
    assert "1 of its 1 admitted submissions no longer count" in ended.said
    assert "goes on to be used" not in ended.said


def test_revoking_a_site_that_was_removed_does_not_say_that_its_expert_is_used(copy_of, scratch):
    fed = copy_of("admitted")
    at = ("--coordinator", fed.home.path)
    removed = run("ddm-coord", "remove", A, "--reason", "left", "--out", scratch / "less", *at)
    assert removed.code == 0, removed.said
    ended = run("ddm-coord", "roster", "revoke", A, *at)
    assert f"`{A}` signs nothing more" in ended.said
    assert "goes on to be used" not in ended.said


# Folders of others


def test_sample_into_a_folder_with_other_things_is_refused(stages, images: Path):
    before = snapshot(images)
    root = stages.admitted.root
    arguments = ["sample", stages.ensemble, "--root", root, "--count", 1, "--out", images]
    ended = run("ddm-coord", *arguments)
    assert ended.code == 1
    assert f"{images} holds other things, `README.txt`, `images`" in ended.said
    assert snapshot(images) == before


def test_submit_and_export_into_a_folder_with_other_things_are_refused(
    fed: Federation, site: SiteFolder, images: Path
):
    before = snapshot(images)
    at = ["--site", site.path, "--plan", fed.published]
    for arguments in (
        ["submit", *at, "--to", images],
        ["submit", *at, "--to", f"file://{images}"],
        ["export", images, *at],
    ):
        ended = run("ddm-site", *arguments)
        assert ended.code == 1, arguments
        assert "holds other things" in ended.said
    assert snapshot(images) == before


def test_import_writes_nothing_into_a_folder_that_no_site_wrote(fed: Federation, images: Path):
    (images / "incoming" / "scan-1").mkdir(parents=True)
    (images / "incoming" / "scan-1" / "a.png").write_bytes(b"png")
    before = snapshot(images)
    ended = run("ddm-coord", "import", images, "--coordinator", fed.home.path)
    assert ended.code == 1
    assert "came from a site, so nothing was written there" in ended.said
    assert snapshot(images) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("ddm-site", "submit", "--plan", "published", "--to", ""),
        ("ddm-site", "submit", "--plan", "published", "--to="),
        ("ddm-site", "export", "", "--plan", "published"),
        ("ddm-coord", "import", " "),
        ("ddm-coord", "init", "", "--federation", "digits"),
    ],
)
def test_empty_argument_is_refused_and_nothing_is_written_here(scratch: Path, arguments):
    ended = run(*arguments, cwd=scratch)
    assert ended.code == 2
    assert "An argument is empty" in ended.said
    assert list(scratch.iterdir()) == []


# Litter


LITTER = [".DS_Store", "Thumbs.db", "desktop.ini", "._expert.safetensors"]


def test_inbox_that_a_file_manager_looked_into_is_verified_all_the_same(copy_of):
    fed = copy_of("submitted", A)
    arrival = fed.arrival(A)
    for name in (*LITTER, "@eaDir/x", "__MACOSX/y"):
        for folder in (fed.home.incoming, arrival):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"junk")
    ended = run("ddm-coord", "admit", "--coordinator", fed.home.path)
    assert ended.code == 0, ended.said
    left = {path.name for path in fed.home.incoming.iterdir()}
    assert left == {*LITTER, "@eaDir", "__MACOSX"}
    assert all(is_junk(name) for name in left)
    for blob in fed.home.blobs.folder.iterdir():
        assert blob.read_bytes() != b"junk"


def test_medium_that_a_file_manager_looked_into_is_imported_all_the_same(
    fed: Federation, site: SiteFolder
):
    medium = fed.path / "medium"
    at = ("--site", site.path, "--plan", fed.published)
    assert run("ddm-site", "export", medium, *at).code == 0
    (bundle,) = (medium / "incoming").iterdir()
    for name in LITTER:
        (bundle / name).write_bytes(b"junk")
        (medium / "incoming" / name).write_bytes(b"junk")
    ended = run("ddm-coord", "import", medium, "--coordinator", fed.home.path)
    assert ended.code == 0, ended.said


@pytest.mark.parametrize("name", LITTER[::3])
def test_signed_folder_with_junk_says_which_file_to_delete(stages, ensemble: Path, name: str):
    (ensemble / "sites" / name).write_bytes(b"junk")
    arguments = ["verify", ensemble, "--root", stages.admitted.root]
    ended = run("ddm-coord", *arguments)
    assert ended.code == 1
    assert f"`sites/{name}` does not belong there" in ended.said
    assert f"delete `sites/{name}` (by " in ended.said
    (ensemble / "sites" / name).unlink()
    assert run("ddm-coord", *arguments).code == 0


def test_anything_not_on_the_list_is_still_refused_in_the_inbox(copy_of):
    fed = copy_of("submitted", A)
    (fed.arrival(A) / ".DS_Store2").write_bytes(b"")
    ended = run("ddm-coord", "admit", "--coordinator", fed.home.path)
    assert ended.code == 1
    assert "`.DS_Store2` does not belong there" in ended.said


# Epsilon that was spent for nothing


@pytest.mark.processes
def test_abandoned_plan_is_named_before_more_is_spent_and_in_the_ledger(copy_of):
    fed = copy_of("drafted", A)
    site, old = fed.site(A), fed.trust.plan_sha256
    plan = fed.path / "new.toml"
    plan.write_text(
        PLAN_TOML.replace("steps = 3", "steps = 4").replace("max_epsilon = 3", "max_epsilon = 6")
    )
    assert run("ddm-coord", "publish", plan, "--coordinator", fed.home.path).code == 0
    at = ("--site", site.path, "--plan", fed.published)
    data = fed.path / "images.npy"
    _save(data)
    ended = run("ddm-site", "train", *at, "--data", data)
    assert ended.code == 0, ended.said
    words = f"was spent under the plan {old[:8]}…, of which nothing ever left"
    assert ended.said.index(words) < ended.said.index("this run spends epsilon")
    assert "even if the bundle never leaves" in ended.said
    run("ddm-site", "review", *at)
    assert run("ddm-site", "release", *at).code == 0
    shown = run("ddm-site", "ledger", "--site", site.path).said
    assert shown.count("no, spent all the same") == 2  # location and shape of the old plan
    assert words in shown
    facts = json.loads(run("ddm-site", "ledger", "--json", "--site", site.path).said)
    assert facts["not_left"] == [0, 1, 2]
    assert len(find_bundles(site.released)) == 1


def _save(file: Path) -> None:
    import numpy as np

    values = random_images(0).reveal().images.numpy()
    np.save(file, ((values[:, 0] + 1) * 127.5).round().astype("uint8"))

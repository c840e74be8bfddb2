"""`ddm-coord verify` only looks: run where nothing can be written, on all it verifies."""

import json
import shutil
from functools import partial
from pathlib import Path

import commands
import pytest
from federation import SITES, Federation

BOUND = Path(commands.__file__).with_name("bound.py")


@pytest.fixture
def run():
    """Returns a function that runs `ddm-coord` as a process that permissions bind."""
    return partial(commands.run, BOUND, "ddm-coord", env=commands.environment(COLUMNS="200"))


def facts_of(folder: Path) -> dict[Path, tuple[object, ...]]:
    """Returns everything below `folder`: bytes, mode and time of the last change."""
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        seen = path.stat()
        content = path.read_bytes() if path.is_file() else None
        found[path] = (content, seen.st_mode, seen.st_mtime_ns, seen.st_ctime_ns)
    return found


@pytest.fixture
def fed(copy_of, stages, scratch: Path):
    """A coordinator's folder with one bundle still in the inbox, beside an ensemble: read-only."""
    fed = copy_of("submitted")
    shutil.copytree(stages.ensemble, scratch / "ensemble")
    inside = [fed.path, *fed.path.rglob("*"), scratch / "ensemble"]
    inside += (scratch / "ensemble").rglob("*")
    modes = {path: path.stat().st_mode for path in inside}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    yield fed
    for path, mode in modes.items():
        path.chmod(mode)


def targets(fed: Federation) -> dict[str, Path]:
    return {
        "ensemble": fed.path.parent / "ensemble",
        "published folder": fed.published,
        "bundle": fed.arrival(SITES[0]),
    }


@pytest.mark.parametrize("kind", ["ensemble", "published folder", "bundle"])
@pytest.mark.parametrize("options", [("--json",), ()], ids=["json", "table"])
def test_verify_of_a_read_only_folder_verifies_and_changes_nothing(run, fed, kind, options):
    before = facts_of(fed.path.parent)
    root = () if kind == "ensemble" else ("--coordinator", fed.home.path)
    pin = ("--root", fed.root) if kind == "ensemble" else ()
    ended = run("verify", targets(fed)[kind], *root, *pin, *options)
    assert ended.code == 0, ended.err
    if options:
        assert json.loads(ended.out)["verified"] == kind
    else:
        assert ended.out.strip().startswith(f"Verified: {kind}")
    assert facts_of(fed.path.parent) == before


def test_verify_beside_a_coordinator_admits_nothing_of_its_inbox(run, copy_of):
    fed = copy_of("submitted")
    before = facts_of(fed.home.path)
    ended = run("verify", fed.arrival(SITES[0]), "--coordinator", fed.home.path)
    assert ended.code == 0, ended.err
    assert facts_of(fed.home.path) == before


def test_verify_without_a_target_is_wrong_usage_and_changes_nothing(run, copy_of):
    fed = copy_of("submitted")
    before = facts_of(fed.home.path)
    ended = run("verify", "--coordinator", fed.home.path)
    assert ended.code == 2
    assert "Missing argument" in ended.err
    assert facts_of(fed.home.path) == before


def test_admit_into_the_read_only_folder_fails_so_that_the_folder_does_bind(run, fed):
    before = facts_of(fed.path.parent)
    ended = run("admit", "--coordinator", fed.home.path)
    assert ended.code == 1
    assert ended.err.startswith("error[DDM105]: ")
    assert facts_of(fed.path.parent) == before


def test_verify_of_a_published_folder_with_a_leaf_too_few_is_refused(run, copy_of):
    fed = copy_of("admitted")
    leaves = fed.published / "leaves.jsonl"
    leaves.write_bytes(leaves.read_bytes().rsplit(b"\n", 2)[0] + b"\n")
    ended = run("verify", fed.published, "--root", fed.root)
    assert ended.code == 1
    assert ended.err.startswith("error[DDM216]: ")

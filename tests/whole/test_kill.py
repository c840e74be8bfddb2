"""SIGKILL at the worst moments: nothing half-written is taken for whole, and work continues.

Real processes of the real commands; one that only completes the work can run in this process. A
kill is placed by watching what the process writes, so it falls into the middle of the work and not
into the start of Python.
"""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import Started, done, done_here, here
from safetensors import safe_open

from coordinator.inbox.admission import admit_arrivals, admitted_bundles
from coordinator.inbox.upload_progress import read_progress
from coordinator.log import read_own_log
from coordinator.roster import changes, proposals
from coordinator.workspace import CoordinatorFolder
from ddm_fed.ensemble.folder import verify_ensemble
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import read_plan_toml
from ddm_fed.training import RunOptions
from sites.outbox import stages
from sites.published import look
from sites.train.expert import TrainingOptions
from sites.train.pipeline import run_plan
from sites.transport import submit
from sites.transport.base import FolderTransport
from sites.workspace import SiteFolder, SiteSettings

pytestmark = pytest.mark.processes
PLAN = """
federation = "kill"
expires_at = 2036-01-01T00:00:00Z
[data]
channels = 1
height = 8
width = 8
[expert]
architecture = "{architecture}"
[training]
steps = {steps}
batch_size = 16
warmup_steps = 5
[router]
kind = "mixture"
epsilon = 2
frequencies = 4
radius = 5
[privacy]
max_epsilon = 3
"""


def kill_when(seen: Callable[[], bool], program: str, *arguments: object) -> None:
    """Starts a command and kills it with SIGKILL as soon as `seen` holds."""
    with Started(program, *arguments) as process:
        deadline = time.monotonic() + 120
        while not seen():
            assert process.poll() is None, f"ended before the kill: {process.said()}"
            assert time.monotonic() < deadline, "the moment to kill never came"
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL


def federation(folder: Path, *, architecture: str, steps: int, sites: list[str]):
    home = CoordinatorFolder.create(folder / "hub", "kill")
    proposals.complete_genesis(home)
    for name in sites:
        settings = f'{{"name":"{name}","root":"{home.settings.root}","max_epsilon":"10"}}'
        SiteFolder.create(folder / name, SiteSettings.model_validate_json(settings))
    changes.add(home, [folder / name / "enrolment.dsse.json" for name in sites])
    proposals.publish_plan(
        home, read_plan_toml(PLAN.format(architecture=architecture, steps=steps))
    )
    return home


def test_training_killed_at_several_points_ends_with_the_same_bytes(tmp_path):
    home = federation(tmp_path, architecture="DiT-Nano/2", steps=60, sites=["steady", "killed"])
    work = {
        name: tmp_path / name / "private" / home.trust().plan_sha256[:16]
        for name in ("steady", "killed")
    }
    options = ("--data", "digits:8-9", "--seed", 7, "--precision", "float32")
    options += ("--checkpoint-every", 0, "--plan", home.published)
    command = {name: ("ddm-site", "train", "--site", tmp_path / name, *options) for name in work}

    def steps_done() -> int:
        checkpoint = work["killed"] / "checkpoint.safetensors"
        if not checkpoint.exists():
            return 0
        # a half-written checkpoint would fail here, and the test with it
        with safe_open(checkpoint, framework="pt") as file:
            return int(file.metadata()["step"])

    done(*command["steady"])
    reached = []
    for least in (1, 20, 41):
        kill_when(lambda least=least: steps_done() >= least, *command["killed"])
        reached.append(steps_done())
    assert reached == sorted(set(reached))
    assert reached[-1] < 60, "the last kill came too late to test anything"
    done(*command["killed"])

    steady, killed = (work[name] / "expert.safetensors" for name in ("steady", "killed"))
    assert killed.read_bytes() == steady.read_bytes()


@pytest.fixture(scope="module")
def released(disk):
    """Two sites whose released bundles are large enough to be caught half-way (86 MB each)."""
    folder = disk / "kill"
    home = federation(folder, architecture="DiT-S/8", steps=1, sites=["one", "two"])
    trust = home.trust()
    for number, name in enumerate(("one", "two")):
        generator = torch.Generator().manual_seed(number)
        images = ImageSet(torch.rand((40, 1, 8, 8), generator=generator) * 2 - 1, None)
        site = SiteFolder.open(folder / name)
        options = TrainingOptions(RunOptions(seed=number, precision="float32"))
        log = look(site, home.published).log
        run_plan(site, trust, log, Private(images), options)
        stages.review(site, trust)
        stages.release(site, trust)
        shutil.rmtree(site.work(trust.plan_sha256))  # checkpoints, which no way on reads
    return folder


def linked(source: str, target: str) -> None:
    """Copies a file; those of a bundle stay the same file, since nothing ever writes into them."""
    (os.link if source.endswith(".safetensors") else shutil.copy2)(source, target)


@pytest.fixture
def copy(released, disk):
    with tempfile.TemporaryDirectory(dir=disk) as folder:
        yield Path(shutil.copytree(released, Path(folder) / "fed", copy_function=linked))


def deliver(folder: Path) -> None:
    """Lets both sites submit, in this process."""
    for name in ("one", "two"):
        site, hub = SiteFolder.open(folder / name), folder / "hub"
        submit.submit(site, CoordinatorFolder.open(hub).trust(), FolderTransport(hub / "inbox"))


def admit(folder: Path) -> int:
    """Verifies the inbox, in this process; returns the number of bundles then admitted."""
    home = CoordinatorFolder.open(folder / "hub")
    admit_arrivals(home, home.trust())
    admitted = admitted_bundles(home, home.trust(), read_own_log(home, home.chain()))
    kept = {digest for item in admitted for digest in item.sha256.values()}
    assert {path.name for path in home.blobs.folder.iterdir()} == kept  # all of them, no parts
    return len(admitted)


def grows_in(part: Path, at_least: int, pattern: str = "*.safetensors") -> Callable[[], bool]:
    """Whether the files under `part` with such a name hold `at_least` bytes by now."""

    def seen() -> bool:
        try:
            found = [path for path in part.parent.glob(f"{part.name}*") if path.is_dir()]
            files = [path for folder in found for path in folder.rglob(pattern)]
            return sum(path.stat().st_size for path in files) >= at_least
        except FileNotFoundError:  # it was just renamed or removed
            return False

    return seen


@pytest.mark.parametrize("at_least", [1, 40_000_000])
def test_submit_killed_half_way_leaves_no_bundle_and_then_completes(copy, at_least):
    incoming = copy / "hub" / "inbox" / "incoming"
    command = ("ddm-site", "submit", "--site", copy / "one")
    command += ("--plan", copy / "hub" / "published", "--to", copy / "hub" / "inbox")

    kill_when(grows_in(incoming, at_least), *command)
    assert [path for path in incoming.iterdir() if not path.name.startswith(".")] == []
    assert admit(copy) == 0  # what is there is not taken for whole

    done_here(*command)
    assert admit(copy) == 1


def test_admission_killed_half_way_admits_nothing_and_then_completes(copy):
    hub = copy / "hub"
    deliver(copy)

    blobs, command = hub / "store" / "blobs", ("ddm-coord", "admit", "--coordinator", hub)
    kill_when(grows_in(blobs, 40_000_000, ".part-*"), *command)
    assert [path.name[:6] for path in blobs.iterdir()] == [".part-"]
    assert list((hub / "store" / "manifests").iterdir()) == []
    home = CoordinatorFolder.open(hub)
    assert read_own_log(home, home.chain()).size == 0
    assert len(list((hub / "inbox" / "incoming").iterdir())) == 2

    assert admit(copy) == 2
    assert len(list((hub / "inbox" / "receipts").glob("*.dsse.json"))) == 2


def test_assemble_killed_half_way_leaves_no_ensemble_and_then_completes(copy):
    hub, target = copy / "hub", copy / "ensemble"
    deliver(copy)
    assert admit(copy) == 2
    command = ("ddm-coord", "assemble", target, "--coordinator", hub)

    for at_least in (1, 60_000_000, 160_000_000):  # within the first copy, the second, the check
        kill_when(grows_in(copy / ".part-ensemble", at_least), *command)
        assert not target.exists()

    done_here(*command)
    root = CoordinatorFolder.open(hub).settings.root
    assert len(verify_ensemble(target, root).bundles) == 2


@pytest.mark.parametrize("at_least", [1, 40_000_000])
def test_export_killed_half_way_leaves_a_partial_copy_that_is_named_and_then_completes(
    copy, at_least
):
    medium, hub = copy / "medium", copy / "hub"
    command = ("ddm-site", "export", medium, "--site", copy / "one", "--plan", hub / "published")
    take_in = ("ddm-coord", "import", medium, "--coordinator", hub)

    kill_when(grows_in(medium / "incoming", at_least), *command)
    refused = here(*take_in)
    assert refused.code == 1
    assert "its copy was broken off" in refused.err
    assert admit(copy) == 0

    (part,) = (medium / "incoming").iterdir()
    kept = (part / "expert.safetensors").stat()
    done_here(*command)
    (bundle,) = (medium / "incoming").iterdir()
    assert (bundle / "expert.safetensors").stat().st_ino == kept.st_ino  # it went on with it
    done_here(*take_in)
    assert admit(copy) == 1


def test_import_killed_half_way_admits_nothing_and_then_goes_on_from_there(copy):
    medium, hub = copy / "medium", copy / "hub"
    for name in ("one", "two"):
        done_here("ddm-site", "export", medium, "--site", copy / name, "--plan", hub / "published")
    command = ("ddm-coord", "import", medium, "--coordinator", hub)
    home = CoordinatorFolder.open(hub)

    def committed() -> int:
        found = (read_progress(folder) for folder in home.partial.iterdir())
        return sum(known.committed_bytes for known in found if known is not None)

    kill_when(lambda: committed() >= 64 << 20, *command)
    assert read_own_log(home, home.chain()).size == 0
    assert admit(copy) == 0
    assert committed() >= 64 << 20

    done_here(*command)
    assert list(home.partial.iterdir()) == []
    assert admit(copy) == 2
    assert len(list((medium / "receipts").glob("*.dsse.json"))) == 2

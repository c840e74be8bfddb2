"""Several processes take the private steps that one process would: real ones, as by torchrun."""

from decimal import Decimal
from pathlib import Path

import pytest
import torch
from federation import PRIVATE, a_plan, paid_for, random_images
from torchrun import torchrun

from ddm_fed.privacy import Randomness
from ddm_fed.progress import QUIET
from ddm_fed.records import SampledGaussianEvent
from ddm_fed.training import (
    Payment,
    PrivateTraining,
    RunOptions,
    help_private_expert,
    process_rank,
    read_identity,
    read_trained,
    steps_done,
    train_private_expert,
)

pytestmark = pytest.mark.processes

PLAN = a_plan(max_epsilon=PRIVATE, steps="steps = 3\nclip_norm = 100000")
PLAN_SHA256 = "ab" * 32
EVENT = SampledGaussianEvent(
    sampling_rate=Decimal("0.5"), noise_multiplier=Decimal("0.85"), steps=3
)
FOLDERS = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "helpers")]
# What each process runs. The first argument is the checkpoint; the second is a bug, or what else
# happens to a process before it starts.
WORKER = f"""
import os, sys
sys.path[:0] = {FOLDERS!r}
import test_private_parallel as shared
from federation import random_images
from ddm_fed.privacy import PrivateStep, Randomness, noised
from ddm_fed.progress import Watch
from ddm_fed.training import private_run, process_rank
from ddm_fed.training.parallel import Team
rank, data = process_rank(), random_images(0)
on_step = lambda report: print("step", report.step, flush=True)
share, total = PrivateStep.share, Team.total
exec(sys.argv[2])
shared.take_part(shared.Path(sys.argv[1]), data, Watch(on_step))
"""
BUGS = {
    "noise of each process": (
        """
def twice(self, clipped, step, clip_norm):
    normals = self.randomness.derived(str(rank)).stream("noise", step).normals
    scale = dict(clip_norm=clip_norm, noise_multiplier=self.noise_multiplier, normals=normals)
    noisy = noised(clipped.total, **scale)
    noisy = {name: self.processes.total(value) for name, value in noisy.items()}
    return {name: value / self.expected_units for name, value in noisy.items()}
PrivateStep.release = twice
""",
        "size of the noise",
    ),
    "noise of none": (
        "PrivateStep.release = lambda self, clipped, *_: "
        "{n: v / self.expected_units for n, v in clipped.total.items()}",
        "size of the noise",
    ),
    "units that both sum up": ("PrivateStep.share = lambda self, units: units", "sensitivity"),
    "units that nobody sums up": (
        "PrivateStep.share = lambda self, units: share(self, units)[: 1 - rank or None]",
        "sensitivity",
    ),
    "a process with a secret of its own": (
        """
if rank == 1:
    private_run.Randomness.from_hex = lambda *_: Randomness.for_tests(99)
""",
        "a unit in one step",
    ),
    "a process whose sums are lost": (
        """
Team.total = lambda self, values: total(self, values * (self.rank == 0)
    if values.is_floating_point() and values.numel() > 2 else values)
""",
        "the gradient",
    ),
}


def take_part(checkpoint, data, watch=QUIET):
    """Trains, or helps to, as a process of a site does; one process alone trains."""
    options = RunOptions(checkpoint_every_s=0)
    if process_rank() > 0:
        help_private_expert(data, PLAN, PLAN_SHA256, checkpoint, options=options)
        return None
    noise = PrivateTraining.planned(PLAN, EVENT, 24.0)
    return train_private_expert(
        data,
        PLAN,
        PLAN_SHA256,
        checkpoint,
        noise,
        Payment(lambda: "0" * 64, lambda _: paid_for(noise)),
        options=options,
        randomness=Randomness.for_tests(4),
        watch=watch,
    ).state


def run(checkpoint, what=""):
    script = checkpoint.with_suffix(".py")
    script.write_text(WORKER)
    return torchrun(script, checkpoint, what)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def together(folder):
    done = run(folder / "together")
    assert done.code == 0, done.err
    assert done.out.split() == ["step", "1", "step", "2", "step", "3"]  # of the first alone
    return read_trained(folder / "together", PLAN).state


def test_two_processes_take_the_private_steps_of_one(folder, together):
    alone = take_part(folder / "alone", random_images(0))
    # without one and the same noise and the same units, weights would differ by some 1e-3
    assert max(float((together[n] - alone[n]).abs().max()) for n in alone) < 2e-5
    assert read_identity(folder / "together").secret == ""
    assert read_identity(folder / "together").processes == 2


def test_killed_processes_go_on_with_the_same_bits(folder, together):
    killed = "on_step = lambda report: report.step == 1 and os._exit(7)"
    assert run(folder / "killed", killed).code != 0
    assert steps_done(folder / "killed") == 1
    done = run(folder / "killed")
    assert done.code == 0, done.err
    state = read_trained(folder / "killed", PLAN).state
    assert [name for name in together if not torch.equal(state[name], together[name])] == []


@pytest.mark.parametrize("bug", BUGS)
def test_bug_of_several_processes_stops_the_training_by_name(bug, folder):
    plant, name = BUGS[bug]
    done = run(folder / "".join(filter(str.isalpha, bug)), plant)
    assert done.code != 0
    assert name in done.err


def test_process_with_other_images_is_refused(folder):
    done = run(folder / "others", "data = random_images(rank)")
    assert done.code != 0
    assert "asked for another training" in done.err
    assert not (folder / "others").exists()

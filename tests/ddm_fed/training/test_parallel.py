"""Several processes train the expert that one process would: real ones, as torchrun starts them."""

import time
from pathlib import Path

import pytest
import torch
from torchrun import torchrun

from ddm_fed.errors import CheckpointError, OptionError
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import Plan, read_plan_toml
from ddm_fed.training import RunOptions, process_rank, read_trained, steps_done, train_expert

PLAN_SHA256 = "0" * 64
STEPS = 10
PLAN = f"""
federation = "parallel"
expires_at = 2036-01-01
[data]
channels = 1
height = 8
width = 8
conditioning = "class"
classes = ["dark", "bright"]
[expert]
architecture = "DiT-Nano/4"
[training]
steps = {STEPS}
batch_size = 11
warmup_steps = 2
ema_half_lives = [1, 30]
augmentation = ["horizontal-flip"]
[router]
kind = "prior"
epsilon = 1
[privacy]
max_epsilon = 1
"""
# What each process runs: the arguments are checkpoint, shard, micro-batch, and the step after
# which process 0 ends without a word.
WORKER = f"""
import os, sys, torch
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[2] / "helpers")!r}]
from ddm_fed.privacy import Private
from ddm_fed.progress import Watch
from ddm_fed.training import RunOptions, train_expert
import test_parallel as shared
checkpoint, shard, micro_batch, fatal_step = sys.argv[1:]
def on_step(report):
    if report.step == int(fatal_step):
        os._exit(7)
def on_sample(step, images):
    print("preview", step, tuple(images.shape), flush=True)
options = RunOptions(
    seed=5, precision="float32", checkpoint_every_s=0, shard=bool(int(shard)),
    micro_batch=int(micro_batch) or None, sample_every=6, sample_count=4,
)
train_expert(
    shared.images(), shared.plan(), shared.PLAN_SHA256, shared.Path(checkpoint),
    options=options, watch=Watch(on_step, on_sample),
)
"""


def plan() -> Plan:
    return read_plan_toml(PLAN)


def images() -> Private[ImageSet]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30) % 2
    pixels = 0.1 * torch.randn((30, 1, 8, 8), generator=generator) + labels[:, None, None, None]
    return Private(ImageSet((pixels - 0.5).clamp(-1, 1), labels))


def run(checkpoint: Path, *, shard=False, micro_batch=0, fatal_step=0):
    script = checkpoint.with_suffix(".py")
    script.write_text(WORKER)
    return torchrun(script, checkpoint, int(shard), micro_batch, fatal_step)


def together(checkpoint: Path, **how):
    """Trains with two processes; returns the averages of half-life 1, and of 30."""
    done = run(checkpoint, **how)
    assert done.code == 0, done.err
    assert done.out == "preview 6 (4, 1, 8, 8)\n"  # process 0 alone calls back
    return [read_trained(checkpoint, plan(), ema_half_life=h).state for h in (1, 30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parallel")


@pytest.fixture(scope="module")
def alone(folder):
    options = RunOptions(seed=5, precision="float32", checkpoint_every_s=60)
    threads = torch.get_num_threads()
    train_expert(images(), plan(), PLAN_SHA256, folder / "alone", options=options)
    torch.set_num_threads(threads)
    return [read_trained(folder / "alone", plan(), ema_half_life=h).state for h in (1, 30)]


@pytest.fixture(scope="module")
def copied(folder):
    return together(folder / "ddp")


@pytest.fixture(scope="module")
def divided(folder):
    return together(folder / "fsdp", shard=True, micro_batch=4)


def assert_close(first: list[dict], second: list[dict], relative: float) -> None:
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        vectors = [torch.cat([v.flatten() for v in state.values()]) for state in (one, other)]
        assert float((vectors[0] - vectors[1]).norm() / vectors[1].norm()) < relative


def assert_same_bits(first: list[dict], second: list[dict]) -> None:
    for one, other in zip(first, second, strict=True):
        assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.processes
def test_two_processes_train_the_expert_of_one(alone, copied):
    assert_close(copied, alone, 1e-5)


@pytest.mark.processes
def test_micro_batches_of_two_processes_change_nothing_but_rounding(folder, copied):
    assert_close(together(folder / "ddp-micro", micro_batch=2), copied, 1e-5)


@pytest.mark.processes
def test_divided_weights_train_the_expert_of_copied_ones(alone, copied, divided):
    assert_close(divided, copied, 1e-5)
    assert_close(divided, alone, 1e-5)


@pytest.mark.processes
@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp"])
def test_run_whose_first_process_dies_fails_soon_and_resumes_with_the_same_bits(
    folder, copied, divided, shard
):
    steady = divided if shard else copied
    how = {"shard": shard, "micro_batch": 4 if shard else 0}
    cut = folder / f"cut-{shard}"
    started = time.monotonic()
    died = run(cut, fatal_step=4, **how)
    assert died.code != 0
    assert time.monotonic() - started < 60
    assert steps_done(cut) == 4
    assert_same_bits(together(cut, **how), steady)


@pytest.mark.processes
def test_checkpoint_of_two_processes_is_not_continued_by_one(folder):
    cut = folder / "cut-by-one"
    run(cut, fatal_step=3)
    options = RunOptions(seed=5, precision="float32")
    with pytest.raises(CheckpointError, match="number of processes: it holds 2, this run has 1"):
        train_expert(images(), plan(), PLAN_SHA256, cut, options=options)


def test_weights_are_not_divided_among_one_process(tmp_path):
    with pytest.raises(OptionError, match="there is only one"):
        train_expert(images(), plan(), PLAN_SHA256, tmp_path / "a", options=RunOptions(shard=True))
    assert process_rank() == 0

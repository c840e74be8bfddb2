"""The training loop: exact continuation, honest refusals, and that it learns."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from ddm_fed.errors import CheckpointError, DataError
from ddm_fed.flows import velocity_loss
from ddm_fed.models import build_expert
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import Plan, read_plan_toml
from ddm_fed.training import (
    StepReport,
    batch_indices,
    choose_precision,
    learning_rate_factor,
    train_expert,
)

PLAN_SHA256 = "0" * 64


def a_plan(steps: int = 12, *, classes: bool = False, extra: str = "") -> Plan:
    kind = 'conditioning = "class"\nclasses = ["dark", "bright"]' if classes else ""
    return read_plan_toml(
        f"""
federation = "training"
expires_at = 2036-01-01
[data]
channels = 1
height = 8
width = 8
{kind}
[expert]
architecture = "DiT-Nano/4"
[training]
steps = {steps}
batch_size = 16
warmup_steps = 2
{extra}
[router]
kind = "prior"
epsilon = 1
[privacy]
max_epsilon = 1
"""
    )


def images(count: int = 40, seed: int = 0, *, labels: bool = False) -> Private[ImageSet]:
    generator = torch.Generator().manual_seed(seed)
    bright = torch.arange(count) % 2
    pixels = 0.1 * torch.randn((count, 1, 8, 8), generator=generator) + bright[:, None, None, None]
    return Private(ImageSet((pixels - 0.5).clamp(-1, 1), bright if labels else None))


def train(plan: Plan, data: Private[ImageSet], checkpoint: Path, **options):
    options = {"seed": 5, "precision": "float32", "checkpoint_every_s": 0} | options
    return train_expert(data, plan, PLAN_SHA256, checkpoint, **options)


def interrupt_after(steps: int):
    def on_step(report: StepReport) -> None:
        if report.step == steps:
            raise KeyboardInterrupt

    return on_step


def assert_same_bits(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("classes", [False, True])
def test_interrupted_and_resumed_run_has_the_same_bits(tmp_path, precision, classes):
    plan, data = a_plan(classes=classes), images(labels=classes)
    steady = train(plan, data, tmp_path / "steady", precision=precision)

    for stop in (1, 7):
        with pytest.raises(CheckpointError, match="training was interrupted after"):
            train(plan, data, tmp_path / "cut", precision=precision, on_step=interrupt_after(stop))
    resumed = train(plan, data, tmp_path / "cut", precision=precision)

    assert_same_bits(steady.state, resumed.state)
    assert resumed.facts == steady.facts


def test_finished_run_is_not_trained_again(tmp_path):
    first = train(a_plan(), images(), tmp_path / "checkpoint")
    steps: list[StepReport] = []
    again = train(a_plan(), images(), tmp_path / "checkpoint", on_step=steps.append)
    assert steps == []
    assert_same_bits(first.state, again.state)


def test_resumed_run_keeps_the_seed_it_was_not_told(tmp_path):
    with pytest.raises(CheckpointError):
        train(a_plan(), images(), tmp_path / "a", seed=None, on_step=interrupt_after(3))
    resumed = train(a_plan(), images(), tmp_path / "a", seed=None)
    other = train(a_plan(), images(), tmp_path / "b", seed=None)
    assert not torch.equal(resumed.state["embed.weight"], other.state["embed.weight"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 6}, "another seed"),
        ({"precision": "bfloat16"}, "another precision"),
        ({"data": images(seed=1)}, "other images"),
        ({"plan_sha256": "1" * 64}, "another plan"),
    ],
)
def test_checkpoint_of_another_run_is_refused(tmp_path, change, named):
    checkpoint = tmp_path / "checkpoint"
    train(a_plan(), images(), checkpoint)
    run = {"data": images(), "plan": a_plan(), "plan_sha256": PLAN_SHA256} | change
    options = {name: run.pop(name) for name in ("seed", "precision") if name in run}
    options = {"seed": 5, "precision": "float32"} | options
    with pytest.raises(CheckpointError, match=named):
        train_expert(**run, checkpoint=checkpoint, **options)


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", bytes(200)])
def test_damaged_checkpoint_is_refused_and_kept(tmp_path, damage):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.write_bytes(damage)
    with pytest.raises(CheckpointError, match="cannot be read"):
        train(a_plan(), images(), checkpoint)
    assert checkpoint.read_bytes() == damage


def test_training_without_images_is_refused(tmp_path):
    empty = Private(ImageSet(torch.zeros(0, 1, 8, 8), None))
    with pytest.raises(DataError, match="no images"):
        train(a_plan(), empty, tmp_path / "checkpoint")


def test_trained_expert_predicts_better_than_a_new_one(tmp_path):
    plan = a_plan(150, extra="learning_rate = 0.003\nema_decay = 0.9")
    trained = build_expert(plan)
    trained.load_state_dict(train(plan, images(), tmp_path / "a", checkpoint_every_s=60).state)
    new = build_expert(plan)
    new.reset_parameters(torch.Generator().manual_seed(0))

    held_out = images(200, seed=9).reveal().images
    generator = torch.Generator().manual_seed(1)
    eps, t = torch.randn(held_out.shape, generator=generator), torch.rand(200, generator=generator)
    with torch.no_grad():
        loss = [velocity_loss(m, held_out, eps, t, None).mean().item() for m in (trained, new)]
    assert loss[0] < 0.7 * loss[1]


def test_conditional_expert_learns_what_a_class_looks_like(tmp_path):
    plan = a_plan(150, classes=True, extra="learning_rate = 0.003\nema_decay = 0.9")
    expert = build_expert(plan)
    data = images(labels=True)
    expert.load_state_dict(train(plan, data, tmp_path / "a", checkpoint_every_s=60).state)

    eps = torch.randn((50, 1, 8, 8), generator=torch.Generator().manual_seed(2))
    t = torch.full((50,), 0.95)
    with torch.no_grad():
        # at almost pure noise x_0 = x_t - t v is what the expert expects of the class
        dark, bright = (
            (eps - t[0] * expert(eps, t, torch.full((50,), label))).mean() for label in (0, 1)
        )
    assert bright - dark > 0.5


def test_batches_of_an_epoch_hold_every_image_once():
    rows = torch.cat([batch_indices(step, batch_size=8, count=24, seed=3) for step in range(6)])
    assert Counter(rows[:24].tolist()) == dict.fromkeys(range(24), 1)
    assert Counter(rows[24:].tolist()) == dict.fromkeys(range(24), 1)
    assert rows[:24].tolist() != rows[24:].tolist()


def test_batches_cross_epochs_and_repeat_few_images():
    rows = torch.cat([batch_indices(step, batch_size=16, count=5, seed=3) for step in range(5)])
    assert set(Counter(rows.tolist()).values()) == {16}


def test_learning_rate_warms_up_and_falls_to_zero():
    factors = [learning_rate_factor(s, steps=1000, warmup_steps=10) for s in range(1000)]
    assert factors[:10] == sorted(factors[:10])
    assert max(factors) == pytest.approx(1, abs=1e-3)
    assert factors[-1] < 1e-5


def test_precision_is_chosen_by_measurement_without_any_images():
    assert choose_precision(a_plan(classes=True)) in ("float32", "bfloat16")


def test_published_facts_hold_nothing_of_the_images(tmp_path):
    facts = [train(a_plan(), images(n), tmp_path / str(n)).facts for n in (20, 40)]
    assert facts[0] == facts[1]

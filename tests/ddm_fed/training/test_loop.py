"""Resuming, refusing and learning: the loop that makes an expert."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from ddm_fed.errors import CheckpointError, DataError, OptionError, StateError
from ddm_fed.flows import ClassCondition, denoising_loss, path_named
from ddm_fed.models import build_network
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.progress import StepReport, Watch
from ddm_fed.records import ExpertDesign, Plan, read_plan_toml
from ddm_fed.training import (
    RunOptions,
    TrainedExpert,
    choose_precision,
    read_identity,
    read_trained,
    steps_done,
    train_expert,
)
from ddm_fed.training.batches import Batch, Batches, BatchOrder
from ddm_fed.training.ema import ema_decay
from ddm_fed.training.loop import Clock, learning_rate_factor

pytestmark = pytest.mark.usefixtures("one_block")

PLAN_SHA256 = "0" * 64
CPU = torch.device("cpu")
BASE_OPTIONS = RunOptions(seed=5, precision="float32", checkpoint_every_s=0)


def a_plan(steps: int = 12, *, classes: bool = False, expert: str = "", extra: str = "") -> Plan:
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
{expert}
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


def train(plan: Plan, data: Private[ImageSet], checkpoint, *, callbacks=None, **options):
    options = replace(BASE_OPTIONS, **options)
    watch = Watch(**(callbacks or {}))
    return train_expert(data, plan, PLAN_SHA256, checkpoint, options=options, watch=watch)


def interrupt_after(steps: int) -> dict:
    def on_step(report: StepReport) -> None:
        if report.step == steps:
            raise KeyboardInterrupt

    return {"on_step": on_step}


def assert_same_bits(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def distance(first: dict, second: dict) -> float:
    """Norm of the difference of all weights, relative to that of the second."""
    vectors = [torch.cat([v.flatten() for v in state.values()]) for state in (first, second)]
    return float((vectors[0] - vectors[1]).norm() / vectors[1].norm())


def network(trained: TrainedExpert, plan: Plan):
    model = build_network(plan.data, plan.expert.default)
    model.load_state_dict(trained.state)
    return model


@pytest.mark.parametrize(
    ("every_s", "onwards"),
    [
        (600, "no checkpoint of a step was written yet: the same command begins with the first"),
        (0, "run the same command again: it continues from the checkpoint of step 3"),
    ],
)
def test_interrupted_run_says_where_the_next_one_begins(tmp_path, every_s, onwards):
    with pytest.raises(CheckpointError) as caught:
        train(
            a_plan(),
            images(),
            tmp_path / "cut",
            checkpoint_every_s=every_s,
            callbacks=interrupt_after(3),
        )
    assert caught.value.hint.startswith(onwards)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("classes", [False, True])
def test_interrupted_and_resumed_run_has_the_same_bits(tmp_path, precision, classes):
    extra = 'ema_half_lives = [3, 9]\naugmentation = ["horizontal-flip", "translate"]'
    plan, data = a_plan(classes=classes, extra=extra), images(labels=classes)
    steady = train(plan, data, tmp_path / "steady", precision=precision)

    for stop in (1, 7):
        with pytest.raises(CheckpointError, match="training was interrupted after"):
            train(
                plan, data, tmp_path / "cut", precision=precision, callbacks=interrupt_after(stop)
            )
    resumed = train(plan, data, tmp_path / "cut", precision=precision)

    assert_same_bits(steady.state, resumed.state)
    assert resumed.facts == steady.facts
    other = [read_trained(tmp_path / n, plan, ema_half_life=9) for n in ("steady", "cut")]
    assert_same_bits(other[0].state, other[1].state)


def test_finished_run_is_not_trained_again(tmp_path):
    first = train(a_plan(), images(), tmp_path / "checkpoint")
    steps: list[StepReport] = []
    # how it would be computed no longer matters
    again = train(
        a_plan(), images(), tmp_path / "checkpoint", micro_batch=3,
        callbacks={"on_step": steps.append},
    )  # fmt: skip
    assert steps == []
    assert_same_bits(first.state, again.state)


def test_resumed_run_keeps_the_seed_it_was_not_told(tmp_path):
    with pytest.raises(CheckpointError):
        train(a_plan(), images(), tmp_path / "a", seed=None, callbacks=interrupt_after(3))
    resumed = train(a_plan(), images(), tmp_path / "a", seed=None)
    other = train(a_plan(), images(), tmp_path / "b", seed=None)
    assert not torch.equal(resumed.state["embed.weight"], other.state["embed.weight"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 6}, "another seed"),
        ({"precision": "bfloat16"}, "another precision"),
        ({"compile": True}, "another --compile"),
        ({"data": images(seed=1)}, "other images"),
        ({"plan_sha256": "1" * 64}, "another plan"),
        ({"design": ExpertDesign(architecture="DiT-Nano/4", path="cosine")}, "another network"),
    ],
)
def test_unfinished_checkpoint_of_another_run_is_refused(tmp_path, change, named):
    checkpoint = tmp_path / "checkpoint"
    plan = a_plan(expert='path = ["linear", "cosine"]')
    with pytest.raises(CheckpointError):
        train(plan, images(), checkpoint, callbacks=interrupt_after(3))
    run = {"data": images(), "plan": plan, "plan_sha256": PLAN_SHA256} | change
    chosen = {name: run.pop(name) for name in [*run] if hasattr(BASE_OPTIONS, name)}
    with pytest.raises(CheckpointError, match=named):
        train_expert(**run, checkpoint=checkpoint, options=replace(BASE_OPTIONS, **chosen))


def test_unfinished_checkpoint_continues_with_smaller_micro_batches(tmp_path):
    """The way on after a lack of memory: nothing but rounding changes."""
    whole = train(a_plan(), images(), tmp_path / "whole")
    with pytest.raises(CheckpointError, match="interrupted"):
        train(a_plan(), images(), tmp_path / "cut", callbacks=interrupt_after(3))
    parts = train(a_plan(), images(), tmp_path / "cut", micro_batch=2)
    assert read_identity(tmp_path / "cut").micro_batch == 2
    for name, value in whole.state.items():
        torch.testing.assert_close(parts.state[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", bytes(200)])
def test_damaged_checkpoint_is_refused_and_kept(tmp_path, damage):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.write_bytes(damage)
    with pytest.raises(CheckpointError, match="cannot be read"):
        train(a_plan(), images(), checkpoint)
    assert checkpoint.read_bytes() == damage


def test_training_without_images_or_needed_labels_is_refused(tmp_path):
    empty = Private(ImageSet(torch.zeros(0, 1, 8, 8), None))
    with pytest.raises(DataError, match="no images"):
        train(a_plan(), empty, tmp_path / "checkpoint")
    with pytest.raises(DataError, match="no labels"):
        train(a_plan(classes=True), images(), tmp_path / "checkpoint")


def test_design_or_average_the_plan_does_not_name_is_refused(tmp_path):
    with pytest.raises(OptionError, match="does not allow an expert of"):
        train_expert(
            images(), a_plan(), PLAN_SHA256, tmp_path / "a",
            design=ExpertDesign(architecture="DiT-Nano/4", prediction="noise"),
        )  # fmt: skip
    with pytest.raises(OptionError, match="--ema-half-life 5: the plan has no average"):
        train(a_plan(), images(), tmp_path / "a", ema_half_life=5)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("prediction", ["velocity", "noise", "image"])
@pytest.mark.parametrize("path", ["linear", "cosine", "vp"])
def test_trained_expert_of_any_objective_predicts_better_than_a_new_one(tmp_path, path, prediction):
    plan = a_plan(
        60,
        expert=f'path = "{path}"\nprediction = "{prediction}"',
        extra='learning_rate = 0.003\nema_half_lives = [7]\nloss_weighting = "min-snr"',
    )
    trained = train(plan, images(), tmp_path / "a", checkpoint_every_s=60)
    new = build_network(plan.data, plan.expert.default)
    new.reset_parameters(torch.Generator().manual_seed(0))

    held_out = images(200, seed=9).reveal().images
    generator = torch.Generator().manual_seed(1)
    eps = torch.randn(held_out.shape, generator=generator)
    t = 0.1 + 0.8 * torch.rand(200, generator=generator)
    how = {"path": path_named(path), "prediction": prediction}
    with torch.no_grad():
        loss = [
            denoising_loss(m, held_out, eps, t, None, **how).mean().item()
            for m in (network(trained, plan), new)
        ]
    assert loss[0] < 0.85 * loss[1]


@pytest.mark.slow
def test_conditional_expert_learns_what_a_class_looks_like(tmp_path):
    plan = a_plan(150, classes=True, extra="learning_rate = 0.003\nema_half_lives = [7]")
    data = images(labels=True)
    expert = network(train(plan, data, tmp_path / "a", checkpoint_every_s=60), plan)

    eps = torch.randn((50, 1, 8, 8), generator=torch.Generator().manual_seed(2))
    t = torch.full((50,), 0.95)
    with torch.no_grad():
        # at almost pure noise x_0 = x_t - t v is what the expert expects of the class
        dark, bright = (
            (eps - t[0] * expert(eps, t, ClassCondition(torch.full((50,), label)))).mean()
            for label in (0, 1)
        )
    assert bright - dark > 0.5


def test_every_average_of_the_plan_is_the_sum_it_should_be(tmp_path, monkeypatch):
    plan = a_plan(20, extra="ema_half_lives = [1, 50]")
    weights: list[torch.Tensor] = []
    step = torch.optim.AdamW.step

    def recorded(self, *arguments):
        if not weights:
            weights.append(self.param_groups[0]["params"][0].detach().clone())
        step(self, *arguments)
        weights.append(self.param_groups[0]["params"][0].detach().clone())

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    expert = train(plan, images(), tmp_path / "a")
    name = next(iter(dict(build_network(plan.data, plan.expert.default).named_parameters())))
    for half_life in (1, 50):
        average = weights[0].double()
        for index, value in enumerate(weights[1:]):
            decay = min(0.5 ** (1 / half_life), (1 + index) / (10 + index))
            average = decay * average + (1 - decay) * value.double()
        found = read_trained(tmp_path / "a", plan, ema_half_life=half_life)
        torch.testing.assert_close(found.state[name], average.float(), rtol=1e-5, atol=1e-6)
        assert found.facts.ema_half_life == half_life
    assert expert.facts.ema_half_life == 1


def test_average_is_chosen_after_the_training_without_more_of_it(tmp_path):
    plan = a_plan(20, extra="ema_half_lives = [1, 50]")
    train(plan, images(), tmp_path / "a")
    other = train(plan, images(), tmp_path / "a", ema_half_life=50)
    assert_same_bits(other.state, read_trained(tmp_path / "a", plan, ema_half_life=50).state)
    assert distance(other.state, read_trained(tmp_path / "a", plan).state) > 1e-4


def test_half_of_an_average_is_left_after_its_half_life():
    left = np.prod([ema_decay(30, step) for step in range(10_000, 10_030)])
    assert left == pytest.approx(0.5, rel=1e-6)
    assert ema_decay(30, 0) == pytest.approx(0.1)


def test_unfinished_checkpoint_has_no_expert(tmp_path):
    assert steps_done(tmp_path / "a") == 0
    with pytest.raises(CheckpointError):
        train(a_plan(), images(), tmp_path / "a", callbacks=interrupt_after(4))
    assert steps_done(tmp_path / "a") == 4
    with pytest.raises(StateError, match="4 of the plan's 12 steps"):
        read_trained(tmp_path / "a", a_plan())


@pytest.mark.parametrize("micro_batch", [1, 5, 8, 100])
def test_micro_batches_change_nothing_but_rounding(tmp_path, micro_batch):
    plan, data = a_plan(4, classes=True), images(labels=True)
    losses: dict[str, list[float]] = {"whole": [], "parts": []}
    states = {
        name: train(
            plan, data, tmp_path / name, micro_batch=size,
            callbacks={"on_step": lambda report, name=name: losses[name].append(report.loss)},
        ).state
        for name, size in (("whole", None), ("parts", micro_batch))
    }  # fmt: skip
    assert losses["parts"] == pytest.approx(losses["whole"], rel=1e-6)
    assert distance(states["parts"], states["whole"]) < 1e-6


def test_parts_of_a_batch_hold_every_row_once_and_idle_parts_weigh_nothing():
    rows = torch.arange(5.0)
    batch = Batch(rows, rows, rows, ClassCondition(torch.arange(5)))
    parts = list(batch.parts(2))
    assert [part.t.tolist() for part in parts] == [[0, 1, 2], [3, 4]]
    assert [part.condition.labels.tolist() for part in parts] == [[0, 1, 2], [3, 4]]
    parts = list(Batch(rows[:2], rows[:2], rows[:2], None).parts(3))
    assert [(len(part), part.weight) for part in parts] == [(1, 1.0), (1, 1.0), (1, 0.0)]


def test_preview_changes_no_bit_of_the_training(tmp_path):
    plan, data = a_plan(classes=True), images(labels=True)
    drawn = []
    plain = train(plan, data, tmp_path / "plain")
    watched = train(
        plan, data, tmp_path / "watched", sample_every=5, sample_count=4,
        callbacks={"on_sample": lambda step, x: drawn.append((step, x))},
    )  # fmt: skip
    assert_same_bits(plain.state, watched.state)
    assert [step for step, _ in drawn] == [5, 10]
    for _, x in drawn:
        assert x.shape == (4, 1, 8, 8)
        assert -1 <= x.min() <= x.max() <= 1


def test_reports_say_how_far_it_is(tmp_path):
    reports: list[StepReport] = []
    train(a_plan(), images(), tmp_path / "a", callbacks={"on_step": reports.append})
    assert [(report.step, report.steps) for report in reports] == [(n + 1, 12) for n in range(12)]
    assert reports[-1].eta_s == 0
    assert all(report.images_per_s > 0 and report.loss > 0 for report in reports)
    assert reports[3].eta_s == pytest.approx(8 * 16 / reports[3].images_per_s)


def test_compiler_that_does_not_work_is_done_without(tmp_path, monkeypatch):
    def broken(model, **options):
        def fails(*arguments):
            raise RuntimeError("no C++ compiler was found\nlong story")

        return fails

    monkeypatch.setattr(torch, "compile", broken)
    said: list[str] = []
    plan, data = a_plan(4), images()
    without = train(plan, data, tmp_path / "a")
    failed = train(plan, data, tmp_path / "b", compile=True, callbacks={"say": said.append})
    assert_same_bits(without.state, failed.state)
    assert len(said) == 1
    assert said[0].endswith("no C++ compiler was found")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_compiled_network_learns_the_same(all_blocks, tmp_path):
    # three blocks, which share one compilation
    plan, data = a_plan(4), images()
    said: list[str] = []
    plain = train(plan, data, tmp_path / "a")
    compiled = train(plan, data, tmp_path / "b", compile=True, callbacks={"say": said.append})
    if said:
        pytest.skip(said[0])
    assert distance(compiled.state, plain.state) < 1e-4


def test_batches_of_an_epoch_hold_every_image_once():
    order = BatchOrder(batch_size=8, count=24, seed=3)
    rows = torch.cat([order.rows(step) for step in range(6)])
    assert Counter(rows[:24].tolist()) == dict.fromkeys(range(24), 1)
    assert Counter(rows[24:].tolist()) == dict.fromkeys(range(24), 1)
    assert rows[:24].tolist() != rows[24:].tolist()
    later = BatchOrder(batch_size=8, count=24, seed=3)
    assert later.rows(4).tolist() == rows[32:40].tolist()


def test_batches_cross_epochs_and_repeat_few_images():
    order = BatchOrder(batch_size=16, count=5, seed=3)
    rows = torch.cat([order.rows(step) for step in range(5)])
    assert set(Counter(rows.tolist()).values()) == {16}


def test_rows_of_a_batch_are_the_same_whoever_draws_them():
    plan = a_plan(classes=True, extra='augmentation = ["translate"]\ntime_shift = 3')
    batches = Batches(images(labels=True).reveal(), plan.training, conditional=True, seed=1)
    everything = batches.draw(2, slice(0, 16))
    some = batches.draw(2, slice(5, 9))
    for name in ("x_0", "eps", "t"):
        assert torch.equal(getattr(some, name), getattr(everything, name)[5:9])
    assert torch.equal(some.condition.labels, everything.condition.labels[5:9])


def test_time_shift_moves_times_towards_noise():
    plain, shifted = (
        Batches(
            images().reveal(), a_plan(extra=extra).training, conditional=False, seed=1
        ).draw(0, slice(0, 16)).t
        for extra in ("", "time_shift = 3")
    )  # fmt: skip
    ratio = (shifted / (1 - shifted)) / (plain / (1 - plain))
    torch.testing.assert_close(ratio, torch.full_like(ratio, 3), rtol=1e-4, atol=0)


def test_learning_rate_warms_up_and_falls_to_zero():
    factors = [learning_rate_factor(s, steps=1000, warmup_steps=10) for s in range(1000)]
    assert factors[:10] == sorted(factors[:10])
    assert max(factors) == pytest.approx(1, abs=1e-3)
    assert factors[-1] < 1e-5


def test_constant_learning_rate_warms_up_and_stays_whatever_the_steps():
    given = {"warmup_steps": 10, "schedule": "constant"}
    factors = [learning_rate_factor(s, steps=1000, **given) for s in range(1000)]
    assert factors[:10] == [(s + 1) / 11 for s in range(10)]
    assert set(factors[10:]) == {1.0}
    assert factors[:500] == [learning_rate_factor(s, steps=500, **given) for s in range(500)]


def test_schedule_is_in_the_record_of_a_plan_only_where_it_is_not_the_cosine():
    plain, cosine, constant = (
        a_plan(extra=extra).training
        for extra in ("", 'schedule = "cosine"', 'schedule = "constant"')
    )
    assert b"schedule" not in plain.to_json()
    assert cosine.to_json() == plain.to_json()
    assert b'"schedule":"constant"' in constant.to_json()


def test_precision_is_chosen_by_measurement_without_any_images():
    plan = a_plan(classes=True)
    assert choose_precision(plan, plan.expert.default, CPU) in ("float32", "bfloat16")


def test_published_facts_hold_nothing_of_the_images(tmp_path):
    facts = [train(a_plan(), images(n), tmp_path / str(n)).facts for n in (20, 40)]
    assert facts[0] == facts[1]


def test_mapped_bytes_train_the_same_expert_as_floats_in_memory(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    floats = torch.from_numpy(2 * (pixels.astype(np.float32) - 0.0) / 255.0 - 1)
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    sets = {
        "floats": ImageSet(floats, None),
        "bytes": ImageSet(torch.from_numpy(pixels), None, (0.0, 255.0)),
        "mapped": ImageSet(mapped, None, (0.0, 255.0)),
    }
    assert len({data.digest() for data in sets.values()}) == 1
    rows = torch.tensor([3, 0, 39])
    for data in sets.values():
        assert torch.equal(data.batch(rows), floats[rows])
        assert torch.equal(data.images, floats)
        assert data.shape == (1, 8, 8)
    trained = {name: train(a_plan(3), Private(x), tmp_path / name) for name, x in sets.items()}
    assert_same_bits(trained["mapped"].state, trained["floats"].state)


def test_digest_tells_images_and_labels_apart():
    data = images(labels=True).reveal()
    changed = data.images.clone()
    changed[17, 0, 3, 3] += 0.01
    sets = [data, ImageSet(changed, data.labels), ImageSet(data.images, 1 - data.labels)]
    assert len({s.digest() for s in sets}) == 3


def test_first_step_which_loads_what_others_have_does_not_decide_the_time_that_is_left(monkeypatch):
    moments = iter([0.0, 4.0, 4.5, 5.0])
    monkeypatch.setattr("ddm_fed.training.loop.time.perf_counter", lambda: next(moments))
    clock = Clock(16, 100)
    clock.report(1, 1.0)
    assert clock.report(2, 1.0).eta_s == pytest.approx(0.5 * 98)
    assert clock.report(3, 1.0).eta_s == pytest.approx(0.5 * 97)

"""Starting from a public checkpoint: what is kept, what is drawn anew, and what is refused."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddm_fed.errors import (
    CheckpointError,
    DigestError,
    MalformedError,
    OptionError,
    StateError,
    ValuesError,
    WeightsError,
)
from ddm_fed.models import build_network
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.progress import QUIET, Watch
from ddm_fed.records import Plan, read_plan_toml
from ddm_fed.storage.tensors import write_tensors
from ddm_fed.training import (
    RunOptions,
    TrainedPart,
    read_trained,
    train_expert,
    training_cost,
)
from ddm_fed.training.trial_run import plain_trial_run
from ddm_fed.training.warmstart import in_last_layer

PLAN_SHA256 = "0" * 64
BASE_STEPS = 160
OPTIONS = RunOptions(seed=5, precision="float32", checkpoint_every_s=600)
HEAD = ("head.weight", "head.bias")


def a_plan(
    prediction: str, steps: int, *, base: str = "", architecture: str = "DiT-Nano/4"
) -> Plan:
    return read_plan_toml(
        f"""
federation = "warm"
expires_at = 2036-01-01
[data]
channels = 1
height = 8
width = 8
[expert]
architecture = "{architecture}"
prediction = "{prediction}"
{base}
[training]
steps = {steps}
batch_size = 32
warmup_steps = 5
learning_rate = 0.002
ema_half_lives = [10]
[router]
kind = "prior"
epsilon = 1
[privacy]
max_epsilon = 1
"""
    )


def images() -> Private[ImageSet]:
    """Pictures of one bright bar each, whose place a network has to find in the noise."""
    place = torch.arange(64) % 8
    pixels = torch.full((64, 1, 8, 8), -0.8)
    pixels[torch.arange(64), 0, :, place] = 0.8
    return Private(ImageSet(pixels, None))


def train(plan: Plan, checkpoint, *, options: RunOptions = OPTIONS):
    losses: list[float] = []
    watch = Watch(lambda report: losses.append(report.loss))
    done = train_expert(images(), plan, PLAN_SHA256, checkpoint, options=options, watch=watch)
    return done, losses


def base_table(path, *, sha256: str | None = None, prediction: str = "noise") -> str:
    sha256 = sha256 or hashlib.sha256(path.read_bytes()).hexdigest()
    return f'[expert.base]\nsha256 = "{sha256}"\nprediction = "{prediction}"'


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A public checkpoint that predicts noise, and the losses of its last steps."""
    folder = tmp_path_factory.mktemp("base")
    expert, losses = train(a_plan("noise", BASE_STEPS), folder / "checkpoint")
    write_tensors(folder / "base.safetensors", expert.state)
    return folder / "base.safetensors", losses


@pytest.mark.slow
def test_warm_start_for_another_prediction_learns_faster(base, tmp_path):
    path, _ = base
    cold, cold_losses = train(a_plan("velocity", 60), tmp_path / "cold")
    warm_plan = a_plan("velocity", 60, base=base_table(path))
    warm, warm_losses = train(warm_plan, tmp_path / "warm", options=replace(OPTIONS, base=path))
    assert np.mean(warm_losses[-20:]) < 0.9 * np.mean(cold_losses[-20:])
    assert warm.state.keys() == cold.state.keys()


def test_warm_start_for_the_same_prediction_starts_where_the_base_ended(base, tmp_path):
    path, base_losses = base
    plan = a_plan("noise", 3, base=base_table(path))
    _, losses = train(plan, tmp_path / "warm", options=replace(OPTIONS, base=path))
    _, cold_losses = train(a_plan("noise", 3), tmp_path / "cold")
    assert losses[0] == pytest.approx(np.mean(base_losses[-50:]), rel=0.25)
    assert losses[0] < 0.6 * cold_losses[0]


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
def test_all_but_the_last_layer_is_the_base_at_the_start(base, tmp_path, prediction):
    path, _ = base
    plan = a_plan(prediction, 5, base=base_table(path))

    def stop(_):
        raise KeyboardInterrupt

    options = replace(OPTIONS, base=path)
    with pytest.raises(CheckpointError):
        train_expert(
            images(), plan, PLAN_SHA256, tmp_path / "a", options=options, watch=Watch(stop)
        )
    start, public = load_file(tmp_path / "a"), load_file(path)
    changed = [name for name in public if not torch.equal(start[f"model.{name}"], public[name])]
    assert sorted(changed) == ([] if prediction == "noise" else sorted(HEAD))
    if prediction == "velocity":
        assert all(start[f"model.{name}"].abs().max() == 0 for name in HEAD)
    # the base is not needed again
    train(plan, tmp_path / "a")


@pytest.mark.parametrize("name", ["DiT-Nano/4", "DiT-Nano/4-single", "MMDiT-Nano/4", "UNet-Nano"])
def test_every_kind_of_network_has_a_last_layer(name):
    plan = a_plan("velocity", 1, architecture=name)
    model = build_network(plan.data, plan.expert.default)
    last = [name for name, _ in model.named_parameters() if in_last_layer(name)]
    assert [name.rpartition(".")[2] for name in sorted(last)] == ["bias", "weight"]


def test_base_over_a_link_is_read(base, tmp_path):
    path, _ = base
    (tmp_path / "link").symlink_to(path)
    plan = a_plan("noise", 1, base=base_table(path))
    train(plan, tmp_path / "a", options=replace(OPTIONS, base=tmp_path / "link"))


def test_missing_or_unasked_base_is_refused(base, tmp_path):
    path, _ = base
    plan = a_plan("noise", 1, base=base_table(path))
    with pytest.raises(OptionError, match="--base is missing"):
        train(plan, tmp_path / "a")
    with pytest.raises(OptionError, match="there is no such file"):
        train(plan, tmp_path / "a", options=replace(OPTIONS, base=tmp_path / "nothing"))
    with pytest.raises(OptionError, match="is a folder"):
        train(plan, tmp_path / "a", options=replace(OPTIONS, base=path.parent))
    with pytest.raises(OptionError, match="start from no checkpoint"):
        train(a_plan("noise", 1), tmp_path / "a", options=replace(OPTIONS, base=path))
    assert not (tmp_path / "a").exists()


def test_base_with_another_digest_is_refused(base, tmp_path):
    path, _ = base
    plan = a_plan("noise", 1, base=base_table(path, sha256="1" * 64))
    with pytest.raises(DigestError, match="is not the checkpoint of the plan") as caught:
        train(plan, tmp_path / "a", options=replace(OPTIONS, base=path))
    assert "--base names another file" in caught.value.hint


def test_base_of_another_network_or_without_finite_values_is_refused(base, tmp_path):
    path, _ = base
    plan = a_plan("noise", 1, base=base_table(path), architecture="DiT-Nano/2")
    with pytest.raises(WeightsError, match="the plan asks for"):
        train(plan, tmp_path / "a", options=replace(OPTIONS, base=path))

    tensors = load_file(path)
    tensors["embed.bias"][0] = float("nan")
    write_tensors(tmp_path / "bad.safetensors", tensors)
    plan = a_plan("noise", 1, base=base_table(tmp_path / "bad.safetensors"))
    with pytest.raises(ValuesError, match="NaN"):
        train(plan, tmp_path / "a", options=replace(OPTIONS, base=tmp_path / "bad.safetensors"))


# A part of a base: [training] trainable


def part_plan(kind: str, base: str, steps: int = 30, **changed) -> Plan:
    text = a_plan("noise", steps, base=base, **changed)
    training = text.training.model_copy(update={"trainable": kind})
    return Plan.from_json(text.model_copy(update={"training": training}).to_json(), what="the plan")


def test_lora_changes_linear_layers_by_its_rank_and_nothing_else(base, tmp_path):
    path, _ = base
    plan = part_plan("lora-4", base_table(path))
    options = replace(OPTIONS, base=path)
    expert, losses = train(plan, tmp_path / "run", options=options)
    public = load_file(path)
    assert expert.state.keys() == public.keys()
    linear = {
        f"{name}.weight"
        for name, module in build_network(plan.data, plan.expert.default).named_modules()
        if isinstance(module, torch.nn.Linear) and min(module.weight.shape) > 4
    }
    for name, value in expert.state.items():
        change = value - public[name]
        if name in linear:
            strengths = torch.linalg.svdvals(change)
            assert strengths[0] > 0, name
            assert strengths[4] < 1e-4 * strengths[0], name
        else:
            assert not change.any(), name
    assert np.mean(losses[-10:]) < 1.02 * np.mean(losses[:10])


def write_as_earlier_versions_did(checkpoint, path) -> None:
    """Writes the checkpoint of a part with averages of all weights."""
    with safe_open(checkpoint, framework="pt") as file:
        metadata = file.metadata()
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = [name.removeprefix("model.") for name in found if name.startswith("model.")]
    averages = {f"ema10.{name}": found[f"model.{name}"].clone() for name in weights}
    assert averages.keys() - found.keys()
    save_file(averages | found, path, metadata)


@pytest.mark.parametrize("kind", ["lora-2", "last-1"])
def test_part_that_was_stopped_goes_on_to_the_same_bits(base, tmp_path, kind):
    path, _ = base
    plan, options = part_plan(kind, base_table(path), 6), replace(OPTIONS, base=path)
    whole, _ = train(plan, tmp_path / "whole", options=options)

    def stop(report):
        if report.step == 3:
            raise KeyboardInterrupt

    often = replace(options, checkpoint_every_s=0)
    with pytest.raises(CheckpointError):
        train_expert(
            images(), plan, PLAN_SHA256, tmp_path / "cut", options=often, watch=Watch(stop)
        )
    write_as_earlier_versions_did(tmp_path / "cut", tmp_path / "earlier")
    cut, _ = train(plan, tmp_path / "cut", options=options)
    earlier, _ = train(plan, tmp_path / "earlier", options=options)
    for name, value in whole.state.items():
        assert torch.equal(value, cut.state[name])
        assert torch.equal(value, earlier.state[name])
    changed = {n for n, value in load_file(path).items() if not torch.equal(value, cut.state[n])}
    own = ("blocks.2.", "norm", "modulation", "head") if kind == "last-1" else ("",)
    assert changed
    assert all(name.startswith(own) for name in changed)


@pytest.mark.parametrize(
    ("kind", "lost"),
    [
        ("all", ["ema10.head.weight"]),
        ("last-1", ["ema10.head/weight"]),
        ("last-1", ["ema10.head/weight", "exp_avg.head/weight", "exp_avg_sq.head/weight"]),
        ("last-1", ["model.embed/weight"]),
        ("last-1", ["ema10.head/weight", "model.head/weight"]),
        ("lora-2", ["ema10.head/weight::up"]),
        ("lora-2", ["ema10.head/weight::up", "ema10.head/weight::down"]),
    ],
)
def test_checkpoint_without_an_average_of_a_trained_weight_is_refused(base, tmp_path, kind, lost):
    path, _ = base
    plan, options = part_plan(kind, base_table(path), 1), replace(OPTIONS, base=path)
    train(plan, tmp_path / "run", options=options)
    with safe_open(tmp_path / "run", framework="pt") as file:
        kept = {key: file.get_tensor(key) for key in file.keys() if key not in lost}  # noqa: SIM118
        save_file(kept, tmp_path / "damaged", file.metadata())
    with pytest.raises(CheckpointError, match=r"it lacks \d weights or averages"):
        read_trained(tmp_path / "damaged", plan)
    assert read_trained(tmp_path / "run", plan).state.keys()


PARTS = [
    *(("DiT-Nano/4", kind) for kind in ("all", "last-2", "lora-2")),
    ("MMDiT-Nano/4", "lora-8"),
    ("UNet-Nano", "lora-4"),
]


def memory_plan(name: str, kind: str) -> Plan:
    """A plan of two averages that trains a part of a base."""
    table = '[expert.base]\nsha256 = "' + "0" * 64 + '"\nprediction = "noise"'
    plan = part_plan(kind, table, 1, architecture=name)
    two = plan.training.model_copy(update={"ema_half_lives": (3, 10)})
    return plan.model_copy(update={"training": two})


def memory_of(tensors: list[Tensor]) -> int:
    """Returns the bytes of tensors, of those that share memory once."""
    shared = {value.untyped_storage().data_ptr(): value.untyped_storage() for value in tensors}
    return sum(storage.nbytes() for storage in shared.values())


@pytest.mark.parametrize(("name", "kind"), PARTS)
def test_memory_of_a_training_is_what_its_cost_says(name, kind):
    plan = memory_plan(name, kind)
    cost = training_cost(plan, name)
    with plain_trial_run(plan, plan.expert.default, units=4) as run:
        run.run_steps(QUIET)
        learner, state = run._learner, run._learner.optimizer.state
        trained = list(learner.model.parameters())
        held = [
            *learner.model.state_dict().values(),
            *(value.grad for value in trained),
            *(state[value][slot] for value in trained for slot in ("exp_avg", "exp_avg_sq")),
            *(value for average in learner.averages.of.values() for value in average.values()),
        ]
        written = load_file(run._checkpoint)
    assert sum(value.numel() for value in trained) == cost.trained
    assert memory_of(held) == cost.training_bytes(averages=2)
    assert sum(value.nbytes for value in written.values()) == cost.checkpoint_bytes(averages=2)
    whole = build_network(plan.data, plan.expert.default)
    assert cost.weights_bytes == 4 * sum(value.numel() for value in whole.parameters())
    if kind != "all":
        assert cost.training_bytes(2) < 0.8 * cost._replace(
            trained=cost.parameters, beside=0
        ).training_bytes(2)


@pytest.mark.parametrize(("name", "kind"), PARTS)
def test_pass_of_a_part_keeps_no_more_than_its_cost_says(name, kind):
    plan = memory_plan(name, kind)
    network = build_network(plan.data, plan.expert.default)
    model = network if kind == "all" else TrainedPart(network, kind)
    own = [*network.parameters(), *network.buffers(), *model.parameters(), *model.buffers()]
    known = {value.untyped_storage().data_ptr() for value in own}
    kept: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        if value.untyped_storage().data_ptr() not in known:
            kept.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        held = model(torch.zeros(2, *plan.data.shape), torch.zeros(2))
    assert held.shape == (2, *plan.data.shape)
    cost = training_cost(plan, name)
    assert memory_of(kept) <= 1.01 * cost.pass_bytes(2)
    if kind.startswith("lora"):  # sums of weights and products are no small thing
        assert memory_of(kept) > cost.pass_bytes(2) - cost.pass_bytes(0)


@pytest.mark.parametrize(
    ("kind", "changed", "said"),
    [
        ("lora-4", {"base": ""}, "would be chance"),
        ("lora-4", {"prediction": "velocity"}, "cannot learn another last layer"),
        ("lora", {}, "trainable"),
    ],
)
def test_plan_whose_part_could_not_learn_is_refused(base, kind, changed, said):
    plan = a_plan("noise", 3, base=base_table(base[0]))
    text = plan.model_dump(mode="json")
    text["training"]["trainable"] = kind
    if "base" in changed:
        del text["expert"]["base"]
    if "prediction" in changed:
        text["expert"]["prediction"] = ["velocity"]
    with pytest.raises(MalformedError, match=said):
        Plan.from_json(json.dumps(text).encode(), what="the plan")


def test_plan_without_a_part_keeps_its_digest(base):
    assert b"trainable" not in a_plan("noise", 3).to_json()


@pytest.mark.parametrize("asked", [{"compile": True}, {"shard": True}])
def test_options_that_a_part_cannot_have_are_refused(base, tmp_path, asked):
    path, _ = base
    plan = part_plan("lora-4", base_table(path), 3)
    with pytest.raises(OptionError, match=r"training\.trainable"):
        train(plan, tmp_path / "run", options=replace(OPTIONS, base=path, **asked))


def test_part_that_the_network_does_not_have_is_refused(base, tmp_path):
    path, _ = base
    for kind in ("last-9", "lora-99"):
        with pytest.raises(StateError, match="network"):
            train(
                part_plan(kind, base_table(path), 3),
                tmp_path / "run",
                options=replace(OPTIONS, base=path),
            )

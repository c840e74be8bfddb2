"""Private training: what it pays, what a kill costs, what leaves, and what is refused."""

from dataclasses import replace
from decimal import Decimal

import pytest
import torch
from federation import a_plan, paid_for, random_images
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ddm_fed.errors import (
    BudgetError,
    CheckpointError,
    MechanismError,
    OptionError,
    PlanError,
    PolicyError,
    StateError,
)
from ddm_fed.models import build_network
from ddm_fed.privacy import ImageSet, Private, PrivateStep, Randomness, epsilon
from ddm_fed.progress import Watch
from ddm_fed.records import SampledGaussianEvent
from ddm_fed.training import (
    Payment,
    PrivateTraining,
    RunOptions,
    TrainedPart,
    UnitDraws,
    read_identity,
    seeded,
    train_expert,
    train_private_expert,
    training_cost,
)
from ddm_fed.training.loop import planned_factor
from ddm_fed.training.plan_cost import planned_events
from ddm_fed.training.private_run import promised_rule

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_block")]

SGD = """
max_epsilon = 10
must_be_private = ["router", "expert"]
[privacy.sgd]
epsilon = 8
units = 32
clip_norm = 0.5
draws = 2
"""
PLAN_SHA256 = "ab" * 32
EVENT = SampledGaussianEvent(
    sampling_rate=Decimal("0.5"), noise_multiplier=Decimal("0.85"), steps=3
)


def private_plan(sgd=SGD, **replaced):
    return a_plan(max_epsilon=sgd, **replaced)


class Ledger:
    """Counts payments as a site's ledger would write them."""

    def __init__(self):
        self.entries = []

    def pay(self):
        self.entries.append(f"{len(self.entries):064x}")
        return self.entries[-1]

    def payment(self, noise):
        def require(sha256):
            if sha256 not in self.entries:
                raise PolicyError("no entry", hint="")
            return paid_for(noise)

        return Payment(self.pay, require)


def noise_of(plan, units=24.0):
    """As planned, but for the noise itself: finding it takes seconds, and no test here needs it."""
    steps = plan.training.steps
    return PrivateTraining.planned(plan, EVENT.model_copy(update={"steps": steps}), units)


def train(path, plan, *, ledger=None, data=None, noise=None, secret=0, **options):
    noise = noise or noise_of(plan)
    callbacks = {n: options.pop(n) for n in ("on_step", "on_sample") if n in options}
    return train_private_expert(
        data or random_images(0),
        plan,
        PLAN_SHA256,
        path,
        noise,
        (ledger or Ledger()).payment(noise),
        options=RunOptions(**options),
        randomness=Randomness.for_tests(secret),
        watch=Watch(**callbacks),
    )


@pytest.fixture(scope="module")
def plan():
    return private_plan()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.safetensors"


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


# --- plans ---


def test_planned_events_cost_what_the_plan_allows(plan):
    assert 7.9 < epsilon(planned_events(plan).all, float(plan.privacy.delta)) <= 8
    assert planned_events(plan).head is None


def test_planned_events_of_a_plan_without_noise_are_the_release_alone():
    events = planned_events(a_plan())
    assert events.expert is None
    assert events.all == list(events.router)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (SGD.replace("epsilon = 8", "epsilon = 11"), "exceeds `max_epsilon`"),
        (SGD.replace("epsilon = 8", "epsilon = 2"), "leaves nothing"),
        (SGD.replace("units = 32", "units = 15"), "exceeds `privacy.sgd.units`"),
        (SGD.split("[privacy.sgd]", maxsplit=1)[0], "takes a `\\[privacy.sgd\\]`"),
        (SGD + "[privacy.sgd.head]\nepsilon = 1", "only then"),
        (SGD + 'trainable = "first-2"', "trainable"),
        (SGD + "draws_per_unit = 2", "unknown key"),
    ],
)
def test_plan_whose_parts_contradict_each_other_is_refused(lines, reason):
    with pytest.raises(PlanError, match=reason):
        private_plan(lines)


def first_weights(plan, secret=0):
    """What a run of this secret starts from."""
    network = build_network(plan.data, plan.expert.default)
    network.reset_parameters(seeded(Randomness.for_tests(secret).seed("weights"), "weights", 0))
    return network.state_dict()


# --- one run ---


def test_training_pays_once_and_before_the_first_image_is_seen(path, plan, monkeypatch):
    ledger, seen = Ledger(), []
    original = UnitDraws.blocks
    monkeypatch.setattr(
        UnitDraws, "blocks", lambda *a: seen.append(len(ledger.entries)) or original(*a)
    )
    train(path, plan, ledger=ledger)
    assert len(seen) > 3  # three steps, and units of those that are computed again
    assert set(seen) == {1}
    assert len(ledger.entries) == 1


def test_budget_that_is_refused_leaves_no_checkpoint(path, plan):
    def refuse():
        raise BudgetError("spent", hint="")

    with pytest.raises(BudgetError):
        train_private_expert(
            random_images(0), plan, PLAN_SHA256, path, noise_of(plan), Payment(refuse, lambda _: 0)
        )
    assert not path.exists()


def test_mechanism_that_fails_its_tests_is_not_paid_for(path, plan, monkeypatch):
    ledger = Ledger()
    monkeypatch.setattr(PrivateStep, "included", lambda self, step, units: torch.arange(units))
    with pytest.raises(MechanismError, match="rate of inclusion"):
        train(path, plan, ledger=ledger)
    assert ledger.entries == []
    assert not path.exists()


def test_same_secret_and_seed_give_the_same_expert(tmp_path, plan):
    first, second = (train(tmp_path / n, plan).state for n in ("a", "b"))
    assert equal(first, second)


def test_other_secret_gives_another_expert(tmp_path, plan):
    first = train(tmp_path / "a", plan).state
    assert not equal(first, train(tmp_path / "b", plan, secret=1).state)


def test_two_runs_of_the_same_images_share_no_secret(tmp_path, plan):
    secrets = set()
    for name in ("a", "b"):
        with pytest.raises(Killed):
            train_private_expert(
                random_images(0),
                plan,
                PLAN_SHA256,
                tmp_path / name,
                noise_of(plan),
                Ledger().payment(noise_of(plan)),
                options=RunOptions(checkpoint_every_s=0),
                watch=Watch(kill_after(1)),
            )
        run = read_identity(tmp_path / name)
        secrets |= {run.secret, str(run.seed)}
        assert run.origin == "csprng"
    assert len(secrets) == 4


def test_seed_is_refused_before_anything_is_spent(path, plan):
    ledger = Ledger()
    with pytest.raises(OptionError, match="--seed is not allowed"):
        train(path, plan, ledger=ledger, seed=0)
    assert ledger.entries == []
    assert not path.exists()


def test_expert_has_the_tensors_of_the_design(path, plan):
    expected = build_network(plan.data, plan.expert.default).state_dict()
    found = train(path, plan).state
    assert {n: v.shape for n, v in found.items()} == {n: v.shape for n, v in expected.items()}


def test_expert_says_how_it_was_made_private(path, plan):
    expert = train(path, plan)
    facts = PrivateTraining.from_json(expert.noise).facts()
    assert (str(facts.clip_norm), facts.draws, facts.trainable) == ("0.5", 2, "all")
    assert float(facts.expected_units) == pytest.approx(12.0)
    assert expert.origin == "test"


def test_both_engines_train_the_same_expert(tmp_path, plan):
    plain = train(tmp_path / "a", plan, gradients="functional").state
    found = train(tmp_path / "b", plan, gradients="recorded").state
    assert max(float((found[n] - plain[n]).abs().max()) for n in plain) < 1e-4


def test_faster_engine_is_refused_for_a_network_it_does_not_know(path):
    plan = private_plan(
        architecture='architecture = "UNet-Nano"', height="height = 16", width="width = 16"
    )
    data = Private(ImageSet(torch.zeros(24, 1, 16, 16), None))
    with pytest.raises(OptionError, match="most trained weights are not those of linear layers"):
        train(path, plan, data=data, gradients="recorded")


def test_network_that_the_faster_engine_does_not_know_trains_by_functional_gradients(path):
    plan = private_plan(
        architecture='architecture = "UNet-Nano"', height="height = 16", width="width = 16"
    )
    data = Private(ImageSet(torch.zeros(24, 1, 16, 16), None))
    expert = train(path, plan, data=data)
    assert PrivateTraining.from_json(expert.noise).gradients == "functional"


def test_images_of_nan_do_not_reach_the_weights(path, plan):
    images = random_images(0).reveal().images.clone()
    images[3] = torch.nan
    state = train(path, plan, data=Private(ImageSet(images, None))).state
    assert all(torch.isfinite(value).all() for value in state.values())


def test_steps_in_which_nobody_is_included_are_taken(path):
    plan = private_plan(SGD.replace("units = 32", "units = 1000"), batch_size="batch_size = 1")
    steps, rare = [], replace(noise_of(plan), sampling_rate=0.001)
    train(path, plan, noise=rare, on_step=steps.append)
    assert [report.step for report in steps] == [1, 2, 3]
    assert any(report.loss == 0 for report in steps)


def test_preview_shows_images_of_the_plan(path, plan):
    shown = []
    train(path, plan, sample_every=2, sample_count=4, on_sample=lambda *a: shown.append(a))
    assert [(step, images.shape) for step, images in shown] == [(2, (4, 1, 8, 8))]


@pytest.mark.parametrize(
    "option", [{"compile": True}, {"shard": True}, {"precision": "bfloat16"}], ids=str
)
def test_option_that_noise_does_not_go_with_is_refused(path, plan, option):
    with pytest.raises(OptionError, match="is not supported"):
        train(path, plan, **option)
    assert not path.exists()


def test_plan_with_noise_is_not_trained_without(path, plan):
    with pytest.raises(StateError, match="trained with noise"):
        train_expert(random_images(0), plan, PLAN_SHA256, path)
    assert not path.exists()


# --- a kill, and what is found afterwards ---


class Killed(BaseException):
    pass


def kill_after(steps):
    def on_step(report):
        if report.step == steps:
            raise Killed

    return on_step


@pytest.mark.parametrize("steps", [1, 2])
def test_killed_run_ends_with_the_same_bits_and_pays_nothing_more(tmp_path, plan, steps):
    whole = train(tmp_path / "whole", plan).state
    ledger, path = Ledger(), tmp_path / "killed"
    with pytest.raises(Killed):
        train(path, plan, ledger=ledger, checkpoint_every_s=0, on_step=kill_after(steps))
    # a resumed run has no say in its randomness: the secret is the checkpoint's
    assert equal(train(path, plan, ledger=ledger, secret=7).state, whole)
    assert len(ledger.entries) == 1


def test_secret_is_in_the_checkpoint_only_while_the_run_lasts(path, plan):
    with pytest.raises(Killed):
        train(path, plan, checkpoint_every_s=0, on_step=kill_after(1), ledger=(ledger := Ledger()))
    secret = Randomness.for_tests(0).hex
    assert secret.encode() in path.read_bytes()
    assert path.stat().st_mode & 0o077 == 0
    assert secret not in repr(read_identity(path))
    train(path, plan, ledger=ledger)
    assert secret.encode() not in path.read_bytes()


def test_finished_run_is_read_and_not_repeated(path, plan):
    ledger = Ledger()
    first = train(path, plan, ledger=ledger).state
    assert equal(train(path, plan, ledger=ledger).state, first)
    assert len(ledger.entries) == 1


def test_ledger_without_the_entry_of_the_run_stops_it(path, plan):
    with pytest.raises(Killed):
        train(path, plan, checkpoint_every_s=0, on_step=kill_after(1))
    with pytest.raises(PolicyError):
        train(path, plan, ledger=Ledger())


def test_checkpoint_does_not_go_on_with_other_images(path, plan):
    ledger = Ledger()
    with pytest.raises(Killed):
        train(path, plan, ledger=ledger, checkpoint_every_s=0, on_step=kill_after(1))
    with pytest.raises(CheckpointError, match="other images"):
        train(path, plan, ledger=ledger, data=random_images(1))


@pytest.mark.parametrize(
    "change", [{"noise_multiplier": 0.5}, {"clip_norm": 9.0}, {"expected_units": 3.0}]
)
def test_checkpoint_does_not_go_on_with_other_noise(path, plan, change):
    ledger = Ledger()
    with pytest.raises(Killed):
        train(path, plan, ledger=ledger, checkpoint_every_s=0, on_step=kill_after(1))
    with pytest.raises(CheckpointError, match="other noise"):
        train(path, plan, ledger=ledger, noise=replace(noise_of(plan), **change))


def test_checkpoint_without_noise_does_not_become_private(path, plan):
    train_expert(random_images(0), a_plan(), PLAN_SHA256, path, options=RunOptions(seed=0))
    with pytest.raises(CheckpointError, match="without noise"):
        train(path, plan)


# --- what a step sees, and what it is divided by ---


def test_gradient_of_a_run_is_divided_by_the_released_number_not_by_the_real_one(path, plan):
    few = PrivateTraining.planned(plan, EVENT, 24.0)
    assert few.expected_units == pytest.approx(24 * 0.5)
    assert PrivateTraining.planned(plan, EVENT, -3.0).expected_units == 0.5


def test_clip_norm_runs_from_its_beginning_to_its_end():
    plan = private_plan(SGD + "clip_norm_end = 0.1", steps="steps = 4")
    found = [noise_of(plan).clip_norm_at(step) for step in range(4)]
    assert found == pytest.approx([0.5, 0.5 - 0.4 / 3, 0.5 - 0.8 / 3, 0.1])


def unit_draws(units=None, draws=4, **spec):
    generator = torch.Generator().manual_seed(0)
    images = ImageSet(torch.rand(12, 1, 8, 8, generator=generator), None, None, units)
    return images, UnitDraws(
        images,
        private_plan().training,
        conditional=False,
        randomness=Randomness.for_tests(0),
        draws=draws,
    )


def test_rows_of_a_unit_are_its_own_images():
    units = torch.tensor([2, 0, 2, 1, 1, 0, 2, 2, 0, 1, 1, 0])
    images, drawn = unit_draws(units, draws=16)
    assert len(drawn) == 3
    ((x_0, eps, t),) = drawn.blocks(0, torch.tensor([2, 0]))
    assert x_0.shape == eps.shape == (2, 16, 1, 8, 8)
    assert t.shape == (2, 16)
    for unit, rows in zip((2, 0), x_0, strict=True):
        own = images.images[units == unit]
        found = {int((own - row).abs().flatten(1).sum(1).argmin()) for row in rows}
        assert all(((own - row).abs().flatten(1).sum(1) == 0).any() for row in rows)
        assert found == {0, 1, 2, 3}


def test_every_draw_of_a_unit_is_noised_anew():
    ((_, eps, t),) = unit_draws()[1].blocks(0, torch.tensor([5]))
    assert len(t.unique()) == 4
    assert len(eps.flatten(2).unique(dim=1)[0]) == 4


def test_rows_depend_on_the_step():
    _, drawn = unit_draws()
    (first,), (second,) = (list(drawn.blocks(step, torch.tensor([1]))) for step in (0, 1))
    assert not torch.equal(first[1], second[1])


# --- which weights are trained ---


def a_part(kind, architecture='architecture = "DiT-Nano/2"'):
    plan = a_plan(architecture=architecture)
    network = build_network(plan.data, plan.expert.default)
    network.reset_parameters(torch.Generator().manual_seed(0))
    part = TrainedPart(network, kind)
    part.reset_parameters(torch.Generator().manual_seed(1))
    return network, part


@pytest.mark.usefixtures("all_blocks")
@pytest.mark.parametrize("kind", ["all", "last-1", "last-3", "lora-2"])
def test_part_is_the_network_before_it_is_trained(kind):
    network, part = a_part(kind)
    assert equal(part.full(part.trained), network.state_dict())


@pytest.mark.usefixtures("all_blocks")
def test_last_blocks_are_fewer_weights_and_leave_the_others_alone(path):
    plan = private_plan(SGD + 'trainable = "last-1"')
    start, expert = first_weights(plan), train(path, plan)
    assert expert.state.keys() == start.keys()
    moved = {n for n in start if not torch.equal(expert.state[n], start[n])}
    assert moved
    assert all(n.startswith(("blocks.2.", "norm", "modulation", "head")) for n in moved)


def test_low_rank_products_change_every_linear_layer_by_their_rank(path):
    fast = "steps = 3\nwarmup_steps = 0\nlearning_rate = 0.1"
    plan = private_plan(SGD + 'trainable = "lora-2"', steps=fast)
    start, expert = first_weights(plan), train(path, plan)
    difference = expert.state["blocks.0.mlp.0.weight"] - start["blocks.0.mlp.0.weight"]
    assert 0 < torch.linalg.matrix_rank(difference, rtol=1e-4) <= 2
    assert torch.equal(expert.state["blocks.0.mlp.0.bias"], start["blocks.0.mlp.0.bias"])


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_learning_rate_that_is_proved_is_the_one_that_trains(schedule):
    spec = f'steps = 30\nwarmup_steps = 4\nschedule = "{schedule}"'
    plan = private_plan(steps=spec)
    rates = [promised_rule(plan).learning_rate(step) for step in range(30)]
    trained = [0.001 * planned_factor(plan.training, step) for step in range(30)]
    assert rates == pytest.approx(trained, rel=1e-12)
    assert (rates[-1] == max(rates)) == (schedule == "constant")


def test_private_training_at_a_constant_learning_rate_is_proved(path):
    plan = private_plan(steps='steps = 3\nschedule = "constant"')
    assert train(path, plan).noise


def test_low_rank_run_resumes_with_the_same_bits(tmp_path):
    plan = private_plan(SGD + 'trainable = "lora-2"')
    whole, ledger = train(tmp_path / "whole", plan).state, Ledger()
    with pytest.raises(Killed):
        train(tmp_path / "k", plan, ledger=ledger, checkpoint_every_s=0, on_step=kill_after(2))
    assert equal(train(tmp_path / "k", plan, ledger=ledger).state, whole)
    cost = training_cost(plan, plan.expert.default.architecture)
    kept = sum(value.nbytes for value in load_file(tmp_path / "k").values())
    assert kept == cost.checkpoint_bytes(len(plan.training.ema_half_lives))


def test_weight_that_is_not_trained_and_changes_while_nothing_runs_is_noticed(tmp_path):
    plan, ledger, path = private_plan(SGD + 'trainable = "lora-2"'), Ledger(), tmp_path / "k"
    with pytest.raises(Killed):
        train(path, plan, ledger=ledger, checkpoint_every_s=0, on_step=kill_after(2))
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["model.embed/weight"] += 0.01
    save_file(tensors, path, metadata)
    with pytest.raises(MechanismError, match="not trained were changed"):
        train(path, plan, ledger=ledger)


@pytest.mark.usefixtures("all_blocks")
def test_more_last_blocks_than_there_are_is_refused(path):
    with pytest.raises(StateError, match="3 blocks in a row"):
        train(path, private_plan(SGD + 'trainable = "last-4"'))


def test_faster_engine_is_refused_for_low_rank_products(path):
    with pytest.raises(OptionError, match="most trained weights"):
        train(path, private_plan(SGD + 'trainable = "lora-2"'), gradients="recorded")

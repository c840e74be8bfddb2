"""What a student is taught is the velocity of the pool, held against exact mixtures."""

from decimal import Decimal

import pytest
import torch
from oracles import BayesRouter, apart, overlapping

from ddm_fed.distillation.lessons import GivenImages, Lessons, draw_lessons, lessons_of
from ddm_fed.distillation.options import DistillOptions, student_design, student_training
from ddm_fed.distillation.teaching import FULL, TaughtBatches, taught_by
from ddm_fed.distillation.train import (
    Teachers,
    arithmetic,
    require_teachable,
    train_student,
    work_folder,
    working,
)
from ddm_fed.ensemble.pool import ExpertPool
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.errors import CheckpointError, DataError, OptionError, StateError
from ddm_fed.flows import NO_CLASS, Expert, interpolate, velocity
from ddm_fed.models import build_expert, build_network, network_cost
from ddm_fed.progress import Watch
from ddm_fed.records import DataSpec, ExpertDesign, TrainingSpec, read_plan_toml
from ddm_fed.router import PriorRouter

SHAPE = (1, 4, 4)
EVERYTHING = slice(None)


def a_plan(extra="", data="", expert='architecture = "DiT-Nano/2"', training=""):
    return read_plan_toml(f"""
federation = "distilled"
expires_at = 2036-01-01
[data]
channels = 1
height = 4
width = 4
{data}
[expert]
{expert}
[training]
steps = 6
batch_size = 16
warmup_steps = 2
time_sampling = "uniform"
{training}
[router]
kind = "mixture"
epsilon = 1
frequencies = 4
radius = 3
[privacy]
max_epsilon = 1
{extra}
""")


def teachers(plan=None, router=None, of=overlapping, **replaced):
    prior, sites, _ = of(16)
    ensemble = Ensemble(sites, router or BayesRouter(prior, sites))
    given = {
        "plan": plan or a_plan(),
        "ensemble": ensemble,
        "designs": [ExpertDesign(architecture="mixture")] * len(ensemble.experts),
        "router": "mixture",
        "class_units": None,
        "weights": None,
        "identity": "0" * 64,
    }
    return Teachers(**given | replaced)


def joint_draws(count, seed=0, of=overlapping):
    """Images of the pool, each with the site it is of."""
    prior, sites, _ = of(16)
    generator = torch.Generator().manual_seed(seed)
    whose = torch.multinomial(prior, count, replacement=True, generator=generator)
    images = torch.empty((count, *SHAPE))
    for k, site in enumerate(sites):
        own = whose == k
        images[own] = site.draw(int(own.sum()), SHAPE, generator)
    return Lessons(images, whose, None, "0" * 64)


def spec(batch_size, **values):
    values = {"time_sampling": "uniform", "warmup_steps": 0, **values}
    return TrainingSpec(steps=1, batch_size=batch_size, **values)


def taught(lessons, ensemble, teacher="own"):
    """x_t, t and what is taught there, of every lesson once."""
    batches = TaughtBatches(lessons, ensemble, spec(len(lessons)), seed=1, teacher=teacher)
    batch = batches.draw(0, EVERYTHING)
    x_t = interpolate(batch.x_0, batch.eps, batch.t)
    return x_t, batch.t, velocity(batch.x_0, batch.eps, batch.t)


def deviations(difference, x_t, t):
    """Means of a difference times functions of (x_t, t), in standard errors: what it leaves."""
    flat, found = x_t.flatten(1).double(), []
    for factor in (torch.ones(len(t)), t, flat.mean(1), flat[:, 3], (3 * flat[:, 7]).sin()):
        products = difference.flatten(1).double() * factor.double()[:, None]
        found.append(products.mean(0) / (products.std(0) / len(t) ** 0.5))
    return float(torch.stack(found).abs().max())


def test_mean_of_what_own_experts_teach_is_the_velocity_of_the_pool():
    prior, sites, pool = overlapping(16)
    lessons = joint_draws(30_000)
    x_t, t, said = taught(lessons, Ensemble(sites, BayesRouter(prior, sites)))
    assert deviations(said - pool(x_t, t), x_t, t) < 4.5
    # any other expert in its place is heard at once: here the same experts, of other lessons
    turned = Lessons(lessons.images, lessons.sites.roll(1), None, lessons.sha256)
    x_t, t, said = taught(turned, Ensemble(sites, BayesRouter(prior, sites)))
    assert deviations(said - pool(x_t, t), x_t, t) > 20


def test_whole_ensemble_teaches_the_velocity_of_the_pool_itself():
    prior, sites, pool = overlapping(16)
    x_t, t, said = taught(joint_draws(300), Ensemble(sites, BayesRouter(prior, sites)), "ensemble")
    assert torch.allclose(said, pool(x_t, t), atol=2e-5)


def test_own_experts_teach_with_less_noise_than_images_do():
    prior, sites, pool = overlapping(16)
    lessons = joint_draws(4000)
    x_t, t, said = taught(lessons, Ensemble(sites, BayesRouter(prior, sites)))
    own = (said - pool(x_t, t)).square().mean()
    eps = torch.randn(lessons.images.shape, generator=torch.Generator().manual_seed(5))
    x_t = interpolate(lessons.images, eps, t)
    assert own < 0.2 * (eps - lessons.images - pool(x_t, t)).square().mean()


def test_lessons_are_drawn_by_the_shares_of_the_sites(tmp_path):
    prior, sites, _ = overlapping(16)
    ensemble = Ensemble(sites, BayesRouter(prior, sites))
    lessons = draw_lessons(
        ensemble, a_plan().data, None, tmp_path / "l", count=1500, solver_steps=4, seed=0
    )
    expected = 1500 * prior
    assert bool(((lessons.sites.bincount() - expected).abs() < 4 * expected.sqrt()).all())
    assert lessons.images.abs().max() <= 1
    assert [file.name for file in sorted((tmp_path / "l").iterdir())] == [
        "000000000.npz",
        "000001024.npz",
    ]


def test_images_are_taught_by_the_expert_that_the_router_takes_them_to_be_of():
    images = torch.tensor([-0.6, 0.6, 0.3, -0.3]).reshape(4, 1, 1, 1).expand(4, *SHAPE)
    given = GivenImages(images, None, "0" * 64)
    found = lessons_of(teachers(of=apart).ensemble, given, a_plan().data, 0)
    assert found.sites.tolist() == [0, 1, 1, 0]


def test_images_are_taught_by_the_shares_of_their_class_where_no_image_is_looked_at():
    data = DataSpec(channels=1, height=4, width=4, conditioning="class", classes=("a", "b"))
    router = PriorRouter(torch.tensor([[9.0, 0.0], [1.0, 5.0]]))
    ensemble = Ensemble(overlapping(16)[1][:2], router)
    labels = torch.arange(2000) % 2
    given = GivenImages(torch.zeros((2000, *SHAPE)), labels, "0" * 64)
    sites = lessons_of(ensemble, given, data, 0).sites
    assert sites[labels == 1].tolist() == [1] * 1000
    assert abs(float(sites[labels == 0].double().mean()) - 0.1) < 0.04


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (0, None, "holds no images"),
        (3, None, "has no labels"),
        (3, torch.tensor([0, 2, 1]), "has the label 2, and the plan has 2 classes"),
    ],
)
def test_images_that_cannot_teach_are_refused(images, labels, message):
    data = DataSpec(channels=1, height=4, width=4, conditioning="class", classes=("a", "b"))
    given = GivenImages(torch.zeros((images, *SHAPE)), labels, "0" * 64)
    with pytest.raises(DataError, match=message):
        lessons_of(teachers().ensemble, given, data, 0)


def test_experts_are_told_the_class_or_that_there_is_none():
    asked = []

    def expert(x, t, condition):
        asked.append(condition.labels)
        return torch.where(condition.labels == NO_CLASS, -1.0, condition.labels.float()).reshape(
            -1, 1, 1, 1
        ) + torch.zeros_like(x)

    ensemble = Ensemble([expert, expert], PriorRouter(torch.ones(2, 3)))
    labels = torch.arange(900) % 3
    lessons = Lessons(torch.zeros((900, *SHAPE)), torch.arange(900) % 2, labels, "0" * 64)
    batches = TaughtBatches(
        lessons, ensemble, spec(900, label_dropout=Decimal("0.2")), seed=1, teacher="own"
    )
    batch = batches.draw(0, EVERYTHING)
    told = batch.condition.labels
    assert 0.13 < float((told == NO_CLASS).float().mean()) < 0.27
    said = velocity(batch.x_0, batch.eps, batch.t).mean((1, 2, 3))
    assert torch.allclose(said, torch.where(told == NO_CLASS, -1.0, told.float()), atol=1e-5)
    assert sum(map(len, asked)) == 900


def test_experts_are_asked_at_no_time_they_have_not_learnt():
    times = []

    def network(x, t, _):
        times.append(t)
        return torch.zeros_like(x)

    ensemble = Ensemble([Expert(network, "vp", "noise")] * 3, PriorRouter(torch.ones(3, 1)))
    _, t, said = taught(joint_draws(3000), ensemble)
    assert float(t.max()) == pytest.approx(ensemble.experts.largest_time)
    assert bool(said.isfinite().all())


def test_a_batch_depends_on_seed_and_step_and_not_on_what_was_drawn_before():
    prior, sites, _ = overlapping(16)
    ensemble, lessons = Ensemble(sites, BayesRouter(prior, sites)), joint_draws(100)

    def batches(seed):
        return TaughtBatches(lessons, ensemble, spec(16), seed=seed, teacher="own")

    first = batches(0)
    for step in range(8):
        kept = first.draw(step, EVERYTHING)
    again, other = batches(0).draw(7, EVERYTHING), batches(1).draw(7, EVERYTHING)
    assert torch.equal(kept.x_0, again.x_0)
    assert torch.equal(kept.eps, again.eps)
    assert not torch.equal(kept.x_0, other.x_0)


# --- training ---


@pytest.mark.slow
def test_student_comes_near_the_velocity_of_the_pool_and_no_expert_does(tmp_path):
    _, sites, pool = apart(16)
    options = DistillOptions(
        steps=160, batch_size=48, learning_rate=0.005, samples=2048, solver_steps=6
    )
    with working(tmp_path / "student") as work:
        student = train_student(teachers(of=apart), options, work)
    network = build_expert(a_plan().data, student.design, student.weights, None)
    lessons = joint_draws(2000, seed=9, of=apart)
    generator = torch.Generator().manual_seed(8)
    eps = torch.randn(lessons.images.shape, generator=generator)
    t = 0.05 + 0.9 * torch.rand(2000, generator=generator)
    x_t = interpolate(lessons.images, eps, t)
    with torch.no_grad():
        truth = pool(x_t, t)
        off = [float((v(x_t, t, None) - truth).square().mean()) for v in (network, *sites)]
    left = off[0] / float(truth.square().mean())
    assert left < 0.05, off
    assert off[0] < 0.5 * min(off[1:]), off


def interrupted_at(step):
    def on_step(report):
        if report.step == step:
            raise KeyboardInterrupt

    return Watch(on_step)


def same_bits(one, other):
    return one.weights.keys() == other.weights.keys() and all(
        torch.equal(value, other.weights[name]) for name, value in one.weights.items()
    )


def test_an_interrupted_student_ends_with_the_bits_of_one_that_was_left_alone(tmp_path):
    options = DistillOptions(samples=1100, solver_steps=1, checkpoint_every_s=0)
    with working(tmp_path / "whole") as work:
        whole = train_student(teachers(), options, work)
    out = tmp_path / "cut"

    def stop(_):
        if (work_folder(out) / "lessons" / "000000000.npz").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), working(out) as work:
        train_student(teachers(), options, work, watch=Watch(advance=stop))
    for step in (1, 4):
        with pytest.raises(CheckpointError, match=f"after {step} of 6 steps"), working(out) as work:
            train_student(teachers(), options, work, watch=interrupted_at(step))
    drawn = []
    with working(out) as work:
        cut = train_student(teachers(), options, work, watch=Watch(advance=drawn.append))
    assert drawn == [1024, 76], "it draws no image twice"
    assert same_bits(whole, cut)
    assert whole.distillation == cut.distillation
    assert not work_folder(out).exists()


def begun(path, *, start="expert", designs, shares=(0.2, 0.5, 0.3)):
    """A student whose steps are too small to be seen: what it began with, and what it says."""
    weights = [build_network(a_plan().data, ExpertDesign(architecture="DiT-Nano/2")) for _ in "abc"]
    for place, network in enumerate(weights):
        network.reset_parameters(torch.Generator().manual_seed(place))
    asked = teachers(
        router=PriorRouter(torch.tensor(shares)[:, None]),
        designs=designs,
        sites=("north", "east", "south"),
        read_expert=lambda place: weights[place].state_dict(),
    )
    options = DistillOptions(start=start, samples=16, solver_steps=1, steps=1, learning_rate=1e-9)
    with working(path) as work:
        student = train_student(asked, options, work)
    of = [
        place
        for place, network in enumerate(weights)
        if all(
            torch.allclose(student.weights[name], value, atol=1e-6)
            for name, value in network.state_dict().items()
        )
    ]
    return student.distillation.start, of


LIKE_IT = ExpertDesign(architecture="DiT-Nano/2")


@pytest.mark.parametrize(
    ("designs", "started"),
    [
        ([LIKE_IT, LIKE_IT, LIKE_IT], ("east", [1])),
        ([LIKE_IT, ExpertDesign(architecture="DiT-Nano/4"), LIKE_IT], ("south", [2])),
        ([LIKE_IT, *[ExpertDesign(architecture="DiT-Nano/2", prediction="image")] * 2],
         ("north", [0])),
        ([ExpertDesign(architecture="mixture")] * 3, (None, [])),
    ],
)  # fmt: skip
def test_student_begins_with_the_largest_expert_that_is_the_same_network(
    tmp_path, designs, started
):
    assert begun(tmp_path / "student", designs=designs) == started


def test_student_begins_by_chance_where_that_is_asked(tmp_path):
    found = begun(tmp_path / "student", start="chance", designs=[LIKE_IT] * 3)
    assert found == (None, [])


def test_unfinished_work_of_other_options_is_refused_or_forgotten(tmp_path):
    out, options = tmp_path / "student", DistillOptions(samples=32, solver_steps=1)
    with pytest.raises(CheckpointError), working(out) as work:
        train_student(teachers(), options, work, watch=interrupted_at(2))
    other = DistillOptions(samples=32, solver_steps=1, seed=1)
    with pytest.raises(StateError, match="other options"), working(out) as work:
        train_student(teachers(), other, work)
    with pytest.raises(StateError, match="another ensemble"), working(out) as work:
        train_student(teachers(identity="1" * 64), options, work)
    with working(out, restart=True) as work:
        anew = train_student(teachers(), other, work)
    with working(tmp_path / "alone") as work:
        alone = train_student(teachers(), other, work)
    assert same_bits(anew, alone)


def test_arithmetic_counts_every_call_of_an_expert(tmp_path):
    class Counted(ExpertPool):
        pass

    plan, options = a_plan(), DistillOptions(samples=40, solver_steps=3)
    asked = teachers(designs=[ExpertDesign(architecture="DiT-Nano/2")] * 3)
    with working(tmp_path / "student") as work:
        made = train_student(asked, options, work).distillation
    cost = network_cost("DiT-Nano/2", SHAPE).flops_per_image
    said = float(made.gigaflops.drawing + made.gigaflops.teacher)
    assert said == pytest.approx(sum(asked.ensemble.experts.calls) * cost / 1e9, abs=0.002)
    seen = plan.training.steps * plan.training.batch_size
    assert float(made.gigaflops.student) == pytest.approx(3 * seen * cost / 1e9, abs=0.001)


def test_arithmetic_of_experts_of_several_sizes_goes_by_who_taught_whom():
    plan, options = a_plan(), DistillOptions(samples=8, solver_steps=2)
    names = ("DiT-Nano/2", "DiT-Micro/2", "mixture")
    asked = teachers(designs=[ExpertDesign(architecture=name) for name in names])
    lessons = Lessons(torch.zeros((8, *SHAPE)), torch.tensor([0, 0, 0, 0, 1, 1, 2, 2]), None, "")
    design = ExpertDesign(architecture="DiT-Nano/2")
    found = arithmetic(asked, options, lessons, plan, design, drawn=True)
    nano, micro = (network_cost(name, SHAPE).flops_per_image for name in names[:2])
    assert float(found.drawing) == pytest.approx(2 * (4 * nano + 2 * micro) / 1e9, abs=0.001)
    assert taught_by(lessons, plan.training, 0, 3) == [48, 24, 24]
    assert float(found.teacher) == pytest.approx((48 * nano + 24 * micro) / 1e9, abs=0.001)
    all_ask = DistillOptions(samples=8, solver_steps=2, teacher="ensemble")
    dearer = arithmetic(asked, all_ask, lessons, plan, design, drawn=False)
    assert float(dearer.teacher) == pytest.approx(96 * (nano + micro) / 1e9, abs=0.001)
    assert dearer.drawing == 0


# --- what may be asked for ---


def test_student_is_the_network_of_the_plan_without_a_mixture():
    plan = a_plan(expert='architecture = ["mixture+DiT-Nano/2", "mixture"]')
    assert student_design(plan, None).architecture == "DiT-Nano/2"
    assert student_design(plan, "Conv-Nano/2").architecture == "Conv-Nano/2"


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("mixture+DiT-Nano/2", "a student is one network"),
        ("mixture", "a student is one network"),
        ("DiT-Huge/2", "unknown architecture"),
        ("DiT-Nano/8", "does not tile"),
        (None, "--architecture is missing"),
    ],
)
def test_what_no_student_can_be_is_refused(architecture, message):
    plan = a_plan(expert='architecture = "mixture"')
    with pytest.raises(OptionError, match=message):
        student_design(plan, architecture)


def test_student_is_trained_as_the_plan_says_but_for_options():
    plan = a_plan(
        training='augmentation = ["horizontal-flip"]\nloss_weighting = "min-snr"\n'
        "ema_half_lives = [50, 500]"
    )
    found = student_training(plan, DistillOptions(steps=9, learning_rate=0.02))
    assert (found.steps, found.batch_size, str(found.learning_rate)) == (9, 16, "0.02")
    assert (found.augmentation, found.loss_weighting, found.ema_half_lives) == ((), "none", (50,))


def test_number_that_no_statement_could_hold_is_refused_before_anything_is_trained():
    with pytest.raises(OptionError, match="--learning-rate"):
        student_training(a_plan(), DistillOptions(learning_rate=1.2345678901234567e-9))


def test_run_that_made_nothing_leaves_nothing_behind(tmp_path):
    out, none = tmp_path / "student", GivenImages(torch.zeros((0, *SHAPE)), None, "0" * 64)
    with pytest.raises(DataError), working(out) as work:
        train_student(teachers(), DistillOptions(), work, given=none)
    assert not work_folder(out).exists()


def test_router_that_looks_at_no_image_cannot_weigh_teachers():
    asked = teachers(router=PriorRouter(torch.ones(3, 1)))
    with pytest.raises(OptionError, match="--teacher ensemble"):
        require_teachable(asked, DistillOptions(teacher="ensemble"))
    assert FULL.asks_router


def test_captions_are_refused_with_the_way_out():
    text = f"""conditioning = "text"
[data.text]
sha256 = "{"0" * 64}"
context = 8
tokens = 8
width = 4
pooled = 4"""
    with pytest.raises(StateError, match="captions") as caught:
        require_teachable(teachers(a_plan(data=text)), DistillOptions())
    assert "sample the ensemble itself" in caught.value.hint

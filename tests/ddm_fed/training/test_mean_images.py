"""Central images: what one unit can change, what they cost, what a kill costs, who is refused."""

import json
import math
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
import torch
from federation import (
    PRIVATE,
    SITES,
    a_plan,
    chain,
    create_federation,
    event_of,
    forge_manifest,
    paid_for,
    random_images,
    train,
)
from typer.testing import CliRunner

from coordinator.inbox.admission import admit_arrivals
from coordinator.roster import proposals
from ddm_fed.bundle.verify import verify_bundle
from ddm_fed.errors import BudgetError, CheckpointError, MechanismError, PlanError, PolicyError
from ddm_fed.privacy import (
    SUM,
    ImageSet,
    MeanImages,
    Private,
    Randomness,
    UnitMeans,
    describe_privacy,
    epsilon,
    private_events,
)
from ddm_fed.progress import Watch
from ddm_fed.records import LedgerEntry, SampledGaussianEvent, now
from ddm_fed.training import (
    CentralImages,
    Payment,
    PrivateTraining,
    RunOptions,
    draw_central,
    train_private_expert,
)
from ddm_fed.training.mean_images import central_step, empty_sums, examine_central
from ddm_fed.training.plan_cost import advice, outlook, planned_events
from sites.cli.main import app
from sites.outbox import stages
from sites.privacy.ledger import open_ledger
from sites.train.audit import AuditOptions, run_audit
from sites.transport import submit
from sites.transport.base import FolderTransport

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_block")]

A = SITES[0]
CENTRAL = (
    PRIVATE
    + """[privacy.sgd.central]
epsilon = 1
batch_size = 24
images = 2
radius = 3
steps = 4
"""
)
CLASSES = 'conditioning = "class"\nclasses = ["a", "b", "c"]'
PLAN = a_plan(max_epsilon=CENTRAL)
WITH_CLASSES = a_plan(max_epsilon=CENTRAL, width=f"width = 8\n{CLASSES}")
EVENT = SampledGaussianEvent(
    sampling_rate=Decimal("0.5"), noise_multiplier=Decimal("0.85"), steps=3
)
NOISELESS = CentralImages(
    sampling_rate=1.0,
    noise_multiplier=1e-9,
    images=1,
    centre=-0.4,
    radius=1000.0,
    steps=4,
    expected_units=(1.0, 1.0, 1.0),
)


def patients(seed=0, count=24, units=9):
    """Images of several patients, whose images are of several classes."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand((count, 1, 8, 8), generator=generator) * 2 - 1
    labels = torch.randint(0, 3, (count,), generator=generator)
    owners = torch.cat([torch.arange(units), torch.randint(0, units, (count - units,))])
    return ImageSet(pixels, labels, units=owners)


def without(images, unit):
    """The same images but for those of one unit."""
    kept = images.units != unit
    _, units = images.units[kept].unique(return_inverse=True)
    return ImageSet(images.pixels[kept], images.labels[kept], units=units)


def sums(images, radius, centre=-0.4, plan=WITH_CLASSES):
    """The sum that noise is added to, over all units."""
    means = UnitMeans(images, max(1, len(plan.data.classes)), centre)
    step = central_step(replace(NOISELESS, radius=radius), Randomness.for_tests(0))
    blocks = means.blocks(0, torch.arange(len(means)))
    return step.clipped_sum(empty_sums(plan), blocks, radius).total[SUM].numpy()


# --- plans and prices ---


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("epsilon = 1\n", "epsilon = 8\n"), "central.epsilon` 8 leaves nothing"),
        (("batch_size = 24", "batch_size = 33"), "exceeds `privacy.sgd.units`"),
        (("batch_size = 24", "batch_size = 0"), "batch_size"),
        (("radius = 3", "radius = 8.1"), "no image reaches"),
        (("radius = 3\n", ""), "radius"),
        (("images = 2", "images = 0"), "images"),
        (("images = 2", "image = 2"), "did you mean `images`"),
        (("steps = 4", "steps = 0"), "steps"),
    ],
)
def test_central_images_that_make_no_sense_are_refused(change, reason):
    with pytest.raises(PlanError, match=reason):
        a_plan(max_epsilon=CENTRAL.replace(*change))


def test_radius_may_reach_the_furthest_image_about_the_centre():
    a_plan(max_epsilon=CENTRAL.replace("radius = 3", "radius = 11.2\ncentre = -0.4"))
    with pytest.raises(PlanError, match="no image reaches"):
        a_plan(max_epsilon=CENTRAL.replace("radius = 3", "radius = 11.3\ncentre = -0.4"))


def test_all_together_cost_what_the_plan_allows():
    planned = planned_events(PLAN)
    assert 0.99 < epsilon([planned.central], 1e-5) <= 1
    assert (planned.central.sampling_rate, planned.central.steps) == (Decimal("0.75"), 2)
    assert 7.9 < epsilon(planned_events(PLAN).all, float(PLAN.privacy.delta)) <= 8
    plain = planned_events(a_plan(max_epsilon=PRIVATE))
    assert planned.expert.noise_multiplier > plain.expert.noise_multiplier
    assert plain.central is None


def test_central_images_that_leave_nothing_for_the_expert_are_found_out():
    greedy = CENTRAL.replace("epsilon = 1\n", "epsilon = 7.99\n")
    with pytest.raises(BudgetError, match="nothing is left"):
        planned_events(a_plan(max_epsilon=greedy))


def test_outlook_tells_the_noise_on_a_pixel():
    event = planned_events(WITH_CLASSES).central
    seen = outlook(WITH_CLASSES, WITH_CLASSES.expert.default, 300)
    assert seen.per_pixel == pytest.approx(float(event.noise_multiplier) * 3 / (300 * 0.75 / 3))
    assert outlook(a_plan(max_epsilon=PRIVATE), PLAN.expert.default, 300).per_pixel is None


def test_advice_names_central_images_where_there_are_none():
    plain = a_plan(max_epsilon=PRIVATE)
    phrases = [
        " ".join(advice(plan, outlook(plan, plan.expert.default, 32))) for plan in (plain, PLAN)
    ]
    assert "privacy.sgd.central" in phrases[0]
    assert "privacy.sgd.central" not in phrases[1]


# --- what one unit can change ---


@pytest.mark.parametrize("radius", [0.5, 3.0, 1000.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_patient_moves_the_sum_by_the_radius_at_most(seed, radius):
    images = patients(seed)
    images.pixels[images.units == 2] *= 1e6
    whole = sums(images, radius)
    moved = [np.linalg.norm(whole - sums(without(images, u), radius)) for u in range(9)]
    assert max(moved) <= radius * (1 + 1e-9)
    assert max(moved) > 0.99 * min(radius, 5)


def test_a_patient_of_one_image_is_an_image():
    images = patients()
    alone = ImageSet(images.pixels, images.labels)
    each = ImageSet(images.pixels, images.labels, units=torch.arange(len(images)))
    assert np.array_equal(sums(alone, 3.0), sums(each, 3.0))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_an_image_that_is_not_finite_counts_as_nobody(bad):
    images = patients()
    images.pixels[images.units == 4] = bad
    assert np.array_equal(sums(images, 3.0), sums(without(images, 4), 3.0))


def test_sum_is_that_of_a_loop_over_patients():
    images, radius, centre = patients(), 4.0, -0.4
    total = np.zeros((3, 1, 8, 8))
    for unit in range(9):
        rows = [row for row in range(len(images)) if int(images.units[row]) == unit]
        vector = np.zeros_like(total)
        for row in rows:
            vector[int(images.labels[row])] += (
                images.pixels[row].numpy().astype(float) - centre
            ) / len(rows)
        norm = math.sqrt(float((vector**2).sum()))
        total += vector * min(1.0, radius / norm)
    assert np.abs(sums(images, radius, centre) - total).max() < 1e-12


def test_blocks_of_units_do_not_change_the_sum(monkeypatch):
    images = patients()
    whole = sums(images, 3.0)
    monkeypatch.setattr("ddm_fed.privacy.mean_images.BLOCK_BYTES", 1)
    assert np.allclose(sums(images, 3.0), whole, rtol=0, atol=1e-12)


def test_step_passes_the_tests_that_every_private_step_has_to():
    findings = examine_central(WITH_CLASSES, replace(NOISELESS, noise_multiplier=2.0, radius=3.0))
    assert len(findings) == 8
    assert all(finding.passed for finding in findings)


def test_sum_that_is_not_clipped_is_noticed(monkeypatch):
    def unclipped(self, weights, rows, clip_norm):
        return original(self, weights, rows, 1e9)

    original = MeanImages.clipped_sum
    monkeypatch.setattr(MeanImages, "clipped_sum", unclipped)
    findings = examine_central(WITH_CLASSES, replace(NOISELESS, noise_multiplier=2.0, radius=3.0))
    assert {f.name for f in findings if not f.passed} >= {"sensitivity"}


# --- the noise ---


def test_noise_on_a_sum_is_as_large_as_its_event_says():
    central = replace(NOISELESS, noise_multiplier=5.0, radius=20.0)
    step = central_step(central, Randomness.for_tests(1))
    nobody = step.clipped_sum(empty_sums(WITH_CLASSES), [], 20.0)
    draws = torch.stack([step.release(nobody, turn, 20.0)[SUM] for turn in range(500)]).flatten()
    # 96,000 draws: four standard errors of a deviation are 0.9 %
    assert float(draws.std()) == pytest.approx(100.0, rel=0.01)
    assert abs(float(draws.mean())) < 1.5


def test_rounds_draw_other_units_and_other_noise():
    step = central_step(replace(NOISELESS, sampling_rate=0.5), Randomness.for_tests(0))
    assert not torch.equal(step.included(0, 100), step.included(1, 100))
    assert not np.array_equal(
        step.randomness.stream("noise", 0).normal(9), step.randomness.stream("noise", 1).normal(9)
    )


def test_central_images_share_no_noise_with_the_steps_that_follow():
    secret = Randomness.for_tests(0)
    own = central_step(NOISELESS, secret).randomness
    assert own.origin == secret.origin == "test"
    assert own.hex != secret.hex
    for purpose in ("noise", "inclusion"):
        first, second = (r.stream(purpose, 0).uniform(50) for r in (own, secret))
        assert not np.array_equal(first, second)


# --- the images ---


def drawn(images, plan, central, secret=0):
    """The images, of a ledger that says what `central` does."""
    return draw_central(
        images, plan, central, Randomness.for_tests(secret), paid=event_of(central, central.images)
    )


def test_without_noise_they_are_the_means_of_the_classes():
    images = patients(units=24)
    counts = tuple(images.labels.bincount(minlength=3).double().tolist())
    central = replace(NOISELESS, expected_units=counts)
    found = drawn(images, WITH_CLASSES, central)
    assert found.labels.tolist() == [0, 1, 2]
    for label, image in zip(found.labels, found.images, strict=True):
        mean = images.pixels[images.labels == label].mean(0)
        assert (image - mean).abs().max() < 1e-5


def test_they_are_divided_by_the_released_number_not_by_the_real_one():
    images = ImageSet(torch.zeros(10, 1, 8, 8), None)
    central = replace(NOISELESS, expected_units=(20.0,))
    found = drawn(images, PLAN, central)
    # ten images lie 0.4 above the centre; of twenty that were expected, that is 0.2
    assert torch.allclose(found.images, torch.full((1, 1, 8, 8), -0.2), atol=1e-5)


def test_planned_images_count_with_the_released_numbers_of_classes():
    event = EVENT.model_copy(update={"steps": 2})
    central = CentralImages.planned(WITH_CLASSES, event, [10.0, 0.0, -3.0])
    assert central.expected_units == (5.0, 0.0, 0.0)
    assert (central.images, central.radius, central.steps) == (2, 3.0, 4)
    assert CentralImages.planned(a_plan(max_epsilon=PRIVATE), None, [1.0]) is None


def test_class_that_drowned_has_no_central_image():
    central = replace(NOISELESS, images=2, expected_units=(9.0, 0.0, 9.0))
    found = drawn(patients(), WITH_CLASSES, central)
    assert found.labels.tolist() == [0, 2, 0, 2]


def test_noise_is_taken_out_where_it_explains_all():
    images = ImageSet(torch.linspace(-1, 1, 8).expand(400, 1, 8, 8).clone(), None)
    central = replace(
        NOISELESS, noise_multiplier=5.0, radius=8.0, centre=0.0, expected_units=(400.0,)
    )
    errors = []
    for secret in range(8):
        found = drawn(images, PLAN, central, secret).images[0]
        errors.append(float((found - images.pixels[0]).square().mean().sqrt()))
    assert np.mean(errors) < 0.5 * 5.0 * 8.0 / 400  # half of the noise that was added


# --- one run ---


class Ledger:
    def __init__(self):
        self.paid = 0

    def pay(self):
        self.paid += 1
        return "00" * 32

    def payment(self, noise):
        return Payment(self.pay, lambda _: paid_for(noise))


CLASSED = Private(patients(count=24, units=24))


def noise_of(plan=WITH_CLASSES, **changes):
    event = EVENT.model_copy(update={"steps": 2})
    central = CentralImages.planned(plan, event, [8.0, 8.0, 8.0][: max(1, len(plan.data.classes))])
    return PrivateTraining.planned(plan, EVENT, 24.0, replace(central, **changes))


def learn(path, *, plan=WITH_CLASSES, ledger=None, data=CLASSED, noise=None, secret=0, **options):
    on_step = options.pop("on_step", lambda _: None)
    noise = noise or noise_of(plan)
    return train_private_expert(
        data,
        plan,
        "ab" * 32,
        path,
        noise,
        (ledger or Ledger()).payment(noise),
        options=RunOptions(**options),
        randomness=Randomness.for_tests(secret),
        watch=Watch(on_step),
    )


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return learn(tmp_path_factory.mktemp("whole") / "checkpoint.safetensors")


def test_expert_says_what_it_learnt_first(whole):
    facts = PrivateTraining.from_json(whole.noise).facts()
    assert (facts.central.images, str(facts.central.radius), facts.central.steps) == (2, "3.0", 4)


def test_description_of_a_run_survives_writing_and_reading():
    noise = noise_of()
    assert PrivateTraining.from_json(noise.to_json()) == noise
    plain = replace(noise, central=None)
    assert PrivateTraining.from_json(plain.to_json()) == plain


@pytest.mark.parametrize("changed", [{"radius": 1.0}, {"steps": 5}, {"noise_multiplier": 3.0}])
def test_what_is_learnt_first_changes_the_expert(tmp_path, whole, changed):
    assert not equal(learn(tmp_path / "a", noise=noise_of(**changed)).state, whole.state)


def test_they_are_paid_for_before_an_image_is_looked_at(tmp_path, monkeypatch):
    ledger, seen = Ledger(), []
    original = UnitMeans.blocks
    monkeypatch.setattr(UnitMeans, "blocks", lambda *a: seen.append(ledger.paid) or original(*a))
    learn(tmp_path / "a", ledger=ledger)
    assert len(seen) > 2  # two rounds, and units of those that are computed again
    assert set(seen) == {1}
    assert ledger.paid == 1


class Killed(BaseException):
    pass


def test_kill_while_they_are_learnt_costs_nothing_more(tmp_path, whole, monkeypatch):
    ledger = Ledger()

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("ddm_fed.training.mean_images.set_learning_rate", kill)
        with pytest.raises(Killed):
            learn(tmp_path / "a", ledger=ledger)
    found = learn(tmp_path / "a", ledger=ledger, secret=7)  # the secret is the checkpoint's
    assert equal(found.state, whole.state)
    assert ledger.paid == 1


@pytest.mark.parametrize("every_s", [0, 1e9])
def test_kill_after_a_step_costs_nothing_more(tmp_path, whole, every_s):
    ledger = Ledger()

    def kill(report):
        if report.step == 1:
            raise Killed

    with pytest.raises(Killed):
        learn(tmp_path / "a", ledger=ledger, checkpoint_every_s=every_s, on_step=kill)
    found = learn(tmp_path / "a", ledger=ledger, secret=7)
    assert equal(found.state, whole.state)
    assert ledger.paid == 1


def test_resumed_run_does_not_learn_them_again(tmp_path, monkeypatch):
    ledger = Ledger()

    def kill(report):
        if report.step == 1:
            raise Killed

    with pytest.raises(Killed):
        learn(tmp_path / "a", ledger=ledger, checkpoint_every_s=0, on_step=kill)
    monkeypatch.setattr(UnitMeans, "blocks", lambda *_: pytest.fail("looked at the images again"))
    learn(tmp_path / "a", ledger=ledger)


def test_checkpoint_does_not_go_on_with_other_central_images(tmp_path):
    ledger = Ledger()

    def kill(_):
        raise Killed

    with pytest.raises(Killed):
        learn(tmp_path / "a", ledger=ledger, on_step=kill)
    with pytest.raises(CheckpointError, match="other noise"):
        learn(tmp_path / "a", ledger=ledger, noise=noise_of(radius=1.0))


def test_mechanism_that_fails_its_tests_is_not_paid_for(tmp_path, monkeypatch):
    ledger = Ledger()
    original = MeanImages.clipped_sum
    monkeypatch.setattr(MeanImages, "clipped_sum", lambda self, w, r, _: original(self, w, r, 1e9))
    with pytest.raises(MechanismError, match="sensitivity"):
        learn(tmp_path / "a", ledger=ledger)
    assert ledger.paid == 0


def test_expert_whose_classes_all_drowned_is_trained_all_the_same(tmp_path):
    learn(tmp_path / "a", noise=noise_of(expected_units=(0.0, 0.0, 0.0)))


@pytest.mark.usefixtures("all_blocks")
@pytest.mark.parametrize("trainable", ["last-1", "lora-2"])
def test_only_the_trained_part_learns_them(tmp_path, trainable):
    text = CENTRAL.replace("draws = 2", f'draws = 2\ntrainable = "{trainable}"')
    plan = a_plan(max_epsilon=text, width=f"width = 8\n{CLASSES}")
    first, second = (
        learn(tmp_path / str(steps), plan=plan, noise=noise_of(plan, steps=steps)).state
        for steps in (1, 4)
    )
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    assert moved
    if trainable == "last-1":
        assert all(n.startswith(("blocks.2.", "norm", "modulation", "head")) for n in moved)


# --- a federation ---


@pytest.fixture(scope="module")
def drafted(tmp_path_factory):
    fed = create_federation(tmp_path_factory.mktemp("central") / "fed", sites=(A,))
    proposals.publish_plan(fed.home, PLAN)
    fed.look(A)
    train(fed.site(A), fed.trust, random_images(0), seed=0)
    return fed


def entries(fed):
    return open_ledger(fed.site(A)).entries()


def verify(bundle, fed):
    return verify_bundle(bundle, fed.trust, now(), require=("site",))


def test_ledger_has_them_before_the_expert(drafted):
    purposes = [entry.purpose for entry in entries(drafted)]
    assert purposes == ["router-location", "router-shape", "central", "expert"]
    assert entries(drafted)[2].event == planned_events(PLAN).central
    assert entries(drafted)[2].mechanism == "mean-images"


def test_bundle_with_central_images_is_admitted(drafted, scratch):
    fed = drafted.copy(scratch / "fed", "consortium", A)
    fed.look(A)
    stages.review(fed.site(A), fed.trust)
    stages.release(fed.site(A), fed.trust)
    submit.submit(fed.site(A), fed.trust, FolderTransport(fed.inbox))
    assert all(verdict.error is None for verdict in admit_arrivals(fed.home, fed.trust))
    privacy = verify(stages.newest_draft(drafted.site(A)), drafted).submission.privacy
    assert float(privacy.releases_epsilon) <= 8
    assert any("2 noisy mean image(s)" in line for line in describe_privacy(privacy))


def test_training_again_spends_nothing_and_from_the_start_pays_for_both(drafted, scratch):
    fed = drafted.copy(scratch / "fed", "consortium", A)
    before = entries(fed)
    train(fed.site(A), fed.trust, random_images(0), seed=0)
    assert entries(fed) == before
    site = fed.site(A)
    poor = replace(site, settings=site.settings.model_copy(update={"max_epsilon": Decimal(8)}))
    with pytest.raises(BudgetError):
        train(poor, fed.trust, random_images(0), restart=True)
    assert entries(fed) == before


def test_audit_tries_the_step_of_central_images_as_well(drafted, scratch):
    fed = drafted.copy(scratch / "fed", "consortium", A)
    found = run_audit(fed.site(A), fed.trust, random_images(0), AuditOptions(canaries=2000))
    names = [finding.name for finding in found.mechanism]
    assert names.count("sensitivity") == 2
    assert not found.violates


def test_floor_on_the_noise_holds_for_them(scratch):
    fed = create_federation(scratch / "fed", sites=(A,))
    proposals.publish_plan(fed.home, PLAN)
    fed.look(A)
    site = fed.site(A)
    least = planned_events(PLAN).central.noise_multiplier + 1
    strict = replace(
        site, settings=site.settings.model_copy(update={"least_noise_multiplier": least})
    )
    with pytest.raises(BudgetError, match="least_noise_multiplier"):
        train(strict, fed.trust, random_images(0))


def test_commands_show_them(drafted, tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, [str(part) for part in arguments])

    folder = drafted.path / A
    found = run("budget", "--plan", drafted.published, "--site", folder, "--json")
    events = [event["of"] for event in json.loads(found.stdout)["events"]]
    assert events == ["router: location", "router: shape", "central images", "expert"]
    shown = run("budget", "--plan", drafted.published, "--site", folder)
    assert "noise of" in shown.output
    assert "on a pixel" in " ".join(shown.output.split())
    assert "central" in run("ledger", "--site", folder).output


# --- forgers ---


@pytest.fixture
def forge(drafted, scratch):
    """`forge(edit)`: the bundle whose privacy statement was edited, priced and signed again."""
    fed = drafted.copy(scratch / "forged", "consortium", A)
    bundle = stages.newest_draft(fed.site(A))

    def forged(edit):
        def change(fields):
            privacy = fields["privacy"]
            edit(privacy)
            chain(privacy["ledger"])
            ledger = [LedgerEntry.model_validate_json(json.dumps(e)) for e in privacy["ledger"]]
            privacy["releases_epsilon"] = f"{epsilon(private_events(ledger), 1e-5):.4f}"

        forge_manifest(bundle, change, fed.key(A))
        return verify(bundle, fed)

    return forged


def central_of(privacy):
    return next(e for e in privacy["ledger"] if e["purpose"] == "central")


def again(privacy):
    privacy["ledger"].append(json.loads(json.dumps(privacy["ledger"][-1])))


@pytest.mark.parametrize(
    ("edit", "phrase"),
    [
        (lambda p: p["sgd"].update(central=None), "its central images are not"),
        (lambda p: p["sgd"]["central"].update(radius="30"), "its central images are not"),
        (lambda p: p["sgd"]["central"].update(centre="0.5"), "its central images are not"),
        (lambda p: p["sgd"]["central"].update(images=1), "its central images are not"),
        (lambda p: p["sgd"]["central"].update(steps=999), "its central images are not"),
        (lambda p: p["ledger"].pop(2), "its central was trained for 2 steps"),
        (lambda p: central_of(p).update(purpose="other"), "its central was trained for 2 steps"),
        (lambda p: central_of(p)["event"].update(steps=1), "its central was trained for 2 steps"),
        (lambda p: central_of(p)["event"].update(sampling_rate="0.1"), "its central was trained"),
        (lambda p: central_of(p)["event"].update(noise_multiplier="2"), "the plan allows 8"),
        (lambda p: p["ledger"].insert(2, p["ledger"].pop(3)), "what its central images cost"),
        (again, "the plan allows|what its central images cost"),
    ],
)
def test_forged_statement_of_central_images_is_refused(forge, edit, phrase):
    with pytest.raises(PolicyError, match=phrase):
        forge(edit)


def test_more_noise_than_agreed_harms_nobody(forge):
    forge(lambda p: central_of(p)["event"].update(noise_multiplier="50"))


def test_central_images_the_plan_does_not_ask_for_are_refused(scratch):
    fed = create_federation(scratch / "fed", sites=(A,))
    proposals.publish_plan(fed.home, a_plan(max_epsilon=PRIVATE))
    fed.look(A)
    train(fed.site(A), fed.trust, random_images(0), seed=0)
    bundle = stages.newest_draft(fed.site(A))
    facts = {"images": 1, "centre": "0", "radius": "3", "steps": 4}
    forge_manifest(bundle, lambda p: p["privacy"]["sgd"].update(central=facts), fed.key(A))
    with pytest.raises(PolicyError, match="its central images are not"):
        verify(bundle, fed)

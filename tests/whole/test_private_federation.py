"""A federation whose experts and heads carry noise, from the plan to the ensemble; and forgers."""

import json
import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from federation import (
    PRIVATE,
    SITES,
    Federation,
    a_plan,
    chain,
    create_federation,
    forge_manifest,
    random_images,
    train,
)
from typer.testing import CliRunner

from coordinator.ensembles.assemble import assemble
from coordinator.ensembles.reference import publish_reference
from coordinator.inbox.admission import admit_arrivals
from coordinator.roster import proposals
from ddm_fed.bundle.reference import read_reference
from ddm_fed.bundle.verify import verify_bundle
from ddm_fed.ensemble.folder import verify_ensemble
from ddm_fed.errors import BudgetError, CheckpointError, OptionError, PolicyError
from ddm_fed.privacy import Randomness, epsilon, private_events
from ddm_fed.progress import Watch
from ddm_fed.records import SampledGaussianEvent, now, read_plan_toml
from ddm_fed.router import HeadNoise, fit_private_head, pooled_reference
from ddm_fed.training import read_identity
from ddm_fed.training.plan_cost import advice, outlook, planned_events
from sites.cli.main import app
from sites.outbox import stages
from sites.privacy.ledger import open_ledger
from sites.train.expert import CHECKPOINT_FILE
from sites.train.head import RUN_FILE, run_head
from sites.transport import submit
from sites.transport.base import FolderTransport
from sites.workspace import SiteFolder, write_site_settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_block")]

A = SITES[0]
SGD = (
    PRIVATE.replace('"expert"]', '"expert", "head"]')
    + """[privacy.sgd.head]
epsilon = 4
draws = 2
"""
)
HEADS = """radius = 3
[router.head]
width = 16
depth = 1
steps = 4
batch_size = 8
"""
PLAN = a_plan(max_epsilon=SGD, kind='kind = "heads"', radius=HEADS)


def work(fed, name=A):
    return fed.site(name).work(fed.trust.plan_sha256)


def deliver(fed, name):
    fed.look(name)
    stages.review(fed.site(name), fed.trust)
    stages.release(fed.site(name), fed.trust)
    submit.submit(fed.site(name), fed.trust, FolderTransport(fed.inbox))


def entries(fed, name=A):
    return open_ledger(fed.site(name)).entries()


def purposes(fed, name=A):
    return [entry.purpose for entry in entries(fed, name)]


def make_head(fed, name=A, seed=0, **more):
    published = fed.look(name)
    reference = read_reference(fed.published, fed.trust)
    data = random_images(seed)
    return run_head(fed.site(name), fed.trust, published.log, reference, data, **more)


@pytest.fixture(scope="module")
def drafted(tmp_path_factory):
    """Every site has trained with noise."""
    fed = create_federation(tmp_path_factory.mktemp("private") / "fed")
    proposals.publish_plan(fed.home, PLAN)
    for seed, name in enumerate(SITES):
        fed.look(name)
        train(fed.site(name), fed.trust, random_images(seed), seed=seed)
    return fed


@pytest.fixture(scope="module")
def referenced(drafted, tmp_path_factory):
    """All are admitted, and the reference is published."""
    fed = drafted.copy(tmp_path_factory.mktemp("private") / "fed", "consortium", *SITES)
    for name in SITES:
        deliver(fed, name)
    assert all(verdict.error is None for verdict in admit_arrivals(fed.home, fed.trust))
    publish_reference(fed.home, without=(), replace=False)
    return fed


@pytest.fixture
def fresh(tmp_path):
    """A federation under the private plan, before anybody has trained."""
    fed = create_federation(tmp_path / "fed", sites=(A,))
    proposals.publish_plan(fed.home, PLAN)
    fed.look(A)
    return fed


@pytest.fixture
def copied(scratch):
    def copy(fed: Federation) -> Federation:
        return fed.copy(scratch / "fed", "consortium", *SITES)

    return copy


def draft_of(fed, name=A):
    return stages.newest_draft(fed.site(name))


def verify(bundle, fed):
    return verify_bundle(bundle, fed.trust, now(), require=("site",))


# --- what honest sites do ---


def test_release_comes_before_the_expert_whose_sums_it_scales(drafted):
    assert purposes(drafted) == ["router-location", "router-shape", "expert"]


def test_bundle_says_what_was_spent_and_how(drafted):
    privacy = verify(draft_of(drafted), drafted).submission.privacy
    assert privacy.expert_is_private
    assert privacy.head_is_private is None
    assert privacy.randomness == "csprng"
    spent = epsilon(private_events(privacy.ledger), 1e-5)
    assert float(privacy.releases_epsilon) == pytest.approx(spent, abs=1e-3)
    assert privacy.sgd.trainable == "all"
    assert "secret" not in json.dumps(privacy.model_dump(mode="json"))


def test_bundle_does_not_say_how_many_images_there_are(drafted):
    privacy = verify(draft_of(drafted), drafted).submission.privacy
    assert float(privacy.sgd.expected_units) != 24 * float(privacy.ledger[-1].event.sampling_rate)


def test_secret_of_the_noise_is_gone_after_training(drafted):
    run = read_identity(work(drafted) / CHECKPOINT_FILE)
    assert (run.secret, run.origin) == ("", "csprng")


def test_training_again_spends_nothing(drafted, copied):
    fed = copied(drafted)
    before = entries(fed)
    train(fed.site(A), fed.trust, random_images(0), seed=0)
    assert entries(fed) == before


def test_ensemble_of_private_experts_and_heads_is_admitted_and_verifies(
    referenced, copied, tmp_path
):
    fed = copied(referenced)
    for seed, name in enumerate(SITES):
        make_head(fed, name, seed)
        deliver(fed, name)
    assert all(verdict.error is None for verdict in admit_arrivals(fed.home, fed.trust))
    assemble(fed.home, tmp_path / "ensemble", router=None, without=())
    verified = verify_ensemble(tmp_path / "ensemble", fed.root)
    for bundle in verified.bundles:
        privacy = bundle.submission.privacy
        assert (privacy.expert_is_private, privacy.head_is_private) == (True, True)
        assert float(privacy.releases_epsilon) <= 8
    assert purposes(fed)[-1] == "head"


def test_killed_head_is_repeated_bit_for_bit_and_pays_nothing_more(referenced, copied, monkeypatch):
    fed = copied(referenced)

    class Killed(BaseException):
        pass

    def kill(report):
        if report.step == 3:
            raise Killed

    with pytest.raises(Killed):
        make_head(fed, watch=Watch(on_step=kill))
    run = work(fed) / RUN_FILE
    assert run.stat().st_mode & 0o077 == 0
    kept = json.loads(run.read_bytes())
    make_head(fed)
    assert purposes(fed).count("head") == 1
    first = (work(fed) / "head.safetensors").read_bytes()
    assert not run.exists()
    (work(fed) / "head.safetensors").unlink()
    (work(fed) / "head.json").unlink()
    run.write_bytes(json.dumps(kept).encode())
    make_head(fed)
    assert (work(fed) / "head.safetensors").read_bytes() == first


def test_half_trained_head_of_another_reference_is_not_continued(referenced, copied):
    fed = copied(referenced)
    other = {"data_sha256": "0" * 64, "reference_sha256": "0" * 64}
    (work(fed) / RUN_FILE).write_text(json.dumps(other))
    with pytest.raises(CheckpointError, match="half trained"):
        make_head(fed)


# --- budgets and floors ---


def test_budget_is_refused_before_anything_is_released(fresh):
    site = fresh.site(A)
    poor = replace(site, settings=site.settings.model_copy(update={"max_epsilon": Decimal(7)}))
    with pytest.raises(BudgetError, match="what would fit"):
        train(poor, fresh.trust, random_images(0))
    assert entries(fresh) == ()


def test_training_again_from_the_start_needs_a_second_budget(drafted, copied):
    fed = copied(drafted)
    site = fed.site(A)
    poor = replace(site, settings=site.settings.model_copy(update={"max_epsilon": Decimal(8)}))
    with pytest.raises(BudgetError):
        train(poor, fed.trust, random_images(0), restart=True)
    assert purposes(fed).count("expert") == 1
    assert (work(fed) / "expert.safetensors").exists()


@pytest.mark.parametrize(
    ("floor", "phrase"),
    [
        ({"max_delta": Decimal("0.000001")}, "max_delta"),
        ({"least_noise_multiplier": Decimal(100)}, "least_noise_multiplier"),
        ({"unit": "patient"}, "protects one image only"),
    ],
)
def test_plan_below_the_floors_of_the_site_is_refused(fresh, floor, phrase):
    site = fresh.site(A)
    strict = replace(site, settings=site.settings.model_copy(update=floor))
    with pytest.raises(BudgetError, match=phrase):
        train(strict, fresh.trust, random_images(0))
    assert entries(fresh) == ()


def test_plan_without_noise_is_refused_by_a_site_that_wants_it(tmp_path):
    fed = create_federation(tmp_path / "fed", sites=(A,))
    site = fed.site(A)
    settings = site.settings.model_copy(update={"must_be_private": ("router", "expert")})
    with pytest.raises(BudgetError, match="trains the expert without noise"):
        train(replace(site, settings=settings), fed.trust, random_images(0))


def test_gradients_of_a_plan_without_noise_are_refused_not_ignored(tmp_path):
    fed = create_federation(tmp_path / "fed", sites=(A,))
    with pytest.raises(OptionError, match="--gradients"):
        train(fed.site(A), fed.trust, random_images(0), gradients="recorded")


def test_head_takes_steps_in_which_nobody_is_included(referenced):
    pool = pooled_reference(PLAN, read_reference(referenced.published, referenced.trust).releases)
    rare = SampledGaussianEvent(
        sampling_rate=Decimal("0.001"), noise_multiplier=Decimal(1), steps=4
    )
    losses = []
    fit_private_head(
        random_images(0),
        PLAN,
        pool,
        HeadNoise(rare, 1.0, 2, 1.0),
        Randomness.for_tests(0),
        pay=lambda: rare,
        watch=Watch(lambda now: losses.append(now.loss)),
    )
    assert len(losses) == 4
    assert 0.0 in losses


def test_floors_survive_in_site_toml(fresh):
    site = fresh.site(A)
    settings = site.settings.model_copy(
        update={
            "max_delta": Decimal("0.00001"),
            "must_be_private": ("router", "expert"),
            "least_noise_multiplier": Decimal("1.5"),
            "unit": "patient",
            "share_audit": True,
        }
    )
    write_site_settings(replace(site, settings=settings))
    assert SiteFolder.open(site.path).settings == settings


def test_noise_from_a_test_stream_is_refused_by_the_site_itself(fresh):
    with pytest.raises(PolicyError, match="test stream"):
        train(fresh.site(A), fresh.trust, random_images(0), randomness=Randomness.for_tests(0))


# --- forgers ---


@pytest.fixture
def forge(drafted, copied):
    """`forge(edit)`: the bundle whose privacy statement was edited and signed again, verified."""
    fed = copied(drafted)
    bundle = draft_of(fed)

    def forged(edit):
        def change(fields):
            edit(fields["privacy"])
            chain(fields["privacy"]["ledger"])

        forge_manifest(bundle, change, fed.key(A))
        return verify(bundle, fed)

    return forged


def event_of(privacy):
    return next(e for e in privacy["ledger"] if e["purpose"] == "expert")["event"]


@pytest.mark.parametrize(
    ("edit", "phrase"),
    [
        (lambda p: event_of(p).update(noise_multiplier="0.4"), "its ledger adds up to"),
        (lambda p: event_of(p).update(sampling_rate="0.1"), "it states epsilon"),
        (lambda p: event_of(p).update(steps=1), "it states epsilon"),
        (lambda p: p.update(releases_epsilon="1.0"), "it states epsilon"),
        (lambda p: p.update(expert_is_private=False), "how its expert was trained"),
        (lambda p: p.update(sgd=None), "as the plan's `privacy.sgd` says"),
        (lambda p: p["sgd"].update(clip_norm="50"), "as the plan's `privacy.sgd` says"),
        (lambda p: p["sgd"].update(draws=64), "as the plan's `privacy.sgd` says"),
        (lambda p: p["sgd"].update(trainable="last-1"), "as the plan's `privacy.sgd` says"),
        (lambda p: p.update(unit="patient"), "it protects one patient"),
        (lambda p: p.update(randomness="test"), "test stream"),
        (lambda p: p.update(head_is_private=True), "how its head was trained"),
    ],
)
def test_forged_privacy_statement_is_refused(forge, edit, phrase):
    with pytest.raises(PolicyError, match=phrase):
        forge(edit)


@pytest.mark.parametrize(
    "change", [{"sampling_rate": "0.4"}, {"steps": 2}, {"noise_multiplier": "20"}]
)
def test_cheaper_training_than_planned_is_refused_or_dearer_in_noise(forge, change):
    def edit(privacy):
        from ddm_fed.records import LedgerEntry

        event_of(privacy).update(change)
        chain(privacy["ledger"])
        ledger = [LedgerEntry.model_validate_json(json.dumps(e)) for e in privacy["ledger"]]
        privacy["releases_epsilon"] = f"{epsilon(private_events(ledger), 1e-5):.4f}"

    if "noise_multiplier" in change:  # more noise than agreed harms nobody's privacy
        forge(edit)
        return
    with pytest.raises(PolicyError, match="plan's sampling rate"):
        forge(edit)


def test_expert_without_an_entry_is_refused(forge):
    with pytest.raises(PolicyError):
        forge(lambda p: p["ledger"].pop())


# --- commands ---


def run(*arguments):
    return CliRunner().invoke(app, [str(part) for part in arguments])


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory):
    from federation import PLAN_TOML

    path = tmp_path_factory.mktemp("plan") / "plan.toml"
    path.write_text(
        PLAN_TOML.replace(
            "max_epsilon = 3",
            SGD.split("[privacy.sgd.head]", maxsplit=1)[0].replace(', "head"', ""),
        )
    )
    return path


def test_budget_command_prices_a_plan_file(plan_file):
    found = json.loads(run("budget", "--plan", plan_file, "--json").stdout)
    assert [event["of"] for event in found["events"]] == [
        "router: location",
        "router: shape",
        "expert",
    ]
    assert 7.9 < float(found["plan_epsilon"]) <= 8
    assert found["outlook"]["units"] == 32
    assert "public checkpoint" in found["advice"][0]


def test_budget_command_says_what_more_units_would_change(plan_file):
    few, many = (
        json.loads(run("budget", "--plan", plan_file, "--units", n, "--json").stdout)["outlook"]
        for n in (100, 1000)
    )
    assert few["per_weight"] == pytest.approx(10 * many["per_weight"])
    assert few["whole"] > few["per_weight"]


def test_budget_command_shows_a_table(plan_file):
    shown = run("budget", "--plan", plan_file)
    assert shown.exit_code == 0
    assert "All together: epsilon" in shown.stdout + shown.stderr


@pytest.mark.parametrize(
    ("delta", "units", "warned"),
    [
        ("0.1", 1000, "is 100:"),
        ("0.00001", 20_000, "is 0.2:"),
        ("0.00001", 10_000, None),
        ("0.00001", None, None),
    ],
)
def test_budget_command_warns_of_a_delta_that_is_not_far_below_one_over_the_units(
    tmp_path, delta, units, warned
):
    from federation import PLAN_TOML

    plan = tmp_path / "plan.toml"
    plan.write_text(
        re.sub("(?m)^delta = .*$", "", PLAN_TOML).replace(
            "[privacy]", f"[privacy]\ndelta = {delta}"
        )
    )
    asked = ("--units", units) if units else ()
    shown = run("budget", "--plan", plan, *asked)
    assert shown.exit_code == 0, shown.output
    fact = json.loads(run("budget", "--plan", plan, *asked, "--json").stdout)["warning"]
    if warned is None:
        assert "WARNING" not in shown.output
        assert fact is None
    else:
        assert f"delta {delta} times {units} images {warned}" in shown.output
        assert f"below 1 / {units}" in fact


def test_budget_command_warns_by_the_plan_s_own_guess_of_units(plan_file, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text(
        re.sub("(?m)^delta = .*$", "", plan_file.read_text()).replace(
            "[privacy]", "[privacy]\ndelta = 0.01"
        )
    )
    assert "delta 0.01 times 32 images is 0.32:" in run("budget", "--plan", plan).output


def test_budget_command_counts_what_other_plans_cost(drafted, plan_file):
    spent = json.loads(
        run("budget", "--plan", plan_file, "--site", drafted.path / A, "--json").stdout
    )
    assert float(spent["spent_epsilon"]) > 5
    assert float(spent["total_epsilon"]) > float(spent["plan_epsilon"])


def test_budget_command_does_not_count_the_published_plan_twice(drafted):
    found = json.loads(
        run("budget", "--plan", drafted.published, "--site", drafted.path / A, "--json").stdout
    )
    assert found["spent_epsilon"] == "0.0000"
    assert found["total_epsilon"] == found["plan_epsilon"]


def test_ledger_command_shows_rate_and_steps(drafted):
    shown = run("ledger", "--site", drafted.path / A)
    assert "0.5 x 3" in shown.stdout + shown.stderr


def test_init_writes_the_floors_it_was_given(tmp_path, drafted):
    made = run(
        "init", tmp_path / "s", "--name", "s", "--root", drafted.root,
        "--must-be-private", "expert", "--unit", "patient",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    settings = SiteFolder.open(tmp_path / "s").settings
    assert settings.must_be_private == ("router", "expert")
    assert settings.unit == "patient"


def test_advice_falls_silent_where_little_is_lost():
    assert len(advice(PLAN, outlook(PLAN, PLAN.expert.default, 10_000_000))) == 1


def test_planned_head_costs_what_the_plan_says():
    assert 3.9 < epsilon([planned_events(PLAN).head], 1e-5) <= 4


def test_plan_of_the_private_demo_is_a_plan_and_costs_what_it_says():
    text = (Path(__file__).parents[2] / "examples/digits/plan-dpsgd.toml").read_text()
    plan = read_plan_toml(text.replace("BASE", "ab" * 32))
    assert plan.privacy.sgd.trainable.startswith("lora")
    assert 7.9 < epsilon(planned_events(plan).all, float(plan.privacy.delta)) <= 8

"""Heads in two messages: release, published reference, head; what is refused; what removal does."""

import shutil

import pytest
import torch
from federation import SITES, Federation, create_federation, flip, forge, random_images, train
from typer.testing import CliRunner

from coordinator.cli.main import app as coordinator_app
from coordinator.ensembles.assemble import assemble
from coordinator.ensembles.reference import publish_reference
from coordinator.inbox.admission import admit_arrivals
from coordinator.roster import changes, proposals
from coordinator.status.report import site_states
from coordinator.workspace import CoordinatorFolder
from ddm_fed.bundle.reference import REFERENCE_FILE, VECTORS_FILE, read_reference
from ddm_fed.bundle.verify import ENVELOPE_FILE, HEAD_FILE
from ddm_fed.ensemble.folder import STATEMENT_FILE, verify_ensemble
from ddm_fed.ensemble.load import load_heads, load_router, routers_without_samples
from ddm_fed.ensemble.replay import BuildOptions, build_from_samples
from ddm_fed.ensemble.router_folder import read_built, write_built
from ddm_fed.errors import (
    CheckpointError,
    FileSetError,
    PlanMismatchError,
    RefusedError,
    StateError,
)
from ddm_fed.progress import Watch
from ddm_fed.records import read_plan_toml
from sites.cli.main import app as site_app
from sites.outbox import stages
from sites.train.head import run_head
from sites.transport import submit
from sites.transport.base import FolderTransport

pytestmark = pytest.mark.slow

A, B, C = SITES
PLAN = """
federation = "test"
expires_at = 2036-01-01T00:00:00Z
[data]
channels = 1
height = 8
width = 8
[expert]
architecture = "DiT-Nano/2"
[training]
steps = 3
batch_size = 16
[router]
kind = "heads"
epsilon = 2
frequencies = 4
radius = 3
[router.head]
width = 16
depth = 1
steps = 6
batch_size = 8
[privacy]
max_epsilon = 3
"""


def deliver(fed: Federation, name: str) -> None:
    """Reviews, releases and submits the newest draft of a site."""
    fed.look(name)
    stages.review(fed.site(name), fed.trust)
    stages.release(fed.site(name), fed.trust)
    submit.submit(fed.site(name), fed.trust, FolderTransport(fed.inbox))


def admit(fed: Federation) -> list:
    return admit_arrivals(fed.home, fed.trust)


def make_head(fed: Federation, name: str, seed: int, **more):
    published = fed.look(name)
    reference = read_reference(fed.published, fed.trust)
    data = random_images(seed)
    return run_head(fed.site(name), fed.trust, published.log, reference, data, seed=seed, **more)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Three sites have released and are admitted; there is no reference yet."""
    fed = create_federation(tmp_path_factory.mktemp("heads") / "first")
    proposals.publish_plan(fed.home, read_plan_toml(PLAN))
    for seed, name in enumerate(SITES):
        fed.look(name)
        train(fed.site(name), fed.trust, random_images(seed), seed=seed)
        deliver(fed, name)
    assert all(verdict.error is None for verdict in admit(fed))
    return fed


@pytest.fixture(scope="module")
def drafted(first, tmp_path_factory):
    """The reference is published and every site has a draft with its head."""
    fed = first.copy(tmp_path_factory.mktemp("heads") / "drafted", "consortium", *SITES)
    publish_reference(fed.home, without=(), replace=False)
    for seed, name in enumerate(SITES):
        make_head(fed, name, seed)
    return fed


@pytest.fixture(scope="module")
def complete(drafted, tmp_path_factory):
    """All heads are admitted."""
    fed = drafted.copy(tmp_path_factory.mktemp("heads") / "complete", "consortium", *SITES)
    for name in SITES:
        deliver(fed, name)
    assert all(verdict.error is None for verdict in admit(fed))
    return fed


@pytest.fixture
def copied(scratch):
    def copy(fed: Federation) -> Federation:
        return fed.copy(scratch / "fed", "consortium", *SITES)

    return copy


@pytest.fixture(scope="module")
def verified(complete, tmp_path_factory):
    target = tmp_path_factory.mktemp("heads") / "ensemble"
    assemble(complete.home, target, router=None, without=())
    return verify_ensemble(target, complete.root)


def states():
    generator = torch.Generator().manual_seed(5)
    return torch.randn((5, 1, 8, 8), generator=generator), torch.tensor([0.02, 0.3, 0.5, 0.9, 1.0])


def test_two_messages_make_a_router_of_heads_that_verifies(verified):
    assert verified.record.router == "heads"
    assert all(bundle.submission.sequence == 2 for bundle in verified.bundles)
    assert all(HEAD_FILE in bundle.files for bundle in verified.bundles)
    x_t, t = states()
    found = load_router(verified).log_posterior(x_t, t, None)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(5).double())
    prior = load_router(verified, "prior").log_posterior(x_t, t, None)
    assert not torch.equal(found, prior)
    assert routers_without_samples(verified) == ["prior", "mixture", "heads"]


def test_removing_a_site_leaves_every_other_row_bit_equal(copied, complete, verified, scratch):
    fed = copied(complete)
    assemble(fed.home, scratch / "without", router=None, without=[B])
    less = verify_ensemble(scratch / "without", fed.root)
    x_t, t = states()
    rows = load_router(verified).log_ratios(x_t, t, None)
    assert torch.equal(load_router(less).log_ratios(x_t, t, None), rows[:, [0, 2]])


def test_site_that_joins_later_trains_against_the_same_reference(copied, complete, scratch):
    fed = copied(complete)
    publish = read_reference(fed.published, fed.trust).sha256
    from decimal import Decimal

    from sites.workspace import SiteFolder, SiteSettings

    settings = SiteSettings(name="hospital-d", root=fed.root, max_epsilon=Decimal(10))
    late = SiteFolder.create(fed.path / "hospital-d", settings)
    changes.add(fed.home, [late.path / "enrolment.dsse.json"])
    fed.look("hospital-d")
    train(late, fed.trust, random_images(9), seed=9)
    make_head(fed, "hospital-d", 9)
    deliver(fed, "hospital-d")
    assert [verdict.error for verdict in admit(fed)] == [None]
    assemble(fed.home, scratch / "more", router=None, without=())
    more = verify_ensemble(scratch / "more", fed.root)
    assert {bundle.submission.reference_sha256 for bundle in more.bundles} == {publish}
    assert len(load_heads(more)) == 4


def test_assembly_names_the_sites_that_sent_no_head(copied, first, scratch):
    fed = copied(first)
    with pytest.raises(PlanMismatchError, match="hospital-a, hospital-b, hospital-c sent none"):
        assemble(fed.home, scratch / "ensemble", router=None, without=())
    assert not (scratch / "ensemble").exists()
    assemble(fed.home, scratch / "ensemble", router="mixture", without=())
    found = verify_ensemble(scratch / "ensemble", fed.root)
    assert routers_without_samples(found) == ["prior", "mixture"]
    with pytest.raises(PlanMismatchError, match="sent none"):
        load_router(found, "heads")


def test_head_of_a_replaced_reference_is_refused_until_it_is_trained_again(copied, drafted):
    fed = copied(drafted)
    deliver(fed, A)
    publish_reference(fed.home, without=(), replace=True)
    (verdict,) = admit(fed)
    assert isinstance(verdict.error, PlanMismatchError)
    assert "has a head for the reference" in str(verdict.error)
    make_head(fed, A, 0)
    deliver(fed, A)
    assert [verdict.error for verdict in admit(fed)] == [None]


def test_heads_of_different_references_do_not_assemble(copied, complete, scratch):
    fed = copied(complete)
    publish_reference(fed.home, without=(), replace=True)
    make_head(fed, A, 0)
    deliver(fed, A)
    assert [verdict.error for verdict in admit(fed)] == [None]
    with pytest.raises(PlanMismatchError, match=r"different references \(hospital-a: "):
        assemble(fed.home, scratch / "ensemble", router=None, without=())
    assemble(fed.home, scratch / "two", router=None, without=[A])
    assert len(load_heads(verify_ensemble(scratch / "two", fed.root))) == 2


def test_ensemble_whose_heads_do_not_compose_is_refused_though_the_coordinator_signed_it(
    copied, first, scratch
):
    fed = copied(first)
    assemble(fed.home, scratch / "ensemble", router="mixture", without=())

    def claim(statement):
        statement["predicate"]["router"] = "heads"

    forge(scratch / "ensemble" / STATEMENT_FILE, claim, fed.coordinator_key())
    with pytest.raises(PlanMismatchError, match="needs one of every member"):
        verify_ensemble(scratch / "ensemble", fed.root)


def test_second_reference_is_refused_unless_it_replaces_the_first(copied, drafted):
    fed = copied(drafted)
    with pytest.raises(StateError, match="is published for this plan already"):
        publish_reference(fed.home, without=(), replace=False)


def test_reference_waits_for_every_site(copied, first):
    fed = copied(first)
    other = create_federation(fed.path / "other")
    proposals.publish_plan(other.home, read_plan_toml(PLAN))
    with pytest.raises(StateError, match="nothing is admitted yet from"):
        publish_reference(other.home, without=(), replace=False)
    assert not (other.published / REFERENCE_FILE).exists()


@pytest.mark.parametrize("file", [REFERENCE_FILE, VECTORS_FILE])
def test_altered_reference_is_refused(file, copied, drafted):
    fed = copied(drafted)
    flip(fed.published / file, -30)
    with pytest.raises(RefusedError):
        read_reference(fed.published, fed.trust)


def test_reference_signed_by_a_site_is_refused(copied, drafted):
    fed = copied(drafted)
    forge(fed.published / REFERENCE_FILE, lambda _: None, fed.key(A))
    with pytest.raises(RefusedError):
        read_reference(fed.published, fed.trust)


def test_reference_of_another_plan_is_refused(copied, drafted):
    fed = copied(drafted)
    proposals.publish_plan(fed.home, read_plan_toml(PLAN.replace("steps = 3", "steps = 4")))
    with pytest.raises(PlanMismatchError, match="the reference is of the plan"):
        read_reference(fed.published, fed.trust)


def test_head_of_other_images_is_refused(copied, drafted):
    fed = copied(drafted)
    with pytest.raises(CheckpointError, match="trained on other images"):
        make_head(fed, A, 7)


def test_head_before_training_is_refused(copied, drafted, scratch):
    fed = copied(drafted)
    shutil.rmtree(fed.site(A).path / "private")
    (fed.site(A).path / "private").mkdir()
    with pytest.raises(StateError, match="has not trained under this plan yet"):
        make_head(fed, A, 0)


def test_head_is_trained_once_for_a_reference_and_the_ledger_says_so(copied, drafted):
    fed, said = copied(drafted), []
    before = (fed.site(A).path / "ledger.jsonl").read_bytes()
    assert b'"purpose":"head"' in before
    draft = make_head(fed, A, 0, watch=Watch(say=said.append))
    assert said == ["the head is trained already"]
    assert (fed.site(A).path / "ledger.jsonl").read_bytes() == before
    assert draft in stages.find_bundles(fed.site(A).drafts)


def test_review_says_that_the_head_carries_no_guarantee(copied, drafted):
    fed = copied(drafted)
    seen = stages.review(fed.site(A), fed.trust)
    assert seen.egress.head_is_private is False
    assert HEAD_FILE in {file.name for file in seen.egress.files}


def edited(fed, name, edit):
    """Admits a bundle whose manifest was edited and signed by its own site."""
    deliver(fed, name)
    forge(fed.arrival(name) / ENVELOPE_FILE, edit, fed.key(name))
    (verdict,) = admit(fed)
    return verdict.error


def test_head_file_without_a_word_in_the_manifest_is_refused(copied, drafted):
    def edit(statement):
        statement["predicate"]["head"] = None
        statement["subject"] = [s for s in statement["subject"] if s["name"] != HEAD_FILE]
        files = statement["predicate"]["files"]
        statement["predicate"]["files"] = [f for f in files if f["name"] != HEAD_FILE]

    error = edited(copied(drafted), A, edit)
    assert isinstance(error, FileSetError)
    assert "it is signed over" in str(error)


def test_manifest_with_a_head_whose_file_is_missing_is_refused(copied, drafted):
    fed = copied(drafted)
    deliver(fed, A)
    (fed.arrival(A) / HEAD_FILE).unlink()
    (verdict,) = admit(fed)
    assert "it is signed over" in str(verdict.error)


def test_head_of_fewer_steps_than_planned_is_refused(copied, drafted):
    error = edited(copied(drafted), A, lambda s: s["predicate"]["head"].update(steps=5))
    assert "has a head trained for 5 steps, the plan asks for 6" in str(error)


def test_head_that_the_ledger_does_not_know_is_refused(copied, drafted):
    def edit(statement):
        ledger = statement["predicate"]["privacy"]["ledger"]
        assert ledger.pop()["purpose"] == "head"

    error = edited(copied(drafted), A, edit)
    assert "does not say how its head was trained" in str(error)


def test_head_under_a_plan_without_heads_is_refused(copy_of):
    fed = copy_of("submitted", *SITES)

    def edit(statement):
        statement["predicate"]["head"] = {"reference_sha256": "0" * 64, "steps": 6}
        statement["predicate"]["files"].append({"name": HEAD_FILE, "size_bytes": 4})
        statement["subject"].append({"name": HEAD_FILE, "digest": {"sha256": "0" * 64}})

    (fed.arrival(A) / HEAD_FILE).write_bytes(b"head")
    forge(fed.arrival(A) / ENVELOPE_FILE, edit, fed.key(A))
    errors = [verdict.error for verdict in admit(fed) if verdict.error]
    assert [type(error) for error in errors] == [PlanMismatchError]


def test_heads_can_be_calibrated_and_be_the_low_part_of_a_hybrid(verified, complete, scratch):
    plain = load_router(verified)
    x_t, t = states()
    for kind, calibrate in (("heads", True), ("hybrid", False)):
        options = BuildOptions(
            kind=kind, samples_per_site=24, solver_steps=2, seed=3, calibrate=calibrate
        )
        built = build_from_samples(verified, options)
        shift = torch.tensor([1.0, 0.0, -1.0])
        if calibrate:
            built.tensors["calibration.bias"][:] = shift  # so few samples teach nothing
            built.tensors["calibration.log_temperature"][:] = 0
        write_built(scratch / kind, built)
        target = scratch / f"with-{kind}"
        assemble(complete.home, target, router=read_built(scratch / kind), without=())
        found = load_router(verify_ensemble(target, complete.root)).log_posterior(x_t, t, None)
        heads = plain.log_posterior(x_t, t, None)
        if kind == "hybrid":
            mixture = load_router(verified, "mixture").log_posterior(x_t, t, None)
            expected = torch.where((t >= 0.7)[:, None], mixture, heads)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        else:
            expected = (heads + shift).log_softmax(1)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_status_says_what_each_site_waits_for(first, drafted, scratch):
    def waiting(fed):
        return {row["waiting_for"] for row in site_states(fed.home).as_json()["sites"]}

    assert waiting(first) == {"`ddm-coord reference`"}
    assert waiting(drafted) == {"its head: `ddm-site head` there, then `ddm-coord admit`"}
    fed = drafted.copy(scratch / "whole", "consortium", *SITES)
    for name in SITES:
        deliver(fed, name)
    admit(fed)
    assert waiting(fed) == {"`ddm-coord assemble`"}
    assemble(fed.home, scratch / "ours", router=None, without=())
    assert waiting(fed) == {"nothing; it is in the ensemble ours"}


def test_commands_take_a_site_through_the_second_message(copied, first, scratch):
    import numpy as np

    fed = copied(first)
    runner = CliRunner()
    done = runner.invoke(
        coordinator_app, ["reference", "--coordinator", str(fed.path / "consortium")]
    )
    assert done.exit_code == 0, done.output
    images = random_images(0).reveal().images
    np.save(scratch / "images.npy", images.numpy())
    done = runner.invoke(
        site_app,
        f"head --site {fed.path / A} --plan {fed.published} --data {scratch / 'images.npy'} "
        "--value-range -1 1".split(),
    )
    assert done.exit_code == 0, done.output
    deliver(fed, A)
    assert [verdict.error for verdict in admit(fed)] == [None]
    assert CoordinatorFolder.open(fed.path / "consortium").trust().plan.router.kind == "heads"

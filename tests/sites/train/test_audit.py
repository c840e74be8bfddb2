"""`ddm-site audit`: honest sites pass, planted bugs do not, and nothing leaves by itself."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from federation import PRIVATE, SITES, a_plan, create_federation, random_images, train
from planting import plant
from typer.testing import CliRunner

from coordinator.roster import proposals
from ddm_fed.auditing import GaussianTradeOff, second_accountant
from ddm_fed.bundle.verify import ROUTER_FILE, verify_bundle
from ddm_fed.errors import BudgetError, DataError, PolicyError, StateError
from ddm_fed.mixture import exact_statistics
from ddm_fed.privacy import (
    ImageSet,
    Private,
    PrivateStep,
    ProvedUpdate,
    RecordedGradients,
    epsilon,
)
from ddm_fed.records import AuditFacts, now
from ddm_fed.storage.tensors import read_own_tensors, write_tensors
from ddm_fed.training import PrivateTraining
from ddm_fed.training.plan_cost import planned_events
from sites.cli.main import app
from sites.outbox import stages
from sites.privacy.ledger import open_ledger
from sites.train import audit_expert
from sites.train.audit import AUDIT_FILE, CANARIES_FILE, AuditOptions, run_audit
from sites.train.expert import TRAINED_FILE
from sites.train.pipeline import write_draft

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_block")]

A = SITES[0]
SMALL = 'architecture = "DiT-Nano/4"'
PLAN = a_plan(max_epsilon=PRIVATE, architecture=SMALL)
FEW = AuditOptions(canaries=20_000)  # where it is what canaries find that is looked at
NEARLY_NONE = AuditOptions(canaries=2000)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    fed = create_federation(tmp_path_factory.mktemp("audit") / "fed", sites=(A,))
    proposals.publish_plan(fed.home, PLAN)
    fed.look(A)
    train(fed.site(A), fed.trust, random_images(0), seed=0)
    return fed


@pytest.fixture
def site(trained, scratch):
    """`(site, trust, work)` of a copy."""
    fed = trained.copy(scratch / "fed", "consortium", A)
    return fed.site(A), fed.trust, fed.site(A).work(fed.trust.plan_sha256)


@pytest.fixture(scope="module")
def honest(trained, tmp_path_factory):
    """What an audit finds of the site as it is."""
    fed = trained.copy(tmp_path_factory.mktemp("honest") / "fed", "consortium", A)
    return run_audit(fed.site(A), fed.trust, random_images(0), FEW)


def failed(result):
    return {found.name for found in (*result.mechanism, *result.releases) if not found.passed}


def test_honest_site_is_not_accused(honest):
    assert not honest.violates
    assert failed(honest) == set()
    assert honest.canaries.verdict != "violates_claim"
    # noise of two messages, two tests of their units each, and the divisor
    assert len(honest.releases) == 7


def test_audit_before_training_tries_the_step_as_it_would_be(trained, tmp_path):
    fed = trained.copy(tmp_path / "fed", "consortium", A)
    work = fed.site(A).work(fed.trust.plan_sha256)
    for file in work.iterdir():
        file.unlink()
    found = run_audit(fed.site(A), fed.trust, random_images(0), NEARLY_NONE)
    assert found.mechanism
    assert found.releases == []
    assert any("nothing is trained yet" in note for note in found.notes)


def test_plan_without_noise_has_no_claim(tmp_path):
    fed = create_federation(tmp_path / "fed", sites=(A,))
    train(fed.site(A), fed.trust, random_images(0))
    found = run_audit(fed.site(A), fed.trust, random_images(0), NEARLY_NONE)
    assert found.canaries is None
    assert len(found.releases) == 6
    assert not found.violates


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.5])
def test_training_with_less_noise_than_stated_is_accused(site, monkeypatch, factor):
    original = PrivateStep.release

    def quiet(self, clipped, step, clip_norm):
        weak = replace_noise(self, self.noise_multiplier * factor)
        return original(weak, clipped, step, clip_norm)

    def replace_noise(step, multiplier):
        import copy

        weak = copy.copy(step)
        weak.noise_multiplier = multiplier
        return weak

    monkeypatch.setattr(PrivateStep, "release", quiet)
    home, trust, _ = site
    found = run_audit(home, trust, random_images(0), FEW)
    assert found.violates
    assert "size of the noise" in failed(found)
    if factor < 0.5:  # with so few canaries half of the noise is left to the test of its size
        assert found.canaries.verdict == "violates_claim"


def test_layer_that_is_not_clipped_is_accused(site, monkeypatch):
    original = RecordedGradients.clipped_sum  # the engine that trains this network

    def unclipped(self, weights, rows, clip_norm):
        found = original(self, weights, rows, clip_norm)
        name = next(iter(found.total))
        found.total[name] = original(self, weights, rows, 1e9).total[name]
        return found

    monkeypatch.setattr(RecordedGradients, "clipped_sum", unclipped)
    home, trust, _ = site
    accused = failed(run_audit(home, trust, random_images(0), NEARLY_NONE))
    assert any("sensitivity" in name for name in accused)


def test_price_that_is_too_low_is_accused(site, monkeypatch):
    def half(events, delta):
        return epsilon(events, delta) / 2

    monkeypatch.setattr(second_accountant, "epsilon", half)
    home, trust, _ = site
    found = run_audit(home, trust, random_images(0), NEARLY_NONE)
    assert found.violates
    assert failed(found) == {"price of everything, by Opacus"}


def test_shuffled_batches_are_accused(site, monkeypatch):
    def shuffled(self, step, units):
        epoch = max(1, round(1 / self.sampling_rate))
        order = torch.randperm(units, generator=torch.Generator().manual_seed(step // epoch))
        return order.chunk(epoch)[step % epoch]

    monkeypatch.setattr(PrivateStep, "included", shuffled)
    home, trust, _ = site
    found = failed(run_audit(home, trust, random_images(0), NEARLY_NONE))
    assert "size of the steps" in found


def test_example_that_counts_twice_is_accused(site, monkeypatch):
    original = PrivateStep.included

    def twice(self, step, units):
        chosen = original(self, step, units)
        return torch.cat([chosen, chosen[:1]])

    monkeypatch.setattr(PrivateStep, "included", twice)
    home, trust, _ = site
    assert "a unit in one step" in failed(run_audit(home, trust, random_images(0), NEARLY_NONE))


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.5])
def test_release_with_less_noise_than_stated_is_accused(site, factor):
    home, trust, work = site
    released = read_own_tensors(work / ROUTER_FILE)
    data = random_images(0)
    location, shape = "location", "shape"
    exact = exact_statistics(data, trust.plan, released)[shape].reveal()
    quiet = exact + np.trunc((released[shape] - exact) * factor).astype(np.int64)
    write_tensors(
        work / ROUTER_FILE,
        {location: torch.from_numpy(released[location]), shape: torch.from_numpy(quiet)},
    )
    found = run_audit(home, trust, data, NEARLY_NONE)
    # half the noise in the few values of this small plan is within chance
    assert ("noise of the release: shape" in failed(found)) == (factor < 0.5)


def test_exact_number_of_images_in_the_divisor_is_accused(site):
    home, trust, work = site
    record = json.loads((work / TRAINED_FILE).read_bytes())
    noise = PrivateTraining.from_json(record["noise"])
    record["noise"] = replace(noise, expected_units=24 * noise.sampling_rate).to_json()
    (work / TRAINED_FILE).write_text(json.dumps(record))
    found = run_audit(home, trust, random_images(0), NEARLY_NONE)
    accused = next(f for f in found.releases if not f.passed)
    assert accused.name == "expected number of units"
    assert "EXACT" in accused.found


def test_attack_on_the_weights_needs_controls_and_reports_both_figures(site):
    home, trust, _ = site
    options = replace(NEARLY_NONE, controls=random_images(99, count=40))
    found = run_audit(home, trust, random_images(0), options)
    assert (found.membership.members, found.membership.controls) == (24, 40)
    assert found.memorization.controls == 40
    assert any("local" in sentence for sentence in found.sentences())


def test_samples_that_copy_training_images_end_the_audit_with_a_violation(site, monkeypatch):
    own = random_images(0).reveal().images.flatten(1).double().numpy()
    monkeypatch.setattr(audit_expert, "samples_of_expert", lambda *_: own)
    home, trust, _ = site
    options = replace(NEARLY_NONE, controls=random_images(99, count=40))
    found = run_audit(home, trust, random_images(0), options)
    assert found.nearest.bound == found.nearest.ceiling > 0.5
    assert not found.violates  # so few pairs reject no claim of this size
    # but what is claimed of one image they do
    monkeypatch.setattr(audit_expert, "price", lambda *_: (0.0625, GaussianTradeOff(0.01)))
    found = run_audit(home, trust, random_images(0), options)
    assert found.violates
    assert any("The claim of epsilon 0.0625 is REJECTED" in line for line in found.sentences())
    assert found.facts()["nearest"]["bound"] == found.nearest.bound


def test_controls_that_were_trained_on_are_refused(site):
    home, trust, _ = site
    mixed = torch.cat([random_images(0).reveal().images[:3], random_images(9).reveal().images])
    options = replace(NEARLY_NONE, controls=Private(ImageSet(mixed, None)))
    with pytest.raises(DataError, match="3 of the 27 controls"):
        run_audit(home, trust, random_images(0), options)


def test_attack_on_an_expert_of_other_images_is_refused(site):
    home, trust, _ = site
    with pytest.raises(StateError, match="other images"):
        run_audit(home, trust, random_images(1), replace(NEARLY_NONE, controls=random_images(9)))


def test_other_images_are_refused_and_not_called_a_lie(site):
    home, trust, work = site
    (work / TRAINED_FILE).unlink()
    with pytest.raises(StateError, match="released statistics of, other images"):
        run_audit(home, trust, random_images(1), NEARLY_NONE)
    assert not (work / AUDIT_FILE).exists()


def test_honest_site_of_patients_is_not_accused(tmp_path):
    fed = create_federation(tmp_path / "fed", sites=(A,))
    of_patients = a_plan(max_epsilon='unit = "patient"\n' + PRIVATE, architecture=SMALL)
    proposals.publish_plan(fed.home, of_patients)
    fed.look(A)
    images = random_images(0, count=40).reveal()
    data = Private(replace(images, units=torch.arange(40) // 2))
    bundle = train(fed.site(A), fed.trust, data, seed=0)
    privacy = verify_bundle(bundle, fed.trust, now(), require=("site",)).submission.privacy
    assert privacy.unit == "patient"
    assert {entry.unit for entry in privacy.ledger} == {"patient"}
    found = run_audit(fed.site(A), fed.trust, data, FEW)
    assert failed(found) == set()
    assert not found.violates


def test_plan_for_patients_after_releases_of_images_is_refused(site, trained):
    home, _, _ = site
    fed = trained
    of_patients = a_plan(max_epsilon='unit = "patient"\n' + PRIVATE, architecture=SMALL)
    with pytest.raises(BudgetError, match="single images"):
        open_ledger(home).require_budget([planned_events(of_patients).expert], of_patients)
    assert fed.trust.plan.privacy.unit == "image"


# --- what leaves ---


def test_figures_of_real_images_stay_in_the_private_folder(site):
    home, trust, work = site
    run_audit(home, trust, random_images(0), replace(NEARLY_NONE, controls=random_images(9)))
    assert (work / AUDIT_FILE).stat().st_mode & 0o077 == 0
    shared = AuditFacts.from_json((work / CANARIES_FILE).read_bytes(), what="canaries")
    assert shared.attacker_access == "white-box gradients"
    draft = stages.newest_draft(home)
    assert verify_bundle(draft, trust, now(), require=("site",)).submission.privacy.audit is None


def test_site_that_shares_its_audit_sends_the_canaries_figures_only(site, trained):
    home, trust, _ = site
    sharing = replace(home, settings=home.settings.model_copy(update={"share_audit": True}))
    run_audit(sharing, trust, random_images(0), replace(NEARLY_NONE, controls=random_images(9)))
    draft = write_draft(sharing, trust, trained.look(A).log)
    privacy = verify_bundle(draft, trust, now(), require=("site",)).submission.privacy
    assert privacy.audit.canaries == NEARLY_NONE.canaries
    assert "membership" not in json.dumps(privacy.model_dump(mode="json"))


def test_audit_that_rejects_the_claim_is_not_admitted(site, trained, monkeypatch):
    home, trust, _ = site
    sharing = replace(home, settings=home.settings.model_copy(update={"share_audit": True}))
    monkeypatch.setattr(
        PrivateStep,
        "release",
        lambda self, clipped, step, clip_norm: {
            name: value / self.expected_units for name, value in clipped.total.items()
        },
    )
    assert run_audit(sharing, trust, random_images(0), FEW).violates
    with pytest.raises(PolicyError, match="its own audit rejects"):
        write_draft(sharing, trust, trained.look(A).log)


# --- canaries through a whole training ---


def test_canaries_through_a_whole_training_do_not_accuse_an_honest_one(honest):
    assert honest.run.verdict != "violates_claim"
    assert honest.run.training_steps == PLAN.training.steps
    assert any("Canaries went through a whole training" in line for line in honest.sentences())


def test_training_whose_noise_is_lost_is_accused_by_its_canaries_alone(site, monkeypatch):
    # neither the proof of its steps nor the tests before it are there to help
    plant(
        monkeypatch,
        PrivateStep.noisy_mean,
        (
            "self.release(clipped, step, clip_norm)",
            "{n: v / self.expected_units for n, v in clipped.total.items()}",
        ),
    )
    plant(monkeypatch, ProvedUpdate.take, ("if step not in self.chosen:", "if True:"))
    plant(monkeypatch, ProvedUpdate.require_complete, ("raise _broken", "return _broken"))
    home, trust, _ = site
    found = run_audit(home, trust, random_images(0), FEW)
    assert found.run.verdict == "violates_claim"
    assert all(finding.passed for finding in found.mechanism)


def test_training_that_does_not_prove_its_steps_is_accused(site, monkeypatch):
    plant(
        monkeypatch,
        PrivateStep.noisy_mean,
        ("self.release(clipped, step, clip_norm)", "self.release(clipped, step, clip_norm / 2)"),
    )
    home, trust, _ = site
    assert failed(run_audit(home, trust, random_images(0), NEARLY_NONE)) == {
        "steps of a training, computed again"
    }


# --- the command ---


def images_file(folder, seed):
    pixels = ((random_images(seed).reveal().images[:, 0] + 1) / 2).numpy()
    np.savez(folder / f"{seed}.npz", images=pixels)
    return folder / f"{seed}.npz"


def test_audit_command_says_what_it_found(trained, tmp_path):
    home = trained.path / A
    arguments = ["audit", "--site", home, "--plan", trained.published, "--canaries", 2000]
    arguments += ["--data", images_file(tmp_path, 0), "--json"]
    shown = CliRunner().invoke(app, [str(part) for part in arguments])
    assert shown.exit_code == 0, shown.output
    facts = json.loads(shown.stdout)
    assert facts["violates"] is False
    assert facts["canaries"]["canaries"] == 2000


def test_audit_command_ends_with_1_where_a_claim_is_rejected(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(PrivateStep, "included", lambda self, step, units: torch.arange(units))
    home = trained.path / A
    arguments = ["audit", "--site", home, "--plan", trained.published, "--canaries", 2000]
    arguments += ["--data", images_file(tmp_path, 0)]
    shown = CliRunner().invoke(app, [str(part) for part in arguments])
    assert shown.exit_code == 1
    assert "FAILED" in shown.output

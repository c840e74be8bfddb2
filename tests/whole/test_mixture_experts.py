"""Experts that are the mixture of their release, or add to it, from the plan to samples."""

from pathlib import Path

import pytest
import torch
from federation import SITES, Federation, create_federation, forge_manifest, snapshot, train
from typer.testing import CliRunner

from coordinator.cli.main import app
from coordinator.ensembles.assemble import assemble
from coordinator.inbox.admission import admit_arrivals
from coordinator.roster import proposals
from ddm_fed.bundle.verify import EXPERT_FILE, ROUTER_FILE, verify_bundle
from ddm_fed.ensemble.folder import verify_ensemble
from ddm_fed.ensemble.load import load_ensemble, load_releases
from ddm_fed.errors import CheckpointError, FileSetError, MalformedError, PolicyError
from ddm_fed.flows import ClassCondition, integrate, time_grid
from ddm_fed.mixture import MixtureVelocity, fit_image_mixtures
from ddm_fed.models import build_expert, build_network
from ddm_fed.privacy import ImageSet, Private, describe_privacy
from ddm_fed.records import now, read_plan_toml
from sites.outbox import stages
from sites.train.audit import AuditOptions, run_audit
from sites.train.expert import CHECKPOINT_FILE, expert_of, own_mixture
from sites.transport import submit
from sites.transport.base import FolderTransport

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_block")]

A, B, C = SITES
KINDS = {A: "mixture", B: "mixture", C: "mixture+DiT-Nano/4"}
PLAN = """
federation = "test"
expires_at = 2036-01-01T00:00:00Z
[data]
channels = 1
height = 8
width = 8
conditioning = "class"
classes = ["dark", "bright"]
[expert]
architecture = ["mixture", "mixture+DiT-Nano/4", "DiT-Nano/4"]
[training]
steps = 30
batch_size = 64
learning_rate = 0.003
warmup_steps = 0
ema_half_lives = [10]
[router]
kind = "mixture"
epsilon = 6
frequencies = 16
components = 1
bands = 2
[privacy]
max_epsilon = 20
"""
NOISY = """
[privacy.sgd]
epsilon = 9
units = 600
clip_norm = 0.1
draws = 2
"""
COUNT = 600


def images(seed: int, count: int = COUNT) -> Private[ImageSet]:
    """Dark images and bright ones that rise to the right, a little more at every site."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    level = torch.where(labels == 0, -0.5, 0.5)[:, None, None, None]
    slope = torch.linspace(-0.3, 0.3, 8) * (1 + 0.1 * seed)
    noise = 0.1 * torch.randn((count, 1, 8, 8), generator=generator)
    return Private(ImageSet((level + slope + noise).clamp(-1, 1), labels))


def started(path: Path, plan: str = PLAN) -> Federation:
    fed = create_federation(path)
    proposals.publish_plan(fed.home, read_plan_toml(plan))
    for name in SITES:
        fed.look(name)
    return fed


def train_as(fed: Federation, name: str, kind: str, **options) -> Path:
    seed = SITES.index(name)
    design = fed.trust.plan.expert.design(kind)
    return train(fed.site(name), fed.trust, images(seed), design=design, seed=seed, **options)


@pytest.fixture(scope="module")
def drafted(tmp_path_factory) -> Federation:
    """Three sites: two are their release, one adds a network to it."""
    fed = started(tmp_path_factory.mktemp("mixtures"))
    for name, kind in KINDS.items():
        train_as(fed, name, kind)
    return fed


@pytest.fixture(scope="module")
def fed(drafted, tmp_path_factory) -> Federation:
    """All of them are admitted."""
    fed = drafted.copy(tmp_path_factory.mktemp("admitted"), "consortium", *SITES)
    for name in SITES:
        stages.review(fed.site(name), fed.trust)
        stages.release(fed.site(name), fed.trust)
        submit.submit(fed.site(name), fed.trust, FolderTransport(fed.inbox))
    assert [outcome.error for outcome in admit_arrivals(fed.home, fed.trust)] == [None] * 3
    return fed


@pytest.fixture(scope="module")
def folder(fed, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("ensemble") / "ensemble"
    assemble(fed.home, target, router=None, without=())
    return target


def experts_of(folder: Path, root: str):
    ensemble = load_ensemble(verify_ensemble(folder, root))
    return [ensemble.experts._get(place) for place in range(len(ensemble.experts))]


def asked(expert, count: int = 64) -> torch.Tensor:
    """What an expert answers to the same questions."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn((count, 1, 8, 8), generator=generator)
    t = torch.rand(count, generator=generator)
    with torch.no_grad():
        return expert(x, t, ClassCondition(torch.arange(count) % 2))


def draft(fed: Federation, name: str) -> Path:
    (bundle,) = stages.find_bundles(fed.site(name).drafts)
    return bundle


def test_bundle_of_a_mixture_holds_its_release_alone_and_is_as_private(fed):
    mixture, network = fed.stored(A).submission, fed.stored(C).submission
    assert {file.name for file in mixture.files} == {ROUTER_FILE}
    assert mixture.training is None
    assert mixture.privacy.expert_is_private
    assert [entry.purpose for entry in mixture.privacy.ledger] == [
        "router-norms",
        "router-location",
        "router-shape",
    ]
    assert {file.name for file in network.files} == {EXPERT_FILE, ROUTER_FILE}
    assert not network.privacy.expert_is_private


def test_samples_of_mixtures_are_images_of_the_class_asked_for(fed, folder):
    for place, expert in enumerate(experts_of(folder, fed.root)):
        for label, level in ((0, -0.5), (1, 0.5)):
            condition = ClassCondition(torch.full((200,), label))
            noise = torch.randn((200, 1, 8, 8), generator=torch.Generator().manual_seed(3))
            with torch.no_grad():
                found = integrate(
                    lambda x, t, e=expert, c=condition: e(x, t.expand(200), c),
                    noise,
                    time_grid(20),
                    "heun",
                )
            assert float(found.mean()) == pytest.approx(level, abs=0.06)
            rise = float((found[..., -1] - found[..., 0]).mean())
            assert rise == pytest.approx(0.6 * (1 + 0.1 * place), abs=0.12)


def test_ensemble_of_mixtures_is_sampled_and_compared_by_the_commands(fed, folder, tmp_path):
    root = ("--root", fed.root)
    out = ("--out", str(tmp_path / "samples"), "--count", "12", "--steps", "4")
    done = CliRunner().invoke(app, ["sample", str(folder), *root, *out])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["verify", str(folder), *root])
    assert done.exit_code == 0, done.output
    assert "the release itself" in done.output


def test_mixtures_are_drawn_from_the_members_there_are_and_networks_stand_alone(
    fed, folder, tmp_path
):
    assemble(fed.home, tmp_path / "without", router=None, without=(B,))
    left = experts_of(tmp_path / "without", fed.root)
    with_all = experts_of(folder, fed.root)
    # drawn together: what A is depends on who else is there
    assert not torch.equal(asked(left[0]), asked(with_all[0]))
    # a network's base is its own release, whoever else is there
    assert torch.equal(asked(left[1]), asked(with_all[2]))


def test_network_that_adds_to_a_mixture_starts_as_the_mixture(fed):
    plan, site = fed.trust.plan, fed.site(C)
    design = plan.expert.design(KINDS[C])
    mixture = own_mixture(site.work(fed.trust.plan_sha256), plan, design)
    network = build_network(plan.data, design)
    network.reset_parameters(torch.Generator().manual_seed(0))
    expert = build_expert(plan.data, design, network.state_dict(), mixture)
    assert torch.equal(asked(expert), asked(mixture))


def test_expert_of_an_ensemble_is_the_one_its_site_trained(fed, folder):
    site = fed.site(C)
    (trained,) = (
        e for e in experts_of(folder, fed.root) if not isinstance(e.network, MixtureVelocity)
    )

    own = expert_of(
        site.work(fed.trust.plan_sha256), fed.trust.plan, fed.trust.plan.expert.design(KINDS[C])
    )
    torch.testing.assert_close(asked(trained), asked(own), rtol=0, atol=1e-5)


def test_training_a_mixture_again_spends_nothing_and_returns_the_same_bundle(drafted, scratch):
    fed = drafted.copy(scratch / "again", "consortium", *SITES)
    before = snapshot(fed.site(A).path)
    bundle = train_as(fed, A, "mixture")
    assert bundle == draft(fed, A)
    after = snapshot(fed.site(A).path)
    assert before["ledger.jsonl"] == after["ledger.jsonl"]


def test_mixture_that_becomes_a_network_has_to_be_asked_for(drafted, scratch):
    fed = drafted.copy(scratch / "other", "consortium", *SITES)
    with pytest.raises(CheckpointError, match="trained already"):
        train_as(fed, A, "DiT-Nano/4")
    bundle = train_as(fed, A, "mixture+DiT-Nano/4", restart=True)
    verified = verify_bundle(bundle, fed.trust, now(), require=("site",))
    assert set(verified.files) == {EXPERT_FILE, ROUTER_FILE}


def test_network_whose_release_was_exchanged_is_not_trained_on(drafted, scratch):
    fed = drafted.copy(scratch / "exchanged", "consortium", *SITES)
    work, other = (fed.site(name).work(fed.trust.plan_sha256) for name in (C, A))
    (work / "trained.json").unlink()
    (work / ROUTER_FILE).write_bytes((other / ROUTER_FILE).read_bytes())
    assert (work / CHECKPOINT_FILE).exists()
    with pytest.raises(CheckpointError, match="another release"):
        train_as(fed, C, KINDS[C])


# --- what a member may try ---


def test_mixture_with_weights_beside_its_release_is_refused(drafted, scratch):
    fed = drafted.copy(scratch / "beside", "consortium", *SITES)
    bundle = draft(fed, A)
    (bundle / EXPERT_FILE).write_bytes((draft(fed, C) / EXPERT_FILE).read_bytes())
    with pytest.raises(FileSetError):
        verify_bundle(bundle, fed.trust, now())


def test_mixture_that_is_signed_with_weights_is_refused(drafted, scratch):
    fed = drafted.copy(scratch / "signed", "consortium", *SITES)
    bundle = draft(fed, C)

    def edit(fields):
        fields["expert"]["architecture"] = "mixture"
        del fields["training"]

    forge_manifest(bundle, edit, fed.key(C))
    with pytest.raises(FileSetError):
        verify_bundle(bundle, fed.trust, now())


def test_network_that_calls_itself_trained_without_facts_is_refused(drafted, scratch):
    fed = drafted.copy(scratch / "facts", "consortium", *SITES)
    bundle = draft(fed, C)
    forge_manifest(bundle, lambda fields: fields.pop("training"), fed.key(C))
    with pytest.raises(MalformedError, match="training"):
        verify_bundle(bundle, fed.trust, now())


@pytest.mark.parametrize("name", [A, C])
def test_expert_that_states_the_wrong_privacy_is_refused(drafted, scratch, name):
    fed = drafted.copy(scratch / "stated", "consortium", *SITES)
    bundle = draft(fed, name)

    def edit(fields):
        fields["privacy"]["expert_is_private"] = not fields["privacy"]["expert_is_private"]

    forge_manifest(bundle, edit, fed.key(name))
    with pytest.raises(PolicyError, match="how its expert was trained"):
        verify_bundle(bundle, fed.trust, now())


# --- with noise ---


def test_network_that_adds_to_a_mixture_is_trained_with_noise_and_proved(tmp_path):
    fed = started(tmp_path, PLAN.replace("steps = 30", "steps = 4") + NOISY)
    bundle = train_as(fed, C, KINDS[C])
    verified = verify_bundle(bundle, fed.trust, now(), require=("site",))
    privacy = verified.submission.privacy
    assert privacy.expert_is_private
    assert [entry.purpose for entry in privacy.ledger][-1] == "expert"
    assert float(privacy.releases_epsilon) <= 9
    # a site that is its release spends nothing on a training, under the same plan
    bundle = train_as(fed, A, "mixture")
    verified = verify_bundle(bundle, fed.trust, now(), require=("site",))
    assert float(verified.submission.privacy.releases_epsilon) <= 6
    assert verified.submission.privacy.sgd is None


# --- what people are told ---


def test_officer_reads_that_a_mixture_has_no_weights_beside_its_release(fed):
    told = describe_privacy(fed.stored(A).submission.privacy)
    assert any("Expert: the mixture that these statistics describe" in line for line in told)
    assert not any("NOT bounded" in line for line in told)
    assert any(
        "NOT bounded by it: expert" in line
        for line in describe_privacy(fed.stored(C).submission.privacy)
    )


@pytest.mark.parametrize("plan", [PLAN, PLAN + NOISY], ids=["plain", "with noise"])
def test_audit_of_a_mixture_examines_the_release_and_names_its_bound(tmp_path, plan):
    fed = started(tmp_path, plan)
    train_as(fed, A, "mixture")
    options = AuditOptions(controls=images(7, 200))
    found = run_audit(fed.site(A), fed.trust, images(0), options)
    assert len(found.releases) == 9  # three messages: their noise, and two tests of their units
    assert all(finding.passed for finding in found.releases)
    assert not found.violates
    assert found.canaries is None
    assert any("the mixture that was released" in note for note in found.notes)
    assert 5.99 < found.claimed_epsilon <= 6
    assert any(f"bound is epsilon {found.claimed_epsilon}" in line for line in found.sentences())
    assert found.nearest.pairs == 200
    assert any("is not rejected" in line for line in found.sentences())


def test_audit_before_any_training_tries_the_plans_first_network(tmp_path):
    fed = started(tmp_path, PLAN + NOISY)
    found = run_audit(
        fed.site(A), fed.trust, images(0), AuditOptions(canaries=2000, most_steps=2, run_steps=2)
    )
    assert found.mechanism
    assert any("nothing is trained yet" in note for note in found.notes)


def test_mixtures_are_what_the_releases_of_the_members_alone_make(fed, tmp_path):
    assemble(fed.home, tmp_path / "without", router=None, without=(B,))
    verified = verify_ensemble(tmp_path / "without", fed.root)
    fitted = fit_image_mixtures(fed.trust.plan, load_releases(verified))
    assert [bundle.site for bundle in verified.bundles] == [A, C]
    expected = MixtureVelocity(fed.trust.plan, fitted[0])
    assert torch.equal(asked(experts_of(tmp_path / "without", fed.root)[0]), asked(expected))

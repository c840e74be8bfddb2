"""Bugs planted in the release of a mixture, in what is trained beside it and in the pool of sites.

Each is one that samples do not show, and each is stopped by name, or found by the audit.
"""

# ruff: noqa: E501  a statement and its mutant stand whole

import shutil
from dataclasses import replace

import pytest
import torch
from federation import SITES, create_federation, sign_files, train
from planting import plant

from coordinator.ensembles.assemble import assemble
from coordinator.inbox.admission import admit_arrivals
from coordinator.roster import proposals
from ddm_fed.bundle.verify import ROUTER_FILE, verify_bundle
from ddm_fed.ensemble.folder import verify_ensemble
from ddm_fed.ensemble.load import load_ensemble, load_releases
from ddm_fed.errors import MechanismError, ReplayError
from ddm_fed.mixture import fit_image_mixtures, fit_mixtures, statistics
from ddm_fed.mixture.coefficients import coefficients
from ddm_fed.mixture.components import component_of_images
from ddm_fed.mixture.integer_sums import integer_sum
from ddm_fed.privacy import ImageSet, Private, mechanisms
from ddm_fed.records import now, read_plan_toml
from ddm_fed.training import PrivateRun
from sites.outbox import stages
from sites.privacy.ledger import open_ledger
from sites.train import expert as site_training
from sites.train.audit import AuditOptions, run_audit

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_block")]

A, B = SITES[:2]
CLASSES = 'conditioning = "class"\nclasses = ["dark", "bright"]\n'
PLAN = """
federation = "test"
expires_at = 2036-01-01T00:00:00Z
[data]
channels = 1
height = 8
width = 8
[expert]
architecture = ["mixture", "mixture+DiT-Nano/4"]
[training]
steps = 3
batch_size = 16
ema_half_lives = [10]
[router]
kind = "mixture"
epsilon = 6
frequencies = 9
components = 4
bands = 2
[privacy]
max_epsilon = 20
[privacy.sgd]
epsilon = 9
units = 100
clip_norm = 0.1
draws = 2
"""
OF_CLASSES = PLAN.replace("width = 8\n", f"width = 8\n{CLASSES}")
OF_PATIENTS = PLAN.replace("max_epsilon = 20", 'max_epsilon = 20\nunit = "patient"')
COUNT = 100


def images(seed, count=COUNT, patients=False):
    generator = torch.Generator().manual_seed(seed)
    slope = torch.linspace(-0.6, 0.6, 8) * torch.randn((count, 1, 1, 1), generator=generator)
    noise = 0.2 * torch.randn((count, 1, 8, 8), generator=generator)
    units = torch.arange(count) // 2 if patients else None
    pixels = (slope + noise).clamp(-1, 1)
    return Private(ImageSet(pixels, torch.arange(count) % 2, units=units))


def started(path, plan=PLAN, sites=(A,)):
    fed = create_federation(path, sites=sites)
    proposals.publish_plan(fed.home, read_plan_toml(plan))
    for name in sites:
        fed.look(name)
    return fed


def train_as(fed, kind="mixture", name=A, data=None):
    design = fed.trust.plan.expert.design(kind)
    return train(fed.site(name), fed.trust, data or images(SITES.index(name)), design=design)


def spent(fed):
    return [entry.purpose for entry in open_ledger(fed.site(A)).entries()]


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """One federation of each plan, before anything is released."""
    folder = tmp_path_factory.mktemp("planted")
    plans = {"plain": PLAN, "classes": OF_CLASSES, "patients": OF_PATIENTS}
    return {name: started(folder / name, plan) for name, plan in plans.items()}


@pytest.fixture
def fed(ready, tmp_path):
    return ready["plain"].copy(tmp_path / "fed", "consortium", A)


# --- a cell, a component or a bound that follows from images without noise ---

OF_ALL_IMAGES = "np.stack([np.linalg.svd(y[cells == c] - means[c], full_matrices=False)[2][:2] for c in range(len(means))])"
RELEASE_BUGS = {
    "components along the images' own axes": (
        component_of_images,
        ("axes_of_cells(plan, before[SHAPE]),", f"{OF_ALL_IMAGES},"),
        "plain",
        "`component_location` .*sum of single units",
    ),
    "components about the images' own mean": (
        component_of_images,
        ("- means[cell]", "- y[cells == cell].mean(axis=0)"),
        "plain",
        "`component_location` .*sum of single units",
    ),
    "cells that the images decide": (
        coefficients,
        ("else cells", "else (y[:, 0] > np.median(y[:, 0])).astype(np.int64)"),
        "classes",
        "`location` .*sum of single units",
    ),
    "axes of the exact directions instead of the released ones": (
        statistics.release_statistics,
        (
            "before = {earlier: made.value for earlier, made in released.items()}",
            "before = {}\n        for earlier in released: before[earlier] = read.map(partial(_statistic, earlier, plan, dict(before))).reveal()",
        ),
        "plain",
        "`location` .*what the message is about|`shape` .*what the message is about",
    ),
    "a radius of the longest image": (
        statistics.location_statistic,
        ("radius = radius_of(plan, norms)", "radius = float(np.linalg.norm(y, axis=1).max())"),
        "plain",
        "`location` .*sum of single units",
    ),
    "images that are not clipped": (
        statistics.location_statistic,
        ("clipped = _clip(y[rows], radius)", "clipped = 50 * y[rows]"),
        "plain",
        "`location` .*length of single units",
    ),
    "patients that count once for every image": (
        integer_sum,
        ("None if weights is None else weights[rows]", "None"),
        "patients",
        "`norms` .*length of single units",
    ),
}


@pytest.mark.parametrize("bug", RELEASE_BUGS)
def test_release_whose_sensitivity_does_not_hold_is_stopped_by_name(
    bug, ready, tmp_path, monkeypatch
):
    function, change, plan, name = RELEASE_BUGS[bug]
    fed = ready[plan].copy(tmp_path / "fed", "consortium", A)
    plant(monkeypatch, function, change)
    with pytest.raises(MechanismError, match=name):
        train_as(fed, data=images(0, patients=plan == "patients"))
    assert not list(fed.site(A).drafts.iterdir())
    assert not (fed.site(A).work(fed.trust.plan_sha256) / ROUTER_FILE).exists()


@pytest.mark.parametrize("plan", ["plain", "classes", "patients"])
def test_honest_release_is_neither_stopped_nor_accused(plan, ready, tmp_path):
    fed, data = (
        ready[plan].copy(tmp_path / "fed", "consortium", A),
        images(0, 100, plan == "patients"),
    )
    bundle = train_as(fed, data=data)
    assert verify_bundle(bundle, fed.trust, now(), require=("site",)).site == A
    controls = images(7, 60, plan == "patients")
    found = run_audit(fed.site(A), fed.trust, data, AuditOptions(controls=controls))
    assert not found.violates
    assert len([one for one in found.releases if "single units" in one.name]) == 10
    assert found.nearest.pairs == (30 if plan == "patients" else 60)


def test_release_that_was_made_before_the_tests_is_accused_by_the_audit(fed, monkeypatch):
    plant(
        monkeypatch,
        component_of_images,
        ("axes_of_cells(plan, before[SHAPE]),", f"{OF_ALL_IMAGES},"),
    )
    plant(
        monkeypatch,
        statistics.release_statistics,
        (
            "        require_separate_units(data, statistic, again, message_named(plan, name), exact)\n",
            "",
        ),
    )
    train_as(fed)
    found = run_audit(fed.site(A), fed.trust, images(0), AuditOptions())
    assert found.violates
    accused = {finding.name for finding in found.releases if not finding.passed}
    assert "sum of single units: component_location" in accused


# --- a covariance without noise ---


@pytest.mark.parametrize("purpose", ["router-shape", "router-component-shape"])
def test_covariance_without_noise_is_stopped_by_name(fed, monkeypatch, purpose):
    plant(
        monkeypatch,
        mechanisms.release,
        (
            "noisy = measurement(exact.tolist())",
            f"noisy = exact.tolist() if statistic.purpose == '{purpose}' else measurement(exact.tolist())",
        ),
    )
    with pytest.raises(MechanismError, match=f"the noise of the release `{purpose}`"):
        train_as(fed)
    assert purpose in spent(fed)  # the ledger never says too little
    assert not list(fed.site(A).drafts.iterdir())


@pytest.mark.parametrize("name", ["shape", "component_shape"])
def test_covariance_whose_noise_is_thrown_away_is_accused_by_the_audit(fed, monkeypatch, name):
    purpose = statistics.ROUTER_PURPOSES[name]
    plant(
        monkeypatch,
        mechanisms.release,
        (
            "Release(np.asarray(noisy, dtype=np.int64)",
            f"Release(exact if statistic.purpose == '{purpose}' else np.asarray(noisy, dtype=np.int64)",
        ),
    )
    train_as(fed)
    found = run_audit(fed.site(A), fed.trust, images(0), AuditOptions())
    assert found.violates
    assert {f.name for f in found.releases if not f.passed} == {f"noise of the release: {name}"}


# --- a network that is trained beside something else than the release ---

RESIDUAL = "mixture+DiT-Nano/4"
EXACT = "replace(released_by(work, plan), vectors={n: v.reveal() for n, v in exact_statistics(Private(SEEN), plan, released_by(work, plan).vectors).items()})"


@pytest.fixture
def exact_at_hand(monkeypatch):
    """What a bug needs to know the exact statistics where only the release should be known."""
    for name, value in {
        "SEEN": images(0).reveal(),
        "replace": replace,
        "exact_statistics": statistics.exact_statistics,
    }.items():
        monkeypatch.setattr(site_training, name, value, raising=False)


def test_network_beside_the_exact_statistics_is_not_trained(fed, monkeypatch, exact_at_hand):
    plant(monkeypatch, site_training.own_mixture, ("[released_by(work, plan)]", f"[{EXACT}]"))
    with pytest.raises(MechanismError, match=r"known velocity .* is not what the release says"):
        train_as(fed, RESIDUAL)
    assert "expert" not in spent(fed)  # and nothing was paid for it


def test_velocity_that_is_exchanged_inside_the_training_stops_it_by_name(fed, monkeypatch):
    plant(
        monkeypatch,
        PrivateRun.__init__,
        (
            "None if job.known is None else job.known.velocity",
            "None if job.known is None else lambda x, t, c: -images.images.mean(0).expand_as(x)",
        ),
    )
    with pytest.raises(
        MechanismError, match="step 0 is not what its ledger entry says: the gradient"
    ):
        train_as(fed, RESIDUAL)


def test_network_beside_its_release_is_trained_and_not_accused(fed):
    train_as(fed, RESIDUAL)
    options = AuditOptions(canaries=2000, most_steps=2, run_steps=2, controls=images(7, 60))
    found = run_audit(fed.site(A), fed.trust, images(0), options)
    assert not found.violates
    assert 8.9 < found.claimed_epsilon <= 9  # the release and the training together


# --- a pool with one site twice ---


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two sites are their release; the first is admitted."""
    fed = started(tmp_path_factory.mktemp("two") / "fed", sites=(A, B))
    for name in (A, B):
        train_as(fed, name=name)
    return fed


def draft(fed, name):
    (bundle,) = stages.find_bundles(fed.site(name).drafts)
    return bundle


def offer(fed, bundle):
    fed.home.incoming.mkdir(parents=True, exist_ok=True)
    shutil.copytree(bundle, fed.home.incoming / bundle.name)
    return admit_arrivals(fed.home, fed.trust)[0]


def assembled(fed, tmp_path):
    for name in (A, B):
        assert offer(fed, draft(fed, name)).error is None
    assemble(fed.home, tmp_path / "ensemble", router=None, without=())
    return verify_ensemble(tmp_path / "ensemble", fed.root)


def test_release_of_another_site_is_not_admitted(two, tmp_path):
    fed = two.copy(tmp_path / "fed", "consortium", A, B)
    assert offer(fed, draft(fed, A)).error is None
    copied = tmp_path / "copied"
    shutil.copytree(draft(fed, B), copied)
    sign_files(copied, fed.key(B), router=(draft(fed, A) / ROUTER_FILE).read_bytes())
    refused = offer(fed, copied).error
    assert isinstance(refused, ReplayError)
    assert f"`{ROUTER_FILE}`" in refused.message
    assert f"admitted for `{A}`" in refused.message


@pytest.mark.parametrize("fit", [fit_mixtures, fit_image_mixtures])
def test_pool_with_one_site_twice_is_refused(two, tmp_path, fit):
    fed = two.copy(tmp_path / "fed", "consortium", A, B)
    releases = load_releases(assembled(fed, tmp_path))
    assert (
        len(fit(fed.trust.plan, releases))
        if fit is fit_image_mixtures
        else fit(fed.trust.plan, releases)
    )
    with pytest.raises(ReplayError, match="at 0 and 2 released the same numbers"):
        fit(fed.trust.plan, [*releases, releases[0]])


def test_pool_that_reads_one_site_in_the_place_of_another_is_refused(two, tmp_path, monkeypatch):
    fed = two.copy(tmp_path / "fed", "consortium", A, B)
    verified = assembled(fed, tmp_path)
    plant(
        monkeypatch,
        load_releases,
        (
            "[release_of(bundle) for bundle in verified.bundles]",
            "[release_of(verified.bundles[0]) for _ in verified.bundles]",
        ),
    )
    with pytest.raises(ReplayError, match="one site is counted twice"):
        load_ensemble(verified)

"""Centroids as a router of the plan: from public anchors to samples, and what is refused."""

import json

import numpy as np
import pytest
import torch
from centroids import TIMM_NAME, plan_text, timm_weights
from federation import SITES, create_federation, random_images
from typer.testing import CliRunner

from coordinator.cli.main import app as coordinator_app
from coordinator.ensembles.assemble import assemble
from coordinator.inbox.admission import admit_arrivals
from ddm_fed.embedding import open_embedder
from ddm_fed.ensemble.folder import verify_ensemble
from ddm_fed.ensemble.load import load_router
from ddm_fed.errors import DigestError, OptionError, ValuesError
from ddm_fed.mixture import CENTROIDS, embed_images, public_anchors, require_plausible
from ddm_fed.records import read_plan_toml
from ddm_fed.training import RunOptions
from ddm_fed.trust.log import read_log
from sites.outbox import stages
from sites.train.expert import TrainingOptions
from sites.train.pipeline import run_plan
from sites.transport import submit
from sites.transport.base import FolderTransport

pytestmark = pytest.mark.slow
A, B, C = SITES


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "network.safetensors"
    timm_weights(path)
    return path


@pytest.fixture(scope="module")
def embedder(weights):
    import hashlib

    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    return open_embedder(f"timm:{TIMM_NAME}", weights, digest)


@pytest.fixture(scope="module")
def plan(embedder):
    public = random_images(99, 40).reveal()
    anchors = public_anchors(embed_images(public, embedder), 4, 0, dimensions=6)
    router = 'kind = "mixture", epsilon = 8, frequencies = 4, radius = 3'
    return read_plan_toml(plan_text(anchors, embedder, router=router))


def work(fed, name, seed, weights):
    published = fed.look(name)
    options = TrainingOptions(RunOptions(precision="float32", seed=0), embedder_weights=weights)
    log = read_log(fed.site(name).seen, published.trust.chain)
    return run_plan(fed.site(name), published.trust, log, random_images(seed, 200), options)


def deliver(fed, name):
    stages.review(fed.site(name), fed.trust)
    stages.release(fed.site(name), fed.trust)
    submit.submit(fed.site(name), fed.trust, FolderTransport(fed.inbox))


@pytest.fixture(scope="module")
def complete(plan, weights, tmp_path_factory):
    fed = create_federation(tmp_path_factory.mktemp("fed"), plan)
    for seed, name in enumerate(SITES):
        work(fed, name, seed, weights)
        deliver(fed, name)
    admit_arrivals(fed.home, fed.trust)
    return fed


@pytest.fixture(scope="module")
def ensemble(complete, tmp_path_factory):
    target = tmp_path_factory.mktemp("ensemble") / "all"
    assemble(complete.home, target, router="centroid", without=())
    return target


def test_site_without_weights_or_with_others_is_refused_before_anything_is_spent(
    plan, weights, tmp_path
):
    fed = create_federation(tmp_path / "fed", plan)
    with pytest.raises(OptionError, match="--embedder-weights is missing"):
        work(fed, A, 0, None)
    other = tmp_path / "other.safetensors"
    timm_weights(other, seed=2)
    with pytest.raises(DigestError, match="expected"):
        work(fed, A, 0, other)
    assert not list(fed.site(A).path.rglob("ledger.jsonl")) or not any(
        file.read_bytes() for file in fed.site(A).path.rglob("ledger.jsonl")
    )


def test_ensemble_of_centroids_verifies_samples_and_attributes(
    complete, ensemble, weights, tmp_path
):
    verified = verify_ensemble(ensemble, complete.root)
    assert verified.record.router == "centroid"
    words = ["sample", str(ensemble), "--root", complete.root, "--count", "4", "--steps", "5"]
    words += ["--strategy", "sticky-then-routed-0.4", "--attribution"]
    refused = CliRunner().invoke(coordinator_app, [*words, "--out", str(tmp_path / "none")])
    assert refused.exit_code != 0
    found = CliRunner().invoke(
        coordinator_app,
        [*words, "--out", str(tmp_path / "some"), "--embedder-weights", str(weights)],
    )
    assert found.exit_code == 0, found.output
    parts = np.load(tmp_path / "some" / "samples.npz")["attribution"]
    np.testing.assert_allclose(parts.sum(1), 1, atol=1e-5)
    sticky = ["sample", str(ensemble), "--root", complete.root, "--count", "2", "--steps", "2"]
    plain = CliRunner().invoke(coordinator_app, [*sticky, "--out", str(tmp_path / "sticky")])
    assert plain.exit_code == 0, plain.output


def test_centroids_look_at_the_estimate_below_their_time_only(complete, ensemble, embedder):
    router = load_router(verify_ensemble(ensemble, complete.root), embedder=embedder)
    x, t = random_images(5, 4).reveal().images, torch.tensor([0.1, 0.3, 0.5, 0.9])
    mixture = load_router(verify_ensemble(ensemble, complete.root), "mixture")
    seen = router.log_posterior_given(x, t, None, x)
    other = router.log_posterior_given(x, t, None, -x)
    plain = mixture.log_posterior(x, t, None)
    assert not torch.equal(seen[:2], other[:2])
    assert torch.equal(seen[2:], plain[2:])


def test_site_that_left_leaves_no_centroid(complete, ensemble, embedder, tmp_path):
    assemble(complete.home, tmp_path / "less", router="centroid", without=[B])
    less = load_router(verify_ensemble(tmp_path / "less", complete.root), embedder=embedder)
    x = random_images(5, 3).reveal().images
    assert less.log_posterior_of_images(x).shape == (3, 2)


def test_router_compare_and_build_with_centroids(complete, ensemble, weights, tmp_path):
    few = ["--root", complete.root, "--samples-per-site", "16", "--steps", "2", "--json"]
    few += ["--embedder-weights", str(weights)]
    for kind in (["--kind", "centroid"], ["--kind", "hybrid", "--low", "centroid"]):
        out = tmp_path / kind[1]
        made = CliRunner().invoke(
            coordinator_app, ["router", "build", str(ensemble), "--out", str(out), *kind, *few]
        )
        assert made.exit_code == 0, made.output
    words = ["router", "compare", str(ensemble), *few]
    words += ["--router", str(tmp_path / "centroid"), "--router", str(tmp_path / "hybrid")]
    found = CliRunner().invoke(coordinator_app, words)
    assert found.exit_code == 0, found.output
    named = json.loads(found.stdout)
    assert "centroid of the ensemble" in named


@pytest.fixture(scope="module")
def honest(complete):
    from ddm_fed.storage.tensors import read_own_tensors

    site = complete.site(A)
    return read_own_tensors(site.work(complete.trust.plan_sha256) / "router.safetensors")


def test_sum_longer_than_its_images_can_make_is_refused(complete, honest):
    plan = complete.trust.plan
    require_plausible(plan, honest, what="it")
    lie = honest[CENTROIDS].copy()
    lie[4:] = lie[4:] + (np.int64(1) << 32)
    with pytest.raises(ValuesError, match="the sum of directions at anchor 0"):
        require_plausible(plan, {**honest, CENTROIDS: lie}, what="it")


def test_counts_of_other_images_than_the_sites_are_refused(complete, honest):
    lie = honest[CENTROIDS].copy()
    lie[:4] += np.int64(1) << 32
    with pytest.raises(ValuesError, match="the count of its anchors"):
        require_plausible(complete.trust.plan, {**honest, CENTROIDS: lie}, what="it")


def test_weights_for_a_plan_without_centroids_are_refused(weights, tmp_path):
    from federation import a_plan

    fed = create_federation(tmp_path / "fed", a_plan())
    with pytest.raises(OptionError, match=r"no `router\.centroids`"):
        work(fed, A, 0, weights)

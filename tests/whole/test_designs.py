"""Experts of different designs in one federation: chosen, signed, checked, sampled together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import commands
import numpy as np
import pytest
import torch
from federation import (
    PLAN_TOML,
    PRIVATE,
    SITES,
    Federation,
    a_plan,
    create_federation,
    forge_manifest,
    random_images,
    train,
)
from ports import free_port
from safetensors.numpy import load_file
from typer.testing import CliRunner

from coordinator.cli.main import app
from coordinator.ensembles.assemble import assemble
from coordinator.inbox.admission import admit_arrivals
from coordinator.roster import proposals
from ddm_fed.bundle.verify import EXPERT_FILE, verify_bundle
from ddm_fed.ensemble.folder import verify_ensemble
from ddm_fed.ensemble.load import load_ensemble
from ddm_fed.ensemble.sampling import SamplingOptions, sample
from ddm_fed.ensemble.strategy import Strategy
from ddm_fed.errors import CheckpointError, OptionError, PlanMismatchError, WeightsError
from ddm_fed.records import ExpertDesign, now, read_plan_toml
from ddm_fed.training import RunOptions, read_identity
from sites.outbox import stages
from sites.train.expert import CHECKPOINT_FILE
from sites.train.pipeline import TRAINED_FILE, TrainingOptions, run_plan
from sites.transport import submit
from sites.transport.base import FolderTransport

pytestmark = pytest.mark.slow

A, B, C = SITES
DESIGNS = {
    A: ExpertDesign(architecture="DiT-Nano/2-single"),
    B: ExpertDesign(architecture="UNet-Nano", path="vp", prediction="noise"),
    C: ExpertDesign(architecture="MMDiT-Nano/2", path="cosine", prediction="image"),
}
CHOICES = """["DiT-Nano/2-single", "UNet-Nano", "MMDiT-Nano/2"]
path = ["linear", "vp", "cosine"]
prediction = ["velocity", "noise", "image"]"""
MIXED_PLAN = PLAN_TOML.replace('"DiT-Nano/2"', CHOICES).replace(
    "steps = 3", "steps = 20\nema_half_lives = [9, 1]"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Federation:
    """Three sites, each with an expert of a design of its own, reviewed and released."""
    fed = create_federation(tmp_path_factory.mktemp("mixed"))
    proposals.publish_plan(fed.home, read_plan_toml(MIXED_PLAN))
    for seed, (name, design) in enumerate(DESIGNS.items()):
        fed.look(name)
        train(fed.site(name), fed.trust, random_images(seed), seed=seed, design=design)
    return fed


@pytest.fixture
def fed(trained: Federation, scratch: Path) -> Federation:
    return trained.copy(scratch / "mixed", "consortium", *SITES)


def draft(fed: Federation, name: str) -> Path:
    (bundle,) = stages.find_bundles(fed.site(name).drafts)
    return bundle


def verify(fed: Federation, bundle: Path):
    return verify_bundle(bundle, fed.trust, now())


def test_experts_of_three_designs_become_one_ensemble_that_samples(fed: Federation, scratch: Path):
    for name in SITES:
        stages.review(fed.site(name), fed.trust)
        stages.release(fed.site(name), fed.trust)
        submit.submit(fed.site(name), fed.trust, FolderTransport(fed.inbox))
    assert [verdict.error for verdict in admit_arrivals(fed.home, fed.trust)] == [None] * 3
    assemble(fed.home, scratch / "ensemble", router=None, without=())
    verified = verify_ensemble(scratch / "ensemble", fed.root)
    assert {item.site: item.submission.expert for item in verified.bundles} == DESIGNS
    ensemble = load_ensemble(verified)
    assert ensemble.experts.largest_time == pytest.approx(1 / 1.0066)
    for name in ("full", "sticky", "sticky-then-routed", "top-2"):
        options = SamplingOptions(Strategy.parse(name), steps=3, solver="heun", seed=1)
        drawn = sample(ensemble, (1, 8, 8), 6, options)
        assert drawn.images.shape == (6, 1, 8, 8)
        assert torch.isfinite(drawn.images).all()


def test_manifest_states_the_design_and_the_review_shows_it(fed: Federation):
    seen = stages.review(fed.site(B), fed.trust)
    assert seen.egress.expert == DESIGNS[B]
    assert verify(fed, draft(fed, B)).submission.expert == DESIGNS[B]


@pytest.mark.parametrize(
    "change",
    [{"architecture": "DiT-Nano/4"}, {"architecture": "DiT-XL/2"}, {"architecture": "UNet-S"}],
)
def test_expert_of_a_design_the_plan_does_not_allow_is_refused(fed: Federation, change):
    bundle = draft(fed, A)
    forge_manifest(bundle, lambda fields: fields["expert"].update(change), fed.key(A))
    with pytest.raises(PlanMismatchError, match=r"holds an expert of .*, which the plan does not"):
        verify(fed, bundle)


def test_expert_passed_off_as_another_allowed_network_is_refused(fed: Federation):
    bundle = draft(fed, A)
    claim = {"architecture": "UNet-Nano"}
    forge_manifest(bundle, lambda fields: fields["expert"].update(claim), fed.key(A))
    with pytest.raises(WeightsError, match="it lacks the tensors"):
        verify(fed, bundle)


def test_expert_averaged_otherwise_than_the_plan_says_is_refused(fed: Federation):
    bundle = draft(fed, A)
    claim = {"ema_half_life": 3}
    forge_manifest(bundle, lambda fields: fields["training"].update(claim), fed.key(A))
    with pytest.raises(PlanMismatchError, match="half-life of 3 steps, the plan has 9, 1"):
        verify(fed, bundle)


def test_site_that_asks_for_what_the_plan_does_not_allow_is_refused(fed: Federation):
    other = ExpertDesign(architecture="DiT-Nano/4")
    work = fed.site(A).work(fed.trust.plan_sha256)
    with pytest.raises(OptionError, match="the plan does not allow an expert of DiT-Nano/4"):
        train(fed.site(A), fed.trust, random_images(0), seed=0, design=other, restart=True)
    assert (work / EXPERT_FILE).exists(), "a refusal must not cost an expert"


def test_expert_trained_already_is_not_passed_off_as_another_design(fed: Federation):
    with pytest.raises(CheckpointError, match="trained already, as DiT-Nano/2-single") as caught:
        train(fed.site(A), fed.trust, random_images(0), seed=0, design=DESIGNS[B])
    assert "--restart" in caught.value.hint


def test_another_average_is_chosen_after_training_without_training_again(fed: Federation):
    first = draft(fed, A)
    options = TrainingOptions(RunOptions(ema_half_life=1), DESIGNS[A])
    site, trust = fed.site(A), fed.trust
    second = run_plan(site, trust, fed.log, random_images(0), options)
    assert second != first
    assert verify(fed, second).submission.training.ema_half_life == 1
    before, after = (load_file(bundle / EXPERT_FILE) for bundle in (first, second))
    assert any((before[name] != after[name]).any() for name in before)


def test_draft_states_the_average_that_was_asked_for_even_where_the_weights_are_equal(
    fed: Federation,
):
    first = draft(fed, A)
    site, trust = fed.site(A), fed.trust
    record = site.work(trust.plan_sha256) / TRAINED_FILE
    facts = json.loads(record.read_bytes())
    facts["facts"]["ema_half_life"] = 1  # as if both averages had come out the same
    record.write_text(json.dumps(facts))
    options = TrainingOptions(RunOptions(ema_half_life=1), DESIGNS[A])
    second = run_plan(site, trust, fed.log, random_images(0), options)
    assert (second / EXPERT_FILE).read_bytes() == (first / EXPERT_FILE).read_bytes()
    assert verify(fed, second).submission.training.ema_half_life == 1
    assert second != first
    # and nothing was released or spent anew
    ledgers = [verify(fed, item).submission.privacy.ledger for item in (first, second)]
    assert ledgers[0] == ledgers[1]


def test_average_the_plan_does_not_keep_is_refused(fed: Federation):
    with pytest.raises(OptionError, match="half-life"):
        train(fed.site(A), fed.trust, random_images(0), design=DESIGNS[A], ema_half_life=99)


# What a plan would cost


def shown(*arguments: str):
    return CliRunner().invoke(app, ["plan", "show", *arguments])


def test_plan_show_prints_every_network_with_its_cost(tmp_path: Path):
    (tmp_path / "plan.toml").write_text(MIXED_PLAN)
    result = shown(str(tmp_path / "plan.toml"), "--json")
    assert result.exit_code == 0
    rows = {row["architecture"]: row for row in json.loads(result.stdout)["networks"]}
    assert list(rows) == [design.architecture for design in DESIGNS.values()]
    for row in rows.values():
        assert row["weights_bytes"] == 4 * row["parameters"] > 0
        assert row["training_flops"] == 3 * 20 * 16 * row["forward_flops"] > 0
        assert row["training_bytes"] == 6 * row["weights_bytes"]


def test_plan_show_counts_the_parameters_a_bundle_carries(trained: Federation):
    result = shown(str(trained.published), "--root", trained.root, "--json")
    rows = {row["architecture"]: row for row in json.loads(result.stdout)["networks"]}
    for name, design in DESIGNS.items():
        (bundle,) = stages.find_bundles(trained.site(name).drafts)
        tensors = load_file(bundle / EXPERT_FILE)
        assert rows[design.architecture]["parameters"] == sum(v.size for v in tensors.values())


def test_plan_show_of_a_published_folder_under_another_pin_is_refused(trained: Federation):
    result = shown(str(trained.published), "--root", "sha256:" + "0" * 64)
    assert result.exit_code != 0


# Several processes of one site


def training_of(fed: Federation, images: Path, *options: str) -> list[str]:
    """Makes images of site A; returns the words of the command that trains on them."""
    np.savez(images, images=np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8))
    return [
        *("train", "--site", str(fed.path / A), "--plan", str(fed.published)),
        *("--data", str(images), *options),
    ]


@pytest.mark.processes
def test_two_processes_train_with_noise(tmp_path: Path):
    """Two real processes in the variables that torchrun sets."""
    fed = create_federation(tmp_path / "team", sites=(A,))
    proposals.publish_plan(fed.home, a_plan(max_epsilon=PRIVATE))
    words, port = training_of(fed, tmp_path / "images.npz"), str(free_port())
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    team = [
        commands.Started(
            "ddm-site", *words, env=commands.environment(RANK=rank, LOCAL_RANK=rank, **place)
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=150) for process in team]
    assert [process.returncode for process in team] == [0, 0], said
    checkpoint = fed.site(A).work(fed.trust.plan_sha256) / CHECKPOINT_FILE
    assert (read_identity(checkpoint).processes, read_identity(checkpoint).secret) == (2, "")
    ledger = (fed.path / A / "ledger.jsonl").read_text()
    assert ledger.count("dp-sgd") == 1
    assert len(stages.find_bundles(fed.site(A).drafts)) == 1


@pytest.mark.processes
def test_command_started_by_torchrun_signs_one_bundle_of_the_same_expert(tmp_path: Path):
    """Two real processes; only the first locks the site, writes and signs.

    They start where somebody else's package `sites` lies, which is also on Python's path.
    """
    (foreign := tmp_path / "foreign" / "sites").mkdir(parents=True)
    (foreign / "__init__.py").write_text("raise SystemExit('somebody else')\n")
    fed = create_federation(tmp_path / "team", sites=(A,))
    proposals.publish_plan(fed.home, read_plan_toml(MIXED_PLAN))
    options = ("--seed", "1", "--precision", "float32")
    command = training_of(fed, tmp_path / "images.npz", *options)
    torchrun = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--master-addr", "127.0.0.1", "--master-port", str(free_port())),
        *("--no-python", str(Path(sys.executable).with_name("ddm-site"))),
    ]
    ended = subprocess.run(
        [*torchrun, *command],
        capture_output=True,
        text=True,
        timeout=150,
        cwd=foreign.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(foreign.parent)},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    together = load_file(draft(fed, A) / EXPERT_FILE)
    ledger = (fed.path / A / "ledger.jsonl").read_bytes()
    commands.done("ddm-site", *command, "--restart")
    assert (fed.path / A / "ledger.jsonl").read_bytes().startswith(ledger)
    newest = max(stages.find_bundles(fed.site(A).drafts), key=lambda path: path.stat().st_mtime)
    for name, value in load_file(newest / EXPERT_FILE).items():
        np.testing.assert_allclose(together[name], value, rtol=1e-4, atol=1e-5)

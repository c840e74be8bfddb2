"""Experts that are the mixture of their release, or add to it, from the plan to samples."""

import numpy as np
import pytest
import torch
from federation import SITES, Federation, a_plan, create_federation, sign_files, train
from safetensors.torch import save_file

from coordinator.ensembles.assemble import assemble
from coordinator.inbox.admission import admit_arrivals
from coordinator.roster import proposals
from ddm_fed.bundle.verify import EXPERT_FILE, ROUTER_FILE, verify_bundle
from ddm_fed.ensemble.folder import verify_ensemble
from ddm_fed.ensemble.load import load_ensemble
from ddm_fed.errors import CheckpointError, FileSetError, PolicyError, ValuesError
from ddm_fed.flows import integrate, time_grid
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import now, read_plan_toml
from sites.outbox import stages
from sites.transport import submit
from sites.transport.base import FolderTransport

A, B, C = SITES
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
steps = 40
batch_size = 64
learning_rate = 0.003
warmup_steps = 0
ema_half_lives = [10]
[router]
kind = "mixture"
epsilon = 8
frequencies = 16
components = 1
bands = 2
[privacy]
max_epsilon = 20
"""
COUNT = 600


def images(seed: int, count: int = COUNT) -> Private[ImageSet]:
    """Dark images on the left and bright ones on the right, a little different at every site."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    level = torch.where(labels == 0, -0.5, 0.5)[:, None, None, None]
    slope = torch.linspace(-0.3, 0.3, 8) * (1 + 0.1 * seed)
    noise = 0.1 * torch.randn((count, 1, 8, 8), generator=generator)
    return Private(ImageSet((level + slope + noise).clamp(-1, 1), labels))


@pytest.fixture(scope="module")
def fed(tmp_path_factory) -> Federation:
    """Three sites: two are their release, one adds a network to it; all are admitted."""
    fed = create_federation(tmp_path_factory.mktemp("mixtures"))
    proposals.publish_plan(fed.home, read_plan_toml(PLAN))
    spec = fed.trust.plan.expert
    for seed, (name, kind) in enumerate(
        zip(SITES, ("mixture", "mixture", "mixture+DiT-Nano/4"), strict=True)
    ):
        fed.look(name)
        train(fed.site(name), fed.trust, images(seed), design=spec.design(kind), seed=seed)
        stages.review(fed.site(name), fed.trust)
        stages.release(fed.site(name), fed.trust)
        submit.submit(fed.site(name), fed.trust, FolderTransport(fed.inbox))
    outcomes = admit_arrivals(fed.home, fed.trust)
    assert len(fed.log.entries) == 3, outcomes
    return fed


@pytest.fixture(scope="module")
def folder(fed, tmp_path_factory):
    target = tmp_path_factory.mktemp("ensemble") / "ensemble"
    assemble(fed.home, target, router=None, without=())
    return target


def drawn(expert, label: int, count: int = 200) -> torch.Tensor:
    from ddm_fed.flows import ClassCondition

    condition = ClassCondition(torch.full((count,), label))
    noise = torch.randn((count, 1, 8, 8), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return integrate(
            lambda x, t: expert(x, t.expand(count), condition), noise, time_grid(20), "heun"
        )


def test_bundle_of_a_mixture_holds_its_release_alone(fed):
    files = {file.name for file in fed.stored(A).submission.files}
    assert files == {ROUTER_FILE}
    assert fed.stored(A).submission.training is None
    assert fed.stored(A).submission.privacy.expert_is_private
    files = {file.name for file in fed.stored(C).submission.files}
    assert files == {EXPERT_FILE, ROUTER_FILE}
    assert not fed.stored(C).submission.privacy.expert_is_private


def test_samples_of_mixtures_are_images_of_the_class_asked_for(fed, folder):
    ensemble = load_ensemble(verify_ensemble(folder, fed.root))
    for place in range(3):
        for label, level in ((0, -0.5), (1, 0.5)):
            found = drawn(ensemble.experts._get(place), label)
            assert float(found.mean()) == pytest.approx(level, abs=0.06)
            # across: the slope that all images have
            rise = float((found[..., -1] - found[..., 0]).mean())
            assert rise == pytest.approx(0.6 * (1 + 0.1 * place), abs=0.12)

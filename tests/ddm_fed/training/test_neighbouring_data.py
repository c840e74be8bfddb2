"""Contract of a private training on neighbouring data sets, through the real run: one unit fewer.

For each step, the run is set to the same state, with the same secret; what reaches the optimizer
may differ by one clip norm at most, whoever the missing unit is.
"""

import dataclasses
from decimal import Decimal

import pytest
import torch
from federation import PRIVATE, a_plan, paid_for

from ddm_fed.errors import OptionError
from ddm_fed.mixture import GaussianMixtures
from ddm_fed.privacy import ImageSet, Private, Randomness
from ddm_fed.records import SampledGaussianEvent
from ddm_fed.router import PooledReference
from ddm_fed.router.private_heads import _Units
from ddm_fed.training import Payment, PrivateRun, PrivateTraining, RunOptions, train_private_expert
from ddm_fed.training.parallel import join_team
from ddm_fed.training.state import Job

pytestmark = pytest.mark.usefixtures("one_block")

UNITS, CLIP_NORM, SLACK = 33, 0.05, 1e-3
EVERYBODY = SampledGaussianEvent(
    sampling_rate=Decimal(1), noise_multiplier=Decimal("0.85"), steps=3
)
AUGMENTED = 'steps = 3\naugmentation = ["horizontal-flip", "translate"]'
CLASSES = 'classes = ["a", "b"]\nconditioning = "class"'


def plan_of(classes=False):
    sgd = PRIVATE.replace("clip_norm = 0.5", f"clip_norm = {CLIP_NORM}")
    changed = {"width": f"width = 8\n{CLASSES}"} if classes else {}
    return a_plan(max_epsilon=sgd, steps=AUGMENTED, **changed)


def images_of(count, classes=False, units=None):
    generator = torch.Generator().manual_seed(7)
    pixels = torch.rand(UNITS, 1, 8, 8, generator=generator) * 2 - 1
    labels = torch.arange(UNITS) % 2 if classes else None
    return ImageSet(
        pixels[:count],
        None if labels is None else labels[:count],
        None,
        None if units is None else units[:count],
    )


def given_to_the_optimizer(plan, images, folder, steps):
    """The mean gradient of each step from the weights that a run starts with."""
    design, secret = plan.expert.default, Randomness.for_tests(2)
    noise = PrivateTraining.planned(plan, EVERYBODY, float(UNITS))
    noise = dataclasses.replace(noise, gradients="functional")
    with join_team(shard=False) as team:
        job = Job(plan, "0" * 64, "0" * 64, design, RunOptions(seed=3), team)
        run = dataclasses.replace(
            job.new_identity("float32"),
            noise=noise.to_json(),
            secret=secret.hex,
            origin=secret.origin,
        )
        training = PrivateRun(images, job, run, folder / "none")
        update, found = training.update, []
        for step in steps:
            mean, _ = update.step.noisy_mean(
                update.trained, update.units, step, training.noise.clip_norm_at(step)
            )
            found.append(torch.cat([value.flatten().double() for value in mean.values()]))
    return found, noise


@pytest.mark.parametrize("classes", [False, True], ids=["without classes", "with classes"])
@pytest.mark.parametrize("patients", [False, True], ids=["images", "patients"])
def test_missing_unit_moves_every_step_by_at_most_one_clip_norm(classes, patients, tmp_path):
    units = torch.arange(UNITS) // 3 if patients else None
    fewer = UNITS - (3 if patients else 1)
    plan = plan_of(classes)
    whole, noise = given_to_the_optimizer(
        plan, images_of(UNITS, classes, units), tmp_path, range(3)
    )
    without, _ = given_to_the_optimizer(plan, images_of(fewer, classes, units), tmp_path, range(3))
    moved = [
        float((one - other).norm()) * noise.expected_units / CLIP_NORM
        for one, other in zip(whole, without, strict=True)
    ]
    assert max(moved) <= 1 + SLACK
    assert min(moved) > 0.5  # the gradient of a unit is longer than the clip norm: it was there


def test_seed_that_others_could_know_decides_nothing_of_a_private_run(tmp_path):
    plan = plan_of()
    noise = PrivateTraining.planned(plan, EVERYBODY, float(UNITS))
    with pytest.raises(OptionError, match="--seed is not allowed in training with noise"):
        train_private_expert(
            Private(images_of(UNITS)),
            plan,
            "0" * 64,
            tmp_path / "checkpoint",
            noise,
            Payment(lambda: "0" * 64, lambda _: paid_for(noise)),
            options=RunOptions(seed=0),
        )
    assert list(tmp_path.iterdir()) == []


def test_rows_of_a_head_s_unit_do_not_depend_on_who_else_is_there():
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(UNITS, 6, generator=generator)

    reference = PooledReference(
        GaussianMixtures(
            weights=torch.tensor([[0.4, 0.6]], dtype=torch.float64),
            means=torch.randn(1, 2, 6, generator=generator).double(),
            variances=torch.rand(1, 2, 6, generator=generator).double(),
            axes=torch.eye(6, dtype=torch.float64).expand(1, 2, 6, 6),
        ),
        torch.zeros(6, dtype=torch.float64),
        cells_are_classes=False,
    )

    def rows(count, asked):
        units = _Units(own[:count], None, None, reference, Randomness.for_tests(1), 4)
        (found,) = units.blocks(5, torch.tensor(asked))
        return found

    everybody, few = rows(UNITS, list(range(UNITS))), rows(UNITS - 1, [3, 9])
    for whole, part in zip(everybody, few, strict=True):
        assert torch.equal(whole[[3, 9]], part)

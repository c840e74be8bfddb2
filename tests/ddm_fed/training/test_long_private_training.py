"""A long training with noise ends well, though its last steps are shorter than float32 rounds."""

from decimal import Decimal

import pytest
from federation import a_plan, paid_for, random_images

from ddm_fed.privacy import Randomness
from ddm_fed.records import SampledGaussianEvent
from ddm_fed.training import Payment, PrivateTraining, train_private_expert

STEPS = 60  # at a hundredth of a usual rate, they end as those of a training of 600
PAID = "0" * 64
SGD = """max_epsilon = 100
[privacy.sgd]
epsilon = 90
units = 32
clip_norm = 0.5
"""


@pytest.mark.slow
def test_training_whose_steps_become_minute_is_not_accused_of_its_average(tmp_path):
    plan = a_plan(
        max_epsilon=SGD,
        architecture='architecture = "Conv-Nano/2"',
        steps=f"steps = {STEPS}\nema_half_lives = [20]\nlearning_rate = 0.000001",
        batch_size="batch_size = 1",
    )
    event = SampledGaussianEvent(
        sampling_rate=Decimal("0.03125"), noise_multiplier=Decimal("0.85"), steps=STEPS
    )
    noise = PrivateTraining.planned(plan, event, 24.0)
    found = train_private_expert(
        random_images(0),
        plan,
        "ab" * 32,
        tmp_path / "checkpoint.safetensors",
        noise,
        Payment(lambda: PAID, lambda _: paid_for(noise)),
        randomness=Randomness.for_tests(0),
    )
    assert str(STEPS - 1) in found.proved  # the last step was computed again

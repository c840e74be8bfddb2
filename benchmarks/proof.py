"""What does it cost to compute a step of private training again?

Each network takes three steps without and two with the proof, in one process on one thread; CPU
seconds of a step, and what the proof adds to it in steps.
"""

import argparse
import dataclasses
import tempfile
import time
from decimal import Decimal
from pathlib import Path

import torch

from ddm_fed.privacy import Claim, ImageSet, ProvedUpdate, Randomness
from ddm_fed.records import SampledGaussianEvent, read_plan_toml
from ddm_fed.training import PrivateRun, PrivateTraining, RunOptions
from ddm_fed.training.parallel import join_team
from ddm_fed.training.private_run import promised_rule
from ddm_fed.training.state import Job

PLAN = """
federation = "benchmark"
expires_at = 2036-01-01T00:00:00Z
[data]
channels = 1
height = 28
width = 28
[expert]
architecture = "{architecture}"
[training]
steps = 10
batch_size = {batch}
[router]
kind = "prior"
epsilon = 1
[privacy]
delta = 0.00001
max_epsilon = 10
must_be_private = ["router", "expert"]
[privacy.sgd]
epsilon = 8
units = {units}
clip_norm = 0.5
draws = {draws}
"""


def measure(architecture: str, draws: int, batch: int) -> None:
    units = 2 * batch
    plan = read_plan_toml(
        PLAN.format(architecture=architecture, batch=batch, units=units, draws=draws)
    )
    event = SampledGaussianEvent(
        sampling_rate=Decimal("0.5"), noise_multiplier=Decimal("0.85"), steps=10
    )
    noise = PrivateTraining.planned(plan, event, float(units))
    noise, secret = dataclasses.replace(noise, gradients="functional"), Randomness.for_tests(0)
    images = ImageSet(torch.rand(units, 1, 28, 28) * 2 - 1, None)
    design = plan.expert.default
    with join_team(shard=False) as team, tempfile.TemporaryDirectory() as folder:
        job = Job(plan, "0" * 64, "0" * 64, design, RunOptions(seed=1), team)
        run = dataclasses.replace(
            job.new_identity("float32"),
            noise=noise.to_json(),
            secret=secret.hex,
            origin=secret.origin,
        )
        path = Path(folder) / "checkpoint"
        training = PrivateRun(images, job, run, path)
        proof = ProvedUpdate(
            training.update,
            Claim(event, noise.expected_units, promised_rule(plan)),
            bytes.fromhex(secret.hex),
            training.slow,
            first=0,
            steps=10,
        )
        plain, proved = (timed(proof, steps) for steps in ((0, 1, 2), (3, 4)))
    extra = proved - plain
    print(
        f"| {architecture} | {draws} | {batch} | {plain:.2f} | {extra:.2f} | {extra / plain:.1f} | "
        f"{proof.proved.largest:.2f} |",
        flush=True,
    )


def timed(proof: ProvedUpdate, steps: tuple[int, ...]) -> float:
    proof.chosen = frozenset(steps if steps[0] else ())
    began = time.process_time()
    for step in steps:
        proof.take(step)
    return (time.process_time() - began) / len(steps)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the smallest network only")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    print("| network | draws | units in a step | step, s | proof, s | proof, steps | deviation |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for architecture, draws, batch in (
        ("DiT-Nano/4", 8, 64),
        ("DiT-Nano/4", 1, 256),
        ("DiT-Ti/4", 8, 64),
    )[: 1 if quick else 3]:
        measure(architecture, draws, batch)


if __name__ == "__main__":
    main()

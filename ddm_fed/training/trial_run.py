"""A training in short, with all it does, on what nobody needs to hide: for audits and estimates."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from ddm_fed.flows import EncodedTexts
from ddm_fed.privacy import ImageSet, fresh_secret
from ddm_fed.records import ExpertDesign, Plan
from ddm_fed.training.batches import Batches
from ddm_fed.training.loop import Training
from ddm_fed.training.options import RunOptions
from ddm_fed.training.parallel import join_team
from ddm_fed.training.private_options import PrivateTraining
from ddm_fed.training.private_run import PrivateRun, Source
from ddm_fed.training.state import Job, require_same_run, start_run
from ddm_fed.training.trainable import TrainedPart


def no_captions(plan: Plan) -> EncodedTexts | None:
    """Returns what encodes the empty caption alone; None where the plan has no captions."""
    text = plan.data.text
    return None if text is None else EncodedTexts.nothing(text.tokens, text.width, text.pooled)


def made_up_images(plan: Plan, count: int) -> ImageSet:
    """Returns as many grey images of the plan's shape; all of them take the memory of one."""
    return ImageSet(
        torch.zeros((1, *plan.data.shape)).expand(count, -1, -1, -1),
        torch.zeros(count, dtype=torch.int64) if plan.data.classes else None,
        captions=None if plan.data.text is None else ("",) * count,
        texts=no_captions(plan),
    )


def _without_base(plan: Plan, steps: int | None) -> Plan:
    taken = plan.training.steps if steps is None else min(steps, plan.training.steps)
    training = plan.training.model_copy(update={"steps": taken})
    expert = plan.expert.model_copy(update={"base": None})
    return plan.model_copy(update={"training": training, "expert": expert})


@contextmanager
def trial_run(
    plan: Plan,
    design: ExpertDesign,
    noise: PrivateTraining,
    *,
    steps: int | None = None,
    units: int = 1,
    source: Callable[[TrainedPart], Source] | None = None,
) -> Iterator[PrivateRun]:
    """Yields a run as `train_private_expert` makes it, in a folder that goes with it.

    Args:
        plan: What would be trained. A public checkpoint is left out: weights matter to no test.
        design: Network, path and prediction.
        noise: How it is made private.
        steps: How many it takes; None is all of the plan's.
        units: How many made-up images there are.
        source: What it learns from; None is the made-up images.

    Raises:
        StateError: the network has no such part, or the engine that was asked for cannot do it.
    """
    short = _without_base(plan, steps)
    secret = fresh_secret()
    options = RunOptions(seed=secret.seed("weights"))
    with join_team(shard=False) as team, tempfile.TemporaryDirectory() as folder:
        job = Job(short, "0" * 64, "0" * 64, design, RunOptions(), team)
        run = replace(
            replace(job, options=options).new_identity("float32"),
            noise=replace(noise, steps=short.training.steps).to_json(),
            secret=secret.hex,
            origin=secret.origin,
        )
        checkpoint = Path(folder) / "checkpoint.safetensors"
        yield PrivateRun(made_up_images(plan, units), job, run, checkpoint, source)


@contextmanager
def plain_trial_run(plan: Plan, design: ExpertDesign, *, units: int) -> Iterator[Training]:
    """Yields a run as `train_expert` makes it, of made-up images, in a folder that goes with it.

    Args:
        plan: What would be trained, without a public checkpoint.
        design: Network, path and prediction.
        units: How many made-up images there are.
    """
    short = _without_base(plan, None)
    with join_team(shard=False) as team, tempfile.TemporaryDirectory() as folder:
        job = Job(short, "0" * 64, "0" * 64, design, RunOptions(), team)
        checkpoint = Path(folder) / "checkpoint.safetensors"
        start_run(checkpoint, job)
        run = require_same_run(checkpoint, job, finished=False)
        batches = Batches(
            made_up_images(plan, units),
            short.training,
            conditional=plan.data.conditional,
            seed=run.seed,
        )
        training = Training(batches, job, run, checkpoint)
        training.prepare(lambda _: None)
        yield training

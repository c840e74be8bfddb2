"""A private training in short, with all it does, on what nobody needs to hide: for audits."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from ddm_fed.flows import EncodedTexts
from ddm_fed.privacy import ImageSet, fresh_secret
from ddm_fed.records import ExpertDesign, Plan
from ddm_fed.training.options import RunOptions
from ddm_fed.training.parallel import join_team
from ddm_fed.training.private_options import PrivateTraining
from ddm_fed.training.private_run import PrivateRun, Source
from ddm_fed.training.state import Job
from ddm_fed.training.trainable import TrainedPart


def no_captions(plan: Plan) -> EncodedTexts | None:
    """Returns what encodes the empty caption alone; None where the plan has no captions."""
    text = plan.data.text
    return None if text is None else EncodedTexts.nothing(text.tokens, text.width, text.pooled)


@contextmanager
def trial_run(
    plan: Plan,
    design: ExpertDesign,
    noise: PrivateTraining,
    *,
    steps: int | None = None,
    source: Callable[[TrainedPart], Source] | None = None,
) -> Iterator[PrivateRun]:
    """Yields a run as `train_private_expert` makes it, in a folder that goes with it.

    Args:
        plan: What would be trained. A public checkpoint is left out: weights matter to no test.
        design: Network, path and prediction.
        noise: How it is made private.
        steps: How many it takes; None is all of the plan's.
        source: What it learns from; None is made-up images.

    Raises:
        StateError: the network has no such part, or the engine that was asked for cannot do it.
    """
    taken = plan.training.steps if steps is None else min(steps, plan.training.steps)
    training = plan.training.model_copy(update={"steps": taken})
    expert = plan.expert.model_copy(update={"base": None})
    short = plan.model_copy(update={"training": training, "expert": expert})
    secret = fresh_secret()
    classes = bool(plan.data.classes)
    images = ImageSet(
        torch.zeros((1, *plan.data.shape)),
        torch.zeros(1, dtype=torch.int64) if classes else None,
        captions=None if plan.data.text is None else ("",),
        texts=no_captions(plan),
    )
    options = RunOptions(seed=secret.seed("weights"))
    with join_team(shard=False) as team, tempfile.TemporaryDirectory() as folder:
        job = Job(short, "0" * 64, "0" * 64, design, RunOptions(), team)
        run = replace(
            replace(job, options=options).new_identity("float32"),
            noise=replace(noise, steps=taken).to_json(),
            secret=secret.hex,
            origin=secret.origin,
        )
        checkpoint = Path(folder) / "checkpoint.safetensors"
        yield PrivateRun(images, job, run, checkpoint, source)

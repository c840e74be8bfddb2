"""One expert trained from Python, on images of one's own: an experiment, of which nothing leaves.

There is no `release` here. What leaves a site is made against its ledger, by `sites.api` or
`ddm-site`, and by nothing else.
"""

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ddm_fed.errors import DataError, StateError
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.progress import StepReport, Watch
from ddm_fed.records import Plan, adds_to_mixture, network_of, read_plan_file, sha256_hex
from ddm_fed.training import RunOptions, TrainedExpert
from ddm_fed.training import train_expert as train


def train_expert(
    images: Private[ImageSet] | NDArray[Any] | Tensor,
    labels: NDArray[Any] | Tensor | None = None,
    *,
    plan: Plan | str | Path,
    checkpoint: str | Path,
    architecture: str | None = None,
    options: RunOptions | None = None,
    progress: bool = True,
) -> TrainedExpert:
    """Returns an expert trained without noise under `plan`; continues from `checkpoint`.

    For trying out a plan before it is agreed on. The weights may reveal images: they are yours, no
    ledger knows of them, and no coordinator takes them. `ddm-site train` or `sites.api.train` makes
    what may be sent.

    Args:
        images: `(N, H, W, C)` uint8, or a tensor `(N, C, H, W)` in [-1, 1]; or what is `Private`
            already.
        labels: Classes by their place in the plan, `(N,)`, where the plan has any.
        plan: A plan, or a plan.toml.
        checkpoint: File where the state is kept. It is as private as the images.
        architecture: One of the plan's; by default its first. Not one that adds to a mixture, which
            takes a release.
        options: Seed, precision and the like.
        progress: Whether to show how far it is.

    Raises:
        StateError: the plan trains with noise, or the expert takes a release: a site's work.
        DataError: images or labels are not what the plan wants.
        OptionError: the plan does not allow what was chosen.
        CheckpointError: the checkpoint is of another run.
    """
    if not isinstance(plan, Plan):
        plan = read_plan_file(Path(plan))
    design = plan.expert.design(architecture or plan.expert.architecture[0])
    if adds_to_mixture(design.architecture) or network_of(design.architecture) is None:
        raise StateError(
            f"an expert of {design} takes what a site released, which a ledger has to know",
            hint="train it with `ddm-site train`, or choose an architecture without mixture",
        )
    data = images if isinstance(images, Private) else Private(_image_set(images, labels))
    if data.reveal().shape != plan.data.shape:
        raise DataError(
            f"images have the shape {data.reveal().shape}, and the plan's have {plan.data.shape}",
            hint="C, H and W are those of [data] in the plan",
        )
    _require_classes(data.reveal().labels, plan)
    run = options or RunOptions()
    if not progress:
        return train(data, plan, _digest(plan), Path(checkpoint), design=design, options=run)
    from ddm_fed import console

    with console.counting("training", plan.training.steps, "steps") as update:

        def on_step(step: StepReport) -> None:
            update(step.step, f"loss {step.loss:.4f}")

        watch = Watch(on_step, say=console.say)
        return train(
            data, plan, _digest(plan), Path(checkpoint), design=design, options=run, watch=watch
        )


def _digest(plan: Plan) -> str:
    """Returns what a checkpoint knows a plan by that nobody has signed."""
    return sha256_hex(plan.to_json())


def _require_classes(labels: Tensor | None, plan: Plan) -> None:
    classes = len(plan.data.classes)
    if classes and labels is not None and len(labels):
        least, most = int(labels.min()), int(labels.max())
        if least < 0 or most >= classes:
            raise DataError(
                f"labels run from {least} to {most}, and the plan has {classes} classes",
                hint=f"number them from 0 to {classes - 1} in the order of `data.classes`",
            )


def _image_set(images: NDArray[Any] | Tensor, labels: NDArray[Any] | Tensor | None) -> ImageSet:
    pixels = torch.as_tensor(images)
    if pixels.ndim != 4:
        raise DataError(
            f"images have {pixels.ndim} axes, expected 4",
            hint="give (N, H, W, C) uint8, or a tensor (N, C, H, W) in [-1, 1]",
        )
    if pixels.dtype == torch.uint8:
        pixels = pixels.permute(0, 3, 1, 2) / 127.5 - 1
    elif not pixels.is_floating_point() or not bool((pixels.abs() <= 1).all()):
        raise DataError(
            f"images are {pixels.dtype} and hold values that are not in [-1, 1]",
            hint="give uint8, or floats of which -1 is black and 1 white",
        )
    classes = None if labels is None else torch.as_tensor(labels).long()
    if classes is not None and tuple(classes.shape) != (len(pixels),):
        raise DataError(
            f"labels have the shape {tuple(classes.shape)} for {len(pixels)} images",
            hint="give one whole number for each image",
        )
    return ImageSet(pixels.float(), classes)

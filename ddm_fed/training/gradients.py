"""Which engine computes a network's per-unit gradients, and what it is given."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ddm_fed.errors import OptionError
from ddm_fed.flows import condition_of, denoising_loss, path_named
from ddm_fed.models import ExpertNetwork
from ddm_fed.privacy import FunctionalGradients, Gradients, RecordedGradients, RowLoss, agreement
from ddm_fed.records import ExpertDesign, Plan
from ddm_fed.training.batches import draw_times, seeded
from ddm_fed.training.options import RunOptions
from ddm_fed.training.trainable import TrainedPart

ENGINES = ("functional", "recorded")
TEST_UNITS = 4
LARGEST_ERROR = 1e-5


def row_loss(plan: Plan, design: ExpertDesign) -> RowLoss:
    """Returns the loss of rows `(R, ...)`: images, noise, times, and the condition's tensors."""
    path, weighting = path_named(design.path), plan.training.loss_weighting

    def loss(network: ExpertNetwork, x_0: Tensor, eps: Tensor, t: Tensor, *told: Tensor) -> Tensor:
        condition = condition_of(told)
        return denoising_loss(
            network,
            x_0,
            eps,
            t,
            condition,
            path=path,
            prediction=design.prediction,
            weighting=weighting,
        )

    return loss


def made_up_units(plan: Plan, draws: int, units: int = TEST_UNITS) -> tuple[Tensor, ...]:
    """Returns rows of units of the plan's shapes that nobody's images are in."""
    generator, shape = seeded(0, "made up", 0), plan.data.shape
    bound = float(plan.data.bound)
    images, eps = torch.randn((2, units, draws, *shape), generator=generator).clamp(-bound, bound)
    t = draw_times(plan.training, units * draws, generator).view(units, draws)
    if (text := plan.data.text) is not None:
        tokens = torch.randn((units, draws, text.tokens, text.width), generator=generator)
        pooled = torch.randn((units, draws, text.pooled), generator=generator)
        lengths = torch.randint(0, text.tokens + 1, (units, draws, 1), generator=generator)
        return images, eps, t, tokens, pooled, torch.arange(text.tokens) < lengths
    if not plan.data.classes:
        return images, eps, t
    count = len(plan.data.classes)
    return images, eps, t, torch.randint(0, count, (units, draws), generator=generator)


@contextmanager
def stirred(part: TrainedPart) -> Iterator[None]:
    """Adds small numbers to the trained weights for a while; afterwards every bit is as before.

    A fresh network's last layer is zero, and so are most gradients: a mistake in them would not
    show.
    """
    generator = seeded(0, "stirred", 0)
    kept = [value.detach().clone() for value in part.trained.values()]
    try:
        with torch.no_grad():
            for value in part.trained.values():
                value.add_(torch.randn(value.shape, generator=generator).to(value), alpha=0.02)
        yield
    finally:
        with torch.no_grad():
            for value, before in zip(part.trained.values(), kept, strict=True):
                value.copy_(before)


def build_gradients(
    kind: str, network: ExpertNetwork, part: TrainedPart, loss: RowLoss, rows_at_once: int | None
) -> Gradients:
    """Returns the engine of that name for `part` of `network`."""
    limit = {} if rows_at_once is None else {"rows_at_once": rows_at_once}
    if kind == "functional":
        return FunctionalGradients(network, loss, expand=part.full, **limit)
    return RecordedGradients(network, loss, expand=part.full, **limit)


def choose_gradients(
    network: ExpertNetwork,
    part: TrainedPart,
    loss: RowLoss,
    rows: Sequence[Tensor],
    options: RunOptions,
) -> str:
    """Returns which engine to use: the faster one, where it agrees with single units.

    Raises:
        OptionError: the faster one was asked for and does not know this network.
    """
    if options.gradients == "functional":
        return "functional"
    certain, faster = (
        build_gradients(kind, network, part, loss, options.micro_batch)
        for kind in ("functional", "recorded")
    )
    try:
        error = agreement(faster, part.trained, rows, certain)
        reason = f"its gradients are off by {error:.1g} of the largest"
    except NotImplementedError as unknown:
        error, reason = float("inf"), str(unknown)
    if error <= LARGEST_ERROR:
        return "recorded"
    if options.gradients == "recorded":
        raise OptionError(
            f"--gradients recorded: not for these weights of this network: {reason}",
            hint="use --gradients functional, which is right for every network",
        )
    return "functional"

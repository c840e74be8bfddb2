"""What a step is computed from: images, noise, times and conditions, as functions of (seed, step).

Everything is drawn for the whole batch, whoever computes which rows of it. So neither micro-batches
nor several processes change what is learned.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ddm_fed.flows import (
    Condition,
    VelocityModel,
    interpolate,
    logit_normal_times,
    rows_of,
    shift_times,
    uniform_times,
    without_known,
)
from ddm_fed.privacy import ImageSet
from ddm_fed.records import TrainingSpec
from ddm_fed.training.augment import draw_moves, move_images


def seeded(seed: int, purpose: str, index: int) -> torch.Generator:
    """Returns a generator that depends on all its arguments and on nothing else."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class BatchOrder:
    """Which images each step sees: epochs of fresh permutations, end to end."""

    def __init__(self, *, batch_size: int, count: int, seed: int) -> None:
        self._batch_size, self._count, self._seed = batch_size, count, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def rows(self, step: int) -> Tensor:
        """Returns the rows of a step, `(batch_size,)`."""
        position = step * self._batch_size
        rows: list[Tensor] = []
        missing = self._batch_size
        while missing:
            epoch, offset = divmod(position, self._count)
            if epoch != self._epoch:  # kept, since a permutation of a large set takes long
                self._epoch = epoch
                self._order = torch.randperm(
                    self._count, generator=seeded(self._seed, "epoch", epoch)
                )
            rows.append(self._order[offset : offset + missing])
            position += len(rows[-1])
            missing -= len(rows[-1])
        return torch.cat(rows)


@dataclass(frozen=True)
class Batch:
    """Some rows of a step's batch; `weight` is 1, or 0 for rows that only keep others company."""

    x_0: Tensor
    eps: Tensor
    t: Tensor
    condition: Condition | None
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.t)

    def parts(self, count: int) -> Iterator["Batch"]:
        """Yields `count` parts of nearly equal size.

        Where there are fewer rows than parts, the first row stands in with weight 0: processes
        that share a network must all ask it equally often.
        """
        start = 0
        for index in range(count):
            stop = start + len(self) // count + (index < len(self) % count)
            rows = slice(start, stop) if stop > start else slice(0, 1)
            condition = rows_of(self.condition, rows)
            weight = 1.0 if stop > start else 0.0
            yield Batch(self.x_0[rows], self.eps[rows], self.t[rows], condition, weight)
            start = stop

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch on `device`; the copy runs beside the host's next work."""
        if device.type == "cpu":
            return self
        x_0, eps, t = (
            value.pin_memory().to(device, non_blocking=True)
            for value in (self.x_0, self.eps, self.t)
        )
        condition = None if self.condition is None else self.condition.to(device)
        return Batch(x_0, eps, t, condition, self.weight)


class BatchSource(Protocol):
    """What the steps of a run are computed from: a function of the run's seed and the step."""

    def draw(self, step: int, rows: slice) -> Batch:
        """Returns `rows` of the batch of `step`."""
        ...


class Batches:
    """The batches of a run.

    Args:
        images: The site's images.
        spec: Batch size, times, label dropout and augmentation.
        conditional: Whether the network is told the labels or captions.
        seed: The run's seed.
        known: The velocity that is known already, of which only the rest is learned; or None.
    """

    def __init__(
        self,
        images: ImageSet,
        spec: TrainingSpec,
        *,
        conditional: bool,
        seed: int,
        known: VelocityModel | None = None,
    ) -> None:
        self._images, self._spec, self._seed, self._known = images, spec, seed, known
        self._conditional = conditional
        self._order = BatchOrder(batch_size=spec.batch_size, count=len(images), seed=seed)

    def draw(self, step: int, rows: slice) -> Batch:
        """Returns `rows` of the batch of `step`. What is drawn for others is drawn all the same."""
        spec, generator = self._spec, seeded(self._seed, "step", step)
        count, shape = spec.batch_size, self._images.shape
        eps = torch.randn((count, *shape), generator=generator)
        t = draw_times(spec, count, generator)
        dropped = torch.rand(count, generator=generator) < float(spec.label_dropout)
        moves = draw_moves(spec.augmentation, count, (shape[1], shape[2]), generator)
        wanted = self._order.rows(step)[rows]
        x_0 = self._images.batch(wanted)
        if self._images.deviations is not None:
            x_0 = self._images.drawn(wanted, torch.randn(eps.shape, generator=generator)[rows])
        x_0 = move_images(x_0, moves.rows(rows))
        condition = None
        if self._conditional:
            condition = self._images.condition(wanted)
            condition = None if condition is None else condition.dropped(dropped[rows])
        eps, t = eps[rows], t[rows]
        if self._known is not None:
            velocity = self._known(interpolate(x_0, eps, t), t, condition)
            x_0, eps = without_known(x_0, eps, t, velocity)
        return Batch(x_0, eps, t, condition)


def draw_times(spec: TrainingSpec, count: int, generator: torch.Generator) -> Tensor:
    """Returns the times of `count` images, `(count,)`, as the plan distributes them."""
    if spec.time_sampling == "uniform":
        t = uniform_times(count, generator)
    else:
        t = logit_normal_times(
            count, generator, location=float(spec.time_location), scale=float(spec.time_scale)
        )
    return t if spec.time_shift == 1 else shift_times(t, float(spec.time_shift))

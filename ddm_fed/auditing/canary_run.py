"""Canaries through a whole training: its own loop, optimizer, averages and checkpoints.

`audit_step` asks the step that trains; here the training itself takes its steps, with canaries in
the place of images, and the attacker sees what the optimizer was given: the change of its memory.
One axis of weight space is one canary's.
"""

import bisect
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddm_fed.auditing.canaries import LENGTH, CanaryAudit, CanaryGradients, judge, log_ratio
from ddm_fed.privacy import NoisyUpdate, Randomness, Weights
from ddm_fed.records import SampledGaussianEvent

Floats = NDArray[np.float64]


class RunCanaries:
    """Units of a training: canaries that a fair coin let in, each along an axis of its own.

    Args:
        weights: That are trained.
        canaries: m; there are no more than axes.
        randomness: Of the coins.
        clip_norm: The longest of the training.
    """

    def __init__(
        self, weights: Weights, canaries: int, randomness: Randomness, clip_norm: float
    ) -> None:
        self.axes = sum(value.numel() for value in weights.values())
        self.count = min(canaries, self.axes)
        self.members = randomness.stream("canaries", 0).uniform(self.count) < 0.5
        self._data = torch.from_numpy(self.members.nonzero()[0])
        self._shapes = {name: tuple(value.shape) for name, value in weights.items()}
        self._names = list(weights)
        sizes = [value.numel() for value in weights.values()]
        self._starts = [sum(sizes[:place]) for place in range(len(sizes))]
        self._clip_norm = clip_norm
        self.gradients = CanaryGradients()

    def __len__(self) -> int:
        """Returns how many canaries are in."""
        return len(self._data)

    def blocks(self, _step: int, units: Tensor, /) -> Sequence[Sequence[Tensor]]:
        """Returns the axes of `units (U,)`; the same in every step."""
        return [[self._data[units][:, None]]]

    def slow(self, _weights: Weights, _step: int, unit: int, /) -> Mapping[str, Tensor]:
        """Returns the gradient of one canary, for the proof of the training: its weight's alone."""
        axis = int(self._data[unit])
        place = bisect.bisect_right(self._starts, axis) - 1
        name = self._names[place]
        shape = self._shapes[name]
        within = np.unravel_index(axis - self._starts[place], shape) if shape else ()
        gradient = torch.sparse_coo_tensor(
            torch.tensor(np.array(within, dtype=np.int64))[:, None],
            torch.tensor([LENGTH * self._clip_norm], dtype=torch.float64),
            shape,
            check_invariants=False,  # it is made right here, thousands of times
        )
        return {name: gradient}


class TrainedFrom(Protocol):
    """A training, as far as an attacker sees it."""

    update: NoisyUpdate


class OptimizerWatch:
    """Reads out of the optimizer's memory what it was given in every step, and scores canaries.

    Args:
        training: Whose optimizer it is.
        canaries: That it trains on.
        event: The claim.
        expected_units: What sums are claimed to be divided by.
    """

    def __init__(
        self,
        training: TrainedFrom,
        canaries: RunCanaries,
        event: SampledGaussianEvent,
        expected_units: float,
    ) -> None:
        self._update, self._canaries, self._event = training.update, canaries, event
        self._expected_units = expected_units
        self._before = torch.zeros(canaries.axes, dtype=torch.float64)
        self.scores: Floats = np.zeros(canaries.count)

    def look(self, step: int) -> None:
        """Takes in `step`, which was just taken."""
        rate, multiplier = float(self._event.sampling_rate), float(self._event.noise_multiplier)
        update, canaries = self._update, self._canaries
        memory = torch.cat(
            [
                update.optimizer.state[value]["exp_avg"].flatten().double().cpu()
                for value in update.trained.values()
            ]
        )
        keeps = update.rule.betas[0]
        given = ((memory - keeps * self._before) / (1 - keeps)).numpy()
        self._before = memory
        y = given * (self._expected_units / update.rule.clip_norm(step))
        longest = update.rule.largest_norm
        if longest is not None and np.linalg.norm(given) > 0.999 * longest:
            # shortened after the noise: an attacker knows how large it must have been
            promised = multiplier**2 + rate / 2 * canaries.count / canaries.axes
            y *= np.sqrt(promised / np.square(y).mean())
        self.scores += log_ratio(y[: canaries.count], rate, multiplier)


def audit_run(
    watch: OptimizerWatch,
    canaries: RunCanaries,
    event: SampledGaussianEvent,
    *,
    training_steps: int,
    delta: float,
) -> CanaryAudit:
    """Returns what canaries found out about a training that claims to be `event`.

    Args:
        watch: It saw every step.
        canaries: That were trained on.
        event: The claim, of as many steps as were taken.
        training_steps: Of the plan.
        delta: At which epsilons are stated.
    """
    return judge(
        watch.scores,
        canaries.members,
        event,
        training_steps=training_steps,
        delta=delta,
    )

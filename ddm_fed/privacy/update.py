"""`NoisyUpdate`: the one way a private training changes weights.

    units -> included -> clipped sum -> noise -> divided by the expected number -> AdamW -> averages

Experts, heads and audits take their steps through it, the tests before a training look at its
step, and `ddm_fed.privacy.proof` recomputes its steps. All after the noise is post-processing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from ddm_fed.privacy.dpsgd import PrivateStep, UnitRows


@dataclass(frozen=True)
class UpdateRule:
    """What AdamW makes of private mean gradients: functions of the plan, and of no image.

    Attributes:
        learning_rate: Of a step.
        clip_norm: Most that a unit moves the sum of a step.
        betas: Memory of gradient and squared gradient.
        weight_decay: Decoupled.
        largest_norm: A longer mean gradient is shortened to it, after the noise; None leaves it.
        survives: By half-life, how much of an average survives a step.
        eps: Added to the root of the squared gradient's average.
    """

    learning_rate: Callable[[int], float]
    clip_norm: Callable[[int], float]
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    largest_norm: float | None = None
    survives: Mapping[int, Callable[[int], float]] = field(default_factory=dict)
    eps: float = 1e-8

    def optimizer(self, trained: Mapping[str, nn.Parameter]) -> torch.optim.AdamW:
        """Returns a fresh optimizer of `trained`."""
        return torch.optim.AdamW(
            trained.values(),
            lr=self.learning_rate(0),
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=True,
        )


class WeightAverages(Protocol):
    """Averages of the trained weights over the steps."""

    of: dict[int, dict[str, Tensor]]

    def update(self, step: int) -> None:
        """Takes the weights after `step` into every average."""


class NoisyUpdate:
    """The steps of one private training.

    Args:
        step: Who is in a step, and the noisy mean it yields.
        units: Whose images are learned from.
        trained: The weights, by name; steps change them in place.
        optimizer: Of these weights, made by `rule`.
        rule: Learning rate, clip norm and averages by step.
        averages: Of these weights; None keeps none.
    """

    def __init__(
        self,
        step: PrivateStep,
        units: UnitRows,
        trained: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        rule: UpdateRule,
        averages: WeightAverages | None = None,
    ) -> None:
        self.step, self.units, self.trained = step, units, trained
        self.optimizer, self.rule, self.averages = optimizer, rule, averages

    def take(self, step: int) -> float:
        """Takes one step and returns the sum of the losses of its units, which is private."""
        clip_norm = self.rule.clip_norm(step)
        gradient, loss = self.step.noisy_mean(self.trained, self.units, step, clip_norm)
        for name, value in self.trained.items():
            value.grad = gradient[name]
        for group in self.optimizer.param_groups:
            group["lr"] = self.rule.learning_rate(step)
        if self.rule.largest_norm is not None:
            nn.utils.clip_grad_norm_(self.trained.values(), self.rule.largest_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.averages is not None:
            self.averages.update(step)
        return loss

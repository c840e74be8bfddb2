"""Averages of the weights over the past, several at once, so that the best may be chosen later."""

import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ddm_fed.training.parallel import local_part


def ema_decay(half_life: int, step: int) -> float:
    """Returns how much of an average survives `step`.

    After `half_life` steps half of it does; early on less, so that the start is forgotten.
    """
    return min(math.exp2(-1 / half_life), (1 + step) / (10 + step))


class Averages:
    """Exponential averages of a model's weights; of this process's part where it is sharded.

    Args:
        model: Its weights are the first values.
        half_lives: In steps, one average each.
        still: Names of values that no step changes: their average is the model's own tensor.

    Attributes:
        of: By half-life, the average of every value of the model.
        still: As given.
    """

    def __init__(
        self, model: nn.Module, half_lives: Iterable[int], still: Collection[str] = ()
    ) -> None:
        weights, self.still = model.state_dict(), frozenset(still)
        self.of: dict[int, dict[str, Tensor]] = {
            half_life: {
                name: value if name in self.still else value.detach().clone()
                for name, value in weights.items()
            }
            for half_life in half_lives
        }
        # steps change these tensors in place, so the lists stay true
        moving = [name for name in weights if name not in self.still]
        self._weights = [local_part(weights[name]) for name in moving]
        self._averages = {
            half_life: [local_part(average[name]) for name in moving]
            for half_life, average in self.of.items()
        }

    @torch.no_grad()
    def restart(self) -> None:
        """Makes the present weights the first values of every average."""
        for average in self._averages.values():
            torch._foreach_copy_(average, self._weights)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the weights after `step` into every average."""
        for half_life, average in self._averages.items():
            torch._foreach_lerp_(average, self._weights, 1 - ema_decay(half_life, step))

    @contextmanager
    def in_place(self, half_life: int) -> Iterator[None]:
        """Puts an average into the model for a while; afterwards every bit is as before."""
        with torch.no_grad():
            kept = [value.clone() for value in self._weights]
            torch._foreach_copy_(self._weights, self._averages[half_life])
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._weights, kept)

"""What every network of an expert has in common, whatever it is made of.

Shapes: B batch, C channels, H and W pixels.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ddm_fed.flows import NO_CLASS, ClassCondition, Condition


class ExpertNetwork(nn.Module, ABC):
    """A network of images, times and conditions, `(B, C, H, W), (B,), condition -> (B, C, H, W)`.

    What its output means (velocity, noise or image), the design says. No row of a batch influences
    another, which routing and private training both need.

    Args:
        classes: Number of classes; 0 makes an unconditional network. Index `classes` of a table of
            classes stands for "no class".
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Returns the prediction at `x` (images at time `t`), `(B, C, H, W)` float32.

        Args:
            x: `(B, C, H, W)`.
            t: Times in [0, 1], `(B,)`.
            condition: Classes or captions, or None for "no condition".

        Raises:
            ValueError: a condition was given to an unconditional network.
            TypeError: it is of another kind than the network reads.
        """

    @abstractmethod
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draws every weight anew, from `generator` alone; the first output is zero."""

    def class_rows(self, t: Tensor, condition: Condition | None) -> Tensor:
        """Returns for each image the row of the table of classes it asks for, `(B,)` int64.

        Raises:
            ValueError: a condition was given to an unconditional network.
            TypeError: the condition is no class.
        """
        if condition is None:
            return torch.full_like(t, self.classes, dtype=torch.long)
        if not self.classes:
            raise ValueError("this network is unconditional: it takes no condition")
        if not isinstance(condition, ClassCondition):
            raise TypeError("this network reads classes: it takes no captions")
        return torch.where(condition.labels == NO_CLASS, self.classes, condition.labels)

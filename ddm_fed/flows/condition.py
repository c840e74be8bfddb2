"""What an image is asked to be: a typed value that models, routers and samplers hand on.

None stands for "no condition". A class is the only kind so far; a text embedding will be another
dataclass with the same methods.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

NO_CLASS = -1


@dataclass(frozen=True)
class ClassCondition:
    """One class per image.

    Attributes:
        labels: Class indices, `(B,)` int64; `NO_CLASS` in a row stands for "no condition" there.
    """

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, rows: Tensor | slice) -> Self:
        """Returns the condition of some rows of the batch."""
        return type(self)(self.labels[rows])

    def to(self, device: torch.device) -> Self:
        """Returns the condition on another device."""
        return type(self)(self.labels.to(device))

    def dropped(self, mask: Tensor) -> Self:
        """Returns the condition without that of the rows where `mask (B,)` is true."""
        return type(self)(torch.where(mask, NO_CLASS, self.labels))


Condition = ClassCondition


def rows_of(condition: Condition | None, rows: Tensor | slice) -> Condition | None:
    """Returns the condition of some rows; no condition has none for any row."""
    return None if condition is None else condition.rows(rows)

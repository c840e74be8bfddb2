"""What an image is asked to be: a typed value that models, routers and samplers hand on.

None stands for "no condition". A class and a caption are the two kinds, with the same methods.
"""

from collections.abc import Sequence
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


@dataclass(frozen=True)
class TextCondition:
    """One encoded caption per image.

    A row without a token has no caption, which stands for "no condition" there: its values are
    zero.

    Attributes:
        tokens: What the encoder made of every token, `(B, L, D)` float32.
        pooled: What it made of the whole caption, `(B, P)` float32.
        mask: Which of the tokens are the caption's, `(B, L)` bool.
    """

    tokens: Tensor
    pooled: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def labels(self) -> Tensor:
        """Class indices as in `ClassCondition`: a caption is of none that a plan knows, `(B,)`."""
        return torch.full((len(self),), NO_CLASS, device=self.mask.device)

    def rows(self, rows: Tensor | slice) -> Self:
        """Returns the condition of some rows of the batch."""
        return type(self)(self.tokens[rows], self.pooled[rows], self.mask[rows])

    def to(self, device: torch.device) -> Self:
        """Returns the condition on another device."""
        return type(self)(self.tokens.to(device), self.pooled.to(device), self.mask.to(device))

    def dropped(self, mask: Tensor) -> Self:
        """Returns the condition without the captions of the rows where `mask (B,)` is true."""
        kept = ~mask
        return type(self)(
            torch.where(kept[:, None, None], self.tokens, 0.0),
            torch.where(kept[:, None], self.pooled, 0.0),
            self.mask & kept[:, None],
        )


Condition = ClassCondition | TextCondition


def tensors_of(condition: Condition | None) -> tuple[Tensor, ...]:
    """Returns what a condition is made of, each `(B, ...)`: rows of a private step are tensors."""
    match condition:
        case None:
            return ()
        case ClassCondition():
            return (condition.labels,)
        case TextCondition():
            return (condition.tokens, condition.pooled, condition.mask)


def condition_of(tensors: Sequence[Tensor]) -> Condition | None:
    """Returns the condition that is made of `tensors`, as `tensors_of` returns them."""
    match tuple(tensors):
        case ():
            return None
        case (labels,):
            return ClassCondition(labels)
        case (tokens, pooled, mask):
            return TextCondition(tokens, pooled, mask)
    raise ValueError(f"no condition is made of {len(tensors)} tensors")


def rows_of(condition: Condition | None, rows: Tensor | slice) -> Condition | None:
    """Returns the condition of some rows; no condition has none for any row."""
    return None if condition is None else condition.rows(rows)

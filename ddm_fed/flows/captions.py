"""Captions as a public text encoder left them, ready to be conditions.

Shapes: M distinct captions, L tokens of each, D and P widths of a token's and of the pooled vector.
"""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ddm_fed.flows.condition import TextCondition


class EncodedTexts:
    """What an encoder made of captions; the arrays may be mapped from files.

    Args:
        captions: The M texts. The empty one needs no place: it stands for "no caption".
        tokens: `(M, L, D)`.
        pooled: `(M, P)`.
        lengths: How many of the L tokens are a caption's, `(M,)`.

    Example:
        >>> one = (np.ones((1, 4, 2)), np.ones((1, 3)), np.array([2]))
        >>> encoded = EncodedTexts(["a boot"], *one)
        >>> encoded.condition(["", "a boot"]).mask.sum(1).tolist()
        [0, 2]
    """

    def __init__(
        self,
        captions: Sequence[str],
        tokens: NDArray[Any],
        pooled: NDArray[Any],
        lengths: NDArray[Any],
    ) -> None:
        self._places = {caption: place for place, caption in enumerate(captions)}
        self._tokens, self._pooled, self._lengths = tokens, pooled, lengths

    @classmethod
    def nothing(cls, tokens: int, width: int, pooled: int) -> Self:
        """Returns those of no caption: it knows the empty one alone."""
        return cls([], np.zeros((0, tokens, width)), np.zeros((0, pooled)), np.zeros(0, np.int64))

    def condition(self, captions: Sequence[str]) -> TextCondition:
        """Returns the condition that `captions` are, row by row; only these are read.

        Raises:
            ValueError: one of them was not encoded. It does not say which: captions are private.
        """
        _, count, width = self._tokens.shape
        tokens = np.zeros((len(captions), count, width), np.float32)
        pooled = np.zeros((len(captions), self._pooled.shape[1]), np.float32)
        lengths = np.zeros(len(captions), np.int64)
        told = [row for row, caption in enumerate(captions) if caption]
        places = [self._places.get(captions[row], -1) for row in told]
        if -1 in places:
            raise ValueError("a caption was not encoded")
        if told:
            tokens[told], pooled[told] = self._tokens[places], self._pooled[places]
            lengths[told] = self._lengths[places]
        mask = torch.arange(count) < torch.from_numpy(lengths)[:, None]
        values = torch.from_numpy(tokens) * mask[:, :, None]
        return TextCondition(values, torch.from_numpy(pooled), mask)

"""How a caption enters a network: a vector beside the time, and tokens to attend to.

The tokens begin with one that is always there and says nothing. So an image without a caption has
something to attend to, and what a network does then is learned like everything else: in the biases,
since a caption that is not there is zero.

Shapes: B batch, L tokens of a caption, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddm_fed.flows import Condition, TextCondition
from ddm_fed.models.layers import plain_norm
from ddm_fed.records import TextSpec


class Told(NamedTuple):
    """A caption inside a network.

    Attributes:
        tokens: `(B, 1 + L, D)`.
        pooled: `(B, D)`.
        mask: Which tokens may be attended to, `(B, 1 + L)` bool; the first of each row always.
    """

    tokens: Tensor
    pooled: Tensor
    mask: Tensor


class TextInput(nn.Module):
    """Captions at the width of a network.

    Args:
        text: What the encoder makes of a caption.
        width: D.
    """

    def __init__(self, text: TextSpec, width: int) -> None:
        super().__init__()
        self.text = text
        # without weights, so that zero stays zero
        self.token_norm, self.pooled_norm = plain_norm(text.width), plain_norm(text.pooled)
        self.tokens = nn.Linear(text.width, width)
        self.pooled = nn.Linear(text.pooled, width)

    def forward(self, t: Tensor, condition: Condition | None) -> Told:
        """Returns the captions of `condition`; `t (B,)` says how many rows have none without.

        Raises:
            TypeError: the condition is a class.
            ValueError: it is of another encoder.
        """
        if condition is None:
            condition = self._nothing(t)
        if not isinstance(condition, TextCondition):
            raise TypeError("this network reads captions: it takes no class")
        count, width = condition.tokens.shape[-2:]
        found, wanted = (count, width, condition.pooled.shape[-1]), self._sizes
        if found != wanted:
            raise ValueError(f"captions are of sizes {found}, this network reads {wanted}")
        first = torch.zeros_like(condition.tokens[:, :1])
        tokens = torch.cat([first, self.token_norm(condition.tokens)], dim=1)
        mask = torch.cat([torch.ones_like(condition.mask[:, :1]), condition.mask], dim=1)
        return Told(self.tokens(tokens), self.pooled(self.pooled_norm(condition.pooled)), mask)

    @property
    def _sizes(self) -> tuple[int, int, int]:
        return (self.text.tokens, self.text.width, self.text.pooled)

    def _nothing(self, t: Tensor) -> TextCondition:
        tokens, width, pooled = self._sizes
        like = self.tokens.weight
        return TextCondition(
            like.new_zeros((len(t), tokens, width)),
            like.new_zeros((len(t), pooled)),
            torch.zeros((len(t), tokens), dtype=torch.bool, device=like.device),
        )

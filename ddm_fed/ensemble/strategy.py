"""Which experts are asked for a sample: strategies, and the draw of a site. Why: `velocity.py`."""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from ddm_fed.errors import guess

# Below this time `sticky-then-routed` redraws, by default. Above it x_t is mostly noise and the
# posterior is close to the prior: a redraw would load many experts and learn nothing.
STICKY_UNTIL = 0.5
EXAMPLES = (
    "sticky",
    "sticky-then-routed",
    "per-step",
    "full",
    "top-2",
    "sample-2",
    "threshold-0.05",
    "nucleus-0.9",
)


@dataclass(frozen=True)
class Strategy:
    """Which experts answer.

    Attributes:
        kind: See the table in `velocity.py`.
        k: How many, for `top-k` and `sample-k`.
        level: The least weight for `threshold`; the mass that is kept at least for `nucleus`; for
            `sticky-then-routed` the time T.
    """

    kind: Literal[
        "full",
        "top-k",
        "sample-k",
        "threshold",
        "nucleus",
        "sticky",
        "per-step",
        "sticky-then-routed",
    ]
    k: int = 0
    level: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Returns the strategy of a name such as `full`, `top-2` or `threshold-0.05`.

        Raises:
            ValueError: naming what is allowed.
        """
        match text.rpartition("-"):
            case ("", "", "full" | "sticky" as kind):
                return cls(kind)
            case ("per", "-", "step"):
                return cls("per-step")
            case ("sticky-then", "-", "routed"):
                return cls("sticky-then-routed", level=STICKY_UNTIL)
            case ("top", "-", k) if k.isdecimal() and int(k) >= 1:
                return cls("top-k", k=int(k))
            case ("sample", "-", k) if k.isdecimal() and int(k) >= 1:
                return cls("sample-k", k=int(k))
            case (
                "threshold" | "nucleus" | "sticky-then-routed" as kind,
                "-",
                level,
            ) if _is_fraction(level):
                return cls(kind, level=float(level))
        near = guess(text, EXAMPLES)
        raise ValueError(
            f"unknown strategy `{text}`{near or ';'} use sticky, sticky-then-routed, per-step, "
            " full, top-K such as top-2, sample-K such as sample-2, threshold-W such as "
            "threshold-0.05, nucleus-P such as nucleus-0.9, or sticky-then-routed-T such as "
            "sticky-then-routed-0.5"
        )

    def __str__(self) -> str:
        match self.kind:
            case "top-k":
                return f"top-{self.k}"
            case "sample-k":
                return f"sample-{self.k}"
            case "threshold" | "nucleus" | "sticky-then-routed":
                return f"{self.kind}-{self.level:g}"
        return self.kind

    @property
    def draws_sites(self) -> bool:
        """Whether one site is drawn for each sample, rather than several weighted."""
        return self.kind in ("sticky", "per-step", "sticky-then-routed")

    @property
    def draws_several(self) -> bool:
        """Whether several sites are drawn in every step, without replacement, and weighted."""
        return self.kind == "sample-k"

    @property
    def sticky_until(self) -> float:
        """The time above which a drawn site stays; 1 or more redraws in every step."""
        return {"sticky": -1.0, "per-step": 1.0}.get(self.kind, self.level)

    @property
    def redraws_until(self) -> float:
        """The largest time at which the router's view of the image decides who answers."""
        return self.sticky_until if self.draws_sites else 1.0

    @property
    def asks_router(self) -> bool:
        """Whether the router's view of the image decides who answers."""
        return self.kind != "sticky"


def draw_sites(log_probability: Tensor, uniform: Tensor) -> Tensor:
    """Returns a site for each row, `(B,)` int64, by inverting the distribution function.

    Args:
        log_probability: `(B, K)` float64; a site of probability 0 is never drawn.
        uniform: Even draws from [0, 1), `(B,)` float64.
    """
    reached = log_probability.softmax(1).cumsum(1)
    return (reached <= uniform[:, None] * reached[:, -1:]).sum(1)


def gumbel(uniform: Tensor) -> Tensor:
    """Returns draws of the standard Gumbel law of even draws from [0, 1), same shape.

    The K largest of log p + Gumbel noise are K draws from p without replacement.

    Source: Kool et al. 2019, arXiv:1903.06059, section 3.
    """
    tiny = torch.finfo(uniform.dtype).tiny
    return -(-uniform.clamp_min(tiny).log()).clamp_min(tiny).log()


def _is_fraction(text: str) -> bool:
    """Returns whether `text` is a decimal strictly between 0 and 1, such as 0.05."""
    whole, point, digits = text.partition(".")
    return whole == "0" and point == "." and digits.isdecimal() and float(text) > 0


# Exact whatever the router sees, and one expert a call; see docs/adr/0024.
DEFAULT_STRATEGY = Strategy("sticky")

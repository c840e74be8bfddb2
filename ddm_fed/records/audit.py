"""What an audit found out about a private training, as a manifest may carry it.

Only figures of an audit by canaries belong here: they depend on no image. How an attack fares on
real members is a statistic of private images that nothing has noised.
"""

from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ddm_fed.records.base import Count, NonNegative, Number, Record

Verdict = Literal["violates_claim", "consistent_with_claim", "inconclusive"]
AttackerAccess = Literal["black-box samples", "white-box weights", "white-box gradients"]
Share = Annotated[Number, Field(gt=0, lt=1)]
Method = Literal[
    "guesses of one run and means of its scores against a Gaussian trade-off; the claimed profile "
    "by guesses and by rates"
]
CanaryType = Literal["Dirac gradients through the step's sampler, clipping and noise"]


class AuditFacts(Record):
    """One audit: a bound from below beside the claimed one from above, and what follows.

    Epsilons are those of `steps` steps, which may be fewer than `training_steps`. `ceiling` is
    what the bound would be if all of the guesses were right: an audit that cannot exceed the claim
    proves nothing. `score_eps_lower_bound` takes more for granted than guesses do, that scores are
    normal, and is nearer to the truth; no verdict rests on it. `significance` is the probability
    with which an honest training is accused.
    """

    empirical_eps_lower_bound: NonNegative
    score_eps_lower_bound: NonNegative
    confidence: Share
    delta: Share
    method: Method
    canaries: Count
    guesses: Count
    correct: Annotated[int, Field(ge=0, le=2**53 - 1)]
    ceiling: NonNegative
    attacker_access: AttackerAccess
    canary_type: CanaryType
    claimed_eps: NonNegative
    steps: Count
    training_steps: Count
    p_value: Annotated[Number, Field(ge=Decimal("1e-15"), le=1)]
    significance: Share
    verdict: Verdict

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if not self.correct <= self.guesses <= self.canaries:
            raise ValueError("expected `correct` <= `guesses` <= `canaries`")
        if self.steps > self.training_steps:
            raise ValueError("`steps` is more than `training_steps`")
        if self.verdict != verdict(self.p_value, self.significance, self.ceiling, self.claimed_eps):
            raise ValueError("`verdict` does not follow from the figures")
        return self


def verdict(
    p_value: float | Decimal,
    significance: float | Decimal,
    ceiling: float | Decimal,
    claimed_eps: float | Decimal,
) -> Verdict:
    """Returns what follows for a claim; nothing if the attack could not have exceeded it."""
    if p_value < significance:
        return "violates_claim"
    return "inconclusive" if ceiling < claimed_eps else "consistent_with_claim"

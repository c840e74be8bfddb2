"""How a run is made private, and who pays for it."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from decimal import Decimal

from ddm_fed.records import Plan, SampledGaussianEvent, SgdFacts


@dataclass(frozen=True)
class PrivateTraining:
    """How a run is made private. All of it may be published.

    Attributes:
        sampling_rate: Probability that a unit is in a step.
        noise_multiplier: Standard deviation of the noise in clip norms.
        steps: How often.
        clip_norm: Most that a unit moves a sum in the first step.
        clip_norm_end: The same in the last one; in between it changes evenly. The noise follows.
        draws: Noised copies of a unit in a step.
        trainable: Which weights are trained.
        expected_units: What sums are divided by; from a release, never from the data.
        gradients: Which engine; "" until it was chosen.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int
    clip_norm: float
    clip_norm_end: float
    draws: int
    trainable: str
    expected_units: float
    gradients: str = ""

    @classmethod
    def planned(cls, plan: Plan, event: SampledGaussianEvent, units: float) -> "PrivateTraining":
        """Returns what `plan` and its event ask for.

        Args:
            plan: Has `privacy.sgd`.
            event: Of the expert.
            units: A released number of units, at least one.
        """
        sgd = plan.privacy.sgd
        if sgd is None:
            raise ValueError("the plan trains without noise")
        return cls(
            sampling_rate=float(event.sampling_rate),
            noise_multiplier=float(event.noise_multiplier),
            steps=event.steps,
            clip_norm=float(sgd.clip_norm),
            clip_norm_end=float(sgd.clip_norm_end or sgd.clip_norm),
            draws=sgd.draws,
            trainable=sgd.trainable,
            expected_units=round(max(units, 1.0) * float(event.sampling_rate), 6),
        )

    def clip_norm_at(self, step: int) -> float:
        """Returns the clip norm of `step`."""
        return self.clip_norm + (self.clip_norm_end - self.clip_norm) * step / self.steps

    def facts(self) -> SgdFacts:
        """Returns what the manifest says of it."""
        return SgdFacts.model_validate(
            {
                "clip_norm": Decimal(str(self.clip_norm)),
                "clip_norm_end": Decimal(str(self.clip_norm_end)),
                "draws": self.draws,
                "trainable": self.trainable,
                "expected_units": Decimal(str(self.expected_units)),
                "gradients": self.gradients,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "PrivateTraining":
        """Returns what `to_json` wrote."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """Returns it as the checkpoint keeps it."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Payment:
    """The ledger, as training sees it.

    Attributes:
        pay: Writes the entry durably and returns its digest, or refuses.
        require_paid: Refuses if the ledger has no entry of that digest.
    """

    pay: Callable[[], str]
    require_paid: Callable[[str], None]

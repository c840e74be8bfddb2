"""How a run is made private, and who pays for it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import NamedTuple

from ddm_fed.privacy import expected_units
from ddm_fed.records import CentralFacts, Plan, SampledGaussianEvent, SgdFacts


@dataclass(frozen=True)
class CentralImages:
    """How the noisy means are made that an expert is trained on first. All of it may be published.

    Attributes:
        sampling_rate: Probability that a unit is in a round.
        noise_multiplier: Standard deviation of the noise in radii.
        images: Rounds: how many there are of each class.
        centre: Pixel value about which means are taken.
        radius: Most that a unit moves a sum.
        steps: Of the training on them.
        expected_units: What the sum of each class is divided by; from a release, never from the
            data. 0 for a class that drowned in the release: it has no central images.
    """

    sampling_rate: float
    noise_multiplier: float
    images: int
    centre: float
    radius: float
    steps: int
    expected_units: tuple[float, ...]

    @classmethod
    def planned(
        cls, plan: Plan, event: SampledGaussianEvent | None, units: Sequence[float]
    ) -> "CentralImages | None":
        """Returns what `plan` and its event ask for; None if they ask for none.

        Args:
            plan: Has `privacy.sgd`.
            event: Of the central images.
            units: Released number of units of each class.
        """
        sgd = plan.privacy.sgd
        if event is None or sgd is None or sgd.central is None:
            return None
        central, rate = sgd.central, float(event.sampling_rate)
        return cls(
            sampling_rate=rate,
            noise_multiplier=float(event.noise_multiplier),
            images=central.images,
            centre=float(central.centre),
            radius=float(central.radius),
            steps=central.steps,
            expected_units=tuple(round(max(count, 0.0) * rate, 6) for count in units),
        )

    def facts(self) -> CentralFacts:
        """Returns what the manifest says of it."""
        return CentralFacts(
            images=self.images,
            centre=Decimal(str(self.centre)),
            radius=Decimal(str(self.radius)),
            steps=self.steps,
        )


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
        central: How the images are made that are learnt first; None if there are none.
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
    central: CentralImages | None = None

    @classmethod
    def planned(
        cls,
        plan: Plan,
        event: SampledGaussianEvent,
        units: float,
        central: CentralImages | None = None,
    ) -> "PrivateTraining":
        """Returns what `plan` and its event ask for.

        Args:
            plan: Has `privacy.sgd`.
            event: Of the expert.
            units: A released number of units, at least one.
            central: As planned, if the plan has such images.
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
            expected_units=expected_units(units, float(event.sampling_rate)),
            central=central,
        )

    def clip_norm_at(self, step: int) -> float:
        """Returns the clip norm of `step`, from 0 to `steps` - 1."""
        done = step / max(1, self.steps - 1)
        return self.clip_norm + (self.clip_norm_end - self.clip_norm) * done

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
                "central": None if self.central is None else self.central.facts(),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "PrivateTraining":
        """Returns what `to_json` wrote."""
        values = json.loads(text)
        central = values.pop("central", None)
        if central is not None:
            counts = tuple(central.pop("expected_units"))
            central = CentralImages(**central, expected_units=counts)
        return cls(**values, central=central)

    def to_json(self) -> str:
        """Returns it as the checkpoint keeps it."""
        return json.dumps(asdict(self), sort_keys=True)


class Paid(NamedTuple):
    """What the ledger says was paid for a training: the event of its steps, and of its means."""

    expert: SampledGaussianEvent
    central: SampledGaussianEvent | None = None


@dataclass(frozen=True)
class Payment:
    """The ledger, as training sees it.

    Attributes:
        pay: Writes the entry durably and returns its digest, or refuses.
        require_paid: Returns what the entry of that digest, and the one of its central images, say;
            refuses if the ledger has none. The proof of the training believes it alone.
    """

    pay: Callable[[], str]
    require_paid: Callable[[str], Paid]

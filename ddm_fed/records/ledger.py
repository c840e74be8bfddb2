"""The ledger: one entry for everything a site released that depends on private images.

An entry describes a mechanism; `privacy.accountant` prices it. The meaning of an event never
changes. Entries are chained by digest, so that a site cannot forget one without it showing.
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from ddm_fed.records.audit import AuditFacts
from ddm_fed.records.base import (
    Count,
    Day,
    Figure,
    Number,
    Positive,
    Record,
    Sha256,
)
from ddm_fed.records.canonical import sha256_hex
from ddm_fed.records.plan import PrivacyUnit
from ddm_fed.records.sgd import Trainable

# The only words of an entry, so that no number of the data can be among them.
Mechanism = Literal["discrete-gaussian", "dp-sgd", "mean-images", "no-noise"]
EVENT_OF = {
    "discrete-gaussian": "gaussian",
    "dp-sgd": "poisson_gaussian",
    "mean-images": "poisson_gaussian",
    "no-noise": "non_private",
}
Nonce = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Purpose = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,62}$")]


ACCOUNTANT = (
    r"^dp-accounting, privacy loss distributions, add_or_remove_one, [0-9]{1,4}(\.[0-9]{1,4}){1,3}$"
)


class GaussianEvent(Record):
    """Noise of standard deviation `noise_multiplier` times the L2 sensitivity was added once."""

    kind: Literal["gaussian"] = "gaussian"
    # outside these bounds nothing is private, or nothing is left; a peer's ledger is priced
    noise_multiplier: Annotated[Number, Field(ge=Decimal("0.01"), le=10**6)]


class SampledGaussianEvent(Record):
    """`steps` times, units were drawn at `sampling_rate` each for itself, and their sum got noise.

    What DP-SGD does. One unit moves a sum by the clip norm at most, and the noise has
    `noise_multiplier` times that as standard deviation.
    """

    kind: Literal["poisson_gaussian"] = "poisson_gaussian"
    sampling_rate: Annotated[Number, Field(ge=Decimal("0.000001"), le=1)]
    noise_multiplier: Annotated[Number, Field(ge=Decimal("0.3"), le=10**6)]
    steps: Annotated[int, Field(ge=1, le=10**6)]


class NonPrivateEvent(Record):
    """Something left without noise: no guarantee holds for the units that shaped it."""

    kind: Literal["non_private"] = "non_private"


Event = Annotated[
    GaussianEvent | SampledGaussianEvent | NonPrivateEvent, Field(discriminator="kind")
]


class LedgerEntry(Record):
    """One release, written down before its noise is drawn; `unit` is what its event speaks of.

    `nonce` is drawn for every entry: without it, a second run of the same plan on the same day
    could write the very bytes of the first, and a ledger that was cut in between would not show it.
    Entries of earlier versions have none.
    """

    index: Annotated[int, Field(ge=0)]
    previous_sha256: Sha256 | None
    recorded_at: Day
    plan_sha256: Sha256
    purpose: Purpose
    mechanism: Mechanism
    event: Event
    unit: PrivacyUnit = "image"
    nonce: Annotated[
        Nonce | None, Field(exclude_if=lambda nonce: nonce is None)  # keeps the digests of old ones
    ] = None

    @model_validator(mode="after")
    def _event_is_of_the_mechanism(self) -> Self:
        if self.event.kind != EVENT_OF[self.mechanism]:
            raise ValueError(f"`mechanism` {self.mechanism} has no `{self.event.kind}` event")
        return self

    @property
    def identity(self) -> bytes:
        """What stays the same when the entry is carried to another place of the chain."""
        return self.model_copy(update={"index": 0, "previous_sha256": None}).to_json()


class LedgerHead(Record):
    """A ledger by its number of entries and the digest of the last, which covers all of them."""

    entries: Count
    sha256: Sha256


def ledger_head(entries: Sequence[LedgerEntry]) -> LedgerHead:
    """Returns the head of a chained ledger of at least one entry."""
    return LedgerHead(entries=len(entries), sha256=sha256_hex(entries[-1].to_json()))


def extends(entries: Sequence[LedgerEntry], head: LedgerHead) -> bool:
    """Returns whether the chained ledger `entries` begins with the one that had `head`."""
    known = entries[: head.entries]
    return len(known) == head.entries and ledger_head(known) == head


class CentralFacts(Record):
    """The noisy means an expert was trained on first; rate, noise and rounds are in their event."""

    images: Annotated[int, Field(ge=1, le=64)]
    centre: Number
    radius: Positive
    steps: Annotated[int, Field(ge=1, le=100_000)]


class SgdFacts(Record):
    """How an expert was trained with noise; rate, noise and steps are in the ledger's event.

    `expected_units` is what every noisy sum was divided by: the sampling rate times the released,
    noisy number of units. Nothing here was computed from images but through a release.
    """

    sampling: Literal["poisson"] = "poisson"
    clip_norm: Positive
    clip_norm_end: Positive
    draws: Annotated[int, Field(ge=1, le=256)]
    trainable: Trainable
    expected_units: Positive
    central: CentralFacts | None = None
    gradients: Literal["functional", "recorded"]
    arithmetic: Literal["float32 sums, float64 noise"] = "float32 sums, float64 noise"
    # the training stops if one of them does not pass
    self_test: Literal["passed"] = "passed"
    steps_computed_again: Literal["agreed"] = "agreed"


class PrivacyStatement(Record):
    """What a submission says it cost: the events, and the epsilon they compose to at `delta`.

    `releases_epsilon` composes every noisy release; it bounds the expert too only where
    `expert_is_private` is true, and the head where `head_is_private` is.

    Source: the facts NIST SP 800-226 asks for.
    """

    unit: PrivacyUnit = "image"
    adjacency: Literal["add_or_remove_one"] = "add_or_remove_one"
    trust_model: Literal["central-at-site"] = "central-at-site"
    statistics: Literal["exact discrete Gaussian"] = "exact discrete Gaussian"
    delta: Positive
    releases_epsilon: Figure
    expert_is_private: bool
    head_is_private: bool | None = None  # None: there is no head
    sgd: SgdFacts | None = None
    audit: AuditFacts | None = None  # of canaries alone, and only if the site shares it
    accountant: Annotated[str, StringConstraints(pattern=ACCOUNTANT)]
    randomness: Literal["csprng", "test"]
    ledger: Annotated[tuple[LedgerEntry, ...], Field(min_length=1, max_length=2000)]

"""What a student is: one network that learnt what an ensemble says, and how it was made."""

from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ddm_fed.records.architecture import adds_to_mixture
from ddm_fed.records.base import (
    Count,
    Figure,
    Name,
    NonNegative,
    Positive,
    Record,
    RootPin,
    Sha256,
)
from ddm_fed.records.built_router import RouterName
from ddm_fed.records.manifest import (
    EnsembleMember,
    LogHead,
    Program,
    RosterReference,
    TorchVersion,
)
from ddm_fed.records.plan import ExpertDesign, PrivacyUnit, TrainingSpec

STUDENT_PREDICATE = "urn:ddm-fed:student:v1"


class Arithmetic(Record):
    """What a distillation computed, in units of 10^9 floating point operations.

    A multiply-add counts as 2, a step of training as three passes. Only networks count: closed
    forms, routers and autoencoders do not.
    """

    drawing: NonNegative
    teacher: NonNegative
    student: NonNegative

    @property
    def total(self) -> Decimal:
        """All of it."""
        return self.drawing + self.teacher + self.student


class Distillation(Record):
    """How a student was taught.

    Attributes:
        source: What x_0 was: samples of the ensemble, or images that the coordinator gave.
        teacher: Whose velocity is learnt: of the one expert that an x_0 belongs to, or of all,
            weighted by the router.
        router: The ensemble's router.
        images: How many x_0.
        images_sha256: Their digest. Images that were given are known by it to whoever has them.
        solver_steps: Of the solver that drew them; None where they were given.
        seed: Decides all draws.
        start: The member whose expert's weights it began with; None where they were drawn.
        training: As a plan says it.
        precision: Of forward and backward passes.
        program: What trained it.
        torch: Its version.
        gigaflops: What was computed.
    """

    source: Literal["samples", "data"]
    teacher: Literal["own", "ensemble"]
    router: RouterName
    images: Count
    images_sha256: Sha256
    solver_steps: Count | None
    seed: Annotated[int, Field(ge=0, lt=2**53)]
    start: Annotated[Name | None, Field(exclude_if=lambda start: start is None)] = None
    training: TrainingSpec
    precision: Literal["float32", "bfloat16"]
    program: Program
    torch: TorchVersion
    gigaflops: Arithmetic

    @model_validator(mode="after")
    def _samples_are_drawn(self) -> Self:
        if (self.source == "samples") != (self.solver_steps is not None):
            raise ValueError("`solver_steps` belongs to samples, and only to them")
        return self


class StudentPrivacy(Record):
    """Which promises of the members hold for the student too.

    A student of samples is post-processing: it was computed from experts and releases alone, so
    whatever they promise, it keeps. One of given images is that only towards the members: of the
    images themselves it promises nothing.

    Attributes:
        post_processing: Whether nothing else was read.
        unit: What an epsilon protects as a whole.
        experts_are_private: Whether every member's expert was trained with noise: if not, epsilon
            bounds the releases alone.
        epsilon: The largest of any member; sites hold other units, so they do not add up.
        delta: The largest of any member.
    """

    post_processing: bool
    unit: PrivacyUnit
    experts_are_private: bool
    epsilon: Figure
    delta: Positive


class StudentRecord(Record):
    """What a student is made of, and how.

    `ensemble_sha256` is the payload digest of the ensemble's statement. `members` and `left_out`
    are those of the ensemble, at the same log. `class_units` is how many units of every class the
    members released, by which classes are drawn.
    """

    federation: Name
    root: RootPin
    plan_sha256: Sha256
    roster: RosterReference
    log: LogHead
    ensemble_sha256: Sha256
    members: Annotated[tuple[EnsembleMember, ...], Field(min_length=1, max_length=1000)]
    left_out: Annotated[tuple[Name, ...], Field(max_length=1000)]
    design: ExpertDesign
    size_bytes: Count
    class_units: tuple[NonNegative, ...] = ()
    distillation: Distillation
    privacy: StudentPrivacy

    @model_validator(mode="after")
    def _is_a_network(self) -> Self:
        if adds_to_mixture(self.design.architecture):
            raise ValueError("a student is one network, without a mixture")
        return self

    @model_validator(mode="after")
    def _members_are_distinct(self) -> Self:
        names = [*(member.site for member in self.members), *self.left_out]
        if len(set(names)) != len(names):
            raise ValueError("a site is named twice")
        return self

    @model_validator(mode="after")
    def _starts_from_a_member(self) -> Self:
        start = self.distillation.start
        if start is not None and start not in {member.site for member in self.members}:
            raise ValueError(f"it started from the expert of {start}, which is no member")
        return self

    @model_validator(mode="after")
    def _post_processing_reads_no_images(self) -> Self:
        if self.privacy.post_processing != (self.distillation.source == "samples"):
            raise ValueError("`privacy.post_processing` is true of a student of samples, only")
        return self

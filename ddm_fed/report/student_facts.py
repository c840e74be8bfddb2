"""What is known of a student: what it is, who taught it and how, what sampling it takes."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ddm_fed.distillation.folder import VerifiedStudent
from ddm_fed.errors import StateError
from ddm_fed.models import NetworkCost, network_cost
from ddm_fed.report.evaluation_facts import read_evaluation_facts
from ddm_fed.report.facts import (
    MemberFacts,
    ModelFacts,
    Sources,
    Unknown,
    hold_against,
    members_of,
    typed,
    unknown_of_attacks,
    unknown_of_images,
)
from ddm_fed.report.sample_facts import read_student_samples


@dataclass(frozen=True)
class StudentFacts(ModelFacts):
    """All that a report of a student says.

    Attributes:
        cost: Of its network.
        experts: What the networks of the members' experts cost, in the members' order: 0 where an
            expert has none; None where one is of a package that is not installed here.
        distill_command: What makes the same weights of the same ensemble.
    """

    verified: VerifiedStudent
    cost: NetworkCost
    experts: tuple[NetworkCost, ...] | None
    distill_command: str

    @property
    def start(self) -> MemberFacts | None:
        """The member whose expert's weights it began with, if any."""
        name = self.verified.record.distillation.start
        return next((member for member in self.members if member.name == name), None)


def gather_student(verified: VerifiedStudent, sources: Sources) -> StudentFacts:
    """Returns what is known of a verified student. It has no router that could be judged.

    Raises:
        StateError: samples or evaluation are of something else, or it is stale.
        DataError: they are damaged.
        RefusedError: the newer documents do not continue the student's own.
    """
    if sources.router_samples:
        raise ValueError("a student has no router to judge")
    staleness, head = hold_against(verified, sources.seen)
    samples = evaluation = None
    if sources.samples is not None:
        samples = read_student_samples(sources.samples, verified)
    if sources.evaluation is not None:
        evaluation = read_evaluation_facts(sources.evaluation, verified, samples)
    members = members_of(verified)
    found = StudentFacts(
        verified=verified,
        members=members,
        staleness=staleness,
        held_against=head,
        samples=samples,
        evaluation=evaluation,
        cost=_cost(verified, verified.record.design.architecture),
        experts=_costs_of_experts(verified, members),
        unknown=(),
        verify_command=typed(verified, "verify"),
        sample_command=typed(verified, "sample", "--out", "samples"),
        distill_command=_distill_command(verified),
    )
    return replace(found, unknown=tuple(_unknown(found)))


def _cost(verified: VerifiedStudent, architecture: str) -> NetworkCost:
    data = verified.trust.plan.data
    return network_cost(architecture, data.shape, len(data.classes))


def _costs_of_experts(
    verified: VerifiedStudent, members: Sequence[MemberFacts]
) -> tuple[NetworkCost, ...] | None:
    names = [member.submission.expert.architecture for member in members]
    try:
        costs = {name: _cost(verified, name) for name in set(names)}
    except StateError:  # the student's own is installed, or it would not have been verified
        return None
    return tuple(costs[name] for name in names)


def _distill_command(verified: VerifiedStudent) -> str:
    record, made = verified.record, verified.record.distillation
    words = ["ddm-coord", "distill", "ENSEMBLE", "--out", "again"]
    words += ["--architecture", record.design.architecture, "--teacher", made.teacher]
    # without such a member nothing but chance was left, whatever was asked for
    words += ["--start", "chance" if made.start is None else "expert"]
    if made.source == "samples":
        words += ["--samples", str(made.images), "--solver-steps", str(made.solver_steps)]
    else:
        words += ["--data", "IMAGES.npz"]
        if verified.trust.plan.data.latent is not None:
            words += ["--autoencoder", "AUTOENCODER"]
    training = made.training
    words += ["--steps", str(training.steps), "--batch-size", str(training.batch_size)]
    words += ["--learning-rate", str(training.learning_rate), "--seed", str(made.seed)]
    return shlex.join([*words, "--precision", made.precision])


def _unknown(found: StudentFacts) -> Iterator[Unknown]:
    yield from unknown_of_images(found, "what its images look like")
    yield Unknown(
        "whether its weights came of that ensemble: the coordinator says so, and can show it by "
        "making the same weights again on the same machine type",
        found.distill_command,
    )
    yield from unknown_of_attacks(found)

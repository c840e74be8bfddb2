"""What a student may be asked to be, and what no student can be made of."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from ddm_fed.ensemble.pool import Precision
from ddm_fed.errors import MalformedError, OptionError, StateError
from ddm_fed.records import (
    ExpertDesign,
    Plan,
    TrainingSpec,
    adds_to_mixture,
    network_of,
    require_fit,
)

TeacherName = Literal["own", "ensemble"]
StartName = Literal["expert", "chance"]


@dataclass(frozen=True)
class DistillOptions:
    """How a student is made; see `ddm-coord distill --help`. None is what the plan says.

    Attributes:
        architecture: Of the student.
        teacher: Whose velocity is learnt.
        start: From what weights: of the expert with the largest share among those whose network is
            the student's, if there are any; or drawn.
        samples: How many x_0 are drawn.
        solver_steps: Of the solver that draws them.
        steps: Of training.
        batch_size: Of a step.
        learning_rate: The largest.
        seed: Decides all draws.
        precision: Of teacher and student.
        checkpoint_every_s: Seconds between checkpoints; 0 writes one after every step.
        devices: Where experts run, in turn; the student is trained on the first.
        resident: Most experts in memory at once; None keeps all.
    """

    architecture: str | None = None
    teacher: TeacherName = "own"
    start: StartName = "expert"
    samples: int = 10_000
    solver_steps: int = 20
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int = 0
    precision: Precision = "float32"
    checkpoint_every_s: float = 30.0
    devices: tuple[str, ...] = ("cpu",)
    resident: int | None = None


def student_design(plan: Plan, architecture: str | None) -> ExpertDesign:
    """Returns what a student is: a network of velocity on the linear path, where teachers meet.

    Args:
        plan: Its experts' network is the default, without a mixture.
        architecture: Another.

    Raises:
        OptionError: it is no network, or cannot take the plan's images.
    """
    trained, name = plan.expert.trained, architecture
    if name is None and trained is not None:
        name = network_of(trained.architecture)
    if name is None:
        raise OptionError(
            "--architecture is missing: the plan's experts are mixtures, which have no network to "
            "take over",
            hint="give the student's own, such as --architecture DiT-S/2; docs/experts.md lists "
            "them",
        )
    try:
        design = ExpertDesign(architecture=name)
        require_fit(name, *plan.data.sides)
    except ValueError as problem:
        text = str(problem).rpartition("Value error, ")[2].partition(" [type=")[0]
        raise OptionError(
            f"--architecture {name}: {text}", hint="docs/experts.md lists the networks"
        ) from None
    if adds_to_mixture(name):
        raise OptionError(
            f"--architecture {name}: a student is one network, and a mixture belongs to the site "
            "that released it",
            hint=f"give --architecture {network_of(name) or 'DiT-S/2'}",
        )
    return design


def student_training(plan: Plan, options: DistillOptions) -> TrainingSpec:
    """Returns how the student is trained: as the plan trains experts, but for what options say.

    The teacher's velocity is no image that could be moved, and no time is to count more.

    Raises:
        OptionError: a number cannot be written down as it is.
    """
    base = plan.training
    rate = options.learning_rate
    spec = base.model_copy(
        update={
            "steps": options.steps or base.steps,
            "batch_size": options.batch_size or base.batch_size,
            "learning_rate": base.learning_rate if rate is None else Decimal(str(rate)),
            "ema_half_lives": base.ema_half_lives[:1],
            "augmentation": (),
            "loss_weighting": "none",
            "trainable": "all",
        }
    )
    try:  # as whoever verifies the student will read it: a training is too long to find out then
        return TrainingSpec.from_json(spec.to_json(), what="the training")
    except MalformedError as problem:
        raise OptionError(
            f"--learning-rate {rate}: {problem.message}", hint="give fewer digits, such as 0.0003"
        ) from None


def require_no_captions(plan: Plan) -> None:
    """Refuses a plan with captions.

    Raises:
        StateError: a student would need captions to learn, and no site gives any away.
    """
    if plan.data.text is not None:
        raise StateError(
            "no student is made of an ensemble with captions: it would learn nothing of any prompt "
            "without captions to learn from, and those of the sites are private",
            hint="sample the ensemble itself; with --strategy sticky that asks one expert a call",
        )

"""From a verified ensemble to the weights of a student, in a folder that a kill leaves usable."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import torch
from torch import Tensor

from ddm_fed.bundle.verify import EXPERT_FILE, read_weights
from ddm_fed.distillation.lessons import (
    SOLVER,
    GivenImages,
    Lessons,
    draw_lessons,
    lessons_of,
)
from ddm_fed.distillation.options import (
    DistillOptions,
    require_no_captions,
    student_design,
    student_training,
)
from ddm_fed.distillation.teaching import TaughtBatches, taught_by
from ddm_fed.ensemble.folder import VerifiedEnsemble
from ddm_fed.ensemble.load import load_ensemble
from ddm_fed.ensemble.sample_options import Content
from ddm_fed.ensemble.strategy import DEFAULT_STRATEGY
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.errors import DivergedError, OptionError, StateError
from ddm_fed.flows import CALLS_PER_STEP
from ddm_fed.models import network_cost
from ddm_fed.progress import QUIET, Watch
from ddm_fed.records import (
    Arithmetic,
    Distillation,
    ExpertDesign,
    ExpertSpec,
    Plan,
    RouterName,
    canonical_json,
    sha256_hex,
)
from ddm_fed.storage.files import exclusive, write_atomically
from ddm_fed.training import RunOptions, read_trained
from ddm_fed.training.loop import run_job
from ddm_fed.training.parallel import Team
from ddm_fed.training.state import Job, RunIdentity

ENDING = ".unfinished"
LESSONS, CHECKPOINT = "lessons", "checkpoint.safetensors"
BACKWARD = 3  # a step of training costs as much as three forward passes
GIGA = Decimal(10) ** 9


@dataclass(frozen=True)
class Teachers:
    """An ensemble as a student sees it.

    Attributes:
        plan: What the ensemble was made under.
        ensemble: Experts and router.
        designs: Of the experts, in the ensemble's order.
        router: The router's name.
        class_units: Units of every class as released, `(G,)`, or None without classes.
        weights: What classes are drawn in proportion to, or None.
        identity: The ensemble's digest.
        sites: Their names, in the same order.
        read_expert: Returns the weights of one of them.
    """

    plan: Plan
    ensemble: Ensemble
    designs: Sequence[ExpertDesign]
    router: RouterName
    class_units: Tensor | None
    weights: Tensor | None
    identity: str
    sites: Sequence[str] = ()
    read_expert: Callable[[int], Mapping[str, Tensor]] | None = None

    @classmethod
    def of(cls, verified: VerifiedEnsemble, options: DistillOptions) -> "Teachers":
        """Returns the teachers of a verified ensemble, ready to be asked.

        Raises:
            RefusedError: a file is no longer what was verified.
        """
        ensemble = load_ensemble(
            verified,
            resident=options.resident,
            devices=options.devices,
            precision=options.precision,
        )
        content = Content.of(verified, None, DEFAULT_STRATEGY)
        return cls(
            verified.trust.plan,
            ensemble,
            [bundle.submission.expert for bundle in verified.bundles],
            verified.record.router,
            content.totals,
            content.weights(None),
            verified.sha256,
            [bundle.site for bundle in verified.bundles],
            lambda place: read_weights(verified.bundles[place], EXPERT_FILE),
        )

    def start_of(self, design: ExpertDesign, options: DistillOptions) -> int | None:
        """Returns the expert that a student begins with: the same network, of the largest share.

        None if there is none, or if it begins by chance.
        """
        if options.start == "chance" or self.read_expert is None:
            return None
        shares = self.ensemble.log_prior(1, None)[0].tolist()
        same = [place for place, other in enumerate(self.designs) if other == design]
        return max(same, key=lambda place: shares[place], default=None)


@dataclass(frozen=True)
class TaughtStudent:
    """The averaged weights of a student by name, what it is, and how it was taught."""

    weights: dict[str, Tensor]
    design: ExpertDesign
    distillation: Distillation


def work_folder(out: Path) -> Path:
    """Returns where the student `out` is worked on until it is whole."""
    return out.with_name(out.name + ENDING)


@contextmanager
def working(out: Path, *, restart: bool = False) -> Iterator[Path]:
    """Yields the folder where the student `out` is worked on; it is gone if the block succeeds.

    It is gone too if nothing was made in it.

    Args:
        out: What is made at last.
        restart: Whether to forget what an unfinished run has left.

    Raises:
        BusyError: another process works on it.
    """
    work = work_folder(out)
    work.mkdir(parents=True, exist_ok=True)
    with exclusive(work / "lock"):
        if restart:
            for name in ("recipe", CHECKPOINT):
                (work / name).unlink(missing_ok=True)
            shutil.rmtree(work / LESSONS, ignore_errors=True)
        try:
            yield work
        except BaseException:
            if not _is_begun(work):
                shutil.rmtree(work)
            raise
        shutil.rmtree(work)


def require_teachable(teachers: Teachers, options: DistillOptions) -> ExpertDesign:
    """Returns what the student will be; refuses early what no student can be made by.

    Raises:
        OptionError: naming the option.
    """
    require_no_captions(teachers.plan)
    ensemble = teachers.ensemble
    if options.teacher == "ensemble" and (ensemble.reads_estimate or ensemble.sees_until < 1):
        raise OptionError(
            f"--teacher ensemble: the router of this ensemble, {teachers.router}, does not look at "
            "x_t at every time, so it cannot weigh the experts",
            hint="leave --teacher out: then the expert that drew a sample teaches it, which is "
            "the same in the mean; or assemble with --router mixture",
        )
    return student_design(teachers.plan, options.architecture)


def train_student(
    teachers: Teachers,
    options: DistillOptions,
    work: Path,
    *,
    given: GivenImages | None = None,
    watch: Watch = QUIET,
) -> TaughtStudent:
    """Returns the student of `teachers`; goes on with what a killed run left in `work`.

    The same options end with the same weights, bit for bit, on the same machine type.

    Args:
        teachers: Who teaches.
        options: How.
        work: A folder of `working`.
        given: Images to learn from; without, samples of the ensemble are drawn.
        watch: Told how it goes.

    Raises:
        OptionError: the options do not fit the ensemble.
        DataError: the given images do not.
        StateError: `work` holds what other options have made.
        CheckpointError: the training was interrupted, or its state cannot be continued.
        DivergedError: numbers are no longer finite.
    """
    design = require_teachable(teachers, options)
    spec = student_training(teachers.plan, options)
    start = teachers.start_of(design, options)
    recipe = {
        "ensemble": teachers.identity,
        "architecture": design.architecture,
        "teacher": options.teacher,
        "start": None if start is None else teachers.sites[start],
        "given": None if given is None else given.sha256,
        "samples": options.samples if given is None else None,
        "solver_steps": options.solver_steps if given is None else None,
        "seed": options.seed,
        "precision": options.precision,
        "training": spec.model_dump(mode="json"),
    }
    identity = sha256_hex(canonical_json(recipe))
    data, ensemble = teachers.plan.data, teachers.ensemble
    _require_same_recipe(work, identity)
    if given is None:
        lessons = draw_lessons(
            ensemble,
            data,
            teachers.weights,
            work / LESSONS,
            count=options.samples,
            solver_steps=options.solver_steps,
            seed=options.seed,
            advance=watch.advance,
        )
    else:
        lessons = lessons_of(ensemble, given, data, options.seed)
    # nothing of a public checkpoint or of a site's noise belongs to a student
    expert = ExpertSpec(architecture=(design.architecture,))
    plan = teachers.plan.model_copy(update={"training": spec, "expert": expert})
    run_options = RunOptions(
        seed=options.seed,
        precision=options.precision,
        checkpoint_every_s=options.checkpoint_every_s,
    )
    team = Team(torch.device(options.devices[0]))
    initial = None
    if start is not None and teachers.read_expert is not None:
        initial = teachers.read_expert(start)
    job = Job(plan, identity, lessons.sha256, design, run_options, team, initial=initial)
    checkpoint = work / CHECKPOINT

    def batches(run: RunIdentity) -> TaughtBatches:
        return TaughtBatches(lessons, ensemble, spec, seed=run.seed, teacher=options.teacher)

    try:
        run_job(job, batches, checkpoint, watch)
        trained = read_trained(checkpoint, plan)
    except DivergedError as error:
        raise DivergedError(
            error.message,
            hint="nothing was saved of it: try --restart with a smaller --learning-rate, or with "
            "--precision float32",
        ) from None
    distillation = Distillation(
        source="samples" if given is None else "data",
        teacher=options.teacher,
        router=teachers.router,
        images=len(lessons),
        images_sha256=lessons.sha256,
        solver_steps=options.solver_steps if given is None else None,
        seed=options.seed,
        start=None if start is None else teachers.sites[start],
        training=plan.training,
        precision=trained.facts.precision,
        program=trained.facts.program,
        torch=trained.facts.torch,
        gigaflops=arithmetic(teachers, options, lessons, plan, design, drawn=given is None),
    )
    return TaughtStudent(trained.state, design, distillation)


def arithmetic(
    teachers: Teachers,
    options: DistillOptions,
    lessons: Lessons,
    plan: Plan,
    design: ExpertDesign,
    *,
    drawn: bool,
) -> Arithmetic:
    """Returns what a whole distillation computes, from counts alone.

    Args:
        teachers: Whose calls are counted.
        options: Teacher and steps of the solver.
        lessons: How many each expert drew.
        plan: The student's training.
        design: The student.
        drawn: Whether the lessons were drawn.
    """
    data, spec = plan.data, plan.training

    def cost(architecture: str) -> int:
        return network_cost(architecture, data.shape, len(data.classes)).flops_per_image

    experts = [cost(expert.architecture) for expert in teachers.designs]
    seen = spec.steps * spec.batch_size
    taught = [seen] * len(experts)
    if options.teacher == "own":
        taught = taught_by(lessons, spec, options.seed, len(experts))
    calls = options.solver_steps * CALLS_PER_STEP[SOLVER] if drawn else 0
    made = lessons.sites.bincount(minlength=len(experts)).tolist()

    def giga(flops: int) -> Decimal:
        return (Decimal(flops) / GIGA).quantize(Decimal("0.001"))

    return Arithmetic(
        drawing=giga(sum(calls * n * c for n, c in zip(made, experts, strict=True))),
        teacher=giga(sum(n * c for n, c in zip(taught, experts, strict=True))),
        student=giga(BACKWARD * seen * cost(design.architecture)),
    )


def _is_begun(work: Path) -> bool:
    """Returns whether anything was made in `work` that another run could go on with."""
    lessons = work / LESSONS
    return (work / CHECKPOINT).exists() or (lessons.is_dir() and any(lessons.iterdir()))


def _require_same_recipe(work: Path, identity: str) -> None:
    recipe = work / "recipe"
    if _is_begun(work) and recipe.read_text() != identity:
        raise StateError(
            f"{work} holds a student of other options, or of another ensemble",
            hint="give the options it was begun with, begin anew with --restart, or choose another "
            "--out",
        )
    write_atomically(recipe, identity.encode())

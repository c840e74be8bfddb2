"""The checkpoint of a run: written atomically, the same file however many processes train."""

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ddm_fed._version import __version__
from ddm_fed.errors import (
    CheckpointError,
    DivergedError,
    MechanismError,
    OptionError,
    StateError,
    not_written,
)
from ddm_fed.models import build_network
from ddm_fed.privacy import Origin, ProvedSteps
from ddm_fed.records import ExpertDesign, Plan, TrainingFacts
from ddm_fed.storage.files import PART_PREFIX, commit_file
from ddm_fed.training.batches import seeded
from ddm_fed.training.ema import Averages
from ddm_fed.training.known_velocity import KnownVelocity
from ddm_fed.training.options import RunOptions, TrainedExpert
from ddm_fed.training.parallel import Team, fill, whole
from ddm_fed.training.precision import Precision, choose_precision
from ddm_fed.training.trainable import TrainedPart, full_weights
from ddm_fed.training.warmstart import load_base

MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW remembers of each weight


@dataclass(frozen=True)
class RunIdentity:
    """What a checkpoint must agree with to be continued.

    Attributes:
        plan_sha256: The plan's signed identity.
        data_sha256: Identifies the images.
        design: Network, path and prediction.
        base_sha256: The public checkpoint it started from, or "".
        seed: Everything random follows from it.
        precision: Of forward and backward passes.
        threads: Of each process.
        torch: Version.
        processes: How many trained together.
        shard: Whether they divided the weights.
        micro_batch: Most images at once; 0 for no limit.
        compile: Whether compilation was asked for.
        noise: How it is made private, as JSON; "" for a run without noise.
        secret: What its noise follows from, until the run is complete; then "".
        origin: Where the secret is from; "test" may not leave.
        paid_sha256: The ledger entry that paid for it.
        known_sha256: The release whose mixture was known already, or "".
        proved: Which of its steps were computed again, as JSON; private.
        refused: Why nothing of it may leave: a step was not what the ledger says.
        extends_sha256: The plan of the finished run that this one went on from, or "".
    """

    plan_sha256: str
    data_sha256: str
    design: str
    base_sha256: str
    seed: int
    precision: Precision
    threads: int
    torch: str
    processes: int
    shard: bool
    micro_batch: int
    compile: bool
    noise: str = ""
    secret: str = field(default="", repr=False)
    origin: Origin = "csprng"
    paid_sha256: str = ""
    proved: str = ""
    refused: str = ""
    known_sha256: str = ""
    extends_sha256: str = ""

    @property
    def architecture(self) -> str:
        """The name of its network, with which a design begins."""
        return self.design.partition(",")[0]


@dataclass
class Learner:
    """What a step changes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    averages: Averages


@dataclass(frozen=True)
class Job:
    """What a call of a training is asked for; a checkpoint is of this job or of another.

    Attributes:
        plan: What to train.
        plan_sha256: The plan's signed identity.
        data_sha256: Identifies the images.
        design: Network, path and prediction.
        options: The site's own choices.
        team: The processes that train together.
        known: What is known of the velocity already, where the design adds to it.
        initial: Weights to start from in place of drawn ones, by name.
    """

    plan: Plan
    plan_sha256: str
    data_sha256: str
    design: ExpertDesign
    options: RunOptions
    team: Team
    known: KnownVelocity | None = None
    initial: Mapping[str, Tensor] | None = None

    def new_identity(self, precision: Precision) -> RunIdentity:
        """Returns what a run that starts now is known by."""
        base, options = self.plan.expert.base, self.options
        return RunIdentity(
            plan_sha256=self.plan_sha256,
            data_sha256=self.data_sha256,
            design=str(self.design),
            base_sha256=base.sha256 if base else "",
            seed=secrets.randbits(62) if options.seed is None else options.seed,
            precision=precision,
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            processes=self.team.size,
            shard=self.team.shard,
            micro_batch=options.micro_batch or 0,
            compile=options.compile,
            known_sha256="" if self.known is None else self.known.sha256,
        )


def start_run(path: Path, job: Job) -> None:
    """Writes the checkpoint of a new run: drawn, public or given weights, no step behind it."""
    options, design = job.options, job.design
    precision = options.precision
    if precision == "auto":
        precision = choose_precision(
            job.plan, design, job.team.device, micro_batch=options.micro_batch
        )
    run = job.new_identity(precision)
    model = build_network(job.plan.data, design)
    model.reset_parameters(seeded(run.seed, "weights", 0))
    load_base(model, job.plan, design, options)
    if job.initial is not None:
        model.load_state_dict(job.initial)
    learned: nn.Module = model
    if (kind := job.plan.training.trainable) != "all":
        learned = TrainedPart(model, kind)
        learned.reset_parameters(seeded(run.seed, "part", 0))
    weights = {f"model.{name}": value.contiguous() for name, value in learned.state_dict().items()}
    write_state(path, run, 0, weights)


def require_same_run(path: Path, job: Job, *, finished: bool) -> RunIdentity:
    """Returns the run of the checkpoint at `path`, which `job` may continue.

    How it is computed must agree as well while there are steps to do, since rounding depends on
    it; the number of threads is taken over instead. The size of micro-batches may change: it moves
    rounding alone, and after a lack of memory a smaller one is the way on.

    Raises:
        CheckpointError: it is damaged, or belongs to another run.
    """
    with _open(path) as (_, run, _):
        pass
    _require_not_refused(path, run)
    options, team = job.options, job.team
    pairs: list[tuple[str, object, object]] = [
        ("another plan", run.plan_sha256, job.plan_sha256),
        ("other images", run.data_sha256, job.data_sha256),
        ("another network", run.design, str(job.design)),
        ("another release", run.known_sha256, "" if job.known is None else job.known.sha256),
        ("another seed", run.seed, run.seed if options.seed is None else options.seed),
    ]
    if options.precision != "auto":
        pairs.append(("another precision", run.precision, options.precision))
    if not finished:
        pairs += [
            ("another version of torch", run.torch, torch.__version__),
            ("another number of processes", run.processes, team.size),
            ("another --shard", run.shard, team.shard),
            ("another --compile", run.compile, options.compile),
        ]
    for phrase, found, wanted in pairs:
        if found != wanted:
            # the digest of the images identifies the data set, and the seed the weights: not shown
            secret = phrase in ("other images", "another seed")
            shown = "" if secret else f": it holds {found}, this run has {wanted}"
            raise CheckpointError(
                f"{path} was made with {phrase}{shown}",
                hint="continue with what it was made with, or start again with --restart",
            )
    return replace(run, micro_batch=options.micro_batch or 0)


def _require_not_refused(path: Path, run: RunIdentity) -> None:
    if run.refused:
        raise MechanismError(
            f"{path} is of a training that was refused: {run.refused}",
            hint="nothing of it may leave, and what it cost stays spent; please report it, and "
            "train anew with --restart and another version, which spends the budget again",
        )


def steps_done(path: Path) -> int:
    """Returns the number of steps the checkpoint at `path` has behind it; 0 if there is none.

    Raises:
        CheckpointError: it cannot be read.
    """
    if not path.exists():
        return 0
    with _open(path) as (_, _, step):
        return step


def read_trained(path: Path, plan: Plan, *, ema_half_life: int | None = None) -> TrainedExpert:
    """Returns the expert that a finished checkpoint holds, in any of the plan's averages.

    Args:
        path: The checkpoint.
        plan: The plan it was trained under.
        ema_half_life: In steps, one of `plan.training.ema_half_lives`; None is the first.

    Raises:
        StateError: the plan has no such average, or the training is not finished.
        CheckpointError: the checkpoint cannot be read.
    """
    half_life = choose_half_life(plan, ema_half_life)
    with _open(path) as (file, run, step):
        _require_not_refused(path, run)
        if step != plan.training.steps:
            raise StateError(
                f"{path} has {step} of the plan's {plan.training.steps} steps behind it",
                hint="finish the training first",
            )
        # of the whole network, whatever part was trained
        state = full_weights(_average(file, half_life, plan, run))
        if run.noise and ProvedSteps.from_json(run.proved).steps[-1:] != (step - 1,):
            raise CheckpointError(
                f"{path} is of a training with noise whose steps were not computed again",
                hint="an older version made it; train anew with --restart, which spends the "
                "budget again",
            )
    broken = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise DivergedError(
            f"training has diverged: {len(broken)} tensors of the expert are not finite, "
            f"{broken[0]} the first",
            hint="nothing may leave of it; train anew with --restart under a plan with a smaller "
            "`training.learning_rate` or more `warmup_steps`",
        )
    facts = TrainingFacts(
        program=f"ddm-fed {__version__}",
        torch=run.torch,
        precision=run.precision,
        steps=step,
        ema_half_life=half_life,
    )
    return TrainedExpert(state, facts, run.noise, run.origin, run.proved)


def _average(file: Any, half_life: int, plan: Plan, run: RunIdentity) -> dict[str, Tensor]:
    """Returns an average of every weight that was trained, and the weights that were left.

    Raises:
        ValueError: one is missing. What a trained weight was at the last step is another value than
            its average, and nobody chose it.
    """
    sgd = plan.privacy.sgd if run.noise else None  # a student has none, whatever its plan has
    kind = plan.training.trainable if sgd is None else sgd.trainable
    with torch.device("meta"):
        network = build_network(plan.data, plan.expert.design(run.architecture))
        part = None if kind == "all" and not run.noise else TrainedPart(network, kind)
    still = frozenset[str]() if part is None else part.still
    keys = {
        name: f"model.{name}" if name in still else f"ema{half_life}.{name}"
        for name in (part or network).state_dict()
    }
    if lost := sorted(set(keys.values()) - set(file.keys())):
        raise ValueError(f"it lacks {len(lost)} weights or averages, {lost[0]} the first")
    return {name: file.get_tensor(key) for name, key in keys.items()}


def choose_half_life(plan: Plan, wanted: int | None) -> int:
    """Returns `wanted`, or the plan's first half-life.

    Raises:
        OptionError: the plan does not name it.
    """
    named = plan.training.ema_half_lives
    if wanted is None:
        return named[0]
    if wanted not in named:
        raise OptionError(
            f"--ema-half-life {wanted}: the plan has no average of that half-life",
            hint=f"choose one of {', '.join(map(str, named))}",
        )
    return wanted


def save(path: Path, run: RunIdentity, step: int, learner: Learner, team: Team) -> None:
    """Writes the state after `step` steps. Every process calls it; process 0 writes.

    A reader finds the old file or the new one, whole.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in _tensors(learner):
        full = whole(value)  # all processes take part in putting it together
        if team.rank == 0:
            tensors[name] = full.detach().cpu().contiguous()
    if team.rank == 0:
        write_state(path, run, step, tensors)


def restore(path: Path, learner: Learner) -> int:
    """Copies the checkpoint at `path` into place and returns the steps it has behind it."""
    with _open(path) as (file, _, step), torch.no_grad():
        for name, value in learner.model.state_dict().items():
            whole_weight = file.get_tensor(f"model.{name}")
            fill(value, whole_weight)
            if name in learner.averages.still:
                continue
            for half_life, average in learner.averages.of.items():
                start = file.get_tensor(f"ema{half_life}.{name}") if step else whole_weight
                fill(average[name], start)
        if step == 0:
            return 0
        for name, weight in learner.model.named_parameters():
            moments = {slot: torch.zeros_like(weight) for slot in MOMENTS}
            for slot, moment in moments.items():
                fill(moment, file.get_tensor(f"{slot}.{name}"))
            counter = torch.tensor(float(step), device=weight.device)
            learner.optimizer.state[weight] = {"step": counter, **moments}
    return step


def _tensors(learner: Learner) -> Iterator[tuple[str, Tensor]]:
    for name, value in learner.model.state_dict().items():
        yield f"model.{name}", value
    for half_life, average in learner.averages.of.items():
        for name, value in average.items():
            if name not in learner.averages.still:
                yield f"ema{half_life}.{name}", value
    for name, weight in learner.model.named_parameters():
        for slot in MOMENTS:
            yield f"{slot}.{name}", learner.optimizer.state[weight][slot]


def write_state(path: Path, run: RunIdentity, step: int, tensors: dict[str, Tensor]) -> None:
    """Writes a checkpoint; a reader finds the old file or the new one, whole.

    Raises:
        MachineError: it cannot be written, for one because the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{PART_PREFIX}{path.name}")
    try:
        save_file(tensors, part, metadata={"run": json.dumps(asdict(run)), "step": str(step)})
    except SafetensorError as error:
        raise not_written(path, error) from None
    commit_file(part, path)


def read_identity(path: Path) -> RunIdentity:
    """Returns the run that the checkpoint at `path` belongs to.

    Raises:
        CheckpointError: it cannot be read.
    """
    with _open(path) as (_, run, _):
        return run


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, RunIdentity, int]]:
    """Yields the checkpoint's tensors, its run and its step."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            run = RunIdentity(**json.loads(metadata["run"]))
            yield file, run, int(metadata["step"])
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be read: {error}",
            hint="restore it from backup, or start again with --restart",
        ) from None

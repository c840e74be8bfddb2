"""`train_expert`, and the steps it is made of."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ddm_fed.errors import CheckpointError, DataError, DivergedError, OptionError, StateError
from ddm_fed.flows import denoising_loss, path_named
from ddm_fed.models import build_network, expert_tensors
from ddm_fed.privacy import ImageSet, Private, keep_freed_memory
from ddm_fed.progress import QUIET, StepReport, Watch
from ddm_fed.records import ExpertDesign, Plan, TrainingSpec, adds_to_mixture, network_of
from ddm_fed.training.batches import Batch, Batches, BatchSource
from ddm_fed.training.ema import Averages
from ddm_fed.training.extension import FinishedRun, extend_run
from ddm_fed.training.known_velocity import KnownVelocity, require_released
from ddm_fed.training.options import RunOptions, TrainedExpert
from ddm_fed.training.parallel import Team, blocks_of, join_team
from ddm_fed.training.precision import autocast_to
from ddm_fed.training.preview import draw_preview
from ddm_fed.training.state import (
    Job,
    Learner,
    RunIdentity,
    choose_half_life,
    read_trained,
    require_same_run,
    restore,
    save,
    start_run,
    steps_done,
)
from ddm_fed.training.trainable import TrainedPart, trained_weights

BETAS = (0.9, 0.99)  # a shorter memory than AdamW's default suits runs of a few thousand steps
SMOOTHING = 0.1  # how much of the shown speed the newest step decides


def train_expert(
    data: Private[ImageSet],
    plan: Plan,
    plan_sha256: str,
    checkpoint: Path,
    *,
    design: ExpertDesign | None = None,
    options: RunOptions | None = None,
    known: KnownVelocity | None = None,
    extends: FinishedRun | None = None,
    watch: Watch = QUIET,
) -> TrainedExpert:
    """Returns the expert of `plan` for `data`; continues from `checkpoint` if it exists.

    Started by torchrun, all processes call it and get the same expert, and process 0 alone writes
    the checkpoint and calls back. They must see the checkpoint under the same path.

    Args:
        data: The site's images; read here, never copied into the result.
        plan: What to train.
        plan_sha256: The plan's signed identity; a checkpoint of another plan is refused.
        checkpoint: Where the state is kept, written atomically. It is private.
        design: Network, path and prediction, out of those the plan allows; None is the first.
        options: The site's own choices.
        known: What the site's release says of the velocity, where the design adds to it.
        extends: A finished run of an earlier plan to go on from where there is no checkpoint yet.
        watch: Told how it goes.

    Raises:
        CheckpointError: the checkpoint is damaged or belongs to another run, or the training was
            interrupted.
        DataError: there are no images, or no labels or captions although the plan
            asks for them.
        OptionError: the plan does not allow what was chosen.
        DigestError, WeightsError, ValuesError: the public checkpoint is not the plan's.
    """
    if plan.privacy.sgd is not None:
        raise StateError(
            "the plan's experts are trained with noise, and this training has none",
            hint="use `train_private_expert`; `ddm-site train` does, in one process",
        )
    design, options = design or plan.expert.default, options or RunOptions()
    images = data.reveal()
    require_possible(images, plan, design, options)
    require_known(plan, design, known)
    with join_team(shard=options.shard) as team:
        if team.size > plan.training.batch_size:
            raise StateError(
                f"{team.size} processes cannot share batches of {plan.training.batch_size} images",
                hint="start fewer processes",
            )
        job = Job(plan, plan_sha256, images.digest(), design, options, team, known)

        def batches(run: RunIdentity) -> Batches:
            return Batches(
                images,
                plan.training,
                conditional=plan.data.conditional,
                seed=run.seed,
                known=None if known is None else known.velocity,
            )

        run_job(job, batches, checkpoint, watch, extends)
    return read_trained(checkpoint, plan, ema_half_life=options.ema_half_life)


def run_job(
    job: Job,
    batches: Callable[[RunIdentity], BatchSource],
    checkpoint: Path,
    watch: Watch,
    extends: FinishedRun | None = None,
) -> None:
    """Trains until the last step of `job`, from `checkpoint` if it exists.

    Args:
        job: What is asked for.
        batches: Returns what the steps of a run are computed from.
        checkpoint: Where the state is kept.
        watch: Told how it goes.
        extends: As for `train_expert`.

    Raises:
        CheckpointError: as for `train_expert`.
    """
    team = job.team
    if team.rank == 0 and not checkpoint.exists():
        if extends is None:
            start_run(checkpoint, job)
        else:
            extend_run(extends, checkpoint, job)
    team.wait()
    finished = steps_done(checkpoint) >= job.plan.training.steps
    run = require_same_run(checkpoint, job, finished=finished)
    if not finished:
        training = Training(batches(run), job, run, checkpoint)
        told = watch if team.rank == 0 else QUIET
        training.prepare(told.say)
        training.run_steps(told)
    team.wait()


def learning_rate_factor(
    step: int, *, steps: int, warmup_steps: int, schedule: str = "cosine"
) -> float:
    """Returns the factor on the learning rate: linear warm-up, then 1, or a cosine down to zero."""
    warmup = min(1.0, (step + 1) / (warmup_steps + 1))
    if schedule == "constant":
        return warmup
    return warmup * 0.5 * (1 + math.cos(math.pi * step / steps))


def planned_factor(spec: TrainingSpec, step: int) -> float:
    """Returns the factor on the learning rate of `spec` in `step`."""
    return learning_rate_factor(
        step, steps=spec.steps, warmup_steps=spec.warmup_steps, schedule=spec.schedule
    )


def require_possible(
    images: ImageSet, plan: Plan, design: ExpertDesign, options: RunOptions
) -> None:
    """Refuses what no run can be started with; cheap, and changes nothing.

    Raises:
        DataError: there are no images, or no labels or captions although the plan
            asks for them.
        OptionError: the plan does not allow what was chosen.
        StateError: the network is of a package that is not installed, or has no such part as the
            plan trains.
    """
    if len(images) == 0:
        raise DataError("there are no images to train on", hint="check --data")
    if plan.data.classes and images.labels is None:
        raise DataError("the images have no labels, the plan asks for classes", hint="check --data")
    if plan.data.text is not None and (images.captions is None or images.texts is None):
        what = "captions" if images.captions is None else "encoded captions"
        raise DataError(
            f"the images have no {what}, the plan asks for text",
            hint="docs/plan.md says where captions come from; --text-encoder encodes them",
        )
    if not plan.expert.allows(design):
        raise OptionError(
            f"--architecture, --path, --prediction: the plan does not allow an expert of {design}",
            hint="choose each from the plan's [expert], or leave them out",
        )
    expert_tensors(plan.data, design)  # a package that brings the network may be missing
    if (part := plan.training.trainable) != "all":
        trained_weights(plan.data, design, part)
        if options.compile or options.shard:
            raise OptionError(
                "--compile and --shard are not supported where a part is trained "
                f"(`training.trainable` {part})",
                hint="leave them out; there are few weights to compute or to divide",
            )
    choose_half_life(plan, options.ema_half_life)


def require_known(plan: Plan, design: ExpertDesign, known: KnownVelocity | None) -> None:
    """Refuses a training that does not know what its expert adds to, or has it from elsewhere.

    Raises:
        ValueError: the design adds to a mixture and none is given, or has no network, or the other
            way round.
        MechanismError: the known velocity is not what the release says.
    """
    if network_of(design.architecture) is None:
        raise ValueError(f"an expert of {design} is not trained")
    if adds_to_mixture(design.architecture) != (known is not None):
        raise ValueError(f"a known velocity and {design} do not go together")
    if known is not None:
        require_released(known, plan)


class Training:
    """A run from its checkpoint to its last step, as one process sees it.

    Args:
        batches: What its steps are computed from.
        job: What is asked for.
        run: The run that the checkpoint belongs to.
        checkpoint: It exists.
    """

    def __init__(self, batches: BatchSource, job: Job, run: RunIdentity, checkpoint: Path) -> None:
        plan, options, team = job.plan, job.options, job.team
        self._plan, self._spec, self._design = plan, plan.training, job.design
        self._options, self._run, self._team, self._checkpoint = options, run, team, checkpoint
        self._autocast = autocast_to(run.precision, team.device)
        self._known = None if job.known is None else job.known.velocity
        self._batches = batches
        most = -(-plan.training.batch_size // team.size)
        self._parts = -(-most // (options.micro_batch or most))
        self._learner: Learner
        self._network: nn.Module

    def prepare(self, say: Callable[[str], None]) -> None:
        """Makes ready for the first step; says so where the network cannot be compiled."""
        self._build()
        if self._options.compile:
            # What torch raises here depends on what the machine lacks; its own errors are all
            # RuntimeErrors. Blocks of one kind share one compilation, unlike whole networks.
            try:
                for block in blocks_of(self._learner.model):
                    block.compile(dynamic=False)
                self._rehearse()
            except (RuntimeError, OSError, ImportError) as error:
                reason = str(error).strip().partition("\n")[0]
                say(f"torch cannot compile the network here, so it is trained without: {reason}")
                self._build()
        self._network = self._team.share_gradients(self._learner.model)
        if self._network is not self._learner.model:
            # DDP orders its exchange anew after the first pass. Without this rehearsal, sums would
            # be rounded otherwise in the first step after a resume than in a run that went on.
            self._rehearse()

    def _build(self) -> None:
        """Builds network, optimizer and averages, in the state of the checkpoint."""
        torch.set_num_threads(self._run.threads)
        keep_freed_memory()
        network = build_network(self._plan.data, self._design)
        network.train()
        spec, model, still = self._spec, cast("nn.Module", network), frozenset[str]()
        if spec.trainable != "all":
            part = TrainedPart(network.to(self._team.device), spec.trainable)
            model, still = part, part.still
        self._team.place(model)
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=float(spec.learning_rate),
            betas=BETAS,
            weight_decay=float(spec.weight_decay),
            fused=True,
        )
        averages = Averages(model, spec.ema_half_lives, still)
        self._learner = Learner(model, optimizer, averages)
        self._first_step = restore(self._checkpoint, self._learner)
        self._network = model

    def run_steps(self, watch: Watch) -> None:
        """Takes the steps that are left and writes the last checkpoint."""
        done = self._first_step
        try:
            for report in self.steps():
                done = report.step
                watch.on_step(report)
                self._preview(done, watch.on_sample)
            save(self._checkpoint, self._run, done, self._learner, self._team)
        except KeyboardInterrupt:
            # The step in flight may be half applied: the last whole checkpoint stands.
            raise interrupted(done, self._spec.steps, steps_done(self._checkpoint)) from None

    def steps(self) -> Iterator[StepReport]:
        """Yields after every step that is left, having written a checkpoint where one is due."""
        spec, team = self._spec, self._team
        clock, news = Clock(spec.batch_size, spec.steps), _News(team)
        saved_at = time.monotonic()
        for step in range(self._first_step, spec.steps):
            loss = self._step(step)
            overdue = time.monotonic() - saved_at >= self._options.checkpoint_every_s
            shown, save_now = news.exchange(loss, overdue)
            if not math.isfinite(shown):
                raise diverged(f"the loss of step {step + 1} of {spec.steps} is {shown}")
            if save_now:
                save(self._checkpoint, self._run, step + 1, self._learner, team)
                saved_at = time.monotonic()
            yield clock.report(step + 1, shown)

    def _step(self, step: int) -> Tensor:
        """Takes one step and returns the sum of this process's losses."""
        spec, learner, team = self._spec, self._learner, self._team
        batch = self._batches.draw(step, team.rows(spec.batch_size))
        set_learning_rate(learner.optimizer, spec, step)
        learner.optimizer.zero_grad()
        total = torch.zeros((), device=team.device)
        for index, part in enumerate(batch.parts(self._parts), start=1):
            with team.accumulating(self._network, last=index == self._parts):
                total += self._backward(part.to(team.device))
        torch.nn.utils.clip_grad_norm_(learner.model.parameters(), float(spec.clip_norm))
        learner.optimizer.step()
        learner.averages.update(step)
        return total

    def _backward(self, part: Batch) -> Tensor:
        """Adds the gradient of some rows of the batch, and returns the sum of their losses."""
        with self._autocast():
            losses = denoising_loss(
                self._network,
                part.x_0,
                part.eps,
                part.t,
                part.condition,
                path=path_named(self._design.path),
                prediction=self._design.prediction,
                weighting=self._spec.loss_weighting,
            )
        total = losses.sum() * part.weight
        # processes' gradients are averaged, and the batch's loss is a mean over all of them
        scaled = total * (self._team.size / self._spec.batch_size)
        scaled.backward()  # type: ignore[no-untyped-call]
        return total.detach()

    def _rehearse(self) -> None:
        """Asks the network as a step does and forgets the answer."""
        rows = self._team.rows(self._spec.batch_size)
        for part in self._batches.draw(0, rows).parts(self._parts):
            self._backward(part.to(self._team.device))
        self._learner.optimizer.zero_grad()

    def _preview(self, step: int, on_sample: Callable[[int, Tensor], None]) -> None:
        every, team = self._options.sample_every, self._team
        if every is None or step % every or (team.rank and not team.shard):
            return
        half_life = choose_half_life(self._plan, self._options.ema_half_life)
        with self._learner.averages.in_place(half_life):
            images = draw_preview(
                self._learner.model,
                self._plan,
                self._design,
                team.device,
                self._autocast,
                count=self._options.sample_count,
                seed=self._run.seed,
                known=self._known,
            )
            team.forget_gathered(self._learner.model)
        on_sample(step, images)


def diverged(what: str) -> DivergedError:
    """Returns the error of a training whose numbers are no longer finite."""
    return DivergedError(
        f"training has diverged: {what}",
        hint="nothing was saved of it; try --restart with another plan: a smaller "
        "`training.learning_rate` or more `warmup_steps`; or --precision float32",
    )


def interrupted(done: int, steps: int, saved: int) -> CheckpointError:
    """Returns the error of a run that was stopped after `done` of `steps`, `saved` of them kept."""
    if saved:
        onwards = f"run the same command again: it continues from the checkpoint of step {saved}"
    else:
        onwards = (
            "no checkpoint of a step was written yet: the same command begins with the first step. "
            "--checkpoint-every says how often one is written"
        )
    return CheckpointError(f"training was interrupted after {done} of {steps} steps", hint=onwards)


def set_learning_rate(optimizer: torch.optim.Optimizer, spec: TrainingSpec, step: int) -> None:
    """Gives `optimizer` the learning rate of `step`."""
    factor = planned_factor(spec, step)
    for group in optimizer.param_groups:
        group["lr"] = float(spec.learning_rate) * factor


class _News:
    """The loss of a step and whether it is time to save, the same for all processes."""

    def __init__(self, team: Team) -> None:
        self._team = team
        self._before: Tensor | None = None

    def exchange(self, loss: Tensor, overdue: bool) -> tuple[float, bool]:
        """Returns the batch's summed loss and whether to save now.

        On a GPU they are those of the step before: reading this step's would wait for the GPU.
        """
        wanted = loss.new_tensor(float(overdue and self._team.rank == 0))
        values = self._team.total(torch.stack([loss, wanted]))
        if values.is_cuda:
            values, self._before = self._before if self._before is not None else values, values
        total, save_now = values.tolist()
        return total, save_now > 0


class Clock:
    """Turns the moments at which steps end into a smoothed speed.

    The first step of a process loads what later ones have at hand, and tells nothing of them.
    """

    def __init__(self, batch_size: float, steps: int) -> None:
        self._batch_size, self._steps = batch_size, steps
        self._last, self._step_s, self._reports = time.perf_counter(), math.nan, 0

    def report(self, step: int, total_loss: float) -> StepReport:
        """Returns the report of a step that ends now."""
        now = time.perf_counter()
        took, self._last, self._reports = now - self._last, now, self._reports + 1
        if self._reports <= 2:
            self._step_s = took
        self._step_s += SMOOTHING * (took - self._step_s)
        return StepReport(
            step,
            self._steps,
            total_loss / self._batch_size,
            self._batch_size / self._step_s,
            self._step_s * (self._steps - step),
        )

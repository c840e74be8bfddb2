"""`train_private_expert`: DP-SGD from the first ledger entry to the last step.

The order is the guarantee: the mechanism is tried on made-up units, the ledger entry is on disk,
the secret of the noise is in the checkpoint, and only then an image is looked at. Inclusion and
noise follow from that secret, so a run that was killed goes on with the very steps it would have
taken, and nothing is spent twice. The last checkpoint no longer holds the secret.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ddm_fed.errors import CheckpointError, StateError
from ddm_fed.models import ExpertNetwork, build_network
from ddm_fed.privacy import (
    Finding,
    ImageSet,
    Private,
    PrivateStep,
    Randomness,
    examine,
    keep_freed_memory,
    require_passed,
)
from ddm_fed.records import ExpertDesign, Plan
from ddm_fed.training.batches import seeded
from ddm_fed.training.central import (
    central_step,
    draw_central,
    empty_sums,
    learn_central,
    made_up_means,
)
from ddm_fed.training.ema import Averages
from ddm_fed.training.gradients import (
    build_gradients,
    choose_gradients,
    made_up_units,
    row_loss,
    stirred,
)
from ddm_fed.training.loop import BETAS, Clock, require_possible, set_learning_rate
from ddm_fed.training.noise import CentralImages, Payment, PrivateTraining
from ddm_fed.training.options import RunOptions, StepReport, TrainedExpert
from ddm_fed.training.parallel import Team, join_team
from ddm_fed.training.precision import autocast_to
from ddm_fed.training.preview import draw_preview
from ddm_fed.training.state import (
    Learner,
    RunIdentity,
    choose_half_life,
    new_identity,
    read_trained,
    require_same_run,
    restore,
    save,
    steps_done,
    write_state,
)
from ddm_fed.training.trainable import TrainedPart
from ddm_fed.training.units import UnitDraws
from ddm_fed.training.warmstart import load_base


def train_private_expert(
    data: Private[ImageSet],
    plan: Plan,
    plan_sha256: str,
    checkpoint: Path,
    noise: PrivateTraining,
    payment: Payment,
    *,
    design: ExpertDesign | None = None,
    options: RunOptions | None = None,
    randomness: Randomness | None = None,
    on_step: Callable[[StepReport], None] = lambda _: None,
    on_sample: Callable[[int, Tensor], None] = lambda *_: None,
    say: Callable[[str], None] = lambda _: None,
) -> TrainedExpert:
    """Returns the expert of `plan` for `data`, trained with noise; continues from `checkpoint`.

    Args:
        data: The site's images.
        plan: What to train.
        plan_sha256: The plan's signed identity.
        checkpoint: Where the state is kept. It is private, the secret of the noise above all.
        noise: How it is made private.
        payment: The ledger. It is asked once for a run, before its first step.
        design: Network, path and prediction; None is the plan's first.
        options: The site's own choices.
        randomness: For tests only; what was made with another's secret may not leave.
        on_step: Called after every step. The loss it is told is private.
        on_sample: Called with the number of steps done and images `(N, C, H, W)` in [-1, 1].
        say: Called with notices for people.

    Raises:
        BudgetError: from `payment`; nothing was looked at then.
        MechanismError: the mechanism does not keep its promise on this network; nothing was spent.
        CheckpointError: the checkpoint is damaged or of another run, or training was interrupted.
        DataError, StateError: as `train_expert`.

    Guarantees:
        The weights of all steps are (epsilon, delta)-DP as the event of `noise` is priced, up to
        floating point; tests compare the sums with a loop over units.
    """
    design, options = design or plan.expert.default, options or RunOptions()
    images = data.reveal()
    require_possible(images, plan, design, options)
    _require_simple(options)
    keep_freed_memory()
    with join_team(shard=False) as team:
        if team.size > 1:
            raise StateError(
                "training with noise runs in one process", hint="start it without torchrun"
            )
        data_sha256 = images.digest()
        if not checkpoint.exists():
            run = new_identity(plan, plan_sha256, data_sha256, design, options, team, "float32")
            _start(plan, design, options, run, team, checkpoint, noise, payment, randomness, say)
        finished = steps_done(checkpoint) >= plan.training.steps
        run = require_same_run(
            checkpoint, plan_sha256, data_sha256, design, options, team, finished=finished
        )
        _require_same_noise(run, noise, options, checkpoint)
        payment.require_paid(run.paid_sha256)
        if not finished:
            training = PrivateRun(images, plan, design, options, run, team, checkpoint)
            training.run_steps(on_step, on_sample)
    return read_trained(checkpoint, plan, ema_half_life=options.ema_half_life)


@contextmanager
def step_to_examine(
    plan: Plan, design: ExpertDesign, noise: PrivateTraining, options: RunOptions
) -> Iterator[tuple[PrivateStep, TrainedPart, list[Tensor]]]:
    """Yields the step as training would take it, with a secret of its own, and made-up units.

    Where training has yet to choose its engine, it is chosen here in the same way.

    Raises:
        StateError: the network has no such part, or Opacus was asked for and cannot do it.
    """
    network = build_network(plan.data, design)
    network.reset_parameters(seeded(0, "weights", 0))
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    part = TrainedPart(network, noise.trainable)
    part.reset_parameters(seeded(0, "part", 0))
    secret = Randomness.from_system()
    with _trial(plan, design, noise, options, network, part, secret) as (step, rows):
        yield step, part, rows


def examine_central(
    plan: Plan, central: CentralImages, randomness: Randomness | None = None
) -> list[Finding]:
    """Returns what the tests of a private step find of the one that makes central images."""
    step = central_step(central, randomness or Randomness.from_system())
    return examine(step, empty_sums(plan), made_up_means(plan, central), central.radius)


@contextmanager
def _trial(
    plan: Plan,
    design: ExpertDesign,
    noise: PrivateTraining,
    options: RunOptions,
    network: ExpertNetwork,
    part: TrainedPart,
    randomness: Randomness,
) -> Iterator[tuple[PrivateStep, list[Tensor]]]:
    """Yields the step of `part` and made-up units, while its weights are stirred."""
    device = next(part.parameters()).device
    rows = [value.to(device) for value in made_up_units(plan, noise.draws)]
    loss = row_loss(plan, design)
    with stirred(part):
        chosen = noise.gradients or choose_gradients(network, part, loss, rows, options)
        step = PrivateStep(
            build_gradients(chosen, network, part, loss, options.micro_batch),
            randomness,
            sampling_rate=noise.sampling_rate,
            noise_multiplier=noise.noise_multiplier,
            expected_units=noise.expected_units,
        )
        yield step, rows


def _start(
    plan: Plan,
    design: ExpertDesign,
    options: RunOptions,
    run: RunIdentity,
    team: Team,
    checkpoint: Path,
    noise: PrivateTraining,
    payment: Payment,
    randomness: Randomness | None,
    say: Callable[[str], None],
) -> None:
    """Tries the mechanism, pays, and writes the first checkpoint, in this order."""
    network = build_network(plan.data, design)
    network.reset_parameters(seeded(run.seed, "weights", 0))
    load_base(network, plan, design, options)
    network.to(team.device)
    part = TrainedPart(network, noise.trainable)
    part.reset_parameters(seeded(run.seed, "part", 0))
    randomness = randomness or Randomness.from_system()
    with _trial(plan, design, noise, options, network, part, randomness) as (step, rows):
        findings = examine(step, part.trained, rows, noise.clip_norm)
        require_passed(findings)
        chosen = step.gradients.name
    if noise.central is not None:
        findings += examine_central(plan, noise.central, randomness)
        require_passed(findings)
    say(f"the mechanism passed {len(findings)} tests on made-up units ({chosen} gradients)")
    weights = {f"model.{name}": value.detach() for name, value in part.state_dict().items()}
    paid = replace(
        run,
        noise=replace(noise, gradients=chosen).to_json(),
        secret=randomness.hex,
        origin=randomness.origin,
        paid_sha256=payment.pay(),
    )
    write_state(checkpoint, paid, 0, {n: v.cpu().contiguous() for n, v in weights.items()})
    checkpoint.chmod(0o600)


def _require_simple(options: RunOptions) -> None:
    """Refuses what training with noise cannot do, instead of leaving it out silently."""
    for name, asked in (
        ("--compile", options.compile),
        ("--shard", options.shard),
        ("--precision bfloat16", options.precision == "bfloat16"),
    ):
        if asked:
            raise StateError(
                f"training with noise does not support {name}",
                hint="leave it out: sums are computed in float32, in one process",
            )


def _require_same_noise(
    run: RunIdentity, noise: PrivateTraining, options: RunOptions, checkpoint: Path
) -> None:
    if not run.noise:
        raise CheckpointError(
            f"{checkpoint} is of a run without noise",
            hint="start again with --restart",
        )
    found = PrivateTraining.from_json(run.noise)
    if replace(found, gradients="") != replace(noise, gradients=""):
        raise CheckpointError(
            f"{checkpoint} was made with other noise than the plan and the release ask for",
            hint="restore the site's folder as it was, or start again with --restart, which "
            "spends the budget again",
        )
    if options.gradients not in ("auto", found.gradients):
        raise CheckpointError(
            f"{checkpoint} was made with {found.gradients} gradients",
            hint="leave --gradients out, or start again with --restart",
        )


class PrivateRun:
    """A run from its checkpoint to its last step.

    Args:
        images: The site's images.
        plan: What to train.
        design: Network, path and prediction.
        options: The site's own choices.
        run: The run that the checkpoint belongs to; it is paid for.
        team: One process.
        checkpoint: It exists.
    """

    def __init__(
        self,
        images: ImageSet,
        plan: Plan,
        design: ExpertDesign,
        options: RunOptions,
        run: RunIdentity,
        team: Team,
        checkpoint: Path,
    ) -> None:
        self._plan, self._spec, self._design = plan, plan.training, design
        self._options, self._run, self._team, self._checkpoint = options, run, team, checkpoint
        self._images, self._noise = images, PrivateTraining.from_json(run.noise)
        noise, self._randomness = self._noise, Randomness.from_hex(run.secret, run.origin)
        conditional = bool(plan.data.classes)
        self._units = UnitDraws(
            images, plan.training, conditional=conditional, seed=run.seed, draws=noise.draws
        )
        torch.set_num_threads(run.threads)
        network = build_network(plan.data, design).to(team.device)
        network.train()
        self._network, self._part = network, TrainedPart(network, noise.trainable)
        part = self._part
        spec = plan.training
        optimizer = torch.optim.AdamW(
            part.trained.values(),
            lr=float(spec.learning_rate),
            betas=BETAS,
            weight_decay=float(spec.weight_decay),
            fused=True,
        )
        self._learner = Learner(part, optimizer, Averages(part, spec.ema_half_lives))
        self._first_step = restore(checkpoint, self._learner)
        loss = row_loss(plan, design)
        self._step_of = PrivateStep(
            build_gradients(noise.gradients, network, part, loss, options.micro_batch),
            self._randomness,
            sampling_rate=noise.sampling_rate,
            noise_multiplier=noise.noise_multiplier,
            expected_units=noise.expected_units,
        )

    def run_steps(
        self, on_step: Callable[[StepReport], None], on_sample: Callable[[int, Tensor], None]
    ) -> None:
        """Takes the steps that are left and writes the last checkpoint, without the secret."""
        done = self._first_step
        try:
            for report in self.steps():
                done = report.step
                on_step(report)
                self._preview(done, on_sample)
            complete = replace(self._run, secret="")
            save(self._checkpoint, complete, done, self._learner, self._team)
        except KeyboardInterrupt:
            raise CheckpointError(
                f"training was interrupted after {done} of {self._spec.steps} steps",
                hint="run the same command again to continue from the last checkpoint; nothing is "
                "spent twice",
            ) from None

    def steps(self) -> Iterator[StepReport]:
        """Yields after every step that is left, having written a checkpoint where one is due."""
        self._warm_up()
        clock = Clock(self._noise.expected_units, self._spec.steps)
        saved_at = time.monotonic()
        for step in range(self._first_step, self._spec.steps):
            loss = self._step(step)
            # not after the last one: its checkpoint is written without the secret
            due = time.monotonic() - saved_at >= self._options.checkpoint_every_s
            if due and step + 1 < self._spec.steps:
                save(self._checkpoint, self._run, step + 1, self._learner, self._team)
                self._checkpoint.chmod(0o600)
                saved_at = time.monotonic()
            yield clock.report(step + 1, loss)

    def _warm_up(self) -> None:
        """Learns the central images, if there are any, before the first step.

        Nothing of it is kept before a step is: a run that was killed does all of it once more, and
        gets the same weights.
        """
        central = self._noise.central
        if central is None or self._first_step > 0:
            return
        learn_central(
            self._part,
            self._network,
            self._plan,
            self._design,
            draw_central(self._images, self._plan, central, self._randomness),
            central.steps,
            self._run.seed,
        )
        self._learner.averages = Averages(self._part, self._spec.ema_half_lives)

    def _step(self, step: int) -> float:
        """Takes one step and returns the sum of the losses of its units."""
        clip_norm, trained = self._noise.clip_norm_at(step), self._part.trained
        chosen = self._step_of.included(step, len(self._units))
        blocks = (
            [value.to(self._team.device) for value in rows]
            for rows in self._units.blocks(step, chosen)
        )
        clipped = self._step_of.clipped_sum(trained, blocks, clip_norm)
        gradient = self._step_of.release(clipped, step, clip_norm)
        for name, value in trained.items():
            value.grad = gradient[name]
        optimizer = self._learner.optimizer
        set_learning_rate(optimizer, self._spec, step)
        torch.nn.utils.clip_grad_norm_(trained.values(), float(self._spec.clip_norm))
        optimizer.step()
        optimizer.zero_grad()
        self._learner.averages.update(step)
        return clipped.loss

    @torch.no_grad()
    def _preview(self, step: int, on_sample: Callable[[int, Tensor], None]) -> None:
        every = self._options.sample_every
        if every is None or step % every:
            return
        half_life = choose_half_life(self._plan, self._options.ema_half_life)
        network = build_network(self._plan.data, self._design)
        weights = self._part.full(self._learner.averages.of[half_life])
        network.load_state_dict({name: value.cpu() for name, value in weights.items()})
        on_sample(
            step,
            draw_preview(
                network.to(self._team.device),
                self._plan,
                self._design,
                self._team.device,
                autocast_to("float32", self._team.device),
                count=self._options.sample_count,
                seed=self._run.seed,
            ),
        )

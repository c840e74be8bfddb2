"""`PrivateRun`: a private training from its first step or its checkpoint to its last step.

The object that is examined before a training is the one that trains, that proves its steps, and
that audits attack. `ddm_fed.training.private_loop` decides when it may.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ddm_fed.errors import MechanismError
from ddm_fed.models import build_network
from ddm_fed.privacy import (
    Claim,
    Finding,
    Gradients,
    ImageSet,
    NoisyUpdate,
    PrivateStep,
    ProvedSteps,
    ProvedUpdate,
    Randomness,
    SlowGradient,
    UnitRows,
    UpdateRule,
    examine,
    require_passed,
)
from ddm_fed.progress import QUIET, StepReport, Watch
from ddm_fed.records import Plan
from ddm_fed.training.batches import seeded
from ddm_fed.training.ema import Averages, ema_decay
from ddm_fed.training.gradients import (
    build_gradients,
    choose_gradients,
    made_up_units,
    row_loss,
    stirred,
)
from ddm_fed.training.known_velocity import released_velocity
from ddm_fed.training.loop import BETAS, Clock, interrupted, planned_factor
from ddm_fed.training.mean_images import draw_central, examine_central, learn_central
from ddm_fed.training.precision import autocast_to
from ddm_fed.training.preview import draw_preview
from ddm_fed.training.private_options import Paid, PrivateTraining
from ddm_fed.training.slow_gradients import SlowUnits, first_weights
from ddm_fed.training.state import (
    Job,
    Learner,
    RunIdentity,
    choose_half_life,
    restore,
    save,
    write_state,
)
from ddm_fed.training.trainable import TrainedPart
from ddm_fed.training.unit_rows import UnitDraws
from ddm_fed.training.warmstart import load_base


def promised_rule(plan: Plan) -> UpdateRule:
    """Returns what the plan says of a private training's steps; the proof's own reading of it."""
    sgd, spec = plan.privacy.sgd, plan.training
    if sgd is None:
        raise TypeError("the plan trains without noise")
    first, last = float(sgd.clip_norm), float(sgd.clip_norm_end or sgd.clip_norm)
    steps, rate = spec.steps, float(spec.learning_rate)

    def learning_rate(step: int) -> float:
        warm = min(1.0, (step + 1) / (spec.warmup_steps + 1))
        turn = 0.0 if spec.schedule == "constant" else step / steps
        return rate * warm * (0.5 + 0.5 * math.cos(math.pi * turn))

    def clip_norm(step: int) -> float:
        return first if steps == 1 else first + (last - first) * step / (steps - 1)

    def survives(half_life: int, step: int) -> float:
        return float(min(0.5 ** (1 / half_life), (1 + step) / (10 + step)))

    return UpdateRule(
        learning_rate,
        clip_norm,
        betas=BETAS,
        weight_decay=float(spec.weight_decay),
        largest_norm=float(spec.clip_norm),
        survives={half: partial(survives, half) for half in spec.ema_half_lives},
    )


class Source(NamedTuple):
    """What a private run learns from: its units, their gradients, and one unit's by a slow way."""

    units: UnitRows
    gradients: Gradients
    slow: SlowGradient


class PrivateRun:
    """A private training, from its first step or its checkpoint to its last step.

    The object that is examined before a training is the one that trains, and that audits attack.

    Args:
        images: The site's images.
        job: What is asked for. All processes of its team make the same calls in turn.
        run: The run that the checkpoint belongs to, or will.
        checkpoint: Continued from, where it exists.
        source: Builds what is learned from out of the trained weights; None takes the images. An
            audit puts its canaries there.
    """

    def __init__(
        self,
        images: ImageSet,
        job: Job,
        run: RunIdentity,
        checkpoint: Path,
        source: Callable[[TrainedPart], Source] | None = None,
    ) -> None:
        plan, design, options, team = job.plan, job.design, job.options, job.team
        self._plan, self._spec, self._design = plan, plan.training, design
        self._options, self._team, self._checkpoint = options, team, checkpoint
        self._images, self._known = images, None if job.known is None else job.known.velocity
        self._release = None if job.known is None else job.known.release
        self._randomness = Randomness.from_hex(run.secret, run.origin)
        noise = PrivateTraining.from_json(run.noise)
        torch.set_num_threads(run.threads)
        network = build_network(plan.data, design)
        network.reset_parameters(seeded(run.seed, "weights", 0))
        begun = checkpoint.exists()
        if not begun:
            load_base(network, plan, design, options)
        network.to(team.device)
        network.train()
        part = TrainedPart(network, noise.trainable)
        part.reset_parameters(seeded(run.seed, "part", 0))
        self._network, self._part, self._loss = network, part, row_loss(plan, design)
        if source is None:
            engine = noise.gradients or self._choose(noise.draws)
            noise, chosen = replace(noise, gradients=engine), self._own_source(noise, engine)
        else:
            chosen = source(part)
        self.noise = noise
        self.run = replace(run, noise=noise.to_json())
        rule = self._rule()
        optimizer = rule.optimizer(part.trained)
        averages = Averages(part, self._spec.ema_half_lives, part.still)
        self._learner = Learner(part, optimizer, averages)
        self._first_step = restore(checkpoint, self._learner) if begun else 0
        self._saved = self._first_step
        step = PrivateStep(
            chosen.gradients,
            self._randomness,
            sampling_rate=noise.sampling_rate,
            noise_multiplier=noise.noise_multiplier,
            expected_units=noise.expected_units,
            processes=team,
        )
        self.update = NoisyUpdate(step, chosen.units, part.trained, optimizer, rule, averages)
        self.slow = chosen.slow

    def _made_up(self, draws: int) -> list[Tensor]:
        return [value.to(self._team.device) for value in made_up_units(self._plan, draws)]

    def _choose(self, draws: int) -> str:
        with stirred(self._part):
            return choose_gradients(
                self._network, self._part, self._loss, self._made_up(draws), self._options
            )

    def _own_source(self, noise: PrivateTraining, engine: str) -> Source:
        images, plan, part = self._images, self._plan, self._part
        units = UnitDraws(
            images,
            plan.training,
            conditional=plan.data.conditional,
            randomness=self._randomness,
            draws=noise.draws,
            known=self._known,
        )
        limit = self._options.micro_batch
        gradients = build_gradients(engine, self._network, part, self._loss, limit)
        # the proof's own reading of what is known
        known = None if self._release is None else released_velocity(self._release, plan)
        slow = SlowUnits(images, plan, self._design, noise, self._randomness, part, known=known)
        return Source(units, gradients, slow)

    def _rule(self) -> UpdateRule:
        spec = self._spec

        def learning_rate(step: int) -> float:
            return float(spec.learning_rate) * planned_factor(spec, step)

        return UpdateRule(
            learning_rate,
            self.noise.clip_norm_at,
            betas=BETAS,
            weight_decay=float(spec.weight_decay),
            largest_norm=float(spec.clip_norm),
            survives={half: partial(ema_decay, half) for half in spec.ema_half_lives},
        )

    def findings(self) -> list[Finding]:
        """Returns what tests find of the step that will train, on made-up units."""
        with stirred(self._part):
            found = examine(
                self.update.step,
                self._part.trained,
                self._made_up(self.noise.draws),
                self.noise.clip_norm,
            )
        if self.noise.central is not None:
            found += examine_central(self._plan, self.noise.central, self._randomness)
        return found

    def examine(self) -> str:
        """Tries the step that will train on made-up units, and returns what to tell people.

        Raises:
            MechanismError: it does not keep its promise.
        """
        findings = self.findings()
        require_passed(findings)
        engine = self.noise.gradients
        return f"the mechanism passed {len(findings)} tests on made-up units ({engine} gradients)"

    def start(self, paid_sha256: str) -> None:
        """Writes the first checkpoint of a run that was paid for by the entry of that digest."""
        self.run = replace(self.run, paid_sha256=paid_sha256)
        self._write(self.run, 0)

    def _write(self, run: RunIdentity, step: int) -> None:
        """Writes a checkpoint of weights alone."""
        weights = {f"model.{n}": value.detach() for n, value in self._part.state_dict().items()}
        tensors = {name: value.cpu().contiguous() for name, value in weights.items()}
        write_state(self._checkpoint, run, step, tensors)
        self._checkpoint.chmod(0o600)

    def run_steps(self, paid: Paid, watch: Watch = QUIET) -> None:
        """Takes the steps that are left and writes the last checkpoint, without the secret.

        Raises:
            MechanismError: a step is not what `paid` says.
            CheckpointError: it was interrupted.
        """
        done = self._first_step
        try:
            proof = ProvedUpdate(
                self.update,
                Claim(paid.expert, self.noise.expected_units, promised_rule(self._plan)),
                bytes.fromhex(self.run.secret),
                self.slow,
                first=done,
                steps=self._spec.steps,
                before=ProvedSteps.from_json(self.run.proved),
            )
            for report in self._steps(paid, proof):
                done = report.step
                watch.on_step(report)
                self._preview(done, watch.on_sample)
            proof.require_complete()
            complete = replace(self.run, secret="", proved=proof.proved.to_json())
            save(self._checkpoint, complete, done, self._learner, self._team)
            proof.require_complete()  # what was saved is what was proved
        except MechanismError as error:
            # or the same command would try again until nobody looks at the step that is wrong
            self._write(replace(self.run, secret="", refused=error.message), done)
            raise
        except KeyboardInterrupt:
            raise interrupted(done, self._spec.steps, self._saved) from None

    def help_steps(self) -> None:
        """Takes the steps that are left together with the process that runs them; keeps nothing."""
        self._start_together()
        for step in range(self._first_step, self._spec.steps):
            self.update.take(step)

    def _start_together(self) -> None:
        """Gives all processes the weights of the first."""
        with torch.no_grad():
            for value in self._part.parameters():
                self._team.of_first(value.data)

    def _steps(self, paid: Paid, proof: ProvedUpdate) -> Iterator[StepReport]:
        """Yields after every step that is left, having written a checkpoint where one is due."""
        if self._first_step == 0:
            self._require_first_weights()
        self._warm_up(paid)
        self._start_together()
        clock = Clock(self.noise.expected_units, self._spec.steps)
        saved_at = time.monotonic()
        for step in range(self._first_step, self._spec.steps):
            loss = proof.take(step)
            # not after the last one: its checkpoint is written without the secret
            due = time.monotonic() - saved_at >= self._options.checkpoint_every_s
            if due and step + 1 < self._spec.steps:
                proved = replace(self.run, proved=proof.proved.to_json())
                save(self._checkpoint, proved, step + 1, self._learner, self._team)
                self._checkpoint.chmod(0o600)
                saved_at, self._saved = time.monotonic(), step + 1
            yield clock.report(step + 1, loss)

    def _require_first_weights(self) -> None:
        """Refuses to start from weights that anything but the secret and the plan has shaped."""
        wanted = first_weights(
            self._plan, self._design, self._options, self.noise.trainable, self.run.seed
        )
        for name, value in self._part.state_dict().items():
            if not torch.equal(value.cpu(), wanted[name]):
                raise MechanismError(
                    f"private training does not keep its promise: `{name}` is not what it starts "
                    "from",
                    hint="nothing was looked at; please report it with the versions of ddm-fed and "
                    "torch",
                )

    def _warm_up(self, paid: Paid) -> None:
        """Learns the central images, if there are any, before the first step.

        Nothing of it is kept before a step is: a run that was killed does all of it once more, and
        gets the same weights.
        """
        central = self.noise.central
        if central is None or self._first_step > 0:
            return
        if paid.central is None:
            raise MechanismError(
                "the ledger does not say what the central images cost",
                hint="restore the site's ledger.jsonl from backup; nothing was looked at",
            )
        images = draw_central(
            self._images, self._plan, central, self._randomness, paid=paid.central
        )
        learn_central(
            self._part,
            self._network,
            self._plan,
            self._design,
            images,
            central.steps,
            self.run.seed,
        )
        self._learner.averages.restart()

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
                seed=self.run.seed,
                known=self._known,
            ),
        )

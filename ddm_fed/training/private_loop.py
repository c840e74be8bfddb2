"""`train_private_expert`: DP-SGD from the first ledger entry to the last step.

The order is the guarantee: the very step that will train is tried on made-up units, the ledger
entry is on disk, the secret of the noise is in the checkpoint, and only then an image is looked at.
Inclusion, noise and all that is drawn follow from that secret, so a run that was killed goes on
with the very steps it would have taken, and nothing is spent twice. Some steps are computed again
by another way; see `ddm_fed.privacy.proof`. The last checkpoint no longer holds the secret.

Several processes, started by torchrun, take each step together: see `PrivateStep`. The first one
runs it all; the others help, and write nothing.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ddm_fed.errors import CheckpointError, MechanismError, OptionError
from ddm_fed.privacy import (
    ImageSet,
    Private,
    Randomness,
    fresh_secret,
    keep_freed_memory,
)
from ddm_fed.progress import QUIET, Watch
from ddm_fed.records import ExpertDesign, Plan
from ddm_fed.training.gradients import ENGINES
from ddm_fed.training.known_velocity import KnownVelocity
from ddm_fed.training.loop import require_known, require_possible
from ddm_fed.training.options import RunOptions, TrainedExpert
from ddm_fed.training.parallel import join_team
from ddm_fed.training.private_options import Payment, PrivateTraining
from ddm_fed.training.private_run import PrivateRun
from ddm_fed.training.state import (
    Job,
    RunIdentity,
    read_identity,
    read_trained,
    require_same_run,
    steps_done,
)

# The longest that processes wait for each other: the first computes some steps again, slowly.
TIMEOUT_S = 12 * 3600.0


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
    known: KnownVelocity | None = None,
    randomness: Randomness | None = None,
    watch: Watch = QUIET,
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
        known: What the site's release says of the velocity, where the design adds to it.
        randomness: For tests only; what was made with another's secret may not leave.
        watch: Told how it goes. The loss it is told is private.

    Raises:
        BudgetError: from `payment`; nothing was looked at then.
        MechanismError: the mechanism does not keep its promise on this network, and nothing was
            spent; or a step was not what its ledger entry says, and nothing may leave.
        CheckpointError: the checkpoint is damaged or of another run, or training was interrupted.
        DataError, StateError: as `train_expert`.

    Guarantees:
        The weights of all steps are (epsilon, delta)-DP as the event of `noise` is priced, up to
        floating point; tests compare the sums with a loop over units, on neighbouring data sets.
    """
    design, options = design or plan.expert.default, options or RunOptions()
    images = data.reveal()
    _require_possible(images, plan, design, options, known)
    with join_team(shard=False, timeout_s=TIMEOUT_S) as team:
        job = Job(plan, plan_sha256, images.digest(), design, options, team, known)
        begun = checkpoint.exists()
        if begun:
            finished = steps_done(checkpoint) >= plan.training.steps
            run = require_same_run(checkpoint, job, finished=finished)
            _require_same_noise(run, noise, options, checkpoint)
        else:
            finished, secret = False, randomness or fresh_secret()
            own = replace(job, options=replace(options, seed=secret.seed("weights")))
            run = replace(
                own.new_identity("float32"),
                noise=noise.to_json(),
                secret=secret.hex,
                origin=secret.origin,
            )
        team.told("" if finished else json.dumps(asdict(run)))
        if finished:
            payment.require_paid(run.paid_sha256)
        else:
            training = PrivateRun(images, job, run, checkpoint)
            passed = training.examine()
            if not begun:
                watch.say(passed)
                training.start(payment.pay())
            training.run_steps(payment.require_paid(training.run.paid_sha256), watch)
    if read_identity(checkpoint).secret:
        raise MechanismError(
            f"{checkpoint} still holds the secret of the noise",
            hint="nothing of this training may leave: who reads the secret can subtract the noise",
        )
    return read_trained(checkpoint, plan, ema_half_life=options.ema_half_life)


def help_private_expert(
    data: Private[ImageSet],
    plan: Plan,
    plan_sha256: str,
    checkpoint: Path,
    *,
    design: ExpertDesign | None = None,
    options: RunOptions | None = None,
    known: KnownVelocity | None = None,
) -> None:
    """Takes part in `train_private_expert`, as any process but the first; writes nothing.

    It gets secret and noise multiplier of the first, and spends nothing that the first does not.

    Args:
        data: The same images.
        plan: What to train.
        plan_sha256: The plan's signed identity.
        checkpoint: The same file.
        design: As the first process has it; so are all that follow.
        options: The site's own choices.
        known: What the site's release says of the velocity, where the design adds to it.

    Raises:
        MechanismError: as the first process.
        CheckpointError: it is asked for something else than the first process.
    """
    design, options = design or plan.expert.default, options or RunOptions()
    images = data.reveal()
    _require_possible(images, plan, design, options, known)
    with join_team(shard=False, timeout_s=TIMEOUT_S) as team:
        job = Job(plan, plan_sha256, images.digest(), design, options, team, known)
        said = team.told("")
        if not said:
            return
        run = RunIdentity(**json.loads(said))
        if replace(job.new_identity("float32"), **_not_of_the_job(run)) != run:
            raise CheckpointError(
                "this process is asked for another training than the first one",
                hint="start all processes with the same command, on the same images",
            )
        training = PrivateRun(images, job, run, checkpoint)
        training.examine()
        training.help_steps()


def _not_of_the_job(run: RunIdentity) -> dict[str, Any]:
    """Returns what the first process alone decides of a run."""
    names = ("seed", "threads", "noise", "secret", "origin", "paid_sha256", "proved")
    return {name: getattr(run, name) for name in names}


def _require_possible(
    images: ImageSet,
    plan: Plan,
    design: ExpertDesign,
    options: RunOptions,
    known: KnownVelocity | None,
) -> None:
    require_possible(images, plan, design, options)
    require_known(plan, design, known)
    _require_simple(options)
    keep_freed_memory()


def _require_simple(options: RunOptions) -> None:
    """Refuses what training with noise cannot do, instead of leaving it out silently."""
    for name, asked in (
        ("--compile", options.compile),
        ("--shard", options.shard),
        ("--precision bfloat16", options.precision == "bfloat16"),
    ):
        if asked:
            raise OptionError(
                f"{name} is not supported in training with noise",
                hint="leave it out: sums are computed in float32, and each process has all weights",
            )
    if options.seed is not None:
        raise OptionError(
            "--seed is not allowed in training with noise",
            hint="leave it out: all that is drawn follows from a secret, and who knew a seed of it "
            "could subtract the noise",
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
    if found.gradients not in ENGINES or options.gradients not in ("auto", found.gradients):
        raise CheckpointError(
            f"{checkpoint} was made with {found.gradients} gradients",
            hint="leave --gradients out, or start again with --restart",
        )

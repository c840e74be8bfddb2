"""Which finished run of this site a later plan of more steps goes on from."""

from dataclasses import replace
from pathlib import Path

from ddm_fed.errors import CheckpointError, OptionError
from ddm_fed.records import MAX_DOCUMENT_BYTES, ExpertDesign, Plan
from ddm_fed.storage.files import read_bounded, write_atomically
from ddm_fed.training import FinishedRun, read_identity, steps_done
from ddm_fed.training.extension import is_extendable, require_finished, why_never, why_not
from ddm_fed.trust import Trust
from sites.train.expert import CHECKPOINT_FILE, TRAINED_FILE, TrainingOptions
from sites.workspace import SiteFolder

PLAN_FILE = "plan.json"
MOST_SHOWN = 5  # runs that do not fit


def keep_plan(work: Path, plan: Plan) -> None:
    """Keeps the plan beside a checkpoint that a later plan may go on from, and no other."""
    if is_extendable(plan):
        write_atomically(work / PLAN_FILE, plan.to_json())


def found_extension(
    site: SiteFolder,
    trust: Trust,
    data_sha256: str,
    design: ExpertDesign,
    options: TrainingOptions,
) -> TrainingOptions:
    """Returns `options` with the run to go on from; as they are where that was begun already.

    Raises:
        OptionError: no run of this site may be gone on from under this plan.
        CheckpointError: one may, and is of other images or of another network; or the run of this
            plan began with its first step.
    """
    never = why_never(trust.plan, design)
    if never is not None:
        raise OptionError(
            f"--extend: no run goes on under this plan: {never}",
            hint="leave --extend out: the training begins with the first step",
        )
    work = site.work(trust.plan_sha256)
    begun = (work / CHECKPOINT_FILE).exists() or (work / TRAINED_FILE).exists()
    if begun and not options.restart:
        _require_extended(work)
        return options
    run = _fitting(work, trust.plan)
    identity = read_identity(run.checkpoint)
    require_finished(run, identity.plan_sha256, data_sha256, design)
    return replace(options, extends=run)


def _require_extended(work: Path) -> None:
    if not read_identity(work / CHECKPOINT_FILE).extends_sha256:
        raise CheckpointError(
            "the training under this plan began with its first step, and --extend asks for another",
            hint="continue it without --extend, or forget it with --restart --extend",
        )


def _fitting(work: Path, plan: Plan) -> FinishedRun:
    """Returns the run with the most steps of those whose plan is `plan` but for its steps."""
    fitting, reasons = list[FinishedRun](), list[str]()
    for folder in sorted(work.parent.iterdir()):
        file, checkpoint = folder / PLAN_FILE, folder / CHECKPOINT_FILE
        if folder == work or not file.is_file() or not checkpoint.is_file():
            continue
        earlier = Plan.from_json(read_bounded(file, MAX_DOCUMENT_BYTES), what=f"{file}")
        reason = why_not(earlier, plan)
        if reason is None and steps_done(checkpoint) != earlier.training.steps:
            reason = "its training is not finished"
        if reason is None:
            fitting.append(FinishedRun(checkpoint, earlier))
        else:
            reasons.append(f"plan {folder.name}: {reason}")
    if not fitting:
        why = "; ".join(reasons[:MOST_SHOWN]) or (
            'it has none that was trained without noise under `training.schedule` "constant"'
        )
        raise OptionError(
            f"--extend: this site has no run that goes on under this plan: {why}",
            hint="the plans may differ in `training.steps` alone, besides version, description and "
            "expires_at; or leave --extend out, and the training begins with the first step",
        )
    return max(fitting, key=lambda run: run.plan.training.steps)

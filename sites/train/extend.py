"""Which finished run of this site a later plan of more steps goes on from."""

from dataclasses import replace
from pathlib import Path

from ddm_fed.errors import CheckpointError, DdmFedError, OptionError
from ddm_fed.records import MAX_DOCUMENT_BYTES, ExpertDesign, Plan
from ddm_fed.storage.files import read_bounded, write_atomically
from ddm_fed.training import FinishedRun, read_identity
from ddm_fed.training.extension import is_extendable, why_never, why_not, why_unfit
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
        OptionError: no run of this site may be gone on from under this plan, with these images.
        CheckpointError: the run of this plan began with its first step.
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
    return replace(options, extends=_fitting(work, trust.plan, data_sha256, design))


def _require_extended(work: Path) -> None:
    checkpoint = work / CHECKPOINT_FILE
    if not checkpoint.exists() or not read_identity(checkpoint).extends_sha256:
        raise CheckpointError(
            "the training under this plan began with its first step, and --extend asks for another",
            hint="continue it without --extend, or forget it with --restart --extend",
        )


def _fitting(work: Path, plan: Plan, data_sha256: str, design: ExpertDesign) -> FinishedRun:
    """Returns the run with the most steps of those that `plan` goes on from."""
    fitting, reasons = list[FinishedRun](), list[str]()
    for folder in sorted(work.parent.iterdir()):
        file, checkpoint = folder / PLAN_FILE, folder / CHECKPOINT_FILE
        if folder == work or not file.is_file() or not checkpoint.is_file():
            continue
        try:  # a damaged run is none that fits, and hinders no other
            earlier = Plan.from_json(read_bounded(file, MAX_DOCUMENT_BYTES), what=f"{file}")
            run = FinishedRun(checkpoint, earlier)
            reason = why_not(earlier, plan) or why_unfit(
                run, read_identity(checkpoint).plan_sha256, data_sha256, design
            )
        except DdmFedError as error:
            reasons.append(f"plan {folder.name}: {error.message}")
            continue
        if reason is None:
            fitting.append(run)
        else:
            reasons.append(f"plan {folder.name}: {reason}")
    if not fitting:
        why = "; ".join(reasons[:MOST_SHOWN]) or (
            'it has none that was trained without noise under `training.schedule` "constant"'
        )
        raise OptionError(
            f"--extend: this site has no run that goes on under this plan: {why}",
            hint="give what the run was made with; the plans may differ in `training.steps` alone, "
            "besides version, description, expires_at and `privacy.max_epsilon`; or leave --extend "
            "out, and the training begins with the first step",
        )
    return max(fitting, key=lambda run: run.plan.training.steps)

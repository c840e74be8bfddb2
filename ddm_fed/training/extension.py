"""A finished run that goes on under a later plan of more steps: for constant learning rates only.

Nothing in such a run depends on how many steps it was to have, so that N steps extended to M are,
bit for bit, M steps in one go. Along a cosine the last steps are taken at a rate of nearly zero,
which M steps would not have; and with noise, how much there is was calculated for N steps.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from ddm_fed.errors import CheckpointError
from ddm_fed.records import ExpertDesign, Plan, adds_to_mixture, network_of, sha256_hex
from ddm_fed.training.state import (
    Job,
    RunIdentity,
    read_identity,
    require_same_run,
    steps_done,
    write_state,
)

# what every new plan says anew, and no step is computed from
# (the bound of the ledger, too: the statistics leave again and are paid for again)
FREE = ("version", "expires_at", "description", "training.steps", "privacy.max_epsilon")


class FinishedRun(NamedTuple):
    """The checkpoint of a run that is complete, and the plan it is of."""

    checkpoint: Path
    plan: Plan


def is_extendable(plan: Plan) -> bool:
    """Returns whether runs under `plan` are of the kind that a later plan may extend."""
    return plan.training.schedule == "constant" and plan.privacy.sgd is None


def why_never(plan: Plan, design: ExpertDesign) -> str | None:
    """Returns why no run can be extended to one of `design` under `plan`; None if one may be."""
    if plan.privacy.sgd is not None:
        return "its experts are trained with noise, which was calculated for the steps of one plan"
    if plan.training.schedule != "constant":
        return (
            f'its `training.schedule` is "{plan.training.schedule}": at the end of the earlier run '
            "the rate was zero"
        )
    if network_of(design.architecture) is None:
        return "an expert that is a release alone is not trained"
    if adds_to_mixture(design.architecture):
        return (
            "its network learns what the mixture of the site's release leaves, and under another "
            "plan that is another release"
        )
    return None


def why_not(earlier: Plan, later: Plan) -> str | None:
    """Returns why a run under `earlier` cannot be extended to one under `later`; None if it can."""
    before, after = (_flat(each.model_dump(mode="json")) for each in (earlier, later))
    changed = [
        name
        for name in sorted(before.keys() | after.keys())
        if name not in FREE and before.get(name) != after.get(name)
    ]
    if changed:
        return f"it differs in {', '.join(f'`{name}`' for name in changed)}"
    if earlier.training.steps >= later.training.steps:
        return f"it has {earlier.training.steps} steps already, and {later.training.steps} are due"
    return None


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, dict):
            found |= _flat(inner, f"{prefix}{name}.")
        else:
            found[prefix + name] = inner
    return found


def why_unfit(
    run: FinishedRun, plan_sha256: str, data_sha256: str, design: ExpertDesign
) -> str | None:
    """Returns why a run is not the finished one of this plan, these images and this design.

    Args:
        run: What was found.
        plan_sha256: Of the plan under which it is said to be.
        data_sha256: Identifies the images that the extended run is of.
        design: What the extended run trains.

    Raises:
        CheckpointError: it cannot be read.
    """
    known = read_identity(run.checkpoint)
    done, due = steps_done(run.checkpoint), run.plan.training.steps
    if known.plan_sha256 != plan_sha256 or sha256_hex(run.plan.to_json()) != plan_sha256:
        return "it and the plan kept beside it are not of one plan"
    if done != due:
        return "its training is not finished"
    if known.data_sha256 != data_sha256:
        return "it was made with other images"
    if known.design != str(design):
        return f"it is of an expert of {known.design}, and asked for is {design}"
    return None


def extend_run(run: FinishedRun, path: Path, job: Job) -> None:
    """Writes the checkpoint of `job` with all that `run` had at its end; `run` stays as it is.

    Raises:
        CheckpointError: they are not one run: see `why_unfit` and `require_same_run`.
    """
    earlier_sha256 = read_identity(run.checkpoint).plan_sha256
    problem = why_unfit(run, earlier_sha256, job.data_sha256, job.design)
    if problem is not None:
        raise CheckpointError(
            f"the run in {run.checkpoint} cannot be extended: {problem}",
            hint="give what it was made with, or train from the first step, without --extend",
        )
    earlier = replace(job, plan=run.plan, plan_sha256=earlier_sha256)
    identity: RunIdentity = require_same_run(run.checkpoint, earlier, finished=False)
    with safe_open(run.checkpoint, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    extended = replace(identity, plan_sha256=job.plan_sha256, extends_sha256=earlier_sha256)
    write_state(path, extended, run.plan.training.steps, tensors)

"""How long a run takes on this machine and what memory, from steps of it on made-up images.

The steps are those that train: nothing is estimated from counted operations. No image is looked at,
and nothing is spent.
"""

import resource
import sys
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

import torch

from ddm_fed.privacy import Claim, ProvedUpdate, chosen_steps, keep_freed_memory
from ddm_fed.records import ExpertDesign, Plan
from ddm_fed.training.plan_cost import planned_events
from ddm_fed.training.private_options import PrivateTraining
from ddm_fed.training.private_run import promised_rule
from ddm_fed.training.trial_run import plain_trial_run, trial_run

LEAST_TIMED_S = 3.0  # a shorter look at the steps is wrong where a machine has other work
LEAST_STEPS = 2  # after the first, which pays for what is new


class Forecast(NamedTuple):
    """What a run will take.

    Attributes:
        steps: Of the whole run.
        step_s: Seconds of a step.
        begin_s: Seconds before the second step: tests, measuring, the first step.
        total_s: Seconds of the whole run.
        memory_bytes: The most this process had at once so far.
        gpu_bytes: The same of its GPU; 0 without one.
    """

    steps: int
    step_s: float
    begin_s: float
    total_s: float
    memory_bytes: int
    gpu_bytes: int


def forecast(plan: Plan, design: ExpertDesign, units: int) -> Forecast:
    """Returns what training an expert of `design` takes here, as some steps of it show.

    What a mixture is asked beside a network, and central images, are not in it.

    Args:
        plan: What is trained.
        design: Has a network.
        units: Of privacy: with noise, a step takes as long as there are units in it.

    Raises:
        MechanismError: with noise: the step does not keep its promise on this machine.
    """
    keep_freed_memory()
    begun, steps = monotonic(), plan.training.steps
    event = planned_events(plan).expert
    if event is None:
        with plain_trial_run(plan, design, units=units) as run:
            reports = run.steps()
            step_s, begin_s, _ = _timed(steps, lambda _: next(reports), begun)
        again_s, proved = 0.0, 0
    else:
        noise = PrivateTraining.planned(plan, event, float(units))
        with trial_run(plan, design, noise, units=units) as private:
            private.examine()
            step_s, begin_s, following = _timed(max(1, steps - 1), private.update.take, begun)
            proof = ProvedUpdate(
                private.update,
                Claim(event, private.noise.expected_units, promised_rule(plan)),
                bytes.fromhex(private.run.secret),
                private.slow,
                first=following,
                steps=following + 1,
            )
            before = monotonic()
            if following < steps:
                proof.take(following)
            again_s = max(0.0, monotonic() - before - step_s)
        proved = len(chosen_steps(0, steps))
    total_s = begin_s + (steps - 1) * step_s + proved * again_s
    return Forecast(steps, step_s, begin_s, total_s, *peak_memory())


def _timed(most: int, take: Callable[[int], object], begun: float) -> tuple[float, float, int]:
    """Returns the seconds of a step, those from `begun` to the end of the first, and what is next.

    Args:
        most: How many steps may be taken.
        take: Takes the step of that number.
        begun: When getting ready began.
    """
    take(0)
    first, taken = monotonic(), 1
    step_s = begin_s = first - begun
    while taken < most and (taken <= LEAST_STEPS or monotonic() - first < LEAST_TIMED_S):
        take(taken)
        step_s = (monotonic() - first) / taken
        taken += 1
    return step_s, begin_s, taken


def peak_memory() -> tuple[int, int]:
    """Returns the most bytes this process had at once, and of its GPU; 0 without one."""
    per = 1 if sys.platform == "darwin" else 1 << 10  # Linux counts in KiB
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * per
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return own, gpu

"""In which precision a step is computed: autocast, or not."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from ddm_fed.flows import ClassCondition, Condition, TextCondition, denoising_loss, path_named
from ddm_fed.models import build_network
from ddm_fed.records import ExpertDesign, Plan

Precision = Literal["float32", "bfloat16"]
Autocast = Callable[[], AbstractContextManager[None]]
TRIALS = 4
TRIAL_ROWS = 32
ENOUGH_S = 20.0  # of measuring; a large network is then judged by fewer trials


def autocast_to(precision: Precision, device: torch.device) -> Autocast:
    """Returns what to enter around forward passes. Weights and optimizer stay float32."""
    if precision == "float32":
        return nullcontext
    return lambda: torch.autocast(device.type, torch.bfloat16)


def made_up_condition(plan: Plan, rows: int) -> Condition | None:
    """Returns a condition of the plan's shapes that nobody's images are in; None without one."""
    if (text := plan.data.text) is not None:
        shape = (rows, text.tokens)
        return TextCondition(
            torch.zeros((*shape, text.width)),
            torch.zeros((rows, text.pooled)),
            torch.ones(shape, dtype=torch.bool),
        )
    if plan.data.classes:
        return ClassCondition(torch.zeros(rows, dtype=torch.long))
    return None


def choose_precision(
    plan: Plan, design: ExpertDesign, device: torch.device, *, micro_batch: int | None = None
) -> Precision:
    """Returns the precision in which a step is faster on `device`, measured on made-up images.

    Args:
        plan: Gives image shape, batch size and loss.
        design: The network.
        device: Where it will be trained.
        micro_batch: Most images at once; None for no such limit.
    """
    generator = torch.Generator().manual_seed(0)
    model = build_network(plan.data, design)
    model.reset_parameters(generator)
    model.to(device)
    rows = min(plan.training.batch_size, micro_batch or plan.training.batch_size, TRIAL_ROWS)
    x_0 = torch.randn((rows, *plan.data.shape), generator=generator).to(device)
    t = torch.linspace(0.1, 0.9, rows, device=device)
    condition = made_up_condition(plan, rows)
    condition = None if condition is None else condition.to(device)
    path = path_named(design.path)

    def step(precision: Precision) -> None:
        with autocast_to(precision, device)():
            loss = denoising_loss(
                model, x_0, x_0, t, condition, path=path, prediction=design.prediction
            )
        model.zero_grad()
        total = loss.mean()
        total.backward()  # type: ignore[no-untyped-call]
        total.item()  # waits for a GPU

    seconds: dict[Precision, list[float]] = {"float32": [], "bfloat16": []}
    began = time.perf_counter()
    for trial in range(TRIALS):
        if trial > 1 and time.perf_counter() - began > ENOUGH_S:
            break
        for precision, timings in seconds.items():
            started = time.perf_counter()
            step(precision)
            timings.append(time.perf_counter() - started)
    # The first trial of each warms caches up; float32 is kept unless the gain is clear.
    fastest = {precision: min(timings[1:]) for precision, timings in seconds.items()}
    return "bfloat16" if fastest["bfloat16"] < 0.9 * fastest["float32"] else "float32"

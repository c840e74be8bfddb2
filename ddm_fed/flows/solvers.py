"""Integrating a velocity from noise (t = 1) to an image (t = 0).

| solver   | order | calls per step |
| -------- | ----- | -------------- |
| euler    | 1     | 1              |
| midpoint | 2     | 2              |
| heun     | 2     | 2              |

The orders are measured in the tests, not only claimed.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

Solver = Literal["euler", "midpoint", "heun"]
CALLS_PER_STEP: dict[Solver, int] = {"euler": 1, "midpoint": 2, "heun": 2}
TimedVelocity = Callable[[Tensor, Tensor], Tensor]
"""`(x_t, t) -> velocity`, with `t` a scalar tensor shared by the whole batch."""


def time_grid(steps: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns `steps + 1` evenly spaced times from 1 to 0."""
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64).to(dtype)


def step(velocity: TimedVelocity, x: Tensor, t: Tensor, t_next: Tensor, solver: Solver) -> Tensor:
    """Returns the state at `t_next`, one step of `solver` from the state `x` at `t`."""
    h = t_next - t
    slope = velocity(x, t)
    match solver:
        case "euler":
            return x + h * slope
        case "midpoint":
            return x + h * velocity(x + h / 2 * slope, t + h / 2)
        case "heun":
            return x + h / 2 * (slope + velocity(x + h * slope, t_next))


def integrate(velocity: TimedVelocity, x_1: Tensor, times: Tensor, solver: Solver) -> Tensor:
    """Returns the state at the last of `times`, starting from `x_1` at the first.

    Args:
        velocity: The right-hand side, `(x_t, t) -> dx/dt`.
        x_1: Starting noise, any shape.
        times: Decreasing times, `(steps + 1,)`.
        solver: Which method.
    """
    x = x_1
    for t, t_next in pairwise(times):
        x = step(velocity, x, t, t_next, solver)
    return x

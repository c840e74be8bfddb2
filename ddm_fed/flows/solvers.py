"""Integrating a velocity of the linear path from noise (t = 1) to an image (t = 0).

| solver   | order    | calls per step | remembers | random |
| -------- | -------- | -------------- | --------- | ------ |
| euler    | 1        | 1              |           |        |
| midpoint | 2        | 2              |           |        |
| heun     | 2        | 2, last step 1 |           |        |
| dpm++2m  | 2        | 1              | one x̂_0   |        |
| sde      | 1 (weak) | 1              |           | yes    |

The orders are measured in the tests, not only claimed. That of dpm++2m holds between the ends; over
the whole interval its error falls as h^2 log(1/h), since log(alpha / sigma) has no ends. No solver
asks for a velocity at t = 0, where experts that predict the image have none.

On the linear path x_t = (1 - t) x_0 + t eps a velocity v says what image and noise are:
x̂_0 = x - t v and eps = x + (1 - t) v.

Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1 (heun); Lu et al. 2022,
arXiv:2211.01095, algorithm 2 (dpm++2m); Ma et al. 2024, arXiv:2401.08740, section 2 (sde).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

Solver = Literal["euler", "midpoint", "heun", "dpm++2m", "sde"]
CALLS_PER_STEP: dict[Solver, int] = {"euler": 1, "midpoint": 2, "heun": 2, "dpm++2m": 1, "sde": 1}
"""The most velocities a step needs; heun needs one fewer in the step to t = 0."""

TimedVelocity = Callable[[Tensor, Tensor], Tensor]
"""`(x_t (B, ...), t) -> velocity (B, ...)`, with `t` a scalar tensor shared by the whole batch."""

StepNoise = Callable[[int], Tensor]
"""`index -> standard normal noise (B, ...)` for the step from `times[index]`."""


@dataclass(frozen=True)
class State:
    """Where an integration stands: all that the next step needs to know of the steps before.

    Attributes:
        x: States x_t, `(B, ...)`.
        previous: The image estimate x̂_0 of the step before, `(B, ...)`; None before the first
            step and for solvers that do not remember.
    """

    x: Tensor
    previous: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, rows: Tensor | slice) -> Self:
        """Returns the state of some rows of the batch."""
        previous = None if self.previous is None else self.previous[rows]
        return type(self)(self.x[rows], previous)


def join(states: Sequence[State], rows: Sequence[Tensor] | None = None) -> State:
    """Returns groups of rows that advanced apart as one batch again.

    Args:
        states: The groups, all after the same step of the same solver.
        rows: Which rows of the batch each group is, int64 indices that together name every row
            once; None puts the groups one after the other.

    Raises:
        ValueError: Some groups remember an image estimate and others do not.
    """
    remembered = [state.previous for state in states if state.previous is not None]
    if remembered and len(remembered) != len(states):
        raise ValueError("groups of different steps or solvers cannot be joined")
    places = None if rows is None else torch.argsort(torch.cat(list(rows)))
    x = _joined([state.x for state in states], places)
    return State(x, _joined(remembered, places) if remembered else None)


def time_grid(steps: int, *, start: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns `steps + 1` evenly spaced times from `start` to 0."""
    return torch.linspace(start, 0, steps + 1, dtype=torch.float64).to(dtype)


def advance(
    velocity: TimedVelocity,
    state: State,
    times: Tensor,
    index: int,
    solver: Solver,
    noise: StepNoise | None = None,
) -> State:
    """Returns the state at `times[index + 1]`, one step of `solver` from that at `times[index]`.

    Args:
        velocity: The right-hand side, `(x_t, t) -> dx/dt` on the linear path.
        state: Where the integration stands.
        times: Decreasing times of the whole integration, `(steps + 1,)`.
        index: Which step.
        solver: Which method.
        noise: Gives the noise of a step; the sde needs it.

    Raises:
        ValueError: The sde has no noise.
    """
    x, t, t_next = state.x, times[index], times[index + 1]
    match solver:
        case "euler":
            return State(_euler(velocity, x, t, t_next))
        case "midpoint":
            return State(_midpoint(velocity, x, t, t_next))
        case "heun":
            return State(_heun(velocity, x, t, t_next))
        case "dpm++2m":
            return _dpm_2m(velocity, state, times, index)
        case "sde":
            if noise is None:
                raise ValueError("solver sde draws noise in every step: pass noise")
            return State(_sde(velocity, x, t, t_next, lambda: noise(index)))


def integrate(
    velocity: TimedVelocity,
    x_1: Tensor,
    times: Tensor,
    solver: Solver,
    noise: StepNoise | None = None,
) -> Tensor:
    """Returns the state at the last of `times`, starting from `x_1` at the first.

    Args:
        velocity: The right-hand side, `(x_t, t) -> dx/dt` on the linear path.
        x_1: Starting noise, `(B, ...)`.
        times: Decreasing times, `(steps + 1,)`.
        solver: Which method.
        noise: Gives the noise of a step; the sde needs it.

    Raises:
        ValueError: The sde has no noise.

    Example:
        >>> image = torch.tensor([[3.0, -1.0]])
        >>> towards = lambda x, t: (x - image) / t  # what an expert of this one image would say
        >>> integrate(towards, torch.zeros(1, 2), time_grid(4), "heun")
        tensor([[ 3., -1.]])
    """
    state = State(x_1)
    for index in range(len(times) - 1):
        state = advance(velocity, state, times, index, solver, noise)
    return state.x


def _euler(velocity: TimedVelocity, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    return x + (t_next - t) * velocity(x, t)


def _midpoint(velocity: TimedVelocity, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    h = t_next - t
    return x + h * velocity(x + h / 2 * velocity(x, t), t + h / 2)


def _heun(velocity: TimedVelocity, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    h = t_next - t
    slope = velocity(x, t)
    ahead = x + h * slope
    # one Euler step in the whole integration costs no order
    if t_next == 0:
        return ahead
    return x + h / 2 * (slope + velocity(ahead, t_next))


def _dpm_2m(velocity: TimedVelocity, state: State, times: Tensor, index: int) -> State:
    t, t_next = times[index], times[index + 1]
    estimate = state.x - t * velocity(state.x, t)
    image = estimate
    if state.previous is not None and index > 0:
        extrapolation = _extrapolation(times[index - 1], t, t_next)
        image = estimate + extrapolation * (estimate - state.previous)
    ratio = t_next / t  # of the sigmas; alpha_s - alpha_t sigma_s / sigma_t is the rest to 1
    return State(ratio * state.x + (1 - ratio) * image, estimate)


def _extrapolation(t_before: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """Returns 1 / (2r), r being the step before over this one in lambda = log(alpha / sigma).

    0, the first-order step, where either is infinite: after the step from t = 1, where the limit
    is 0, and to t = 0, where this keeps the result finite and the order 2.
    """
    if t_before == 1 or t_next == 0:
        return torch.zeros_like(t)
    return _log_ratio_step(t, t_next) / (2 * _log_ratio_step(t_before, t))


def _log_ratio_step(t: Tensor, t_next: Tensor) -> Tensor:
    return torch.log((1 - t_next) * t / ((1 - t) * t_next))


def _sde(
    velocity: TimedVelocity, x: Tensor, t: Tensor, t_next: Tensor, noise: Callable[[], Tensor]
) -> Tensor:
    """Euler-Maruyama of dx = (v + eps / 2) dt + sqrt(t) dW, which runs from t = 1 to 0.

    That is v - w score / 2 with the diffusion w = t and score = -eps / t. The step to t = 0 leaves
    out the noise and the half eps that balances it, so it returns x̂_0.
    """
    h = t_next - t
    slope = velocity(x, t)
    ahead = x + h * slope
    if t_next == 0:
        return ahead
    eps = x + (1 - t) * slope
    return ahead + h / 2 * eps + torch.sqrt(-h * t) * noise()


def _joined(groups: Sequence[Tensor], places: Tensor | None) -> Tensor:
    joined = torch.cat(list(groups))
    return joined if places is None else joined[places]

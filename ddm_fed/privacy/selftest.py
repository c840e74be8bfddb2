"""Whether a private step keeps its promises, tried on made-up units before any budget is spent.

A statistical attack needs thousands of steps to notice half the noise; these look at the parts.
Each test of chance fails an honest step with a probability below `FALSE_ALARM`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddm_fed.errors import MechanismError
from ddm_fed.privacy.dpsgd import Clipped, Gradients, PrivateStep, Weights

FALSE_ALARM = 1e-6
SUM_TOLERANCE = 1e-4  # float32 sums of thousands of weights; measured overshoots are below 1e-6
NOISE_DRAWS = 1_000_000
INCLUSION_UNITS, INCLUSION_STEPS = 1000, 400
# far from the steps that are trained: what they draw is never looked at
FIRST_TEST_STEP = 1 << 40


@dataclass(frozen=True)
class Finding:
    """One test: what was found, and what an honest step keeps to."""

    name: str
    passed: bool
    found: str
    expected: str


def examine(
    step: PrivateStep, weights: Weights, rows: Sequence[Tensor], clip_norm: float
) -> list[Finding]:
    """Returns what the tests found about `step`.

    Args:
        step: As it will train.
        weights: Of the network.
        rows: Made-up units of the shapes of the real ones, `(U, K, ...)`, at least two.
        clip_norm: C.
    """
    return [
        *_sensitivity(step, weights, rows, clip_norm),
        _worthless_unit(step, weights, rows, clip_norm),
        *_noise(step, clip_norm),
        *_inclusion(step, weights),
    ]


def require_passed(findings: Sequence[Finding]) -> None:
    """Refuses to train with a step that failed a test.

    Raises:
        MechanismError: naming the first test that failed.
    """
    failed = [finding for finding in findings if not finding.passed]
    if failed:
        first = failed[0]
        raise MechanismError(
            f"private training does not keep its promise on this network: {first.name}: found "
            f"{first.found}, expected {first.expected}",
            hint="nothing was spent; please report it with the name of the architecture, and use "
            "another one until it is mended",
        )


def require_noise(noise: NDArray[np.int64], scale: float, *, what: str) -> None:
    """Refuses noise that was drawn and is not of the size that was paid for.

    Args:
        noise: What was added, `(n,)`; private.
        scale: Standard deviation that it should have.
        what: The release, for messages.

    Raises:
        MechanismError: its sum of squares is one that honest noise has in fewer than
            `FALSE_ALARM` of all releases.
    """
    squares = float(np.square(noise / scale).sum())
    low, high = _sums_of_squares(len(noise))
    if not low <= squares <= high:
        raise MechanismError(
            f"the noise of the release `{what}` is not of the size that was paid for",
            hint="nothing was released, and what it cost stays spent; please report it with the "
            "version of opendp",
        )


def _sums_of_squares(count: int) -> tuple[float, float]:
    """Returns between what the sum of so many squared normals lies, which is chi-squared."""
    from scipy.special import gammaincinv  # scipy.stats takes a second to load

    low, high = 2 * gammaincinv(count / 2, [FALSE_ALARM / 2, 1 - FALSE_ALARM / 2])
    return float(low), float(high)


def _distance(values: NDArray[np.float64]) -> float:
    """Returns the Kolmogorov-Smirnov distance of `values (n,)` from a standard normal.

    That is `scipy.stats.kstest(values, "norm").statistic`, sorted once instead of twice.
    """
    from scipy.special import ndtr

    below = ndtr(np.sort(values))
    steps = np.arange(len(values) + 1) / len(values)
    return float(max((steps[1:] - below).max(), (below - steps[:-1]).max()))


def agreement(
    gradients: Gradients, weights: Weights, rows: Sequence[Tensor], alone: Gradients
) -> float:
    """Returns the largest error of `gradients` against single units, relative to the largest value.

    Args:
        gradients: Under test.
        weights: Of the network.
        rows: Units, `(U, K, ...)`.
        alone: Asked for one unit at a time, without clipping: the slow and certain way.
    """
    far = float("inf")
    norms = [
        _norm(alone.clipped_sum(weights, [value[u : u + 1] for value in rows], far).total)
        for u in range(len(rows[0]))
    ]
    clip_norm = float(np.median(norms))  # so that some are clipped and some are not
    total = {name: torch.zeros_like(value.detach()) for name, value in weights.items()}
    for unit, norm in enumerate(norms):
        own = alone.clipped_sum(weights, [value[unit : unit + 1] for value in rows], far).total
        for name, value in own.items():
            total[name] += value * min(1.0, clip_norm / max(norm, 1e-12))
    found = gradients.clipped_sum(weights, rows, clip_norm).total
    largest = max(float(value.abs().max()) for value in total.values())
    return max(float((found[n] - total[n]).abs().max()) for n in total) / max(largest, 1e-12)


def _norm(values: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for value in values.values()))


def _sum(step: PrivateStep, weights: Weights, rows: Sequence[Tensor], clip_norm: float) -> Clipped:
    """Returns the clipped sum over units, of which each process gets its share."""
    return step.clipped_sum(weights, [[step.share(value) for value in rows]], clip_norm)


def _sensitivity(
    step: PrivateStep, weights: Weights, rows: Sequence[Tensor], clip_norm: float
) -> list[Finding]:
    """Leaves out each unit in turn, with the real clip norm and with one that clips all."""
    findings = []
    for name, bound in (("sensitivity", clip_norm), ("sensitivity, all clipped", clip_norm * 1e-3)):
        whole = _sum(step, weights, rows, bound).total
        worst = 0.0
        for unit in range(len(rows[0])):
            kept = [torch.cat([value[:unit], value[unit + 1 :]]) for value in rows]
            without = _sum(step, weights, kept, bound).total
            moved = _norm({key: whole[key].double() - without[key].double() for key in whole})
            worst = max(worst, moved / bound)
        # what others sum to is rounded differently when one is missing
        slack = SUM_TOLERANCE * len(rows[0])
        findings.append(
            Finding(name, worst <= 1 + slack, f"{worst:.6f} clip norms", "at most 1 clip norm")
        )
    return findings


def _worthless_unit(
    step: PrivateStep, weights: Weights, rows: Sequence[Tensor], clip_norm: float
) -> Finding:
    """Adds a unit of NaN: the released gradient may not tell that it is there, not by a bit."""
    broken = [
        torch.cat([value, torch.full_like(value[:1], torch.nan)])
        if value.is_floating_point()
        else torch.cat([value, value[:1]])
        for value in rows
    ]
    moment = FIRST_TEST_STEP
    outcomes = [
        step.release(_sum(step, weights, units, clip_norm), moment, clip_norm)
        for units in (rows, broken)
    ]
    largest = max(float(value.abs().max()) for value in outcomes[0].values())
    moved = max(
        float((outcomes[0][name] - outcomes[1][name]).abs().nan_to_num(torch.inf).max())
        for name in outcomes[0]
    )
    passed = moved <= SUM_TOLERANCE * largest
    return Finding(
        "a unit that adds nothing",
        passed,
        f"the gradient moved by {moved / largest:.2g} of its largest value",
        "no change: neither NaN nor the number of units may show",
    )


def _noise(step: PrivateStep, clip_norm: float) -> list[Finding]:
    """Compares the noise of a sum of nothing with a normal of the promised deviation."""
    from scipy.special import kolmogi, ndtri

    nothing = Clipped({"nothing": torch.zeros(NOISE_DRAWS)}, 0.0, 0)
    draws = [
        step.release(nothing, FIRST_TEST_STEP + 1 + index, clip_norm)["nothing"].numpy()
        for index in range(2)
    ]
    promised = step.noise_multiplier * clip_norm / step.expected_units
    values, others = (draw.astype(np.float64) / promised for draw in draws)
    count = len(values)
    variance = float(np.square(values).sum())
    low, high = _sums_of_squares(count)
    deviation = float(np.sqrt(variance / count))
    distance = _distance(values)
    furthest = float(kolmogi(FALSE_ALARM)) / np.sqrt(count)
    together = float(np.mean(values * others)) * np.sqrt(count)
    return [
        Finding(
            "size of the noise",
            bool(low <= variance <= high),
            f"{deviation:.4f} of the promised deviation",
            "1",
        ),
        Finding(
            "shape of the noise",
            bool(distance <= furthest),
            f"Kolmogorov-Smirnov distance {distance:.5f} from a normal",
            f"at most {furthest:.5f}",
        ),
        Finding(
            "noise of two steps",
            bool(abs(together) <= -ndtri(FALSE_ALARM / 2)),
            f"a correlation of {together:.2f} standard errors",
            "none",
        ),
    ]


def _inclusion(step: PrivateStep, weights: Weights) -> list[Finding]:
    """Counts who is included: by unit and by step, as coins of the sampling rate would."""
    from scipy.special import bdtrik

    rate, units, steps = step.sampling_rate, INCLUSION_UNITS, INCLUSION_STEPS
    counts = np.zeros((steps, units), dtype=np.int64)
    for moment in range(steps):
        chosen = step.share(step.included(FIRST_TEST_STEP + moment, units)).numpy()
        np.add.at(counts[moment], chosen, 1)
    device = next(iter(weights.values())).device
    counts = step.processes.total(torch.from_numpy(counts).to(device)).cpu().numpy()
    most = int(counts.max(initial=0))
    findings = [
        Finding("a unit in one step", most <= 1, f"up to {most} times", "at most once"),
    ]
    if rate == 1.0:
        complete = bool((counts == 1).all())
        found = "each in every step" if complete else "some left out"
        return [*findings, Finding("who is included", complete, found, "each in every step")]
    total = int(counts.sum())
    # quantiles of a binomial
    low, high = np.ceil(bdtrik([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], steps * units, rate))
    findings.append(
        Finding(
            "rate of inclusion",
            bool(low <= total <= high),
            f"{total / (steps * units):.5f}",
            f"{rate:.5f}",
        )
    )
    for name, sums, trials in (
        ("size of the steps", counts.sum(1), units),
        ("inclusions of each unit", counts.sum(0), steps),
    ):
        spread, ends = _spread(sums, trials, rate)
        findings.append(
            Finding(
                name,
                bool(ends[0] <= spread <= ends[1]),
                f"{spread:.3f} of the variance of independent coins",
                f"{ends[0]:.3f} to {ends[1]:.3f}",
            )
        )
    return findings


def _spread(sums: np.ndarray, trials: int, rate: float) -> tuple[float, tuple[float, float]]:
    """Returns the variance of `sums` in binomial variances, and between what it should lie."""
    from scipy.special import ndtri

    spread = float(np.square(sums - trials * rate).mean() / (trials * rate * (1 - rate)))
    # the variance of a squared binomial deviation in units of its mean: 2 + excess kurtosis
    excess = (1 - 6 * rate * (1 - rate)) / (trials * rate * (1 - rate))
    error = np.sqrt((2 + excess) / len(sums))
    reach = -ndtri(FALSE_ALARM / 2) * 1.5  # the tails of a mean of squares are heavier
    return spread, (max(0.0, 1 - reach * error), 1 + reach * error)

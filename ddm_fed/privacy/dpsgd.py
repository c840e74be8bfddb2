"""DP-SGD: gradients clipped unit by unit, summed, and noised.

A *unit* is what epsilon protects: an image, or all images of a patient. Whatever rows it is shown
as, its mean gradient is clipped to the clip norm C as one, so that a unit moves the sum by at most
C, and noise of standard deviation z C makes the sum private.

    included units -> clipped_sum -> noised -> divided by the expected number of units -> optimizer

The bound holds by construction in `FunctionalGradients`: every unit is a function call of its own,
so that a mistake in a model can cost quality but not privacy. `recorded_gradients` has the same
sum faster, where it knows the layers.

Source: Abadi et al. 2016, arXiv:1607.00133; several noised copies of an image inside the unit:
Dockhorn et al. 2022, arXiv:2210.09929, section 3.2.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ddm_fed.privacy.processes import Alone, Processes
from ddm_fed.privacy.randomness import Floats, Randomness

Weights = Mapping[str, Tensor]
Call = Callable[..., Tensor]
RowLoss = Callable[..., Tensor]
"""`(network, *rows) -> (R,)`: the loss of each row. `network` is called as the model is."""

Normals = Callable[[Sequence[int]], Iterable[Floats]]
"""`counts -> [(count,), ...]` standard normal numbers."""

# Memory depends on these, not on the batch: rows of forward and backward, and gradients of units.
ROWS_AT_ONCE = 64
GRADIENT_BYTES = 1 << 28


class Gradients(Protocol):
    """One way to compute clipped sums."""

    name: str

    def clipped_sum(self, weights: Weights, rows: Sequence[Tensor], clip_norm: float) -> "Clipped":
        """Returns the sum over units of their clipped gradients.

        Args:
            weights: What is differentiated by.
            rows: What the loss takes, each `(U, K, ...)`: U units of K rows.
            clip_norm: C.
        """


class UnitRows(Protocol):
    """The units of a data set, and what each shows in a step.

    What a unit shows depends on the step, on its own place and on its own images: who else is in
    the step must not matter, or one unit would move the rows of others.
    """

    def __len__(self) -> int:
        """Returns the number of units. It is private."""

    def blocks(self, step: int, units: Tensor, /) -> Iterable[Sequence[Tensor]]:
        """Yields the rows of `units (U,)` in `step`, some units at a time, each `(u, K, ...)`."""


@dataclass(frozen=True)
class Clipped:
    """A clipped sum. Private until it is noised.

    Attributes:
        total: By name, in the shapes of the weights, float32.
        loss: Sum over units of their mean loss.
        clipped: Number of units whose gradient was longer than the clip norm.
    """

    total: dict[str, Tensor]
    loss: float
    clipped: int

    @property
    def device(self) -> torch.device:
        """Where the sum lies."""
        return next(iter(self.total.values())).device

    def plus(self, other: "Clipped") -> "Clipped":
        """Returns the sum over the units of both."""
        total = {name: value + other.total[name] for name, value in self.total.items()}
        return Clipped(total, self.loss + other.loss, self.clipped + other.clipped)

    def over(self, processes: Processes) -> "Clipped":
        """Returns the sum over the units of all processes."""
        total = {name: processes.total(value) for name, value in self.total.items()}
        numbers = torch.tensor([self.loss, self.clipped], dtype=torch.float64, device=self.device)
        loss, clipped = processes.total(numbers).tolist()
        return Clipped(total, loss, int(clipped))


class FunctionalGradients:
    """Per-unit gradients by `torch.func`, some units at a time.

    Args:
        model: Called with the rows' network arguments.
        loss: Of rows.
        expand: Makes all weights of `model` from those that are trained; None where they are the
            model's own, which the rest of the model's weights join.
        rows_at_once: Bounds memory.
    """

    name = "functional"

    def __init__(
        self,
        model: nn.Module,
        loss: RowLoss,
        *,
        expand: Callable[[Weights], Mapping[str, Tensor]] | None = None,
        rows_at_once: int = ROWS_AT_ONCE,
    ) -> None:
        self._model, self._loss, self._rows_at_once = model, loss, rows_at_once
        self._expand = expand or (lambda weights: weights)

    def clipped_sum(self, weights: Weights, rows: Sequence[Tensor], clip_norm: float) -> Clipped:
        """Returns the sum over units of their clipped gradients; see `Gradients`."""
        # these take long to load, and most commands need none of it
        from torch.func import functional_call, grad_and_value, vmap
        from torch.nn.attention import SDPBackend, sdpa_kernel

        values = {name: value.detach() for name, value in weights.items()}
        adding = Adding(values, clip_norm)

        def unit_loss(trained: Weights, *unit: Tensor) -> Tensor:
            full = dict(self._expand(trained))

            def network(*arguments: object) -> Tensor:
                answer: Tensor = functional_call(self._model, full, arguments)
                return answer

            return self._loss(network, *unit).mean()

        axes = (None, *(0 for _ in rows))
        per_unit = vmap(grad_and_value(unit_loss), in_dims=axes, randomness="error")
        # fused attention has no derivative under vmap
        with sdpa_kernel(SDPBackend.MATH):
            for chunk in chunks(rows, self._rows_at_once, values):
                gradients, losses = per_unit(values, *chunk)
                adding.add(gradients, losses)
        return adding.result()


class Adding:
    """Adds up per-unit gradients, each clipped."""

    def __init__(self, weights: Weights, clip_norm: float) -> None:
        self._total = {name: torch.zeros_like(value.detach()) for name, value in weights.items()}
        self._clip_norm = clip_norm
        self._loss, self._clipped = 0.0, 0

    def add(self, gradients: Mapping[str, Tensor], losses: Tensor) -> None:
        """Takes in the gradients `(U, ...)` and losses `(U,)` of some units."""
        factors, norms = clip_factors(list(gradients.values()), self._clip_norm)
        finite = bool(torch.isfinite(norms).all())
        for name, gradient in gradients.items():
            flat = gradient.flatten(1) if finite else torch.nan_to_num(gradient.flatten(1))
            self._total[name] += (factors @ flat).view_as(self._total[name])
        self._loss += float(torch.nan_to_num(losses.detach()).sum())
        self._clipped += int((factors < 1).sum())

    def result(self) -> Clipped:
        """Returns the sum."""
        return Clipped(self._total, self._loss, self._clipped)


def clip_factors(gradients: Sequence[Tensor], clip_norm: float) -> tuple[Tensor, Tensor]:
    """Returns by what each unit's gradient is multiplied, `(U,)`, and the norms it had, `(U,)`.

    A unit with a gradient that is not finite counts as nothing: one bad image must neither destroy
    the weights nor tell that it was there.

    Args:
        gradients: One tensor per weight, each `(U, ...)`.
        clip_norm: C.
    """
    each = [torch.linalg.vector_norm(value.flatten(1), dim=1) for value in gradients]
    norms = torch.linalg.vector_norm(torch.stack(each), dim=0)
    return factors_of(norms, clip_norm), norms


def factors_of(norms: Tensor, clip_norm: float) -> Tensor:
    """Returns by what gradients of these norms are multiplied, both `(U,)`; see `clip_factors`."""
    factors = (clip_norm / norms.clamp(min=1e-12)).clamp(max=1.0)
    return torch.where(torch.isfinite(norms), factors, 0.0)


def chunks(
    rows: Sequence[Tensor], rows_at_once: int, weights: Weights
) -> Iterator[tuple[Tensor, ...]]:
    """Yields the units of `rows`, each `(U, K, ...)`, in parts whose gradients fit into memory.

    A part has at most `rows_at_once` rows, unless a single unit has more.
    """
    units, draws = rows[0].shape[:2]
    bytes_of_one = sum(value.numel() * value.element_size() for value in weights.values())
    size = max(1, min(rows_at_once // draws, GRADIENT_BYTES // bytes_of_one))
    for start in range(0, units, size):
        yield tuple(value[start : start + size] for value in rows)


class PrivateStep:
    """One noised step: who is in it, and the gradient it yields. Training and audit both use it.

    Args:
        gradients: Computes clipped sums.
        randomness: The secret of inclusion and noise.
        sampling_rate: Probability that a unit is in a step.
        noise_multiplier: Standard deviation of the noise in clip norms.
        expected_units: What the noisy sum is divided by, the same in every step. It must not
            depend on the data but through a release: the number of units is private.
        processes: Which take the step together. All know the secret, and so who is in a step; each
            sums its share of these, and the first adds the noise to the sum of all.

    Example:
        A step of three units whose gradients are 1, 2 and 30, clipped to 2, without noise:

        >>> from ddm_fed.privacy.randomness import Randomness
        >>> loss = lambda network, rows: network(rows)[:, 0]
        >>> gradients = FunctionalGradients(torch.nn.Linear(1, 1, bias=False), loss)
        >>> chance = {"sampling_rate": 1.0, "noise_multiplier": 0.0, "expected_units": 3.0}
        >>> step = PrivateStep(gradients, Randomness.for_tests(0), **chance)
        >>> rows = torch.tensor([1.0, 2.0, 30.0]).reshape(3, 1, 1)
        >>> clipped = step.clipped_sum({"weight": torch.ones(1, 1)}, [[rows]], clip_norm=2.0)
        >>> clipped.clipped, clipped.total["weight"].round(decimals=4).item()
        (1, 5.0)
        >>> round(step.release(clipped, 0, clip_norm=2.0)["weight"].item(), 4)  # over 3 units
        1.6667
    """

    def __init__(
        self,
        gradients: Gradients,
        randomness: Randomness,
        *,
        sampling_rate: float,
        noise_multiplier: float,
        expected_units: float,
        processes: Processes | None = None,
    ) -> None:
        if not expected_units > 0:
            raise ValueError(f"expected_units is {expected_units}, it has to be positive")
        self.gradients, self.randomness = gradients, randomness
        self.sampling_rate, self.noise_multiplier = sampling_rate, noise_multiplier
        self.expected_units, self.processes = expected_units, processes or Alone()

    def noisy_mean(
        self, weights: Weights, units: UnitRows, step: int, clip_norm: float
    ) -> tuple[dict[str, Tensor], float]:
        """Returns the private mean gradient of `step`, and the sum of the losses, which is private.

        The one way from units to what may leave: training, its proof, the tests before it and
        audits all take it.
        """
        chosen = self.share(self.included(step, len(units)))
        clipped = self.clipped_sum(weights, units.blocks(step, chosen), clip_norm)
        return self.release(clipped, step, clip_norm), clipped.loss

    def included(self, step: int, units: int) -> Tensor:
        """Returns the units of a step out of `units`, `(n,)` int64, each in it by itself."""
        chosen = self.randomness.stream("inclusion", step).uniform(units) < self.sampling_rate
        return torch.from_numpy(chosen).nonzero()[:, 0]

    def share(self, units: Tensor) -> Tensor:
        """Returns those of `units (n, ...)` that this process sums up."""
        return units[self.processes.rows(len(units))]

    def clipped_sum(
        self, weights: Weights, blocks: Iterable[Sequence[Tensor]], clip_norm: float
    ) -> Clipped:
        """Returns the clipped sum over all processes' units.

        Args:
            weights: What is differentiated by.
            blocks: Rows of this process's units, each `(U, K, ...)`.
            clip_norm: C.
        """
        result = Clipped(
            {name: torch.zeros_like(w.detach()) for name, w in weights.items()}, 0.0, 0
        )
        for rows in blocks:
            if len(rows[0]):
                here = [value.to(result.device) for value in rows]
                result = result.plus(self.gradients.clipped_sum(weights, here, clip_norm))
        return result.over(self.processes)

    def release(self, clipped: Clipped, step: int, clip_norm: float) -> dict[str, Tensor]:
        """Returns the private mean gradient of a step. Steps without a unit have one as well."""
        noisy = clipped.total
        if self.processes.rank == 0:
            noisy = noised(
                clipped.total,
                clip_norm=clip_norm,
                noise_multiplier=self.noise_multiplier,
                normals=self.randomness.stream("noise", step).normals,
            )
        noisy = {name: self.processes.of_first(value) for name, value in noisy.items()}
        return {name: value / self.expected_units for name, value in noisy.items()}


def expected_units(released: float, sampling_rate: float) -> float:
    """Returns what noisy sums are divided by, as manifests state it and verifiers compute it.

    Args:
        released: Number of units that a release counts; below one it is one.
        sampling_rate: Probability that a unit is in a step.
    """
    return round(max(released, 1.0) * sampling_rate, 6)


def noised(
    total: Mapping[str, Tensor], *, clip_norm: float, noise_multiplier: float, normals: Normals
) -> dict[str, Tensor]:
    """Returns a clipped sum plus Gaussian noise: from here on, it may leave.

    Noise is drawn and added in float64 and rounded to float32 once.

    Args:
        total: A clipped sum.
        clip_norm: C, most that a unit moves `total`.
        noise_multiplier: Standard deviation of the noise in units of C.
        normals: Standard normal numbers nobody knows.
    """
    scale = noise_multiplier * clip_norm
    drawn, noisy = normals([value.numel() for value in total.values()]), {}
    for (name, value), numbers in zip(total.items(), drawn, strict=True):
        noise = torch.from_numpy(numbers).view(value.shape).to(value.device)
        noisy[name] = noise.mul_(scale).add_(value).float()
    return noisy

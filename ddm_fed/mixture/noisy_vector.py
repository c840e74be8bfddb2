"""One noisy vector of integers that a site releases, and the parts it is made of."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

GRID = 1 << 20  # integer steps per unit of joint sensitivity


@dataclass(frozen=True)
class Part:
    """One part of a message: `size` values, jointly of L2 sensitivity `sensitivity`."""

    name: str
    size: int
    sensitivity: float
    weight: float


@dataclass(frozen=True)
class Message:
    """One noisy vector: its parts in order, and the privacy it takes of the whole release."""

    name: str
    parts: tuple[Part, ...]
    share: float

    @property
    def size(self) -> int:
        """Number of integers."""
        return sum(part.size for part in self.parts)

    @property
    def l2_sensitivity(self) -> int:
        """Most that one unit (an image, or a patient) moves the integer vector, in L2 norm.

        Weights are chosen so that the parts' sensitivities have norm GRID. Rounding an image's
        contribution goes towards zero and cannot lengthen it; one step covers float error. Why a
        patient moves it no further than an image does is said in `integer_sum`.
        """
        return GRID + 1

    def noise_std(self, part_name: str, noise_multiplier: float) -> float:
        """Returns the standard deviation of the noise on the values of a part, in its own units."""
        part = next(part for part in self.parts if part.name == part_name)
        return noise_multiplier * self.l2_sensitivity / part.weight

    def decode(self, vector: Ints) -> dict[str, Floats]:
        """Returns the parts of `vector`, each `(size,)`, in their own units."""
        decoded, start = {}, 0
        for part in self.parts:
            decoded[part.name] = vector[start : start + part.size] / part.weight
            start += part.size
        return decoded

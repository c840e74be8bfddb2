"""Several processes that take one private step: each a share of its units, and one noise."""

from typing import Protocol

from torch import Tensor


class Processes(Protocol):
    """The processes of a step, as one of them sees it. All of them make the same calls in turn."""

    @property
    def rank(self) -> int:
        """This process's number; 0 draws the noise."""

    def rows(self, count: int) -> slice:
        """Returns which of `count` units are this process's: each is one process's."""

    def total(self, values: Tensor) -> Tensor:
        """Returns the sum of `values` over all processes, in its place."""

    def of_first(self, values: Tensor) -> Tensor:
        """Returns what `values` are in process 0, in their place."""


class Alone:
    """One process."""

    rank = 0

    def rows(self, count: int) -> slice:
        """Returns all of `count` units."""
        return slice(count)

    def total(self, values: Tensor) -> Tensor:
        """Returns `values`."""
        return values

    def of_first(self, values: Tensor) -> Tensor:
        """Returns `values`."""
        return values

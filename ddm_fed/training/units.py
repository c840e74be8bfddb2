"""The rows a private step sees: every included unit several times, each time noised anew."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ddm_fed.flows import NO_CLASS
from ddm_fed.privacy import ImageSet
from ddm_fed.records import TrainingSpec
from ddm_fed.training.augment import draw_moves, move_images
from ddm_fed.training.batches import draw_times, seeded

UNITS_AT_ONCE = 256  # bounds the memory of what is drawn; gradients take parts of it
MOST_BLOCKS = 1 << 20


class UnitDraws:
    """Rows of units, K of each.

    A unit of several images shows K of them, drawn with replacement.

    Args:
        images: The site's images.
        spec: Times, label dropout and augmentation.
        conditional: Whether the network is told the labels.
        seed: Decides all draws. They shape what a unit contributes, which is clipped whatever it
            is: the guarantee rests on inclusion and noise alone.
        draws: K.
    """

    def __init__(
        self, images: ImageSet, spec: TrainingSpec, *, conditional: bool, seed: int, draws: int
    ) -> None:
        self._images, self._spec, self._seed, self._draws = images, spec, seed, draws
        self._conditional = conditional
        units = images.units if images.units is not None else torch.arange(len(images))
        self._order = units.argsort(stable=True)
        self._sizes = units.bincount()
        self._starts = self._sizes.cumsum(0) - self._sizes

    def __len__(self) -> int:
        """Returns the number of units. It is private."""
        return len(self._sizes)

    def blocks(self, step: int, units: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yields the rows of `units (U,)` in `step`, some units at a time.

        Each is images `(n, K, C, H, W)`, noise of that shape, times `(n, K)`, and labels `(n, K)`
        where the network is told them.
        """
        for block, start in enumerate(range(0, len(units), UNITS_AT_ONCE)):
            generator = seeded(self._seed, "units", step * MOST_BLOCKS + block)
            yield self._rows(units[start : start + UNITS_AT_ONCE], generator)

    def _rows(self, units: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        spec, shape, images = self._spec, self._images.shape, self._images
        count, grid = len(units) * self._draws, (len(units), self._draws)
        place = torch.rand(grid, generator=generator, dtype=torch.float64)
        within = (place * self._sizes[units][:, None]).long()
        rows = self._order[self._starts[units][:, None] + within].flatten()  # (U K,)
        eps = torch.randn((count, *shape), generator=generator)
        t = draw_times(spec, count, generator)
        dropped = torch.rand(count, generator=generator) < float(spec.label_dropout)
        moves = draw_moves(spec.augmentation, count, (shape[1], shape[2]), generator)
        x_0 = move_images(images.batch(rows), moves)
        drawn = [x_0.view(*grid, *shape), eps.view(*grid, *shape), t.view(grid)]
        if self._conditional and images.labels is not None:
            labels = torch.where(dropped, NO_CLASS, images.labels[rows])
            drawn.append(labels.view(grid))
        return tuple(drawn)

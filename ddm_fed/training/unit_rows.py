"""The rows a private step sees: every included unit several times, each time noised anew."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddm_fed.flows import (
    Condition,
    VelocityModel,
    interpolate,
    tensors_of,
    without_known,
)
from ddm_fed.privacy import ImageSet, Randomness
from ddm_fed.records import TrainingSpec
from ddm_fed.training.augment import Moves, draw_moves, join_moves, move_images
from ddm_fed.training.batches import draw_times

UNITS_AT_ONCE = 256  # bounds the memory of what is drawn; gradients take parts of it


class UnitDraws:
    """Rows of units, K of each.

    A unit of several images shows K of them, drawn with replacement. What a unit shows follows from
    the secret, the step and the unit's place: neither who else is in the step nor how many units
    there are changes it, so that a unit which joins or leaves moves nobody's rows but its own.

    Args:
        images: The site's images.
        spec: Times, label dropout and augmentation.
        conditional: Whether the network is told the labels or captions.
        randomness: The run's secret. Draws shape what a unit contributes, which is clipped whatever
            it is: the guarantee rests on inclusion and noise alone.
        draws: K.
        first_place: Of the first unit in `images`, where they are a part of a data set.
        known: The velocity that is known already, of which only the rest is learned; or None. It
            answers row by row, and must not have been computed from the images but by a release.
    """

    def __init__(
        self,
        images: ImageSet,
        spec: TrainingSpec,
        *,
        conditional: bool,
        randomness: Randomness,
        draws: int,
        first_place: int = 0,
        known: VelocityModel | None = None,
    ) -> None:
        self._known = known
        self._images, self._spec, self._draws = images, spec, draws
        self._conditional, self._randomness, self._first = conditional, randomness, first_place
        units = images.units if images.units is not None else torch.arange(len(images))
        self._order = units.argsort(stable=True)
        self._sizes = units.bincount()
        self._starts = self._sizes.cumsum(0) - self._sizes
        self._generator = torch.Generator()

    def __len__(self) -> int:
        """Returns the number of units. It is private."""
        return len(self._sizes)

    def blocks(self, step: int, units: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yields the rows of `units (U,)` in `step`, some units at a time.

        Each is images `(n, K, C, H, W)`, noise of that shape, times `(n, K)`, and, where the
        network is told what they are, what the condition is made of, each `(n, K, ...)`.
        """
        for block in torch.split(units, UNITS_AT_ONCE):
            if len(block):
                yield self._rows([self._draw(step, unit) for unit in block.tolist()])

    def _draw(self, step: int, unit: int) -> "_Drawn":
        """Returns what is drawn for a unit, in the order in which it is drawn."""
        spec, (_, *size), count = self._spec, self._images.shape, self._draws
        generator, own = self._generator, int(self._sizes[unit])
        self._randomness.rewind(generator, "rows", step, self._first + unit)
        place = (torch.rand(count, generator=generator, dtype=torch.float64) * own).long()
        return _Drawn(
            self._order[self._starts[unit] + place],
            torch.randn((count, *self._images.shape), generator=generator),
            draw_times(spec, count, generator),
            torch.rand(count, generator=generator) < float(spec.label_dropout),
            draw_moves(spec.augmentation, count, (size[0], size[1]), generator),
            self._latent_noise(count),
        )

    def _latent_noise(self, count: int) -> Tensor | None:
        """Returns what a unit's latents are drawn by, the last that is drawn; None of pixels."""
        if self._images.deviations is None:
            return None
        return torch.randn((count, *self._images.shape), generator=self._generator)

    def _rows(self, drawn: Sequence["_Drawn"]) -> tuple[Tensor, ...]:
        rows, eps, t, dropped = (
            torch.stack([getattr(one, part) for one in drawn])
            for part in ("rows", "eps", "t", "dropped")
        )
        flat = rows.flatten()  # (n K,)
        moves = join_moves([one.moves for one in drawn])
        latent = [one.latent for one in drawn if one.latent is not None]
        images = self._images.drawn(flat, torch.cat(latent)) if latent else self._images.batch(flat)
        x_0 = move_images(images, moves).view(eps.shape)
        told = self._images.condition(flat) if self._conditional else None
        if told is not None:
            told = told.dropped(dropped.flatten())
        condition = (value.view(*rows.shape, *value.shape[1:]) for value in tensors_of(told))
        return (*self._unknown(x_0, eps, t, told), t, *condition)

    def _unknown(
        self, x_0: Tensor, eps: Tensor, t: Tensor, condition: Condition | None
    ) -> tuple[Tensor, Tensor]:
        """Returns images and noise `(n, K, C, H, W)`, less the velocity that is known already."""
        if self._known is None:
            return x_0, eps
        images, noise, times = x_0.flatten(0, 1), eps.flatten(0, 1), t.flatten()
        velocity = self._known(interpolate(images, noise, times), times, condition)
        images, noise = without_known(images, noise, times, velocity)
        return images.view(x_0.shape), noise.view(eps.shape)


class _Drawn(NamedTuple):
    """What one unit shows: rows of the images `(K,)`, noise, times, what is dropped, and moves.

    Latents also have the noise that they are drawn by.
    """

    rows: Tensor
    eps: Tensor
    t: Tensor
    dropped: Tensor
    moves: Moves
    latent: Tensor | None = None

"""`[data]` of a plan: the images every expert is trained on."""

from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from ddm_fed.records.base import PlainText, Record
from ddm_fed.records.latent import LatentSpec

ClassName = Annotated[PlainText, StringConstraints(pattern=r"^\S(.{0,62}\S)?$")]
LEAST_SIDE = 4
Dimension = Annotated[int, Field(ge=LEAST_SIDE, le=1024)]


class DataSpec(Record):
    """The images every expert is trained on: pixels in [-1, 1], shape (channels, height, width).

    With `latent`, what is diffused is not the pixels but what a public autoencoder makes of them.
    """

    channels: Literal[1, 3]
    height: Dimension
    width: Dimension
    conditioning: Literal["none", "class"] = "none"
    classes: tuple[ClassName, ...] = ()
    # exclude_if: plans of earlier versions keep their digests
    latent: Annotated[LatentSpec | None, Field(exclude_if=lambda latent: latent is None)] = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of what is diffused, `(C, H, W)`: of an image's latent, or of the image itself."""
        if self.latent is None:
            return self.pixel_shape
        return (self.latent.channels, *self.sides)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of what is diffused."""
        factor = 1 if self.latent is None else self.latent.factor
        return (self.height // factor, self.width // factor)

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """Shape of one image as people see it, `(C, H, W)`."""
        return (self.channels, self.height, self.width)

    @property
    def bound(self) -> Decimal:
        """The largest absolute value of what is diffused: 1 for pixels."""
        return Decimal(1) if self.latent is None else self.latent.bound

    @model_validator(mode="after")
    def _classes_belong_to_class_conditioning(self) -> Self:
        if (self.conditioning == "class") != bool(self.classes):
            raise ValueError('`classes` is needed with conditioning = "class", and only then')
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("`classes` holds a name twice")
        return self

    @model_validator(mode="after")
    def _latents_are_whole(self) -> Self:
        if self.latent is None:
            return self
        factor = self.latent.factor
        for name, side in (("height", self.height), ("width", self.width)):
            if side % factor or side // factor < LEAST_SIDE:
                raise ValueError(
                    f"`{name}` {side} does not become latents by `latent.factor` {factor}: it has "
                    f"to be a multiple of it, and at least {LEAST_SIDE * factor}"
                )
        return self

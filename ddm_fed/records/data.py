"""`[data]` of a plan: the images every expert is trained on."""

from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from ddm_fed.records.base import PlainText, Record, Sha256
from ddm_fed.records.latent import LatentSpec

ClassName = Annotated[PlainText, StringConstraints(pattern=r"^\S(.{0,62}\S)?$")]
Fit = Literal["crop", "pad", "stretch"]
LEAST_SIDE = 4
Dimension = Annotated[int, Field(ge=LEAST_SIDE, le=1024)]


class TextSpec(Record):
    """The public text encoder that turns captions into what networks read.

    `ddm-coord plan text FILE` writes this section. `tokens` is how many of the `context` tokens
    that the encoder reads are handed on, the first ones; the pooled vector is of all. `width` and
    `pooled` are the lengths of a token's and of the pooled vector.
    """

    encoder: Literal["clip"] = "clip"
    sha256: Sha256
    context: Annotated[int, Field(ge=2, le=512)]
    tokens: Annotated[int, Field(ge=1, le=512)]
    width: Annotated[int, Field(ge=1, le=8192)]
    pooled: Annotated[int, Field(ge=1, le=8192)]

    @model_validator(mode="after")
    def _tokens_are_of_the_context(self) -> Self:
        if self.tokens > self.context:
            raise ValueError(
                f"`tokens` {self.tokens} exceeds the encoder's `context` {self.context}"
            )
        return self


class DataSpec(Record):
    """The images every expert is trained on: pixels in [-1, 1], shape (channels, height, width).

    `fit` says how images of another shape meet it: cropped about their centre, padded with black,
    or stretched.
    With `latent`, what is diffused is not the pixels but what a public autoencoder makes of them.
    """

    channels: Literal[1, 3]
    height: Dimension
    width: Dimension
    conditioning: Literal["none", "class", "text"] = "none"
    classes: tuple[ClassName, ...] = ()
    # exclude_if: plans of earlier versions keep their digests
    fit: Annotated[Fit, Field(exclude_if=lambda fit: fit == "crop")] = "crop"
    text: Annotated[TextSpec | None, Field(exclude_if=lambda text: text is None)] = None
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

    @property
    def conditional(self) -> bool:
        """Whether a network is told what an image is: its class, or its caption."""
        return self.conditioning != "none"

    @model_validator(mode="after")
    def _text_belongs_to_text_conditioning(self) -> Self:
        if (self.conditioning == "text") != (self.text is not None):
            raise ValueError('`[data.text]` is needed with conditioning = "text", and only then')
        return self

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

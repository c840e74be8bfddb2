"""`[data]` of a plan: the images every expert is trained on."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from ddm_fed.records.base import PlainText, Record

ClassName = Annotated[PlainText, StringConstraints(pattern=r"^\S(.{0,62}\S)?$")]
Fit = Literal["crop", "pad", "stretch"]
Dimension = Annotated[int, Field(ge=4, le=1024)]


class DataSpec(Record):
    """The images every expert is trained on: pixels in [-1, 1], shape (channels, height, width).

    `fit` says how images of another shape meet it: cropped about their centre, padded with black,
    or stretched.
    """

    channels: Literal[1, 3]
    height: Dimension
    width: Dimension
    conditioning: Literal["none", "class"] = "none"
    classes: tuple[ClassName, ...] = ()
    # exclude_if: plans of earlier versions keep their digests
    fit: Annotated[Fit, Field(exclude_if=lambda fit: fit == "crop")] = "crop"

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """Shape of one image in pixels, `(C, H, W)`."""
        return (self.channels, self.height, self.width)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image, `(C, H, W)`."""
        return (self.channels, self.height, self.width)

    @model_validator(mode="after")
    def _classes_belong_to_class_conditioning(self) -> Self:
        if (self.conditioning == "class") != bool(self.classes):
            raise ValueError('`classes` is needed with conditioning = "class", and only then')
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("`classes` holds a name twice")
        return self

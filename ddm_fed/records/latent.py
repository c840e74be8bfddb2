"""`[data.latent]` of a plan: the public autoencoder in whose latents everything is trained."""

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from ddm_fed.records.base import Number, Positive, Record, Sha256

AutoencoderKind = Literal["kl", "tiny"]
DEFAULT_BOUND = Decimal(4)


class LatentSpec(Record):
    """The autoencoder by its digest, and how its latents become what is diffused.

    What is diffused is `(latent - shift) * scale`, cut off at `bound` above and below zero. With a
    scale that gives public images' latents unit deviation, a bound of 4 cuts off next to nothing,
    and it is what makes every sum of latents bounded, as [-1, 1] does for pixels.

    Attributes:
        kind: "kl" is diffusers' `AutoencoderKL`, "tiny" its `AutoencoderTiny`.
        sha256: Of the autoencoder; `ddm-coord autoencoder show FOLDER` prints it.
        channels: Of a latent.
        factor: How many pixels of a row, and of a column, become one latent.
        scale: What latents are multiplied by.
        shift: What is taken off before.
        bound: The largest value after both.
    """

    kind: AutoencoderKind
    sha256: Sha256
    channels: Annotated[int, Field(ge=1, le=64)]
    factor: Literal[2, 4, 8, 16, 32, 64]
    scale: Annotated[Positive, Field(ge=Decimal("0.0001"), le=10000)]
    shift: Annotated[Number, Field(ge=-1000, le=1000, exclude_if=lambda shift: shift == 0)] = (
        Decimal(0)
    )
    bound: Annotated[
        Positive, Field(ge=1, le=100, exclude_if=lambda bound: bound == DEFAULT_BOUND)
    ] = DEFAULT_BOUND

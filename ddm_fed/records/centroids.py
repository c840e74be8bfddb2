"""`[router.centroids]` of a plan: in which public coordinates sites count their images' content."""

import base64
import binascii
import math
import struct
from decimal import Decimal
from typing import Annotated, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from ddm_fed.records.base import Number, PlainText, Record, Sha256
from ddm_fed.records.data import DataSpec

MOST_WIDTH, MOST_AXES, MOST_ANCHORS = 4096, 128, 64
MOST_AXIS_NUMBERS = 1 << 17  # of all axes together: a plan is one document of at most 1 MiB
UNIT = 0.01  # how far 16 bits may move the norm of a row


def pack_row(values: list[float]) -> str:
    """Returns numbers as a plan writes them: 16-bit floats, little end first, in base64."""
    return base64.b64encode(struct.pack(f"<{len(values)}e", *values)).decode()


def unpack_row(row: str) -> tuple[float, ...]:
    """Returns the numbers of a row.

    Raises:
        ValueError: it is not base64 as it is written here, or its numbers are not finite.
    """
    try:
        data = base64.b64decode(row, validate=True)
    except binascii.Error:
        raise ValueError("it is not base64") from None
    if len(data) % 2 or base64.b64encode(data).decode() != row:
        raise ValueError("it is not base64 of 16-bit floats")
    values = struct.unpack(f"<{len(data) // 2}e", data)
    if not all(map(math.isfinite, values)):
        raise ValueError("it holds a number that is not finite")
    return values


def _is_row(row: str) -> str:
    unpack_row(row)
    return row


Packed = Annotated[
    str, StringConstraints(min_length=4, max_length=4 * MOST_WIDTH), AfterValidator(_is_row)
]


class CentroidSpec(Record):
    """Each site also releases counts and mean directions of its embeddings at public anchors.

    `ddm-coord plan anchors --embedder` makes all of it from public images but the last three. Rows
    are 16-bit floats in base64: `mean` has E numbers, the length of an embedding; each of D `axes`
    has as many, and each of J `anchors` has D. `part` is what of the router's privacy this takes,
    `until` the time from which down image estimates are embedded, and `prompts` are public texts of
    everything that may be asked: with them a `clip` embedder also says which sites have what a
    prompt describes.
    """

    embedder: Annotated[
        str, StringConstraints(pattern=r"^(clip|timm:[a-z0-9_]+(\.[a-z0-9_]+)?)$", max_length=100)
    ]
    weights_sha256: Sha256
    mean: Packed
    axes: Annotated[tuple[Packed, ...], Field(min_length=2, max_length=MOST_AXES)]
    anchors: Annotated[tuple[Packed, ...], Field(min_length=2, max_length=MOST_ANCHORS)]
    part: Annotated[Number, Field(gt=0, lt=1)] = Decimal("0.5")
    until: Annotated[Number, Field(gt=0, lt=1)] = Decimal("0.4")
    prompts: Annotated[tuple[PlainText, ...], Field(max_length=64)] = ()

    @model_validator(mode="after")
    def _rows_fit_each_other(self) -> Self:
        mean = unpack_row(self.mean)
        axes, anchors = map(unpack_row, self.axes), map(unpack_row, self.anchors)
        if len(mean) * len(self.axes) > MOST_AXIS_NUMBERS:
            raise ValueError(f"`axes` hold more than {MOST_AXIS_NUMBERS:,} numbers together")
        if _norm(mean) > 1 + UNIT:
            raise ValueError("`mean` is longer than an embedding, which has norm 1")
        for name, rows, width in (("axes", axes, len(mean)), ("anchors", anchors, len(self.axes))):
            for row in rows:
                if len(row) != width:
                    raise ValueError(f"a row of `{name}` has {len(row)} numbers, expected {width}")
                if abs(_norm(row) - 1) > UNIT:
                    raise ValueError(f"a row of `{name}` has norm {_norm(row):.3g}, expected 1")
        if len(set(self.anchors)) != len(self.anchors):
            raise ValueError("`anchors` holds a row twice")
        return self

    @model_validator(mode="after")
    def _prompts_have_an_embedder(self) -> Self:
        if self.prompts and self.embedder != "clip":
            raise ValueError(f"`prompts` need an embedder of text, and {self.embedder} is none")
        return self

    @property
    def dimension(self) -> int:
        """E, the length of an embedding."""
        return len(unpack_row(self.mean))

    def require_fit(self, data: DataSpec) -> None:
        """Checks what depends on the images.

        Raises:
            ValueError: what is diffused is not pixels: an embedder reads nothing else.
        """
        if data.shape != (data.channels, data.height, data.width):
            raise ValueError("`router.centroids` embed pixels, and this plan diffuses latents")


def _norm(row: tuple[float, ...]) -> float:
    return math.sqrt(math.fsum(value * value for value in row))

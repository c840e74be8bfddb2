"""`[router]` of a plan: what sites release for the router, and how it is made of it."""

from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from ddm_fed.records.base import Count, Epsilon, Number, Positive, Record
from ddm_fed.records.centroids import CentroidSpec
from ddm_fed.records.data import DataSpec

MOST_NUMBERS = 1 << 24  # of a release: some 20 minutes of exact noise, and 128 MiB
Covariance = Literal["full", "diagonal", "low-rank"]
AnchorRow = Annotated[tuple[Number, ...], Field(min_length=1, max_length=768)]
# exclude_if: plans of earlier versions keep their digests
MaxShare = Annotated[Number, Field(gt=0, le=1, exclude_if=lambda share: share == 1)]


class PriorRouterSpec(Record):
    """Each site releases how many images it has (per class), and nothing else."""

    kind: Literal["prior"]
    epsilon: Epsilon
    max_share: MaxShare = Decimal(1)


class StatisticsSpec(Record):
    """Each site also releases mean and covariance of its low-frequency DCT coefficients.

    One Gaussian per class where the plan has classes, one per anchor where it has anchors, one in
    all otherwise. `frequencies` counts coefficients per channel; `centre` (a pixel value) and
    `radius` (a norm of coefficients about it) bound what one image contributes. An image belongs to
    the row of `anchors` that is nearest to its coefficients: those about the centre, channel after
    channel, of each channel the lowest that a row has numbers for. All are public choices: none may
    be fitted to private images. `max_share` is the most one site may weigh, whatever it released.

    With `components` every class (or anchor) has that many Gaussians, each with a covariance of its
    own; without, one, and all of a site share one covariance. Then `radius` may be left out: it is
    released, at a small price. `bands` groups the frequencies above `frequencies` and releases the
    variance of each group. With `centroids` embeddings are released as well.
    """

    epsilon: Epsilon
    max_share: MaxShare = Decimal(1)
    frequencies: Annotated[int, Field(ge=1, le=256)]
    centre: Annotated[Number, Field(ge=-1, le=1)] = Decimal(0)
    radius: Annotated[Positive | None, Field(exclude_if=lambda radius: radius is None)] = None
    components: Annotated[
        Literal[1, 2, 4, 8, 16, 32] | None, Field(exclude_if=lambda count: count is None)
    ] = None
    bands: Annotated[int, Field(ge=0, le=16, exclude_if=lambda bands: bands == 0)] = 0
    covariance: Covariance = "full"
    rank: Annotated[int, Field(ge=1, le=256)] | None = None
    anchors: Annotated[tuple[AnchorRow, ...], Field(max_length=64)] = ()
    centroids: Annotated[CentroidSpec | None, Field(exclude_if=lambda spec: spec is None)] = None

    @model_validator(mode="after")
    def _rank_belongs_to_low_rank(self) -> Self:
        if (self.covariance == "low-rank") != (self.rank is not None):
            raise ValueError('`rank` is needed with covariance = "low-rank", and only then')
        return self

    @model_validator(mode="after")
    def _covariances_of_its_own_are_full(self) -> Self:
        if self.components is None:
            if self.radius is None:
                raise ValueError("`radius` is missing: only with `components` it may be left out")
            if self.bands:
                raise ValueError("`bands` belongs to `components`: give both, or neither")
        elif self.covariance != "full":
            raise ValueError(
                f"`components` gives every Gaussian a full covariance, not a {self.covariance} one"
            )
        return self

    @field_validator("anchors")
    @classmethod
    def _several_distinct_rows(cls, rows: tuple[AnchorRow, ...]) -> tuple[AnchorRow, ...]:
        if len(rows) == 1:
            raise ValueError("one row divides nothing: give two or more, or none")
        if len({len(row) for row in rows}) > 1:
            raise ValueError("its rows have different lengths")
        if len(set(rows)) != len(rows):
            raise ValueError("it holds a row twice")
        return rows

    def require_fit(self, data: DataSpec) -> None:
        """Checks what depends on the images.

        Raises:
            ValueError: naming the key that does not fit them.
        """
        channels, height, width = data.shape
        pixels, coefficients = height * width, channels * self.frequencies
        if self.frequencies > pixels:
            raise ValueError(f"`router.frequencies` exceeds the {pixels} pixels of a channel")
        if self.rank is not None and self.rank >= coefficients:
            raise ValueError(f"`router.rank` is not below the {coefficients} coefficients")
        cells = max(1, len(data.classes), len(self.anchors)) * (self.components or 1)
        numbers = cells * coefficients * (coefficients + 1) // 2
        if self.components is not None and numbers > MOST_NUMBERS:
            raise ValueError(
                f"`router.frequencies` and `router.components` release {numbers:,} numbers, at "
                f"most {MOST_NUMBERS:,} can be: choose fewer of either"
            )
        if self.bands > pixels - self.frequencies:
            raise ValueError(
                f"`router.bands` {self.bands} exceeds the {pixels - self.frequencies} frequencies "
                "that are left of a channel"
            )
        dividing = (self.components or 1).bit_length() - 1
        if dividing > coefficients:
            raise ValueError(
                f"`router.components` {self.components} takes {dividing} coefficients to divide by"
            )
        if not self.anchors:
            return
        if data.classes:
            raise ValueError("`router.anchors` and `data.classes` each divide the images: keep one")
        numbers = len(self.anchors[0])
        if numbers % channels or numbers > coefficients:
            raise ValueError(
                f"`router.anchors` has rows of {numbers} numbers: a row has equally many for each "
                f"of {channels} channels, at most {coefficients}"
            )


class MixtureRouterSpec(StatisticsSpec):
    """What the sites released is the router: Bayes' rule on their Gaussian mixtures."""

    kind: Literal["mixture"]


class HeadSpec(Record):
    """The network of a head and its training: equal for all sites, so it reveals nothing of one."""

    width: Annotated[int, Field(ge=8, le=8192)] = 128
    depth: Annotated[int, Field(ge=1, le=32)] = 3
    steps: Count = 3000
    batch_size: Count = 256
    learning_rate: Positive = Decimal("0.001")


class HeadsRouterSpec(StatisticsSpec):
    """Each site also trains a head, in a second submission.

    It tells the site's own images from the pool of what all sites released.
    """

    kind: Literal["heads"]
    head: HeadSpec = HeadSpec()


class CentroidRouterSpec(Record):
    """Each site releases counts, and centroids of embeddings; shares answer where noise is."""

    kind: Literal["centroid"]
    epsilon: Epsilon
    max_share: MaxShare = Decimal(1)
    centroids: CentroidSpec


RouterSpec = Annotated[
    PriorRouterSpec | MixtureRouterSpec | HeadsRouterSpec | CentroidRouterSpec,
    Field(discriminator="kind"),
]

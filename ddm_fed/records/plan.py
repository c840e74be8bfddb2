"""The plan: what the sites agreed to train, and what may leave them.

People write `plan.toml`; the coordinator signs it as JSON. Both pass the same validator.
"""

import math
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from ddm_fed.records.architecture import (
    adds_to_mixture,
    network_of,
    parse_architecture,
    require_fit,
    require_reads_text,
)
from ddm_fed.records.base import (
    Count,
    Epsilon,
    LogSize,
    Moment,
    Name,
    NonNegative,
    Number,
    PlainLines,
    Positive,
    Probability,
    Record,
    Sha256,
)
from ddm_fed.records.centroids import CentroidSpec
from ddm_fed.records.data import DataSpec
from ddm_fed.records.remote import MAX_QUESTION_BYTES, RemoteSpec
from ddm_fed.records.router import HeadsRouterSpec, PriorRouterSpec, RouterSpec, StatisticsSpec
from ddm_fed.records.sgd import CentralSpec, SgdSpec, Trainable

PathName = Literal["linear", "cosine", "vp"]
Prediction = Literal["velocity", "noise", "image"]
LossWeighting = Literal["none", "min-snr"]
Augmentation = Literal["horizontal-flip", "translate"]
PrivatePart = Literal["router", "expert", "head"]
PrivacyUnit = Literal["image", "patient"]


def _as_tuple(value: Any) -> Any:
    match value:
        case str():
            return (value,)
        case list():  # after this function pydantic no longer knows that it came from JSON
            return tuple(value)
    return value


_Listed = BeforeValidator(_as_tuple)


class ExpertDesign(Record):
    """Which network a site trained and what it predicts; the sites of a federation may differ."""

    architecture: str
    path: PathName = "linear"
    prediction: Prediction = "velocity"

    @field_validator("architecture")
    @classmethod
    def _known(cls, name: str) -> str:
        parse_architecture(name)
        return name

    @model_validator(mode="after")
    def _mixtures_have_a_velocity(self) -> Self:
        plain = (self.path, self.prediction) == ("linear", "velocity")
        if adds_to_mixture(self.architecture) and not plain:
            raise ValueError(f"`{self.architecture}` predicts velocity on the linear path only")
        return self

    def __str__(self) -> str:
        return f"{self.architecture}, {self.prediction} on the {self.path} path"


class BaseSpec(Record):
    """A public checkpoint that every expert starts from: a safetensors file, by its digest.

    Its network is the expert's. Where it was trained for another path or prediction than the
    expert's, its last layer is drawn anew.
    """

    sha256: Sha256
    path: PathName = "linear"
    prediction: Prediction = "velocity"


class ExpertSpec(Record):
    """The networks an expert may be and what it may predict: a name, or a list to choose from."""

    architecture: Annotated[tuple[str, ...], _Listed, Field(min_length=1, max_length=16)]
    path: Annotated[tuple[PathName, ...], _Listed, Field(min_length=1)] = ("linear",)
    prediction: Annotated[tuple[Prediction, ...], _Listed, Field(min_length=1)] = ("velocity",)
    base: BaseSpec | None = None
    # exclude_if: as for `Schedule` below
    remote: Annotated[RemoteSpec | None, Field(exclude_if=lambda remote: remote is None)] = None

    @field_validator("architecture")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            parse_architecture(name)
        return names

    @field_validator("architecture", "path", "prediction")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("it holds a name twice")
        return names

    @property
    def default(self) -> ExpertDesign:
        """The design of a site that chooses nothing: the first of each list that fits."""
        return self.design(self.architecture[0])

    def design(self, architecture: str) -> ExpertDesign:
        """Returns the design of that architecture with the first path and prediction it can have.

        A mixture has a velocity on the linear path, whatever else the plan lists.
        """
        if adds_to_mixture(architecture):
            return ExpertDesign(architecture=architecture)
        return ExpertDesign(
            architecture=architecture, path=self.path[0], prediction=self.prediction[0]
        )

    @property
    def trained(self) -> ExpertDesign | None:
        """The first design that has a network, which is trained; None if all are mixtures."""
        names = [name for name in self.architecture if network_of(name) is not None]
        return self.design(names[0]) if names else None

    @model_validator(mode="after")
    def _mixtures_fit(self) -> Self:
        names = [name for name in self.architecture if adds_to_mixture(name)]
        if names and ("linear" not in self.path or "velocity" not in self.prediction):
            raise ValueError(
                f"`{names[0]}` predicts velocity on the linear path: list both among `path` and "
                "`prediction`"
            )
        if self.base is not None and any(network_of(name) for name in names):
            raise ValueError(
                f"`{names[-1]}` starts from a mixture and learns what that leaves: it cannot start "
                "from the checkpoint `base` as well"
            )
        return self

    def allows(self, design: ExpertDesign) -> bool:
        """Returns whether a site may train `design`."""
        return (
            design.architecture in self.architecture
            and design.path in self.path
            and design.prediction in self.prediction
        )


# exclude_if: plans of earlier versions keep their digests
Schedule = Annotated[
    Literal["cosine", "constant"], Field(exclude_if=lambda schedule: schedule == "cosine")
]


class TrainingSpec(Record):
    """How long and how an expert is trained. Equal for all sites, so it reveals nothing of one."""

    steps: Count
    batch_size: Count
    learning_rate: Positive = Decimal("0.001")
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    schedule: Schedule = "cosine"
    weight_decay: NonNegative = Decimal(0)
    clip_norm: Positive = Decimal(1)
    ema_half_lives: Annotated[tuple[Count, ...], Field(min_length=1, max_length=8)] = (700,)
    time_sampling: Literal["uniform", "logit-normal"] = "logit-normal"
    time_location: Number = Decimal(0)
    time_scale: Positive = Decimal(1)
    time_shift: Positive = Decimal(1)
    loss_weighting: LossWeighting = "none"
    label_dropout: Probability = Decimal("0.1")
    augmentation: tuple[Augmentation, ...] = ()
    trainable: Annotated[Trainable, Field(exclude_if=lambda part: part == "all")] = "all"

    @field_validator("ema_half_lives", "augmentation")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) != len(values):
            raise ValueError("it holds a value twice")
        return values

    @model_validator(mode="after")
    def _uniform_times_have_no_shape(self) -> Self:
        shaped = (self.time_location, self.time_scale) != (Decimal(0), Decimal(1))
        if self.time_sampling == "uniform" and shaped:
            raise ValueError("`time_location` and `time_scale` belong to logit-normal times")
        return self


class PrivacySpec(Record):
    """What epsilon counts, and the most of it a site may spend on this plan's images.

    A unit is what epsilon protects as a whole: one image, or all images of one patient.
    """

    unit: PrivacyUnit = "image"
    adjacency: Literal["add_or_remove_one"] = "add_or_remove_one"
    delta: Annotated[Number, Field(ge=Decimal("1e-12"), le=Decimal("0.1"))] = Decimal("0.00001")
    max_epsilon: Epsilon
    must_be_private: tuple[PrivatePart, ...] = ("router",)
    sgd: SgdSpec | None = None

    @model_validator(mode="after")
    def _noise_is_where_it_is_asked_for(self) -> Self:
        if self.sgd is not None and self.sgd.epsilon > self.max_epsilon:
            raise ValueError(
                f"`sgd.epsilon` {self.sgd.epsilon} exceeds `max_epsilon` {self.max_epsilon}"
            )
        return self


class SubmissionSpec(Record):
    """Limits on what a site may send. The last two hold for each float tensor of its expert."""

    max_bytes: Count = 4 * 2**30
    valid_days: Annotated[int, Field(ge=1, le=3650)] = 90
    # Below these no sum of squares comes near the end of float64, nor one tensor's of float32.
    max_absolute: Annotated[Positive, Field(le=10**15)] = Decimal(10000)
    max_norm: Annotated[Positive, Field(le=10**18)] = Decimal(100000)


class Plan(Record):
    """The signed agreement of a federation.

    `version` is given by whoever publishes it, one higher for every change: who saw a plan takes no
    earlier one. Plans of earlier versions of this program have none, and come before all others.
    """

    format: Literal[1] = 1
    federation: Name
    version: Annotated[LogSize, Field(exclude_if=lambda version: version == 0)] = 0
    description: Annotated[PlainLines, StringConstraints(max_length=2000)] = ""
    expires_at: Moment
    data: DataSpec
    expert: ExpertSpec
    training: TrainingSpec
    router: RouterSpec
    privacy: PrivacySpec
    submission: SubmissionSpec = SubmissionSpec()

    @property
    def centroids(self) -> CentroidSpec | None:
        """What sites release of embeddings; None if nothing."""
        return None if isinstance(self.router, PriorRouterSpec) else self.router.centroids

    # each contradiction is a check of its own, so that all of them are found at once

    @model_validator(mode="after")
    def _centroids_fit_the_images(self) -> Self:
        if self.centroids is not None:
            self.centroids.require_fit(self.data)
        return self

    @model_validator(mode="after")
    def _architectures_fit_the_images(self) -> Self:
        for name in self.expert.architecture:
            require_fit(name, *self.data.sides)
        return self

    @model_validator(mode="after")
    def _remote_experts_can_be_asked(self) -> Self:
        remote = self.expert.remote
        if remote is None:
            return self
        if self.expert.trained is None:
            raise ValueError("`expert.remote`: every expert is the mixture released, none can stay")
        if self.data.text is not None:
            raise ValueError("`expert.remote` and captions do not go together yet")
        size_bytes = 4 * math.prod(self.data.shape) * remote.batch_size
        if size_bytes > MAX_QUESTION_BYTES:
            raise ValueError(
                f"`expert.remote.batch_size` {remote.batch_size} makes requests of {size_bytes} "
                f"bytes; at most {MAX_QUESTION_BYTES} are taken"
            )
        return self

    @model_validator(mode="after")
    def _latents_are_not_moved(self) -> Self:
        if self.data.latent is not None and self.training.augmentation:
            raise ValueError(
                f"`training.augmentation` {self.training.augmentation[0]} moves images, and a "
                "moved latent is not the latent of a moved image: leave it out with `[data.latent]`"
            )
        return self

    @model_validator(mode="after")
    def _captions_can_be_read_and_left_out(self) -> Self:
        if self.data.text is None:
            return self
        for name in self.expert.architecture:
            require_reads_text(name)
        if self.training.label_dropout == 0:
            raise ValueError(
                "`training.label_dropout` 0 never leaves a caption out: an expert would not know "
                "what to make of none, which guidance and routers ask for; give one such as 0.1"
            )
        return self

    @model_validator(mode="after")
    def _statistics_fit_the_images(self) -> Self:
        if isinstance(self.router, StatisticsSpec):
            self.router.require_fit(self.data)
        return self

    @model_validator(mode="after")
    def _mixtures_are_released(self) -> Self:
        names = [name for name in self.expert.architecture if adds_to_mixture(name)]
        if names and not isinstance(self.router, StatisticsSpec):
            raise ValueError(
                f"`expert.architecture` {names[0]} is made of what a mixture router releases, and "
                f'`router.kind` is "{self.router.kind}"'
            )
        sgd = self.privacy.sgd
        if (
            sgd is not None
            and not self.expert.trained
            and not isinstance(self.router, HeadsRouterSpec)
        ):
            raise ValueError("`[privacy.sgd]` trains nothing: every expert is the mixture released")
        if sgd is not None and sgd.central is not None and any(map(network_of, names)):
            raise ValueError(
                f"`privacy.sgd.central` and `{names[-1]}` are two ways to start: keep one"
            )
        return self

    @model_validator(mode="after")
    def _what_is_trained_can_be_private(self) -> Self:
        trained = {"head"} | ({"expert"} if self.expert.trained else set())
        asked = trained & set(self.privacy.must_be_private)
        if asked and self.privacy.sgd is None:
            raise ValueError(
                f"`privacy.must_be_private` names the {min(asked)}, which takes a `[privacy.sgd]` "
                "to be"
            )
        return self

    @model_validator(mode="after")
    def _a_part_is_trained_from_a_base(self) -> Self:
        part, base = self.training.trainable, self.expert.base
        if part == "all":
            return self
        if self.privacy.sgd is not None:
            raise ValueError(
                f"`training.trainable` {part} is of a training without noise: with "
                "`[privacy.sgd]`, `privacy.sgd.trainable` says it"
            )
        if base is None:
            raise ValueError(
                f"`training.trainable` {part} keeps most weights as they are, and without "
                "`[expert.base]` they would be chance"
            )
        if part.startswith("lora") and (self.expert.path, self.expert.prediction) != (
            (base.path,),
            (base.prediction,),
        ):
            raise ValueError(
                f"`training.trainable` {part} cannot learn another last layer: `expert.path` and "
                f"`expert.prediction` have to be those of `expert.base`, {base.path} and "
                f"{base.prediction}"
            )
        return self

    @model_validator(mode="after")
    def _router_is_within_the_budget(self) -> Self:
        if self.router.epsilon > self.privacy.max_epsilon:
            raise ValueError(
                f"`router.epsilon` {self.router.epsilon} exceeds `privacy.max_epsilon` "
                f"{self.privacy.max_epsilon}"
            )
        return self

    @model_validator(mode="after")
    def _private_training_fits(self) -> Self:
        if self.privacy.sgd is not None:
            self._require_private_training(self.privacy.sgd)
        return self

    def _require_private_training(self, sgd: SgdSpec) -> None:
        router, heads = self.router, isinstance(self.router, HeadsRouterSpec)
        if router.epsilon >= sgd.epsilon:
            raise ValueError(
                f"`router.epsilon` {router.epsilon} leaves nothing of `privacy.sgd.epsilon` "
                f"{sgd.epsilon} for the expert"
            )
        if heads != (sgd.head is not None):
            raise ValueError(
                '`privacy.sgd.head` is needed with router.kind = "heads", and only then: a head '
                "without noise would make the expert's worthless"
            )
        batches = {"training": self.training.batch_size}
        if isinstance(router, HeadsRouterSpec):
            batches["router.head"] = router.head.batch_size
        if sgd.central is not None:
            batches["privacy.sgd.central"] = sgd.central.batch_size
            self._require_sensible_means(sgd, sgd.central)
        for section, batch_size in batches.items():
            if sgd.sampling_rate(batch_size) == 0:
                raise ValueError(
                    f"`{section}.batch_size` {batch_size} of `privacy.sgd.units` {sgd.units} is "
                    "too small a part"
                )
            if batch_size > sgd.units:
                raise ValueError(
                    f"`{section}.batch_size` {batch_size} exceeds `privacy.sgd.units` {sgd.units}"
                )

    def _require_sensible_means(self, sgd: SgdSpec, central: CentralSpec) -> None:
        if central.epsilon >= sgd.epsilon:
            raise ValueError(
                f"`privacy.sgd.central.epsilon` {central.epsilon} leaves nothing of "
                f"`privacy.sgd.epsilon` {sgd.epsilon} for the expert"
            )
        longest = math.prod(self.data.shape) * (self.data.bound + abs(central.centre)) ** 2
        if central.radius**2 > longest:
            raise ValueError(
                f"`privacy.sgd.central.radius` {central.radius} exceeds {longest.sqrt():.4g}, "
                "which no image reaches about the centre: it would only add noise"
            )

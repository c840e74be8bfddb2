"""How a router was made from the experts' own samples: a coordinator states it, no site spends.

A router that is computed from what the sites released needs no such record. One that was trained or
calibrated on samples of the experts does: it is true of those experts only.
"""

from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from ddm_fed.records.architecture import DitArchitecture, parse_architecture
from ddm_fed.records.base import Count, Number, Positive, Record, Sha256

RouterName = Literal["prior", "mixture", "centroid", "heads", "replay", "hybrid"]
LEARNED_ROUTERS: tuple[RouterName, ...] = ("replay", "hybrid")

Switch = Annotated[Number, Field(gt=0, lt=1)]


class RouterNetworkSpec(Record):
    """A perceptron of cosines as a learned router; `frequencies` counts per channel."""

    frequencies: Annotated[int, Field(ge=1, le=4096)]
    width: Annotated[int, Field(ge=8, le=8192)] = 256
    depth: Annotated[int, Field(ge=1, le=32)] = 3
    steps: Count = 3000
    batch_size: Count = 256
    learning_rate: Positive = Decimal("0.001")


class RouterTransformerSpec(Record):
    """A diffusion transformer with a class token, by its name, as a learned router; its training.

    Source: McAllister et al. 2025, arXiv:2501.05450, section 3.3.
    """

    architecture: str
    steps: Count = 3000
    batch_size: Count = 128
    learning_rate: Positive = Decimal("0.001")

    @field_validator("architecture")
    @classmethod
    def _is_a_transformer(cls, name: str) -> str:
        if not name.startswith("DiT-") or not isinstance(parse_architecture(name), DitArchitecture):
            raise ValueError(f"a router can be a perceptron or DiT-SIZE/PATCH, not {name}")
        return name

    @property
    def parsed(self) -> DitArchitecture:
        """What the name says."""
        found = parse_architecture(self.architecture)
        if not isinstance(found, DitArchitecture):
            raise TypeError(f"{self.architecture} is not the name of a transformer")
        return found


LearnedNetworkSpec = RouterNetworkSpec | RouterTransformerSpec


class BuiltRouter(Record):
    """A router trained or calibrated on samples of the experts, and the budget it took.

    Attributes:
        kind: Which router.
        submissions: The experts it was made from, in the ensemble's order: it serves no others.
        samples_per_site: Images drawn from each expert.
        solver_steps: Steps of the solver that drew them.
        seed: Decides all draws.
        network: The network, for kinds that have one; a `hybrid` without asks the sites' heads, or
            what `low` says.
        low: What a `hybrid` asks below its switch, where it is neither.
        switch: Time below which `hybrid` asks the network, above the closed form.
        knots: Times at which the posterior was calibrated; none if it was not.
    """

    kind: RouterName
    submissions: Annotated[tuple[Sha256, ...], Field(min_length=1, max_length=1000)]
    samples_per_site: Count
    solver_steps: Count
    seed: Annotated[int, Field(ge=0, lt=2**53)]
    network: LearnedNetworkSpec | None = None
    low: Annotated[Literal["centroid"] | None, Field(exclude_if=lambda low: low is None)] = None
    switch: Switch | None = None
    knots: Annotated[tuple[Switch, ...], Field(max_length=100)] = ()

    @model_validator(mode="after")
    def _kind_has_its_parts(self) -> Self:
        if self.kind == "replay" and self.network is None:
            raise ValueError("replay needs its `network`")
        if self.kind not in LEARNED_ROUTERS and self.network is not None:
            raise ValueError("`network` belongs to replay and hybrid")
        if self.low is not None and (self.kind != "hybrid" or self.network is not None):
            raise ValueError("`low` belongs to a hybrid without `network`")
        if (self.kind == "hybrid") != (self.switch is not None):
            raise ValueError("`switch` belongs to hybrid, which needs it")
        if self.network is None and self.switch is None and not self.knots:
            raise ValueError("a router without network and calibration is not built from samples")
        if list(self.knots) != sorted(set(self.knots)):
            raise ValueError("`knots` increase")
        return self

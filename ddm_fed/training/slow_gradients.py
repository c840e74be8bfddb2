"""The slow and certain gradient of one unit, for the proof of a private training."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ddm_fed.flows import VelocityModel
from ddm_fed.models import build_network
from ddm_fed.privacy import ImageSet, Randomness, Weights
from ddm_fed.records import ExpertDesign, Plan
from ddm_fed.training.batches import seeded
from ddm_fed.training.gradients import row_loss
from ddm_fed.training.options import RunOptions
from ddm_fed.training.private_options import PrivateTraining
from ddm_fed.training.trainable import TrainedPart
from ddm_fed.training.unit_rows import UnitDraws
from ddm_fed.training.warmstart import load_base


def first_weights(
    plan: Plan, design: ExpertDesign, options: RunOptions, trainable: str, seed: int
) -> dict[str, Tensor]:
    """Returns what a private training starts from, by name: of seed and public checkpoint alone."""
    network = build_network(plan.data, design)
    network.reset_parameters(seeded(seed, "weights", 0))
    load_base(network, plan, design, options)
    part = TrainedPart(network, trainable)
    part.reset_parameters(seeded(seed, "part", 0))
    return {name: value.detach() for name, value in part.state_dict().items()}


class SlowUnits:
    """Gradients of single units by plain back-propagation in float64.

    A unit is shown to a network of its own, out of a data set that holds nobody else: what it adds
    to a step cannot depend on others.

    Args:
        images: The site's images.
        plan: What is trained.
        design: Network, path and prediction.
        noise: Which weights are trained, and how many draws a unit has.
        randomness: The run's secret.
        part: Holds the weights that are not trained.
        known: The velocity that is known already; or None.
    """

    def __init__(
        self,
        images: ImageSet,
        plan: Plan,
        design: ExpertDesign,
        noise: PrivateTraining,
        randomness: Randomness,
        part: TrainedPart,
        *,
        known: VelocityModel | None = None,
    ) -> None:
        self._known = known
        self._images, self._plan, self._noise = images, plan, noise
        self._randomness, self._source = randomness, part
        self._device = next(part.parameters()).device
        self._network = build_network(plan.data, design).to(self._device).double()
        self._part = TrainedPart(self._network, noise.trainable).double()
        self._loss = row_loss(plan, design)

    def __call__(self, weights: Weights, step: int, unit: int) -> Mapping[str, Tensor]:
        """Returns the gradient of the mean loss of `unit` in `step`, by name, float64."""
        from torch.func import functional_call  # takes long to load; most commands need none of it

        self._part.load_state_dict(self._source.state_dict())
        leaves = {name: value.detach().requires_grad_(True) for name, value in weights.items()}
        full = self._part.full(leaves)

        def network(*arguments: object) -> Tensor:
            answer: Tensor = functional_call(self._network, full, arguments)
            return answer

        loss = self._loss(network, *self._rows(step, unit)).mean()
        found = torch.autograd.grad(loss, list(leaves.values()))
        return dict(zip(leaves, found, strict=True))

    def _rows(self, step: int, unit: int) -> list[Tensor]:
        lone = UnitDraws(
            self._images.of_unit(unit),
            self._plan.training,
            conditional=self._plan.data.conditional,
            randomness=self._randomness,
            draws=self._noise.draws,
            first_place=unit,
            known=self._known,
        )
        (rows,) = lone.blocks(step, torch.tensor([0]))
        own = [value[0].to(self._device) for value in rows]
        return [value.double() if value.is_floating_point() else value for value in own]

"""A few images of the expert as it is now, for the site's own eyes."""

import torch
from torch import Tensor, nn

from ddm_fed.flows import ClassCondition, Expert, VelocityModel, integrate, time_grid
from ddm_fed.records import ExpertDesign, Plan
from ddm_fed.training.batches import seeded
from ddm_fed.training.precision import Autocast

PREVIEW_STEPS = 16


@torch.no_grad()
def draw_preview(
    model: nn.Module,
    plan: Plan,
    design: ExpertDesign,
    device: torch.device,
    autocast: Autocast,
    *,
    count: int,
    seed: int,
    known: VelocityModel | None = None,
) -> Tensor:
    """Returns `count` images of `model`, `(count, C, H, W)`, the classes in turn.

    They are within the plan's bound: [-1, 1], of pixels; with latents, they are latents.

    The noise depends on `seed` alone, so that previews of one run show the same images emerge.
    """
    noise = torch.randn((count, *plan.data.shape), generator=seeded(seed, "preview", 0)).to(device)
    condition = None
    if plan.data.classes:
        condition = ClassCondition(torch.arange(count, device=device) % len(plan.data.classes))
    expert = Expert(model, design.path, design.prediction)
    times = time_grid(PREVIEW_STEPS, start=expert.largest_time).to(device)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        velocity = expert(x, t.expand(count), condition)
        return velocity if known is None else velocity + known(x, t.expand(count), condition)

    bound = float(plan.data.bound)
    model.eval()
    with autocast():
        images = integrate(velocity, noise, times, "heun")
    model.train()
    return images.float().clamp(-bound, bound).cpu()

"""What both sides share: the plan, the images of each site, and a stretch of training.

Everything that matters is ddm_fed's own, so that FedAvg and experts differ in nothing but what is
averaged, and when.
"""

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits

from ddm_fed.flows import denoising_loss
from ddm_fed.models import build_network
from ddm_fed.privacy import ImageSet
from ddm_fed.records import Plan, read_plan_toml
from ddm_fed.training import seeded
from ddm_fed.training.batches import Batches
from ddm_fed.training.loop import BETAS, planned_factor

PLAN = """
federation = "digits"
expires_at = 2036-01-01T00:00:00Z
[data]
channels = 1
height = 8
width = 8
[expert]
architecture = "DiT-Nano/2"
[training]
steps = {steps}
batch_size = {batch_size}
learning_rate = 0.002
ema_half_lives = [{half_life}]
[router]
kind = "mixture"
epsilon = 8
frequencies = 36
centre = -0.4
radius = 7
[privacy]
max_epsilon = 1000
"""
SPLITS = ("label-skew", "iid")


@dataclass(frozen=True)
class Settings:
    """What is agreed.

    Attributes:
        split: `label-skew` gives each site digits of its own, `iid` some of all.
        sites: Number of sites.
        rounds: How often weights travel.
        steps: Steps of each site, over all rounds together.
        batch_size: Images of a step.
        out: Where the server writes the averaged weights.
    """

    split: str = "label-skew"
    sites: int = 5
    rounds: int = 20
    steps: int = 600
    batch_size: int = 64
    out: str = "fedavg.safetensors"

    @property
    def half_life(self) -> int:
        """Steps after which half of an average is left."""
        return max(20, self.steps // 12)

    def plan(self) -> Plan:
        """Returns the plan that experts would be trained under."""
        return read_plan_toml(
            PLAN.format(steps=self.steps, batch_size=self.batch_size, half_life=self.half_life)
        )


def all_images() -> tuple[ImageSet, ImageSet]:
    """Returns training and test images of the bundled digits, with labels."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 8 - 1
    labels = torch.from_numpy(digits.target).long()
    held = torch.arange(len(labels)) % 5 == 4
    return ImageSet(images[~held], labels[~held]), ImageSet(images[held], labels[held])


def images_of_site(split: str, sites: int, site: int) -> ImageSet:
    """Returns the training images of one site.

    Raises:
        ValueError: the split has no such name.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split}, expected one of {', '.join(SPLITS)}")
    train, _ = all_images()
    labels = train.labels
    owner = labels * sites // 10 if split == "label-skew" else torch.arange(len(labels)) % sites
    own = owner == site
    return ImageSet(train.images[own], labels[own])


def new_weights(plan: Plan) -> dict[str, torch.Tensor]:
    """Returns the weights training begins with."""
    network = build_network(plan.data, plan.expert.default)
    network.reset_parameters(seeded(0, "weights", 0))
    return network.state_dict()


def train_stretch(
    weights: dict[str, torch.Tensor],
    images: ImageSet,
    plan: Plan,
    steps: range,
    seed: int,
) -> tuple[dict[str, torch.Tensor], float]:
    """Returns the weights after `steps` of the whole training at one site, and the mean loss.

    The moments of AdamW begin anew, as in FedAvg; batches and learning rate go on.
    """
    torch.set_num_threads(1)
    network = build_network(plan.data, plan.expert.default)
    network.load_state_dict(weights)
    network.train()
    spec = plan.training
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=float(spec.learning_rate),
        betas=BETAS,
        weight_decay=float(spec.weight_decay),
        fused=True,
    )
    batches = Batches(images, spec, conditional=False, seed=seed)
    total = 0.0
    for step in steps:
        factor = planned_factor(spec, step)
        for group in optimizer.param_groups:
            group["lr"] = float(spec.learning_rate) * factor
        batch = batches.draw(step, slice(0, spec.batch_size))
        loss = denoising_loss(network, batch.x_0, batch.eps, batch.t, None).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), float(spec.clip_norm))
        optimizer.step()
        total += float(loss.detach())
    return network.state_dict(), total / max(1, len(steps))

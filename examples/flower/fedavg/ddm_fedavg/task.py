"""What both sides share: the plan, the images of each site, and a stretch of training.

Everything that matters is ddm_fed's own, so that FedAvg and experts differ in nothing but what is
averaged, and when.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from ddm_fed.flows import denoising_loss, path_named
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
SPLITS = ("label-skew", "iid", "disjoint", "dirichlet-A, such as dirichlet-0.3")
LEAST_SHARE = 0.02  # of the images, at every site: with fewer nobody would take part
DRAWS = 10_000


@dataclass(frozen=True)
class Settings:
    """What is agreed.

    Attributes:
        split: `label-skew` gives each site classes of its own, in their order, and `disjoint` in
            one that is drawn; `iid` gives it some of all; `dirichlet-A` divides every class by
            shares drawn from a Dirichlet distribution with A for every site.
        sites: Number of sites.
        rounds: How often weights travel.
        steps: Steps of each site, over all rounds together.
        batch_size: Images of a step.
        out: Where the server writes the averaged weights.
        data: An .npz file with `train_images`, `(N, H, W)` or `(N, H, W, C)` of 0 to 255, and
            `train_labels`; "" is the digits of scikit-learn. Every site reads its own part only.
        plan_file: A plan.toml whose data, network and training count, and then `steps` and
            `batch_size` do not; "" is the plan of the digits, without classes.
        seed: Of the split, the first weights and the batches.
    """

    split: str = "label-skew"
    sites: int = 5
    rounds: int = 20
    steps: int = 600
    batch_size: int = 64
    out: str = "fedavg.safetensors"
    data: str = ""
    plan_file: str = ""
    seed: int = 0

    @property
    def half_life(self) -> int:
        """Steps after which half of an average is left."""
        return max(20, self.steps // 12)

    def plan(self) -> Plan:
        """Returns the plan that experts would be trained under."""
        if self.plan_file:
            return read_plan_toml(Path(self.plan_file).read_text())
        return read_plan_toml(
            PLAN.format(steps=self.steps, batch_size=self.batch_size, half_life=self.half_life)
        )

    def stretch(self, server_round: int) -> range:
        """Returns the steps of a round, counted from 1; all rounds together are all steps."""
        steps = self.plan().training.steps
        first, last = (steps * done // self.rounds for done in (server_round - 1, server_round))
        return range(first, last)

    def seed_of_site(self, site: int) -> int:
        """Returns what the batches of a site are drawn from."""
        return 1000 * self.seed + site


def all_images() -> tuple[ImageSet, ImageSet]:
    """Returns training and test images of the bundled digits, with labels."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 8 - 1
    labels = torch.from_numpy(digits.target).long()
    held = torch.arange(len(labels)) % 5 == 4
    return ImageSet(images[~held], labels[~held]), ImageSet(images[held], labels[held])


@functools.cache
def _arrays(data: str) -> tuple[np.ndarray, Tensor]:
    """Returns the training images of an .npz file as they are, `(N, H, W, C)`, and their labels."""
    with np.load(data, allow_pickle=False) as file:
        pixels, labels = file["train_images"], file["train_labels"].reshape(-1)
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    return pixels, torch.from_numpy(labels.astype(np.int64))


def owners(split: str, labels: Tensor, sites: int, seed: int = 0) -> Tensor:
    """Returns the site of every image, `(N,)`.

    Args:
        split: See `Settings`.
        labels: Classes, `(N,)`.
        sites: How many sites there are.
        seed: Of what is drawn.

    Raises:
        ValueError: the split has no such name, or leaves a site without images.
    """
    classes, generator = int(labels.max()) + 1, np.random.default_rng(seed)
    name, _, alpha = split.partition("-")
    if split == "iid":
        found = torch.arange(len(labels)) % sites
    elif split == "label-skew":
        found = labels * sites // classes
    elif split == "disjoint":
        found = torch.from_numpy(generator.permutation(classes))[labels] * sites // classes
    elif name == "dirichlet" and alpha:
        found = _by_dirichlet(float(alpha), labels, sites, generator)
    else:
        raise ValueError(f"unknown split {split}, expected one of {', '.join(SPLITS)}")
    if found.bincount(minlength=sites).min() == 0:
        raise ValueError(f"{split} leaves one of {sites} sites without images")
    return found


def _by_dirichlet(
    alpha: float, labels: Tensor, sites: int, generator: np.random.Generator
) -> Tensor:
    counts = labels.bincount().numpy()
    for _ in range(DRAWS):
        shares = generator.dirichlet(np.full(sites, alpha), size=len(counts))  # (G, K)
        if (counts @ shares).min() >= LEAST_SHARE * len(labels):
            break
    else:
        raise ValueError(f"dirichlet-{alpha} leaves {sites} sites hardly any images: take a larger")
    found = torch.empty_like(labels)
    for kind, share in enumerate(shares):
        rows = generator.permutation(np.flatnonzero(labels.numpy() == kind))
        cuts = np.rint(share.cumsum()[:-1] * len(rows)).astype(int)
        for site, own in enumerate(np.split(rows, cuts)):
            found[torch.from_numpy(own)] = site
    return found


@functools.cache  # a process of the simulation plays several sites, round after round
def images_of_site(split: str, sites: int, site: int, *, data: str = "", seed: int = 0) -> ImageSet:
    """Returns the training images of one site.

    Raises:
        ValueError: the split has no such name, or leaves a site without images.
    """
    if not data:
        train, _ = all_images()
        own = owners(split, train.labels, sites, seed) == site
        return ImageSet(train.images[own], train.labels[own])
    pixels, labels = _arrays(data)
    own = owners(split, labels, sites, seed) == site
    chosen = np.ascontiguousarray(pixels[own.numpy()].transpose(0, 3, 1, 2))
    return ImageSet(torch.from_numpy(chosen).float() / 127.5 - 1, labels[own])


def new_weights(plan: Plan, seed: int = 0) -> dict[str, torch.Tensor]:
    """Returns the weights training begins with."""
    network = build_network(plan.data, plan.expert.default)
    network.reset_parameters(seeded(seed, "weights", 0))
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
    # a simulation hides the GPU from sites that were given no part of it
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = build_network(plan.data, plan.expert.default)
    network.load_state_dict(weights)
    network.train().to(device)
    spec = plan.training
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=float(spec.learning_rate),
        betas=BETAS,
        weight_decay=float(spec.weight_decay),
        fused=True,
    )
    batches = Batches(images, spec, conditional=plan.data.conditional, seed=seed)
    design = plan.expert.default
    total = 0.0
    for step in steps:
        factor = planned_factor(spec, step)
        for group in optimizer.param_groups:
            group["lr"] = float(spec.learning_rate) * factor
        batch = batches.draw(step, slice(0, spec.batch_size))
        loss = denoising_loss(
            network,
            batch.x_0.to(device),
            batch.eps.to(device),
            batch.t.to(device),
            None if batch.condition is None else batch.condition.to(device),
            path=path_named(design.path),
            prediction=design.prediction,
            weighting=spec.loss_weighting,
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), float(spec.clip_norm))
        optimizer.step()
        total += float(loss.detach())
    return network.to("cpu").state_dict(), total / max(1, len(steps))

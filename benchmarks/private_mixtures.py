"""What are images of private mixture releases worth, pooled and in silos, at which epsilon?

Every site releases the mixture of its images through the real path (exact discrete Gaussian), in
one go and by itself; samples are drawn by the sites' released shares and classes. A classifier is
trained on them alone, its epoch chosen on held-out samples, and judged once on the real test
images. Beside its accuracy stand the Frechet distance in the features of one that was trained on
real images, and how many samples that one tells to be what was asked for. Beside them: the price
as Opacus' accountant finds it (it adds .01 as its own error), how far the sites' released shares
lie from their true ones, whether samples lie nearer to images of a site than to as many that were
held back from all (.5 is what chance gives), and the area of an attack that guesses membership by
the mixture's loss (.5 as well).

The protocol is DPImageBench's (arXiv:2503.14681) where two cores allow: its splits, delta 1e-5,
60,000 samples, a classifier chosen without the test set. Its classifiers are wide residual networks
trained for many epochs; `--judge resnet` is a small residual network of timm's, and `small` the two
convolutions of `ddm_fed.evaluation`. Figures of different judges are not to be compared.

    python benchmarks/private_mixtures.py --data fashion_mnist.npz --sites 1 10 --epsilon 10 1 \
        --out fashion.jsonl

Cells and frequencies follow from a public guess of the units and epsilon (`mixture_rule`) unless
they are given. Each result is written as it is found; the same command goes on with those that are
missing. About five minutes a cell on one core.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ddm_fed.auditing import (
    Draws,
    LabelledImages,
    epsilon_of_opacus,
    measure_membership,
)
from ddm_fed.embedding.public_weights import import_torchvision
from ddm_fed.evaluation import (
    frechet_distance,
    measure_memorization,
    site_share_error,
    train_classifier_on,
)
from ddm_fed.mixture import (
    EmbeddedImages,
    ImageMixture,
    MixtureVelocity,
    SiteRelease,
    fit_image_mixtures,
    messages,
    mixture_rule,
    release_statistics,
    router_events,
)
from ddm_fed.privacy import ImageSet, Private, epsilon
from ddm_fed.records import LedgerEntry, Plan, read_plan_toml, today

PLAN = """
federation = "benchmark"
expires_at = 2036-01-01
[data]
channels = {channels}
height = {height}
width = {width}
conditioning = "class"
classes = [{classes}]
[expert]
architecture = "mixture"
[training]
steps = 1
batch_size = 1
[router]
kind = "mixture"
epsilon = {epsilon}
frequencies = {frequencies}
centre = {centre}
components = {components}
bands = {bands}
[privacy]
max_epsilon = {epsilon}
"""


def load(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns images in [-1, 1] and labels of both splits."""
    file, found = np.load(path, allow_pickle=False), {}
    for part in ("train", "test"):
        pixels = torch.from_numpy(file[f"{part}_images"]).float() / 127.5 - 1
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.movedim(-1, 1).contiguous()
        labels = torch.from_numpy(file[f"{part}_labels"].astype(np.int64).reshape(-1))
        found[part] = pixels, labels
    return found


def make_plan(shape: tuple[int, int, int], classes: int, cell: dict[str, float]) -> Plan:
    names = ", ".join(f'"c{index}"' for index in range(classes))
    channels, height, width = shape
    return read_plan_toml(
        PLAN.format(channels=channels, height=height, width=width, classes=names, **cell)
    )


def deal(labels: Tensor, sites: int, skew: float | None, seed: int) -> list[Tensor]:
    """Returns the rows of every site: evenly, or each class by a Dirichlet draw."""
    rng = np.random.default_rng(seed)
    if skew is None:
        order = torch.from_numpy(rng.permutation(len(labels)))
        return list(torch.tensor_split(order, sites))
    parts: list[list[int]] = [[] for _ in range(sites)]
    for label in labels.unique().tolist():
        rows = rng.permutation(np.flatnonzero(labels.numpy() == label))
        cuts = (rng.dirichlet([skew] * sites).cumsum()[:-1] * len(rows)).astype(int)
        for site, own in enumerate(np.split(rows, cuts)):
            parts[site] += own.tolist()
    return [torch.tensor(part) for part in parts]


def release(
    plan: Plan, images: Tensor, labels: Tensor | None, directions: EmbeddedImages | None = None
) -> tuple[SiteRelease, float]:
    """Returns what a site releases, its price checked by the ledger's own events; and Opacus'."""
    spent = []

    def spend(purpose: str, mechanism: str, event: object) -> LedgerEntry:
        spent.append(event)
        return LedgerEntry(
            index=len(spent) - 1,
            previous_sha256=None if len(spent) == 1 else "0" * 64,
            plan_sha256="0" * 64,
            purpose=purpose,
            mechanism=mechanism,
            event=event,
            recorded_at=today(),
            unit="image",
        )

    made = release_statistics(Private(ImageSet(images, labels)), plan, spend, directions)
    found = epsilon(spent, float(plan.privacy.delta))
    assert found <= float(plan.router.epsilon) + 1e-4, found
    noise = {name: float(event.noise_multiplier) for name, event in router_events(plan).items()}
    second = epsilon_of_opacus(spent, float(plan.privacy.delta))
    return SiteRelease({name: item.value for name, item in made.items()}, noise), second


def draw(
    plan: Plan, mixtures: list[ImageMixture], count: int, seed: int
) -> tuple[Tensor, Tensor, list[int]]:
    """Returns samples of the sites' mixtures by released shares, their classes, and each site's."""
    masses = torch.stack([mixture.weights.sum(1) for mixture in mixtures])  # (K, G)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(masses.flatten(), count, replacement=True, generator=generator)
    labels, images = chosen % masses.shape[1], torch.empty((count, *plan.data.shape))
    for site, mixture in enumerate(mixtures):
        mine = (chosen // masses.shape[1] == site).nonzero()[:, 0]
        velocity = MixtureVelocity(plan, mixture)
        images[mine] = velocity.sample(len(mine), generator, labels[mine])
    drawn = torch.bincount(chosen // masses.shape[1], minlength=len(mixtures))
    return images.clamp(-1, 1), labels, drawn.tolist()


def resnet(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Returns a residual network for small images: timm's, with a stem that keeps their size."""
    import_torchvision()  # before timm does
    from timm.models.resnet import BasicBlock, ResNet

    network = ResNet(
        BasicBlock,
        (1, 1, 1, 1),
        num_classes=classes,
        in_chans=shape[0],
        channels=(16, 32, 64, 128),
    )
    network.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def learn(
    judge: str, images: Tensor, labels: Tensor, classes: int, epochs: int, seed: int
) -> nn.Module:
    """Returns a classifier of images; the best epoch on a held-out tenth of them is kept."""
    generator = torch.Generator().manual_seed(seed)
    if judge == "small":
        return train_classifier_on(
            images, labels, classes, epochs=epochs, generator=generator
        ).network
    network = resnet(tuple(images.shape[1:]), classes)
    for value in network.parameters():
        if value.ndim > 1:
            nn.init.kaiming_normal_(value, nonlinearity="relu", generator=generator)
    order = torch.randperm(len(images), generator=generator)
    held, own = order[: len(order) // 10], order[len(order) // 10 :]
    steps = epochs * -(-len(own) // 128)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    best, kept = -1.0, network.state_dict()
    for _ in range(epochs):
        network.train()
        for rows in own[torch.randperm(len(own), generator=generator)].split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
        network.eval()
        if (found := accuracy(network, images[held], labels[held])) > best:
            best = found
            kept = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(kept)
    return network.eval()


@torch.inference_mode()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    told = torch.cat([network(part).argmax(1) for part in images.split(500)])
    return float((told == labels).float().mean())


def measure(options: argparse.Namespace, data, judges, cell) -> dict[str, float]:
    """Returns one result."""
    (images, labels), (real, truth) = data["train"], data["test"]
    shape, classes = tuple(images.shape[1:]), int(labels.max()) + 1
    seed, began = int(cell["seed"]), time.process_time()
    skew = cell["skew"] or None
    order = torch.from_numpy(np.random.default_rng(seed + 1).permutation(len(labels)))
    cut = min(2000, len(labels) // 20)
    held = images[order[:cut]], labels[order[:cut]]
    images, labels = images[order[cut:]], labels[order[cut:]]
    images, labels = images[: cell["images"]], labels[: cell["images"]]
    parts = deal(labels, int(cell["sites"]), skew, seed)
    plan = make_plan(shape, classes, cell)
    made = [release(plan, images[rows], labels[rows]) for rows in parts]
    released_s = time.process_time() - began
    mixtures = fit_image_mixtures(plan, [released for released, _ in made])
    true = [len(rows) / len(labels) for rows in parts]
    drawn, told, of_sites = draw(plan, mixtures, options.samples, seed)
    learned = learn(options.judge, drawn, told, classes, options.epochs, seed)
    features = [judges.features(part).numpy() for part in (real, drawn[: len(real)])]
    return {
        "accuracy": round(accuracy(learned, real, truth), 4),
        "frechet": round(float(frechet_distance(*features)), 2),
        "told": round(judges.accuracy(drawn[: len(real)], told[: len(real)]), 4),
        "share_error": round(site_share_error(true, of_sites).error, 4),
        **_of_single_images(
            plan, mixtures[0], (images[parts[0]], labels[parts[0]]), held, drawn, seed
        ),
        "epsilon_of_opacus": round(max(second for _, second in made), 4),
        "integers": sum(message.size for message in messages(plan)),
        "release_s": round(released_s / len(parts), 1),
        "cpu_s": round(time.process_time() - began, 1),
    }


def _of_single_images(
    plan: Plan, mixture: ImageMixture, own, held, drawn: Tensor, seed: int
) -> dict[str, float]:
    """Returns what samples and a site's mixture say about single images of that site."""
    own = [part[: len(held[0])] for part in own]
    nearer = measure_memorization(
        drawn[:1000].flatten(1).numpy(),
        *(images.flatten(1).numpy() for images, _ in (own, held)),
        generator=np.random.default_rng(seed),
    )
    attack = measure_membership(
        MixtureVelocity(plan, mixture),
        LabelledImages(*own),
        LabelledImages(*held),
        Draws.at(plan.data.shape, torch.Generator().manual_seed(seed)),
    )
    return {
        "closer": round(nearer.closer.value, 3),
        "near_copies": nearer.near_copies.value,
        "member_area": round(attack.area.value, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sites", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--epsilon", type=float, nargs="+", default=[10.0, 1.0])
    parser.add_argument("--skew", type=float, default=0.0, help="strength of a Dirichlet; 0: even")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, help="of all sites; by default every one there is")
    parser.add_argument("--frequencies", type=int)
    parser.add_argument("--components", type=int)
    parser.add_argument("--bands", type=int, default=0)
    parser.add_argument("--centre", type=float, default=-0.4)
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--judge", choices=("small", "resnet"), default="small")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("private_mixtures.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load(options.data)
    images, labels = data["train"]
    classes = int(labels.max()) + 1
    known = []
    if options.out.exists():
        known = [json.loads(line) for line in options.out.read_text().splitlines()]
    judges = train_classifier_on(
        images[:20_000],
        labels[:20_000],
        classes,
        epochs=3,
        generator=torch.Generator().manual_seed(9),
    ).network
    for seed in options.seeds:
        for level in options.epsilon:
            for sites in options.sites:
                guess = public_guess((options.images or len(images)) / sites)
                pixels = images.shape[2] * images.shape[3]
                rule = mixture_rule(
                    level, 1e-5, guess, classes, images.shape[1], pixels=pixels, sites=sites
                )
                cell = {
                    "data": options.data.stem,
                    "sites": sites,
                    "epsilon": level,
                    "skew": options.skew,
                    "seed": seed,
                    "frequencies": options.frequencies or rule.frequencies,
                    "components": options.components or rule.components,
                    "bands": options.bands,
                    "centre": options.centre,
                    "samples": options.samples,
                    "images": options.images,
                    "judge": options.judge,
                    "epochs": options.epochs,
                }
                if any(all(row.get(key) == value for key, value in cell.items()) for row in known):
                    continue
                found = cell | measure(options, data, judges, cell)
                with options.out.open("a") as file:
                    file.write(json.dumps(found) + "\n")
                print(json.dumps(found), flush=True)


def public_guess(units: float) -> int:
    """Returns 1, 2 or 5 times a power of ten, the largest that is not above `units`."""
    power = 10 ** math.floor(math.log10(units))
    return int(max(step * power for step in (1, 2, 5) if step * power <= units))


if __name__ == "__main__":
    main()

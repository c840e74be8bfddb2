"""What does a network trained with noise add to a private mixture, at the same epsilon in all?

Every site releases its mixture through the real path and trains a network with DP-SGD on its own
images, for `--epsilon` together; a part of it, `--release`, pays the release. Ways to bring both
together, each at the same price:

* `mixture`: all of the budget to the release, no network.
* `residual`: the network learns what the site's mixture leaves, zero at first.
* `samples`: the network alone, first trained without noise on samples of the mixture (which costs
  no privacy), then on the images with noise.
* `plain`: the network alone, from chance; the release is not used.

Samples are drawn by the sites' shares and judged as in `private_mixtures.py`, by the same judge.
Mixtures alone are drawn directly, experts by Heun's method. The network's settings are the better
of two that were tried on MedNIST.

    python benchmarks/private_residual.py --data fashion_mnist.npz --sites 1 10 --epsilon 10 1 \
        --ways mixture residual samples plain --out residual_dp.jsonl

Each result is written as it is found; the same command goes on with those that are missing. A cell
with a network takes six to ten minutes of one core a site.
"""

import argparse
import hashlib
import json
import tempfile
import time
from decimal import Decimal
from pathlib import Path

import torch
from private_mixtures import PLAN, accuracy, deal, learn, load, public_guess, release
from safetensors.torch import save_file
from torch import Tensor

from ddm_fed.evaluation import frechet_distance, train_classifier_on
from ddm_fed.flows import ClassCondition, Expert, integrate, time_grid
from ddm_fed.mixture import MixtureVelocity, fit_image_mixtures, mixture_rule
from ddm_fed.models import build_expert
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import Plan, read_plan_toml
from ddm_fed.storage.tensors import write_tensors
from ddm_fed.training import (
    KnownVelocity,
    Paid,
    Payment,
    PrivateTraining,
    RunOptions,
    train_expert,
    train_private_expert,
)
from ddm_fed.training.plan_cost import planned_events

TRAINING = """steps = {steps}
batch_size = {batch}
learning_rate = {learning_rate}
warmup_steps = 0
ema_half_lives = [{half_life}]
time_location = {time_location}
"""
SGD = """
[privacy.sgd]
epsilon = {epsilon}
units = {units}
clip_norm = {clip_norm}
draws = {draws}
"""
RUN = "0" * 64  # of the plan and the release: nothing here is signed


def make_plan(shape, classes: int, cell: dict, units: int, way: str, base: str | None) -> Plan:
    channels, height, width = shape
    alone = way == "mixture"
    network = cell["network"]
    base_lines = f'[expert.base]\nsha256 = "{base}"\n' if base else ""
    guess = public_guess(units)
    router_epsilon = cell["epsilon"] * (1.0 if alone else cell["release"])
    rule = mixture_rule(
        router_epsilon,
        1e-5,
        guess,
        classes,
        channels,
        pixels=height * width,
        sites=cell["sites"],
    )
    architecture = {"mixture": "mixture", "residual": f"mixture+{network}"}.get(way, network)
    training = TRAINING.format(
        batch=max(1, round(cell["batch"] / cell["sites"])),
        half_life=max(1, cell["steps"] // 12),
        **{key: cell[key] for key in ("steps", "learning_rate", "time_location")},
    )
    text = PLAN.format(
        channels=channels,
        height=height,
        width=width,
        classes=", ".join(f'"c{index}"' for index in range(classes)),
        epsilon=router_epsilon,
        frequencies=rule.frequencies,
        components=rule.components,
        centre=cell["centre"],
        bands=0 if alone else cell["bands"],
    )
    for old, new in (
        ('"mixture"\n[training]', f'"{architecture}"\n{base_lines}[training]'),
        ("steps = 1\nbatch_size = 1\n", training),
        (f"max_epsilon = {router_epsilon}", "max_epsilon = 1000"),
    ):
        assert old in text
        text = text.replace(old, new)
    if not alone:
        text += SGD.format(
            units=guess, **{key: cell[key] for key in ("epsilon", "clip_norm", "draws")}
        )
    return read_plan_toml(text)


def from_samples(plan: Plan, mixture: MixtureVelocity, file: Path, steps: int) -> str:
    """Writes a network trained without noise on samples of `mixture`; returns its digest."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(20_000) % len(plan.data.classes)
    images = mixture.sample(len(labels), generator, labels).clamp(-1, 1)
    expert = plan.expert.model_copy(update={"base": None})
    fast = {"steps": steps, "batch_size": 128, "learning_rate": Decimal("0.002")}
    training = plan.training.model_copy(update=fast)
    privacy = plan.privacy.model_copy(update={"sgd": None})
    public = plan.model_copy(update={"expert": expert, "training": training, "privacy": privacy})
    found = train_expert(
        Private(ImageSet(images, labels)),
        public,
        RUN,
        file.with_suffix(".ckpt"),
        options=RunOptions(seed=0, precision="float32"),
    )
    save_file(found.state, file)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def site_expert(
    shape, classes: int, cell: dict, images: Tensor, labels: Tensor, work: Path
) -> tuple[Plan, Expert | MixtureVelocity, Tensor]:
    """Returns a site's expert, all of it paid, and the share of every class it released `(G,)`."""
    way = cell["way"]
    plan = make_plan(shape, classes, cell, len(labels), way, None)
    released, _ = release(plan, images, labels)
    (fitted,) = fit_image_mixtures(plan, [released])
    masses = fitted.weights.sum(1)
    if way == "mixture":
        return plan, MixtureVelocity(plan, fitted), masses
    mixture = MixtureVelocity(plan, fitted, alone=False)
    base = known = None
    if way == "residual":
        write_tensors(work / "router.safetensors", released.vectors)
        known = KnownVelocity(mixture, work / "router.safetensors")
    if way == "samples":
        base = work / "base.safetensors"
        digest = from_samples(plan, MixtureVelocity(plan, fitted), base, cell["sample_steps"])
        plan = make_plan(shape, classes, cell, len(labels), way, digest)
    event = planned_events(plan).expert
    found = train_private_expert(
        Private(ImageSet(images, labels)),
        plan,
        RUN,
        work / "checkpoint",
        PrivateTraining.planned(plan, event, float(len(labels)), None),
        Payment(lambda: RUN, lambda _: Paid(event, None)),
        options=RunOptions(base=base, checkpoint_every_s=1e9),
        known=known,
    )
    beside = None if known is None else mixture
    return plan, build_expert(plan.data, plan.expert.default, found.state, beside), masses


@torch.inference_mode()
def draw(expert: Expert | MixtureVelocity, labels: Tensor, shape, steps: int, seed: int) -> Tensor:
    """Returns samples of the classes `labels`, `(N, C, H, W)` in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(expert, MixtureVelocity):
        return expert.sample(len(labels), generator, labels).clamp(-1, 1)
    found = []
    for part in labels.split(250):
        noise = torch.randn((len(part), *shape), generator=generator)

        def velocity(x: Tensor, t: Tensor, part: Tensor = part) -> Tensor:
            return expert(x, t.expand(len(part)), ClassCondition(part))

        found.append(integrate(velocity, noise, time_grid(steps), "heun"))
    return torch.cat(found).clamp(-1, 1)


def measure(options: argparse.Namespace, data, judge, cell: dict) -> dict[str, float]:
    """Returns one result."""
    (images, labels), (real, truth) = data["train"], data["test"]
    shape, classes, seed = tuple(images.shape[1:]), int(labels.max()) + 1, cell["seed"]
    began = time.process_time()
    parts = deal(labels, cell["sites"], None, seed)
    experts, masses = [], []
    for rows in parts:
        with tempfile.TemporaryDirectory() as folder:
            _, expert, mass = site_expert(
                shape, classes, cell, images[rows], labels[rows], Path(folder)
            )
        experts.append(expert)
        masses.append(mass)
    trained_s = time.process_time() - began
    generator = torch.Generator().manual_seed(seed)
    shares = torch.stack(masses).flatten()
    chosen = torch.multinomial(shares, cell["samples"], replacement=True, generator=generator)
    told, drawn = chosen % classes, torch.empty((cell["samples"], *shape))
    for site, expert in enumerate(experts):
        mine = (chosen // classes == site).nonzero()[:, 0]
        drawn[mine] = draw(expert, told[mine], shape, options.solver_steps, seed + site)
    learned = learn(options.judge, drawn, told, classes, options.epochs, seed)
    features = [judge.features(part).numpy() for part in (real, drawn[: len(real)])]
    return {
        "accuracy": round(accuracy(learned, real, truth), 4),
        "frechet": round(float(frechet_distance(*features)), 2),
        "told": round(judge.accuracy(drawn[: len(real)], told[: len(real)]), 4),
        "trained_s": round(trained_s / len(parts), 1),
        "cpu_s": round(time.process_time() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sites", type=int, nargs="+", default=[1])
    parser.add_argument("--epsilon", type=float, nargs="+", default=[10.0])
    ways = ("mixture", "residual", "samples", "plain")
    parser.add_argument("--ways", nargs="+", choices=ways, default=["mixture", "residual"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--release", type=float, default=0.7, help="its part of epsilon")
    parser.add_argument("--network", default="Conv-Nano/4")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=512, help="units in a step, of all sites")
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--clip-norm", type=float, default=0.1)
    parser.add_argument("--learning-rate", type=float, default=0.003)
    parser.add_argument("--time-location", type=float, default=-0.5)
    parser.add_argument("--bands", type=int, default=8)
    parser.add_argument("--centre", type=float, default=-0.4)
    parser.add_argument("--sample-steps", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--solver-steps", type=int, default=10)
    parser.add_argument("--judge", choices=("small", "resnet"), default="small")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("private_residual.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load(options.data)
    images, labels = data["train"]
    known = []
    if options.out.exists():
        known = [json.loads(line) for line in options.out.read_text().splitlines()]
    judge = train_classifier_on(
        images[:20_000],
        labels[:20_000],
        int(labels.max()) + 1,
        epochs=3,
        generator=torch.Generator().manual_seed(9),
    ).network
    same = ("release", "network", "steps", "batch", "draws", "clip_norm", "learning_rate")
    same += ("time_location", "bands", "centre", "sample_steps", "samples", "solver_steps")
    for seed in options.seeds:
        for level in options.epsilon:
            for sites in options.sites:
                for way in options.ways:
                    cell = {"data": options.data.stem, "sites": sites, "epsilon": level}
                    cell |= {"way": way, "seed": seed, "judge": options.judge}
                    cell |= {"epochs": options.epochs}
                    cell |= {key: getattr(options, key) for key in same}
                    if any(all(row.get(k) == v for k, v in cell.items()) for row in known):
                        continue
                    found = cell | measure(options, data, judge, cell)
                    with options.out.open("a") as file:
                        file.write(json.dumps(found) + "\n")
                    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()

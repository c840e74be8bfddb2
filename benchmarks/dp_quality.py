"""What are images of experts trained with DP-SGD worth, pooled or in silos, lever by lever?

The training images of Fashion-MNIST (or another .npz) are dealt evenly to `--sites` sites; 1 is the
pooled case of the published tables. Every site trains one expert that knows the classes, at
epsilon `--epsilon` for all it does; `--images` samples are drawn, of each site and class alike, and
judged by a classifier: FID of its features against the real test images, and accuracy on them of
another one that was trained on samples alone, chosen on held-out samples. Beside them stands the
experts' mean loss on test images, at six times alike: it needs no samples (`--images 0` draws none)
and scatters less. Every lever is one run:

    python benchmarks/dp_quality.py --data fashion_mnist.npz --sites 5 --levers all lora time

The protocol of DPImageBench (arXiv:2503.14681) has 3.8 M weights, batches of 4096, 32 draws, 150
epochs, images of 32 x 32 pixels, and 60,000 samples. Near to it, on one GPU of 80 GB, with a budget
of 20 hours per epsilon and lever (reckoned: 2200 steps of 512 parts, 30 ms each, are 9; not yet
measured):

    python benchmarks/dp_quality.py --data fashion_mnist.npz --sites 1 --side 32 \
        --architecture DiT-Ti/4 --batch 4096 --draws 32 --steps 2200 --clip-norm 0.001 \
        --micro-batch 256 --learning-rate 0.0003 --images 60000 --epsilon 10 --levers all central

With `--epsilon 1 --router-epsilon 0.1 --central-epsilon 0.2` it is the table's other column. On two
cores within an hour, far below that protocol, for the effect of each lever (results are kept):

    python benchmarks/dp_quality.py --data fashion_mnist.npz --public cifar10_subset.npz --side 32 \
        --architecture DiT-Nano/8 --sites 5 10 1 --trained-sites 1 --steps 150 --batch 400 \
        --draws 1 --learning-rate 0.01 --judge-epochs 1 --classifier-steps 300 --images 500 \
        --solver-steps 10 --public-steps 400 \
        --levers all central lora time small-clip clip-schedule warm last draws
"""

import argparse
import hashlib
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ddm_fed.evaluation import Classifier, frechet_distance, train_classifier_on, usefulness
from ddm_fed.flows import ClassCondition, Expert, denoising_loss, integrate, time_grid
from ddm_fed.models import build_network
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.progress import Watch
from ddm_fed.records import Plan, read_plan_toml
from ddm_fed.training import (
    CentralImages,
    Paid,
    Payment,
    PrivateTraining,
    RunOptions,
    train_expert,
    train_private_expert,
)
from ddm_fed.training.plan_cost import planned_events

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TIMES, TEST_IMAGES = (0.1, 0.3, 0.5, 0.7, 0.9, 0.98), 400
LEVERS = {
    "all": {},
    "time": {"time_location": 1.0},
    "draws": {"more_draws": 4},
    "small-clip": {"clip_norm": 0.001},
    "clip-schedule": {"clip_norm_end": 0.1},
    "central": {"central": True},
    "warm": {"base": True},
    "last": {"base": True, "trainable": "last-1"},
    "lora": {"base": True, "trainable": "lora-8"},
}


def load(path: Path, side: int | None) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    file = np.load(path, allow_pickle=False)
    found = {}
    for part in ("train", "test"):
        pixels = torch.from_numpy(file[f"{part}_images"]).float() / 127.5 - 1
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.movedim(-1, 1)
        if side is not None:
            pixels = padded(pixels, side)
        found[part] = pixels, torch.from_numpy(file[f"{part}_labels"].astype(np.int64))
    return found


def padded(images: torch.Tensor, side: int) -> torch.Tensor:
    """Returns images in the middle of black ones of `side` pixels."""
    high, wide = (max(0, side - size) for size in images.shape[2:])
    edges = (wide // 2, wide - wide // 2, high // 2, high - high // 2)
    return torch.nn.functional.pad(images, edges, value=-1.0)


def like(images: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """Returns public images made grey, where the plan's are, and cut down to their middle."""
    channels, height, width = shape
    top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
    images = images[:, :, top : top + height, left : left + width]
    return images.mean(1, keepdim=True) if channels == 1 else images


def make_plan(options, shape, classes: int, lever: dict, units: int, sha256: str | None) -> Plan:
    kept = vars(options) | lever
    batch = max(1, round(options.batch * units / options.pooled))
    draws = options.draws * lever.get("more_draws", 1)
    base = f'[expert.base]\nsha256 = "{sha256}"' if lever.get("base") and sha256 else ""
    central = ""
    if lever.get("central"):
        central = f"""[privacy.sgd.central]
epsilon = {options.central_epsilon}
batch_size = {units}
images = {options.central_images}
centre = -0.4
radius = {options.central_radius}
steps = {options.central_steps}"""
    end = f"clip_norm_end = {lever['clip_norm_end']}" if "clip_norm_end" in lever else ""
    names = ", ".join(f'"c{index}"' for index in range(classes))
    return read_plan_toml(f"""
federation = "benchmark"
expires_at = 2036-01-01
[data]
channels = {shape[0]}
height = {shape[1]}
width = {shape[2]}
conditioning = "class"
classes = [{names}]
[expert]
architecture = "{options.architecture}"
{base}
[training]
steps = {options.steps}
batch_size = {batch}
learning_rate = {kept["learning_rate"]}
warmup_steps = 0
ema_half_lives = [{max(5, options.steps // 15)}]
time_location = {kept.get("time_location", 0)}
[router]
kind = "prior"
epsilon = {options.router_epsilon}
[privacy]
max_epsilon = 1000
[privacy.sgd]
epsilon = {options.epsilon}
units = {units}
clip_norm = {kept["clip_norm"]}
{end}
draws = {draws}
trainable = "{kept.get("trainable", "all")}"
{central}
""")


def public_base(options, plan: Plan, work: Path) -> tuple[Path, str]:
    """Returns a checkpoint trained without noise on the public images, its classes dealt out."""
    file = work / f"base-{options.architecture.replace('/', '-')}.safetensors"
    if not file.exists():
        images, labels = load(options.public, options.side)["train"]
        images = like(images, plan.data.shape)
        spec = plan.training.model_copy(update={"steps": options.public_steps, "batch_size": 128})
        expert = plan.expert.model_copy(update={"base": None})
        privacy = plan.privacy.model_copy(update={"sgd": None})
        public = plan.model_copy(update={"training": spec, "expert": expert, "privacy": privacy})
        data = Private(ImageSet(images, labels % len(plan.data.classes)))
        found = train_expert(
            data, public, "ab" * 32, work / f"{file.stem}.ckpt", options=RunOptions(seed=0)
        )
        save_file(found.state, file)
    return file, hashlib.sha256(file.read_bytes()).hexdigest()


def progress(what: str, report) -> None:
    if report.step % 10 == 0:
        print(f"{what}: {report.step} of {report.steps}, {report.eta_s:.0f} s", file=sys.stderr)


@torch.no_grad()
def draw(expert: Expert, shape, labels: torch.Tensor, steps: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    times, found = time_grid(steps, start=expert.largest_time).to(DEVICE), []
    for part in labels.to(DEVICE).split(500):
        noise = torch.randn((len(part), *shape), generator=generator).to(DEVICE)

        def velocity(x, t, part=part):
            return expert(x, t.expand(len(part)), ClassCondition(part))

        found.append(integrate(velocity, noise, times, "heun").clamp(-1, 1).cpu())
    return torch.cat(found)


def the_judge(options, data) -> Classifier:
    """Returns the classifier of real images that all cells are judged by; it is kept."""
    images, labels = data["train"]
    classes = int(labels.max()) + 1
    file = options.work / f"judge-{options.data.stem}.safetensors"
    judge = Classifier(tuple(images.shape[1:]), classes)
    if file.exists():
        judge.load_state_dict(load_file(file))
        return judge.eval()
    generator = torch.Generator().manual_seed(100)
    judge = train_classifier_on(
        images, labels, classes, epochs=options.judge_epochs, generator=generator
    ).network
    save_file(judge.state_dict(), file)
    return judge


@torch.no_grad()
def test_loss(expert_network, images, labels) -> float:
    """Returns the mean squared error of the velocity on test images, over `TIMES`."""
    generator, found = torch.Generator().manual_seed(5), []
    for time_of in TIMES:
        eps = torch.randn(images.shape, generator=generator).to(DEVICE)
        t = torch.full((len(images),), time_of, device=DEVICE)
        condition = ClassCondition(labels.to(DEVICE))
        losses = denoising_loss(expert_network, images.to(DEVICE), eps, t, condition)
        found.append(float(losses.mean()))
    return sum(found) / len(found)


def judged(
    judge, real: np.ndarray, drawn, labels, test, classes: int, seed: int, steps: int
) -> tuple[float, float]:
    fid = frechet_distance(real, judge.features(drawn).double().numpy())
    generator = torch.Generator().manual_seed(seed)
    useful = usefulness(drawn, labels, *test, classes=classes, generator=generator, steps=steps)
    return fid, useful.accuracy.value


def run_lever(name: str, options, parts, data, judge, work: Path) -> None:
    shape, classes = tuple(data["train"][0].shape[1:]), int(data["train"][1].max()) + 1
    units, lever, began = len(parts[0]), LEVERS[name], time.monotonic()
    plan, base = make_plan(options, shape, classes, {}, units, None), None
    if lever.get("base"):
        base, sha256 = public_base(options, plan, work)
        plan = make_plan(options, shape, classes, lever, units, sha256)
    else:
        plan = make_plan(options, shape, classes, lever, units, None)
    planned = planned_events(plan)
    drawn, kinds, losses, noise = [], [], [], None
    asked = parts[: options.trained_sites]
    for site, rows in enumerate(asked):
        images, labels = (value[rows] for value in data["train"])
        counts = labels.bincount(minlength=classes).tolist()
        central = CentralImages.planned(plan, planned.central, counts)
        noise = PrivateTraining.planned(plan, planned.expert, float(len(rows)), central)
        checkpoint = work / f"{name}-{len(parts)}-{site}.ckpt"
        checkpoint.unlink(missing_ok=True)
        found = train_private_expert(
            Private(ImageSet(images, labels)),
            plan,
            "ab" * 32,
            checkpoint,
            noise,
            Payment(lambda: "0" * 64, lambda _: Paid(planned.expert, planned.central)),
            options=RunOptions(
                base=base,
                checkpoint_every_s=1e9,
                gradients="functional",
                micro_batch=options.micro_batch,
            ),
            watch=Watch(lambda report, site=site: progress(f"{name}, site {site}", report)),
        )
        checkpoint.unlink()
        network = build_network(plan.data, plan.expert.default)
        network.load_state_dict(found.state)
        labels = torch.arange(options.images // len(asked)) % classes
        network = network.eval().to(DEVICE)
        losses.append(test_loss(network, *(part[:TEST_IMAGES] for part in data["test"])))
        if len(labels):
            drawn.append(draw(Expert(network), shape, labels, options.solver_steps, site))
            kinds.append(labels)
    quality = "| |"
    if drawn:
        fid, accuracy = judged(
            judge,
            data["features"],
            torch.cat(drawn),
            torch.cat(kinds),
            data["test"],
            classes,
            options.seed,
            options.classifier_steps,
        )
        quality = f"{fid:.1f} | {accuracy:.3f} |"
    per_weight = noise.noise_multiplier / noise.expected_units
    minutes = (time.monotonic() - began) / 60
    print(
        f"| {len(parts)} | {name} | {noise.noise_multiplier:.2f} | {per_weight:.2g} | "
        f"{sum(losses) / len(losses):.3f} | {quality} {minutes:.1f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--public", type=Path, help="public images for the levers with a base")
    parser.add_argument("--public-steps", type=int, default=2000)
    parser.add_argument("--sites", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--trained-sites", type=int, help="train and draw from the first few only")
    parser.add_argument("--levers", nargs="*", choices=LEVERS, default=["all"], help="or none")
    parser.add_argument("--limit", type=int, help="training images in all; by default every one")
    parser.add_argument("--side", type=int, help="pixels that images are padded to with black")
    parser.add_argument("--architecture", default="DiT-Nano/4")
    parser.add_argument("--epsilon", type=float, default=10)
    parser.add_argument("--router-epsilon", type=float, default=0.2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=1024, help="units in a step, of all sites")
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--clip-norm", type=float, default=0.01)
    parser.add_argument("--learning-rate", type=float, default=0.003)
    parser.add_argument("--central-epsilon", type=float, default=1)
    parser.add_argument("--central-images", type=int, default=1)
    parser.add_argument("--central-radius", type=float, default=20)
    parser.add_argument("--central-steps", type=int, default=200)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--judge-epochs", type=int, default=4)
    parser.add_argument("--classifier-steps", type=int, default=2000)
    parser.add_argument("--solver-steps", type=int, default=15)
    parser.add_argument("--micro-batch", type=int, help="rows at once; more suits a GPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("dp-quality-work"))
    options = parser.parse_args()
    if options.public is None and any(LEVERS[name].get("base") for name in options.levers):
        parser.error("levers with a base need --public")
    options.work.mkdir(parents=True, exist_ok=True)
    data = load(options.data, options.side)
    order = torch.randperm(
        len(data["train"][1]), generator=torch.Generator().manual_seed(options.seed)
    )[: options.limit]
    options.pooled = len(order)
    judge, real = None, float("nan")
    if options.images:
        judge = the_judge(options, data)
        data["features"] = judge.features(data["test"][0][:10_000]).double().numpy()
        # FID falls with more images: as many real ones as there are samples, of the same classes
        kinds, classes = data["train"][1], int(data["train"][1].max()) + 1
        rows = [
            (kinds == kind).nonzero()[: -(-(options.images - kind) // classes), 0]
            for kind in range(classes)
        ]
        seen = judge.features(data["train"][0][torch.cat(rows)]).double().numpy()
        real = frechet_distance(data["features"], seen)
    settings = {k: str(v) for k, v in vars(options).items() if k not in ("work", "data", "public")}
    print(
        f"torch {torch.__version__}, {settings}\n\n"
        f"FID of {options.images} real training images: {real:.2f}\n",
        flush=True,
    )
    print("| sites | lever | sigma | noise per weight | loss | FID | accuracy | minutes |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in options.levers:
        for sites in options.sites:
            run_lever(name, options, list(order.chunk(sites)), data, judge, options.work)


if __name__ == "__main__":
    sys.exit(main())

"""Does a network learn faster if it learns only what the mixture leaves? At equal CPU seconds.

One site with all images of a data set trains the same network twice by the real training: alone,
and beside the mixture of its own release. The release is made with so little noise (epsilon 1000)
that it is the closed form itself: this is about experts without privacy. Steps are as many as fit
into the seconds, measured first; what the mixture costs in every step counts, and so does its
release. Samples of each are judged as in `private_mixtures.py`: Frechet distance to test images in
the features of a small classifier of real images, and how many it tells to be what was asked for.

    python benchmarks/residual.py --data fashion_mnist.npz --seconds 60 240 --out residual.jsonl

Each result is written as it is found, and the same command goes on with those that are missing.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from private_mixtures import PLAN, load, release
from torch import Tensor

from ddm_fed.evaluation import frechet_distance, train_classifier_on
from ddm_fed.flows import ClassCondition, Expert, integrate, time_grid
from ddm_fed.mixture import MixtureVelocity, SiteRelease, fit_image_mixtures
from ddm_fed.models import build_expert
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import Plan, read_plan_toml
from ddm_fed.storage.tensors import write_tensors
from ddm_fed.training import KnownVelocity, RunOptions, train_expert

CELL = {"epsilon": 1000, "frequencies": 100, "components": 8, "bands": 4, "centre": -0.4}
BATCH, TRIAL = 64, 60
TEST_IMAGES = 2000


def make_plan(shape: tuple[int, int, int], classes: int, network: str, steps: int) -> Plan:
    channels, height, width = shape
    names = ", ".join(f'"c{index}"' for index in range(classes))
    text = PLAN.format(channels=channels, height=height, width=width, classes=names, **CELL)
    text = text.replace('"mixture"\n[training]', f'["{network}", "mixture+{network}"]\n[training]')
    training = f"""steps = {steps}
batch_size = {BATCH}
learning_rate = 0.002
ema_half_lives = [{max(1, min(200, steps // 8))}]
warmup_steps = {min(100, steps // 10)}
"""
    return read_plan_toml(text.replace("steps = 1\nbatch_size = 1\n", training))


def train(
    data: Private[ImageSet],
    plan: Plan,
    kind: str,
    base: tuple[MixtureVelocity, SiteRelease] | None,
) -> tuple[Expert, float]:
    """Returns the expert, and the CPU seconds its training took."""
    design, known, mixture = plan.expert.design(kind), None, None
    with tempfile.TemporaryDirectory() as folder:
        if base is not None:
            mixture, released = base
            file = Path(folder) / "router.safetensors"
            write_tensors(file, released.vectors)
            known = KnownVelocity(mixture, file)
        began = time.process_time()
        trained = train_expert(
            data,
            plan,
            "0" * 64,
            Path(folder) / "checkpoint",
            design=design,
            options=RunOptions(seed=0, precision="float32"),
            known=known,
        )
        took = time.process_time() - began
    return build_expert(plan.data, design, trained.state, mixture), took


@torch.inference_mode()
def draw(expert: Expert, shape: tuple[int, int, int], labels: Tensor) -> Tensor:
    generator, parts = torch.Generator().manual_seed(6), []
    for part in labels.split(250):
        noise = torch.randn((len(part), *shape), generator=generator)
        condition, count = ClassCondition(part), len(part)
        parts.append(
            integrate(
                lambda x, t, c=condition, n=count: expert(x, t.expand(n), c),
                noise,
                time_grid(25),
                "heun",
            )
        )
    return torch.cat(parts).clamp(-1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, nargs="+", default=[60, 240, 960])
    parser.add_argument("--network", default="DiT-Nano/4")
    parser.add_argument("--out", type=Path, default=Path("residual.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load(options.data)
    (images, labels), (real, _) = data["train"], data["test"]
    shape, classes = tuple(images.shape[1:]), int(labels.max()) + 1
    private = Private(ImageSet(images, labels))
    judge = train_classifier_on(
        images[:20_000],
        labels[:20_000],
        classes,
        epochs=3,
        generator=torch.Generator().manual_seed(9),
    ).network
    known = []
    if options.out.exists():
        known = [json.loads(line) for line in options.out.read_text().splitlines()]
    asked = torch.arange(TEST_IMAGES) % classes
    plan = make_plan(shape, classes, options.network, 10)
    began = time.process_time()
    released, _ = release(plan, images, labels)
    (fitted,) = fit_image_mixtures(plan, [released])
    mixture = MixtureVelocity(plan, fitted, alone=False)
    released_s = time.process_time() - began

    def judged(expert: Expert) -> dict[str, float]:
        drawn = draw(expert, shape, asked)
        features = [judge.features(part).numpy() for part in (real, drawn)]
        return {
            "frechet": round(float(frechet_distance(*features)), 2),
            "told": round(judge.accuracy(drawn, asked), 4),
        }

    def keep(row: dict[str, object]) -> None:
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    if not any(row["kind"] == "mixture" for row in known):
        keep({"kind": "mixture", "seconds": round(released_s, 1), **judged(Expert(mixture))})
    for seconds in options.seconds:
        for kind in (options.network, f"mixture+{options.network}"):
            if any((row["kind"], row["seconds"]) == (kind, seconds) for row in known):
                continue
            base = (mixture, released) if kind.startswith("mixture") else None
            trial = make_plan(shape, classes, options.network, TRIAL)
            _, took = train(private, trial, kind, base)
            left = seconds - (released_s if base is not None else 0)
            steps = max(10, round(left / took * TRIAL))
            plan = make_plan(shape, classes, options.network, steps)
            expert, took = train(private, plan, kind, base)
            keep(
                {
                    "kind": kind,
                    "seconds": seconds,
                    "steps": steps,
                    "cpu_s": round(took, 1),
                    **judged(expert),
                }
            )


if __name__ == "__main__":
    main()

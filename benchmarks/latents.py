"""Do latents buy better samples at equal training arithmetic? Pictures of 64 pixels, three sites.

Half of the training images are public: a small autoencoder is trained on them. The other half is
dealt to three sites, two classes in three each. Each site trains an expert by the real training,
once on pixels and once on latents, for the same number of FLOP: of the forward pass as
`ddm-coord plan show` counts it, times three, times the images of all steps; latents also pay for
encoding their images. What the public autoencoder cost is told, and not counted. Samples are drawn
site by site in proportion to images, as `sticky` does, decoded, and judged by their Frechet
distance to test images in the features of a small classifier of real images, and by how often that
classifier finds the class that was asked for. Both are judged at `--judge-pixels`.

    python benchmarks/latents.py --data mednist.npz --out latents

Every stage runs in a process of its own, whose largest memory is told, and writes a line into
`OUT/latents.jsonl` when it is done; the same command goes on with those that are missing.
"""

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from private_mixtures import load
from torch import Tensor
from torch.nn import functional

from ddm_fed.autoencoders import Autoencoder, open_autoencoder, read_folder
from ddm_fed.autoencoders.fit import FitOptions, fit_autoencoder
from ddm_fed.autoencoders.scale import latent_toml, measure_latents
from ddm_fed.evaluation import Classifier, frechet_distance, train_classifier_on
from ddm_fed.flows import ClassCondition, Expert, integrate, time_grid
from ddm_fed.models import build_expert, network_cost
from ddm_fed.pictures import write_grid
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import Plan, read_plan_toml
from ddm_fed.storage.tensors import read_own_tensors, write_tensors
from ddm_fed.training import RunOptions, train_expert
from sites.data import encode_images

SITES, SOLVER_STEPS, AT_ONCE, GIGA = 3, 15, 64, 1e9
LATENT = "latent"
PLAN = """
federation = "benchmark"
expires_at = 2036-01-01
[data]
channels = {channels}
height = {pixels}
width = {pixels}
conditioning = "class"
classes = [{classes}]
{latent}
[expert]
architecture = "{network}"
[training]
steps = {steps}
batch_size = {batch}
learning_rate = 0.002
warmup_steps = {warmup}
ema_half_lives = [{half_life}]
[router]
kind = "prior"
epsilon = 1
[privacy]
max_epsilon = 1
"""


class Bench:
    """The images, the options, and what is known already."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, options.out
        data = load(options.data)
        images, labels = data["train"]
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
        half = len(order) // 2
        self.classes, self.channels = int(labels.max()) + 1, images.shape[1]
        self.public = self._larger(images[order[:half][: options.public]])
        private = order[half:]
        self.rows = [
            private[labels[private] * SITES // self.classes == site][: options.images]
            for site in range(SITES)
        ]
        self.sites = [(self._larger(images[rows]), labels[rows]) for rows in self.rows]
        (real, real_labels) = data["test"]
        chosen = torch.randperm(len(real), generator=torch.Generator().manual_seed(2))
        chosen = chosen[: options.samples]
        self.real, self.real_labels = self._larger(real[chosen]), real_labels[chosen]

    def _larger(self, images: Tensor) -> Tensor:
        return _resized(images, self.options.pixels)

    def plan(self, space: str) -> Plan:
        """Returns the plan of a space, with as many steps as its arithmetic allows."""
        options, latent = self.options, ""
        if space == LATENT:
            opened = read_folder(self.out / "autoencoder")
            found = measure_latents(opened.config, opened.network, self.public[:256])
            latent = latent_toml(opened.config, opened.sha256, found.scale, found.shift)
        text = PLAN.format(
            channels=self.channels,
            pixels=options.pixels,
            classes=", ".join(f'"c{index}"' for index in range(self.classes)),
            latent=latent,
            network=options.latent_network if space == LATENT else space,
            steps="{steps}",
            batch=options.batch,
            warmup="{warmup}",
            half_life="{half_life}",
        )
        steps = max(1, int(self.budget(read_plan_toml(_with_steps(text, 1)))))
        return read_plan_toml(_with_steps(text, steps))

    def budget(self, plan: Plan) -> float:
        """Returns how many steps a site's arithmetic is enough for."""
        left = self.options.gflop * GIGA
        coder = self.coder(plan)
        if coder is not None:
            left -= coder.cost().encode_flops * max(len(rows) for rows in self.rows)
        return left / (3 * self.flops(plan) * self.options.batch)

    def flops(self, plan: Plan) -> int:
        """Returns the arithmetic of one forward pass of one image."""
        name = plan.expert.default.architecture
        return network_cost(name, plan.data.shape, self.classes).flops_per_image

    def coder(self, plan: Plan) -> Autoencoder | None:
        """Returns the plan's autoencoder, where it has one."""
        folder = None if plan.data.latent is None else self.out / "autoencoder"
        return open_autoencoder(folder, plan.data)

    def autoencoder(self) -> dict[str, Any]:
        """Trains the autoencoder, and measures what comes back of images it never saw."""
        options = self.options
        fit = FitOptions(
            factor=options.factor,
            channels=options.channels,
            width=options.width,
            steps=options.autoencoder_steps,
            batch_size=8,
        )
        given = (self.out / "autoencoder" / "config.json").exists()  # of another run
        if not given:
            fit_autoencoder(self.public, self.out / "autoencoder", fit)
        plan = self.plan(LATENT)
        coder = self.coder(plan)
        back = coder.decode(coder.encode(self.real)[0])
        write_grid(self.out / "reconstructed.png", torch.cat([self.real[:32], back[:32]]))
        error = back - self.real
        cost = coder.cost()
        seen = fit.steps * fit.batch_size * 3 * (cost.encode_flops + cost.decode_flops)
        return {
            "mean_absolute_error": round(float(error.abs().mean()), 4),
            "psnr_db": round(float(10 * torch.log10(4 / error.square().mean())), 2),
            "frechet_reconstructed": self._frechet(back),
            "asked_class_reconstructed": self._told(back, self.real_labels),
            "training_gflop": None if given else round(seen / GIGA),
            **cost._asdict(),
        }

    def judge(self) -> dict[str, Any]:
        """Trains the classifier whose features judge, on the sites' own images."""
        size = self.options.judge_pixels
        pixels = torch.cat([_resized(images, size) for images, _ in self.sites])
        labels = torch.cat([labels for _, labels in self.sites])
        generator = torch.Generator().manual_seed(9)
        made = train_classifier_on(pixels, labels, self.classes, epochs=6, generator=generator)
        write_tensors(self.out / "judge.safetensors", made.network.state_dict())
        real = _resized(self.real, size)
        half = len(real) // 2
        features = made.network.features(real).numpy()
        return {
            "accuracy_of_real": round(made.network.accuracy(real, self.real_labels), 3),
            "frechet_of_real_halves": round(
                float(frechet_distance(features[:half], features[half:])), 2
            ),
        }

    def encode(self) -> dict[str, Any]:
        """Encodes the images of every site."""
        plan = self.plan(LATENT)
        for site in range(SITES):
            self._data(plan, site)
        return {"images": sum(map(len, self.rows))}

    def _data(self, plan: Plan, site: int) -> Private[ImageSet]:
        data, coder = Private(ImageSet(*self.sites[site])), self.coder(plan)
        return data if coder is None else encode_images(data, coder, self.out / "latents")

    def train(self, space: str, site: int, seed: int) -> dict[str, Any]:
        """Trains one site's expert."""
        plan, name = self.plan(space), _name(space, site, seed)
        trained = train_expert(
            self._data(plan, site),
            plan,
            "0" * 64,
            self.out / f"{name}.checkpoint",
            options=RunOptions(seed=100 * seed + site, precision="float32"),
        )
        write_tensors(self.out / f"{name}.safetensors", trained.state)
        steps, flops = plan.training.steps, self.flops(plan)
        return {"steps": steps, "gflop": round(3 * flops * steps * plan.training.batch_size / GIGA)}

    @torch.inference_mode()
    def sample(self, space: str, seed: int) -> dict[str, Any]:
        """Draws samples of all sites by their shares, and judges them."""
        plan, drawn, asked = self.plan(space), [], []
        total = sum(map(len, self.rows))
        for site, (_, labels) in enumerate(self.sites):
            read = read_own_tensors(self.out / f"{_name(space, site, seed)}.safetensors")
            weights = {name: torch.from_numpy(value) for name, value in read.items()}
            expert = build_expert(plan.data, plan.expert.default, weights, None)
            count = round(self.options.samples * len(labels) / total)
            asked.append(labels[:count])
            drawn.append(_draw(expert, plan, labels[:count], 10 * seed + site))
        found, labels, coder = torch.cat(drawn), torch.cat(asked), self.coder(plan)
        began = time.process_time()
        images = found if coder is None else coder.decode(found)
        decoding = time.process_time() - began
        shown = torch.randperm(len(images), generator=torch.Generator().manual_seed(3))[:64]
        write_grid(self.out / f"{_name(space, 'all', seed)}.png", images[shown])
        return {
            "samples": len(images),
            "frechet": self._frechet(images),
            "asked_class": self._told(images, labels),
            "of_it_decoding_s": round(decoding, 1),
        }

    def _read_judge(self) -> Classifier:
        size = self.options.judge_pixels
        network = Classifier((self.channels, size, size), self.classes).eval()
        read = read_own_tensors(self.out / "judge.safetensors")
        network.load_state_dict({name: torch.from_numpy(value) for name, value in read.items()})
        return network

    def _frechet(self, images: Tensor) -> float:
        judge, size = self._read_judge(), self.options.judge_pixels
        sets = (_resized(part, size) for part in (self.real, images))
        return round(float(frechet_distance(*(judge.features(part).numpy() for part in sets))), 2)

    def _told(self, images: Tensor, labels: Tensor) -> float:
        resized = _resized(images, self.options.judge_pixels)
        return round(self._read_judge().accuracy(resized, labels), 3)


def _resized(images: Tensor, size: int) -> Tensor:
    if images.shape[-1] == size:
        return images
    parts = (
        functional.interpolate(part, (size, size), mode="bilinear", antialias=True).clamp(-1, 1)
        for part in torch.split(images, 256)
    )
    return torch.cat(list(parts))


def _name(space: str, site: int | str, seed: int) -> str:
    return f"{space.replace('/', '-')}-{site}-{seed}"


def _with_steps(text: str, steps: int) -> str:
    half_life, warmup = max(1, min(200, steps // 8)), min(100, steps // 10)
    return (
        text.replace("{steps}", str(steps))
        .replace("{warmup}", str(warmup))
        .replace("{half_life}", str(half_life))
    )


def _draw(expert: Expert, plan: Plan, labels: Tensor, site: int) -> Tensor:
    generator, parts = torch.Generator().manual_seed(6 + site), []
    for part in torch.split(labels, AT_ONCE):
        noise = torch.randn((len(part), *plan.data.shape), generator=generator)
        condition, count = ClassCondition(part), len(part)
        parts.append(
            integrate(
                lambda x, t, c=condition, n=count: expert(x, t.expand(n), c),
                noise,
                time_grid(SOLVER_STEPS, start=expert.largest_time),
                "heun",
            )
        )
    bound = float(plan.data.bound)
    return torch.cat(parts).clamp(-bound, bound)


def _alone(options: argparse.Namespace, stage: str, words: tuple[Any, ...], pipe: Any) -> None:
    torch.set_num_threads(1)
    bench = Bench(options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    found = getattr(bench, stage)(*words)
    took = time.process_time() - began
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = {"memory_mb": round(after / 1024), "of_it_before_mb": round(before / 1024)}
    pipe.send(found | {"cpu_s": round(took, 1)} | memory)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("latents"))
    parser.add_argument("--pixels", type=int, default=64, help="64 or 256")
    parser.add_argument("--factor", type=int, default=4)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--autoencoder-steps", type=int, default=3000)
    parser.add_argument("--public", type=int, default=12_000, help="Public images, at most.")
    parser.add_argument("--images", type=int, default=4000, help="Of a site, at most.")
    parser.add_argument("--samples", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--gflop", type=float, default=60_000, help="Of one site's training.")
    parser.add_argument("--latent-network", default="DiT-Nano/2")
    parser.add_argument("--pixel-networks", nargs="+", default=["DiT-Nano/4", "DiT-Nano/8"])
    parser.add_argument("--judge-pixels", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "latents.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    known = {tuple(json.loads(line)["stage"]) for line in lines}
    stages: list[tuple[Any, ...]] = [("judge",), ("autoencoder",), ("encode",)]
    for seed in range(options.seeds):
        for space in (LATENT, *options.pixel_networks):
            stages += [("train", space, site, seed) for site in range(SITES)]
            stages.append(("sample", space, seed))
    start: Callable[..., Any] = multiprocessing.get_context("spawn").Process
    for stage in stages:
        if stage in known:
            continue
        ours, theirs = multiprocessing.Pipe()
        process = start(target=_alone, args=(options, stage[0], stage[1:], theirs))
        process.start()
        theirs.close()
        try:
            found = ours.recv()
        except EOFError:
            process.join()
            raise SystemExit(f"{stage} failed") from None
        process.join()
        row = json.dumps({"stage": stage, **found})
        with file.open("a") as lines_of:
            lines_of.write(row + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    main()

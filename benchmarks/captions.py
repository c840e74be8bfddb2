"""Do samples by prompt show what was asked for as often as samples by class? At equal steps.

One site with Fashion-MNIST trains the same network by the real training: told the class, and told
captions that are written from the classes in several phrasings. Captions are encoded by a CLIP of
its own architecture as small as the package can build one: with drawn weights, and trained here on
the same images and captions. A classifier of real images judges samples: of prompts in phrasings
that were trained on, in others that were not, and guided.

    python benchmarks/captions.py --data fashion_mnist.npz --steps 2000 --out captions.jsonl

Each result is written as it is found, and the same command goes on with those that are missing.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from ddm_fed.embedding import encode_texts, open_text_encoder, text_spec
from ddm_fed.embedding.public_weights import import_torchvision
from ddm_fed.evaluation import train_classifier_on
from ddm_fed.evaluation.classifier import Classifier
from ddm_fed.flows import ClassCondition, Condition, EncodedTexts, Expert, integrate, time_grid
from ddm_fed.models import build_expert
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import Plan, read_plan_toml
from ddm_fed.training import RunOptions, train_expert

NAMES = (
    *("t-shirt", "pair of trousers", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
TRAINED = ("{}", "a {}", "a photo of a {}", "a grey picture of a {} from a shop", "this is a {}")
HELD_OUT = ("the catalogue shows a {}", "a small {} on a dark background", "one {}, seen alone")
CONTEXT, TOKENS = 16, 16
KINDS = ("class", "random encoder", "trained encoder")
PLAN = """
federation = "captions"
expires_at = 2036-01-01T00:00:00Z
[data]
channels = 1
height = 28
width = 28
{condition}
[expert]
architecture = "{network}"
[training]
steps = {steps}
batch_size = 64
learning_rate = 0.002
ema_half_lives = [200]
warmup_steps = 100
label_dropout = 0.1
[router]
kind = "prior"
epsilon = 1
[privacy]
max_epsilon = 2
"""


def load(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns images `(N, 1, 28, 28)` in [-1, 1] and labels, for training and for tests."""
    with np.load(path) as archive:
        return {
            part: (
                torch.from_numpy(archive[f"{part}_images"]).float().reshape(-1, 1, 28, 28) / 127.5
                - 1,
                torch.from_numpy(archive[f"{part}_labels"].reshape(-1).astype(np.int64)),
            )
            for part in ("train", "test")
        }


def captions_of(labels: Tensor, phrasings: Sequence[str], seed: int) -> list[str]:
    """Returns a caption for every label, in a phrasing that is drawn."""
    drawn = np.random.default_rng(seed).integers(0, len(phrasings), len(labels))
    pairs = zip(labels.tolist(), drawn.tolist(), strict=True)
    return [phrasings[which].format(NAMES[label]) for label, which in pairs]


def make_clip(path: Path, images: Tensor, labels: Tensor, steps: int) -> float:
    """Writes a small CLIP, trained for `steps`; returns the seconds that took."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()
        import clip
    torch.manual_seed(0)  # noqa: TID251 - the package draws weights from the global one
    network = clip.model.CLIP(
        embed_dim=32, image_resolution=28, vision_layers=2, vision_width=64, vision_patch_size=7,
        context_length=CONTEXT, vocab_size=49408, transformer_width=64, transformer_heads=1,
        transformer_layers=2,
    )  # fmt: skip
    began, generator = time.monotonic(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    for step in range(steps):
        rows = torch.randint(len(images), (64,), generator=generator)
        texts = clip.tokenize(captions_of(labels[rows], TRAINED, step), context_length=CONTEXT)
        by_image, by_text = network(images[rows].expand(-1, 3, -1, -1), texts)
        same = (labels[rows][:, None] == labels[rows]).float()
        target = same / same.sum(1, keepdim=True)  # captions of one class are all right
        loss = functional.cross_entropy(by_image, target) + functional.cross_entropy(
            by_text, target
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
    return time.monotonic() - began


def make_plan(args: argparse.Namespace, encoder: Path | None) -> Plan:
    names = ", ".join(f'"{name}"' for name in NAMES)
    condition = f'conditioning = "class"\nclasses = [{names}]'
    if encoder is not None:
        fields = text_spec(encoder, TOKENS).model_dump().items()
        lines = (f"{k} = {json.dumps(v)}" for k, v in fields)
        condition = "\n".join(['conditioning = "text"', "[data.text]", *lines])
    return read_plan_toml(PLAN.format(condition=condition, network=args.network, steps=args.steps))


@torch.no_grad()
def draw(expert: Expert, condition: Condition, guidance: float, seed: int, steps: int) -> Tensor:
    """Returns a sample for every row of the condition."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((len(condition), 1, 28, 28), generator=generator)
    found = []
    for start in range(0, len(noise), 250):
        part = condition.rows(slice(start, start + 250))

        def velocity(x: Tensor, t: Tensor, part: Condition = part) -> Tensor:
            at = t.expand(len(x))
            v = expert(x, at, part)
            if guidance == 1:
                return v
            v_null = expert(x, at, None)
            return v_null + guidance * (v - v_null)

        found.append(integrate(velocity, noise[start : start + 250], time_grid(steps), "heun"))
    return torch.cat(found).clamp(-1, 1)


def run_cell(
    args: argparse.Namespace,
    kind: str,
    seed: int,
    sets: dict[str, Any],
    judge: Classifier,
    home: Path,
) -> list[dict[str, Any]]:
    images, labels = sets["train"]
    encoder = None if kind == "class" else home / f"{kind.partition(' ')[0]}.safetensors"
    if encoder is not None and not encoder.exists():
        seconds = make_clip(encoder, images, labels, 0 if "random" in kind else args.clip_steps)
        print(f"{kind}: {seconds:.0f} s", file=sys.stderr)
    plan, texts, captions = make_plan(args, encoder), None, None
    if encoder is not None and plan.data.text is not None:
        every = [p.format(name) for p in (*TRAINED, *HELD_OUT) for name in NAMES]
        texts = encode_texts(open_text_encoder(encoder, plan.data.text), plan.data.text, every)
        captions = tuple(captions_of(labels, TRAINED, seed))
    own = ImageSet(images, labels if texts is None else None, captions=captions, texts=texts)
    digest = hashlib.sha256(plan.model_dump_json().encode()).hexdigest()
    checkpoint = home / f"{kind.partition(' ')[0]}-{seed}-{digest[:16]}.safetensors"
    began = time.process_time()
    options = RunOptions(seed=seed, precision="float32")
    trained = train_expert(Private(own), plan, digest, checkpoint, options=options)
    seconds = time.process_time() - began
    expert = build_expert(plan.data, plan.expert.default, trained.state, None)
    asked = torch.arange(args.samples) % len(NAMES)
    results = []
    for phrasings, guidance in asks(kind):
        condition = told(asked, phrasings, texts, seed)
        drawn = draw(expert, condition, guidance, seed, args.solver_steps)
        name = {None: "class", TRAINED: "trained phrasings", HELD_OUT: "held-out phrasings"}
        results.append(
            {
                "kind": kind,
                "seed": seed,
                "steps": args.steps,
                "asked by": name[phrasings],
                "guidance": guidance,
                "accuracy": round(judge.accuracy(drawn, asked), 4),
                "samples": args.samples,
                "training_cpu_s": round(seconds, 1),
            }
        )
    return results


def asks(kind: str) -> list[tuple[tuple[str, ...] | None, float]]:
    if kind == "class":
        return [(None, 1.0), (None, 2.0)]
    return [(TRAINED, 1.0), (TRAINED, 2.0), (HELD_OUT, 1.0), (HELD_OUT, 2.0)]


def told(
    asked: Tensor, phrasings: tuple[str, ...] | None, texts: EncodedTexts | None, seed: int
) -> Condition:
    if phrasings is None or texts is None:
        return ClassCondition(asked)
    return texts.condition(captions_of(asked, phrasings, seed + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="Fashion-MNIST as an .npz")
    parser.add_argument("--out", type=Path, required=True, help="one result per line")
    parser.add_argument("--home", type=Path, help="encoders and checkpoints, kept")
    parser.add_argument("--network", default="DiT-Nano/4")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--clip-steps", type=int, default=400)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--solver-steps", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    if not args.data.is_file():
        print(f"skipped: {args.data} is not here, and nothing is downloaded", file=sys.stderr)
        return
    known = [json.loads(line) for line in args.out.open()] if args.out.exists() else []
    done = {(each["kind"], each["seed"], each["steps"]) for each in known if "kind" in each}
    home = args.home or Path(tempfile.mkdtemp())
    home.mkdir(parents=True, exist_ok=True)
    sets = load(args.data)
    images, labels = sets["train"]
    judge = train_classifier_on(
        images[:20_000],
        labels[:20_000],
        len(NAMES),
        epochs=3,
        generator=torch.Generator().manual_seed(9),
    ).network
    print(f"the judge on test images: {judge.accuracy(*sets['test']):.4f}")
    for seed in args.seeds:
        for kind in KINDS:
            if (kind, seed, args.steps) in done:
                continue
            with args.out.open("a") as file:
                for result in run_cell(args, kind, seed, sets, judge, home):
                    file.write(json.dumps(result) + "\n")
                    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

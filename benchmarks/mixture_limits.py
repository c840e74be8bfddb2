"""What keeps samples of a mixture from teaching as much as real images do?

Classifiers learn from 20,000 images and are judged on real test images (`private_mixtures.py`'s
small judge). Each row changes one thing, and looks at real images wherever it likes: these are
experiments about causes, not private results.

* real images, and real images of which only the lowest frequencies are left: what the frequencies
  that a release does not have are worth;
* samples of a private mixture; the same with the labels that a classifier of real images gives
  them; only those that it tells to be what was asked for: what wrong labels cost;
* real images without their high frequencies, and samples, each sharpened by a small network that
  learned to restore real images: what edges are worth, and whether they can be put back afterwards.

    python benchmarks/mixture_limits.py --data fashion_mnist.npz --out limits.jsonl

Each result is written as it is found, and the same command goes on. About half a minute a row on
one core; the network that sharpens takes four minutes more.
"""

import argparse
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from private_mixtures import accuracy, draw, learn, load, make_plan, release
from torch import Tensor, nn

from ddm_fed.embedding import dct_matrices, frequency_order
from ddm_fed.mixture import fit_image_mixtures

KEPT = (100, 144, 256)
CELL = {"epsilon": 10, "frequencies": 100, "components": 8, "bands": 0, "centre": -0.4}


def low_frequencies(images: Tensor, kept: int) -> Tensor:
    """Returns images `(N, C, H, W)` of which only the first `kept` frequencies are left."""
    height, width = images.shape[2:]
    rows, columns = (part.float() for part in dct_matrices(height, width))
    mask = torch.zeros(height * width)
    mask[frequency_order(height, width)[:kept]] = 1.0
    coefficients = rows @ images @ columns.T * mask.reshape(height, width)
    return (rows.T @ coefficients @ columns).clamp(-1, 1)


def sharpener(images: Tensor, kept: int, steps: int = 1500) -> nn.Module:
    """Returns a network of 5,000 weights that learned what the low frequencies of `images` lack."""
    generator = torch.Generator().manual_seed(4)
    channels, layers = images.shape[1], list[nn.Module]()
    for wide, out, side in ((channels, 16, 5), (16, 16, 3), (16, 16, 3), (16, channels, 3)):
        layer = nn.Conv2d(wide, out, side, padding=side // 2)
        nn.init.kaiming_uniform_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.SiLU()]
    nn.init.zeros_(layers[-2].weight)
    network = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,), generator=generator)
        blurred = low_frequencies(images[rows], kept)
        optimizer.zero_grad()
        nn.functional.mse_loss(blurred + network(blurred), images[rows]).backward()
        optimizer.step()
    return network


@torch.inference_mode()
def sharpened(network: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([part + network(part) for part in images.split(500)]).clamp(-1, 1)


@torch.inference_mode()
def told(network: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([network(part).argmax(1) for part in images.split(500)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--judge", choices=("small", "resnet"), default="small")
    parser.add_argument("--rows", nargs="*", help="only these, by their names; by default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("mixture_limits.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load(options.data)
    (images, labels), (real, truth) = data["train"], data["test"]
    classes, count = int(labels.max()) + 1, options.images
    known = []
    if options.out.exists():
        known = [json.loads(line)["row"] for line in options.out.read_text().splitlines()]

    def row(name: str, taught: Callable[[], tuple[Tensor, Tensor]]) -> None:
        if name in known or (options.rows and name not in options.rows):
            return
        found = taught()
        learned = learn(options.judge, *found, classes, options.epochs, options.seed)
        result = {
            "row": name,
            "judge": options.judge,
            "images": len(found[1]),
            "accuracy": round(accuracy(learned, real, truth), 4),
        }
        with options.out.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps(result), flush=True)

    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(options.seed))
    some, of_some = images[order[:count]], labels[order[:count]]

    @cache
    def samples() -> tuple[Tensor, Tensor]:
        plan = make_plan(tuple(images.shape[1:]), classes, CELL)
        mixtures = fit_image_mixtures(plan, [release(plan, images, labels)[0]])
        return draw(plan, mixtures, 2 * count, options.seed)[:2]

    def first_samples() -> tuple[Tensor, Tensor]:
        drawn, asked = samples()
        return drawn[:count], asked[:count]

    @cache
    def labels_given() -> Tensor:
        teacher = learn("small", images, labels, classes, options.epochs, options.seed + 1)
        return told(teacher, samples()[0])

    def agreed() -> tuple[Tensor, Tensor]:
        drawn, asked = samples()
        right = (labels_given() == asked).nonzero()[:count, 0]
        return drawn[right], asked[right]

    @cache
    def network() -> nn.Module:
        return sharpener(images, CELL["frequencies"])

    def sharp(taught: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return sharpened(network(), taught[0]), taught[1]

    def blurred(kept: int) -> tuple[Tensor, Tensor]:
        return low_frequencies(some, kept), of_some

    row("real", lambda: (some, of_some))
    for kept in KEPT:
        row(f"real, {kept} frequencies", lambda kept=kept: blurred(kept))
    row("samples", first_samples)
    row(
        "samples, labels of a classifier of real images",
        lambda: (first_samples()[0], labels_given()[:count]),
    )
    row("samples that it tells to be what was asked for", agreed)
    row("real, 100 frequencies, sharpened", lambda: sharp(blurred(100)))
    row("samples, sharpened", lambda: sharp(first_samples()))


if __name__ == "__main__":
    main()

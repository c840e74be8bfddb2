r"""Do experts of few images learn them by heart? Their loss on their own images and on new ones.

For one network and for K experts of equal_arithmetic.py: the mean squared error of the velocity at
noised training images and at noised test images, each asked of the expert whose cluster it is in.
What an arm has learnt of images in general lowers both; what it remembers of its own lowers the
first alone.

    python benchmarks/paper/held_out.py --data cifar10_subset.npz --out equal_arithmetic \
        --islands 1 8 --steps 3000 9000

OUT is a folder of equal_arithmetic.py, whose experts are asked. The same command goes on.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from cells import Cell, run_cells
from equal_arithmetic import GPU, Study, add_divisions, add_options, described, of_embedder
from scale import read_options
from torch import Tensor

from ddm_fed.flows import ClassCondition, interpolate, velocity
from ddm_fed.partition import coarse_centres, nearest


class HeldOut(Study):
    """The losses of images that were trained on, and of others."""

    @torch.inference_mode()
    def losses(self, division: str, count: int, steps: int, seed: int) -> dict[str, Any]:
        """Returns the mean loss of training and test images, in the same noise for every arm."""
        plan = self.plan(count, steps)
        number = min(self.options.samples, len(self.real), len(self.images))
        of_training = self.islands(division, count, seed)[:number]
        parts = {
            "training": (self.images[:number], self.labels[:number], of_training),
            "test": (
                self.real[:number],
                self.real_labels[:number],
                self._islands_of_test(division, count, seed)[:number],
            ),
        }
        found: dict[str, Any] = {}
        for name, (images, labels, islands) in parts.items():
            generator = torch.Generator().manual_seed(seed)
            eps = torch.randn(images.shape, generator=generator)
            t = (torch.arange(number) + 0.5) / number
            t = t[torch.randperm(number, generator=generator)]
            x_t, wanted = interpolate(images, eps, t), velocity(images, eps, t)
            losses = torch.empty(number)
            for island in range(count):
                rows = (islands == island).nonzero()[:, 0]
                file = self._file("expert", division, count, steps, seed, island)
                expert = self._expert(plan, file)
                for some in torch.split(rows, 500):
                    said = expert(x_t[some], t[some], ClassCondition(labels[some]))
                    losses[some] = (said - wanted[some]).square().flatten(1).mean(1)
            found[name] = round(float(losses.mean()), 4)
        return found

    def _islands_of_test(self, division: str, count: int, seed: int) -> Tensor:
        if count == 1:
            return torch.zeros(len(self.real), dtype=torch.long)
        if division == "random":
            raise ValueError("random parts have no rule by which a test image is in one")
        seen = self.features(division)
        new = described(self.describe(division), self.real).numpy()
        return torch.from_numpy(nearest(new, coarse_centres(seen, count, seed)))


def cells_of(options: argparse.Namespace) -> Iterator[Cell]:
    """Yields every cell; the experts are those of equal_arithmetic.py."""
    for seed in options.seeds:
        for count in options.islands:
            for steps in options.steps:
                for division in options.divisions if count > 1 else ["all"]:
                    for island in range(count):
                        yield ("expert", division, count, steps, seed, island)
                    yield ("losses", division, count, steps, seed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--out", type=Path, default=Path("equal_arithmetic"))
    parser.add_argument("--islands", type=int, nargs="+", default=[1, 8])
    add_divisions(parser, "feature")
    options = read_options(parser, GPU)
    run_cells(options, cells_of(options), HeldOut, *of_embedder(options))


if __name__ == "__main__":
    main()

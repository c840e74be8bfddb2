"""From an ensemble to images. The same seed gives the same images, whatever the batch size.

Sample i starts from noise that depends on (seed, i) alone, and so does the site that `sticky`
draws for it.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddm_fed.ensemble import Ensemble, Strategy
from ddm_fed.flows import Solver, integrate, time_grid


@dataclass(frozen=True)
class Samples:
    """Images and how they came about.

    Attributes:
        images: `(N, C, H, W)`, clamped to [-1, 1], float32.
        sites: The site that drew each sample, `(N,)`, or None where several shared the work.
        labels: Class indices `(N,)`, or None.
    """

    images: Tensor
    sites: Tensor | None
    labels: Tensor | None


@torch.inference_mode()
def sample(
    ensemble: Ensemble,
    shape: tuple[int, int, int],
    count: int,
    *,
    strategy: Strategy,
    steps: int,
    solver: Solver,
    seed: int,
    labels: Tensor | None = None,
    batch_size: int = 256,
    advance: Callable[[int], None] = lambda _: None,
) -> Samples:
    """Returns `count` samples of the ensemble.

    Args:
        ensemble: Experts and router.
        shape: One image's `(C, H, W)`.
        count: Number of samples.
        strategy: Which experts are asked.
        steps: Steps of the solver from t = 1 to t = 0.
        solver: Which solver.
        seed: Decides noise and sites.
        labels: Wanted class of every sample, `(count,)`, or None.
        batch_size: Samples at once; changes speed and memory only.
        advance: Told the number of samples just finished.

    Raises:
        ValueError: `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"count must be positive, got {count}")
    images, chosen = [], []
    for start in range(0, count, batch_size):
        indices = range(start, min(start + batch_size, count))
        label = None if labels is None else labels[start : start + len(indices)]
        sites = _draw_sites(ensemble, indices, label, seed) if strategy.kind == "sticky" else None

        def velocity(
            x: Tensor, t: Tensor, label: Tensor | None = label, sites: Tensor | None = sites
        ) -> Tensor:
            return ensemble.velocity(x, t.expand(len(x)), label, strategy=strategy, sites=sites)

        x_1 = torch.stack([torch.randn(shape, generator=_generator(seed, i)) for i in indices])
        images.append(integrate(velocity, x_1, time_grid(steps), solver).clamp(-1, 1))
        if sites is not None:
            chosen.append(sites)
        advance(len(indices))
    return Samples(torch.cat(images), torch.cat(chosen) if chosen else None, labels)


def _draw_sites(ensemble: Ensemble, indices: range, label: Tensor | None, seed: int) -> Tensor:
    """Returns the site of every sample, `(len(indices),)`, each from a generator of its own."""
    return torch.cat(
        [
            ensemble.draw_sites(
                1, None if label is None else label[j : j + 1], _generator(seed, i, "site")
            )
            for j, i in enumerate(indices)
        ]
    )


def _generator(seed: int, index: int, purpose: str = "noise") -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

"""How the networks of learned routers are trained.

`train_classifier` learns the posterior of all sites at once from images of all, drawn from the
experts (`replay`) or real (`pooled`: it breaks the isolation of the sites, for benchmarks only).
`train_head` learns one site's log density ratio against a reference that all sites share. The
reference has to lie where the sites' images lie: against a broad one the ratio is a chasm that no
head learns, which is why it is the pool of the sites' released mixtures.

Source: density ratios from classifiers: Sugiyama, Suzuki and Kanamori 2012, chapter 4.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddm_fed.flows import NO_CLASS, ClassCondition
from ddm_fed.progress import QUIET, StepReport, Watch
from ddm_fed.router.network import CoefficientNetwork
from ddm_fed.router.pooled_reference import PooledReference
from ddm_fed.router.transformer import ImageTransformer

CLIP_NORM = 1.0
LearnedNetwork = CoefficientNetwork | ImageTransformer
LabelledRows = tuple[Tensor, Tensor | None]
"""What a network reads of clean images, and their class indices `(n,)` or None.

Coefficients `(n, D)` for a `CoefficientNetwork`, images `(n, C, H, W)` for an `ImageTransformer`;
float32.
"""


def train_classifier(
    network: LearnedNetwork,
    sets: Sequence[LabelledRows],
    shares: Tensor,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
    label_dropout: float = 0.1,
    watch: Watch = QUIET,
) -> None:
    """Trains `network` to tell the sites of noised images apart, at even times in [0, 1].

    Args:
        network: K scores; its weights are drawn anew.
        sets: One per site. Labels are distributed as the site's are, so that the posterior given a
            class carries the right prior.
        shares: How often each site is drawn, `(K,)`.
        steps: Of the optimizer.
        batch_size: Images per step.
        learning_rate: At the beginning; it falls to zero as a cosine.
        generator: Decides weights, images, times and noise.
        label_dropout: Share of images whose class is withheld.
        watch: Told how it goes.

    Raises:
        ValueError: a site without images, or labels missing for some.
    """
    if any(len(rows) == 0 for rows, _ in sets):
        raise ValueError("every site needs images to be told apart by")
    starts = torch.tensor([0, *(len(rows) for rows, _ in sets)]).cumsum(0)[:-1]
    sizes = torch.tensor([len(rows) for rows, _ in sets])
    y_0 = torch.cat([rows for rows, _ in sets])
    labels = _joined_labels(sets)
    shares = shares.double()

    def loss() -> Tensor:
        sites = torch.multinomial(shares, batch_size, replacement=True, generator=generator)
        place = torch.rand(batch_size, generator=generator, dtype=torch.float64)
        rows = starts[sites] + (place * sizes[sites]).long()
        condition = None
        if labels is not None:
            dropped = torch.rand(batch_size, generator=generator) < label_dropout
            condition = ClassCondition(labels[rows]).dropped(dropped)
        t = torch.rand(batch_size, generator=generator)
        return functional.cross_entropy(
            network(_noised(y_0[rows], t, generator), t, condition), sites
        )

    _optimise(network, loss, steps, learning_rate, generator, watch)


def train_head(
    network: CoefficientNetwork,
    own: LabelledRows,
    reference: PooledReference,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
    label_dropout: float = 0.1,
    watch: Watch = QUIET,
) -> None:
    """Trains `network` so that its score is log p_t(y | own, c) - log r_t(y | c).

    Half of every batch are own images, half draws of the reference of the same classes, noised
    alike. Where the class is withheld, both are of any class.

    Args:
        network: One score; its weights are drawn anew.
        own: The site's images. What comes of them is private.
        reference: r, the same for all sites.
        steps: As for `train_classifier`, and so are the others.
        batch_size: Own images per step.
        learning_rate: At the beginning.
        generator: Decides all draws.
        label_dropout: Share of images whose class is withheld.
        watch: Told how it goes.
    """
    y_0, labels = own
    target = torch.cat([torch.ones(batch_size), torch.zeros(batch_size)])

    def loss() -> Tensor:
        rows = torch.randint(len(y_0), (batch_size,), generator=generator)
        asked = None
        if labels is not None:
            dropped = torch.rand(batch_size, generator=generator) < label_dropout
            asked = torch.where(dropped, NO_CLASS, labels[rows])
        other = reference.sample(batch_size, generator, asked)
        t = torch.rand(batch_size, generator=generator).repeat(2)
        y_t = _noised(torch.cat([y_0[rows], other]), t, generator)
        condition = None if asked is None else ClassCondition(asked.repeat(2))
        scores = network(y_t, t, condition)[:, 0]
        return functional.binary_cross_entropy_with_logits(scores, target)

    _optimise(network, loss, steps, learning_rate, generator, watch)


def _optimise(
    network: LearnedNetwork,
    loss: Callable[[], Tensor],
    steps: int,
    learning_rate: float,
    generator: torch.Generator,
    watch: Watch,
) -> None:
    network.reset_parameters(generator)
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        value = loss()
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
        optimizer.step()
        schedule.step()
        watch.on_step(StepReport(step + 1, steps, float(value.detach())))
    network.eval().requires_grad_(False)


def _noised(y_0: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(y_0.shape, generator=generator)
    t = t.view(-1, *[1] * (y_0.ndim - 1))
    return (1 - t) * y_0 + t * noise


def _joined_labels(sets: Sequence[LabelledRows]) -> Tensor | None:
    found = [labels for _, labels in sets if labels is not None]
    if not found:
        return None
    if len(found) != len(sets):
        raise ValueError("either every site has labels or none")
    return torch.cat(found)

"""What a student learns from: images x_0, each with the expert that teaches it.

Drawn by the ensemble itself, under sticky: then the pair (x_0, site) is a joint draw of what the
ensemble makes. x_t is its noised image, so of all teachers that an x_t may have, the mean is

    E[v_k(x_t, t, c) | x_t, c] = sum_k p(k | x_t, t, c) v_k(x_t, t, c) = u(x_t, t, c),

the velocity of the whole ensemble, without a router being asked, up to the errors of the experts.
Nothing but the ensemble is read, so nothing of the sites' images is spent.

Or given, as in the paper: then the router says at a small t whose an image is, or, where it looks
at no image, a site is drawn by the shares of its class.
"""

import hashlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddm_fed.ensemble.sampling import SamplingOptions, apportioned, sample_chunk
from ddm_fed.ensemble.strategy import DEFAULT_STRATEGY, draw_sites
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.errors import DataError, OptionError
from ddm_fed.flows import ClassCondition, Condition, Solver, interpolate, rows_of
from ddm_fed.progress import Advance
from ddm_fed.records import DataSpec
from ddm_fed.storage.files import write_atomically
from ddm_fed.training import seeded

SOLVER: Solver = "dpm++2m"  # one call of an expert a step
CHUNK = 1024  # drawn together; a killed run loses no more
ASKED_AT = 0.05  # nearly an image, and with as much noise as routers know
JUDGED = 256  # asked at once whose they are


@dataclass(frozen=True)
class Lessons:
    """What is learnt from.

    Attributes:
        images: x_0, `(N, C, H, W)` float32.
        sites: The expert that teaches each, `(N,)` int64.
        labels: Classes, `(N,)` int64, or None without classes.
        sha256: Of the images and labels, as they were drawn or given.
    """

    images: Tensor
    sites: Tensor
    labels: Tensor | None
    sha256: str

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class GivenImages:
    """Images that the coordinator may use, as the plan diffuses them.

    Attributes:
        images: `(N, C, H, W)` float32: pixels, or latents.
        labels: Classes, `(N,)` int64, or None.
        sha256: Of the images as they were given.
    """

    images: Tensor
    labels: Tensor | None
    sha256: str


def draw_lessons(
    ensemble: Ensemble,
    data: DataSpec,
    class_units: Tensor | None,
    folder: Path,
    *,
    count: int,
    solver_steps: int,
    seed: int,
    advance: Advance = lambda _: None,
) -> Lessons:
    """Returns samples of the ensemble, drawn under sticky; those in `folder` are drawn already.

    Args:
        ensemble: What is distilled.
        data: What its images are.
        class_units: What classes are drawn in proportion to, `(G,)`, or None without classes.
        folder: Where finished chunks are kept.
        count: How many.
        solver_steps: Of the solver.
        seed: Decides all draws.
        advance: Told how many samples just went one solver step further.
    """
    folder.mkdir(exist_ok=True)
    labels = None if class_units is None else apportioned(class_units, count)
    # not those of `sample --seed`: whoever judges a student draws others
    digest = hashlib.sha256(f"{seed}/lessons".encode()).digest()
    options = SamplingOptions(
        strategy=DEFAULT_STRATEGY,
        steps=solver_steps,
        solver=SOLVER,
        seed=int.from_bytes(digest[:6], "big"),
        in_flight=CHUNK,
    )
    images, sites = [], []
    for indices in options.chunks(count):
        file = folder / f"{indices.start:09d}.npz"
        if file.exists():
            advance(len(indices) * solver_steps)
        else:
            asked = None if labels is None else labels[indices.start : indices.stop]
            drawn = sample_chunk(
                ensemble,
                data.shape,
                indices,
                options,
                condition=None if asked is None else ClassCondition(asked),
                bound=float(data.bound),
                advance=advance,
            )
            if drawn.sites is None:
                raise ValueError(f"strategy {options.strategy} draws no site for a sample")
            content = BytesIO()
            np.savez(content, images=drawn.images.numpy(), sites=drawn.sites.numpy())
            write_atomically(file, content.getvalue())
        with np.load(file) as found:
            images.append(torch.from_numpy(found["images"]))
            sites.append(torch.from_numpy(found["sites"]))
    x_0, owners = torch.cat(images), torch.cat(sites)
    return Lessons(x_0, owners, labels, digest_of(x_0, owners, labels))


def digest_of(*tensors: Tensor | None) -> str:
    """Returns the SHA-256 of the values of tensors, and of their shapes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def lessons_of(ensemble: Ensemble, given: GivenImages, data: DataSpec, seed: int) -> Lessons:
    """Returns given images, each with the expert that the router takes it to be of.

    Args:
        ensemble: What is distilled.
        given: The images.
        data: What the plan's images are.
        seed: Decides the noise, and the draw of sites where the router looks at no image.

    Raises:
        DataError: there are none, or they have no labels or others than the plan's classes.
        OptionError: the router compares embeddings.
    """
    _require_usable(given, data)
    if ensemble.reads_estimate:
        raise OptionError(
            "--data: the router of this ensemble compares embeddings of images, and cannot say "
            "here which expert an image is of",
            hint="assemble with --router mixture, or leave --data out",
        )
    labels = given.labels if data.classes else None
    condition = None if labels is None else ClassCondition(labels)
    if ensemble.sees_until <= 0:
        uniform = torch.rand(
            len(given.images), generator=seeded(seed, "site", 0), dtype=torch.float64
        )
        sites = draw_sites(ensemble.log_prior(len(given.images), condition), uniform)
        return Lessons(given.images, sites, labels, given.sha256)
    sites = log_posterior_of_images(ensemble, given.images, condition, seed).argmax(1)
    return Lessons(given.images, sites, labels, given.sha256)


@torch.no_grad()
def log_posterior_of_images(
    ensemble: Ensemble, images: Tensor, condition: Condition | None, seed: int
) -> Tensor:
    """Returns log p(k | image) by the router, asked at t = `ASKED_AT`, `(N, K)` float64.

    Args:
        ensemble: Whose router looks at images.
        images: x_0, `(N, C, H, W)`: pixels, or latents.
        condition: What each is, or None.
        seed: Decides the noise.
    """
    found = []
    for start in range(0, len(images), JUDGED):
        rows = slice(start, start + JUDGED)
        x_0 = images[rows]
        eps = torch.randn(x_0.shape, generator=seeded(seed, "whose", start))
        t = torch.full((len(x_0),), min(ASKED_AT, ensemble.experts.largest_time))
        asked = rows_of(condition, rows)
        found.append(ensemble.log_posterior(interpolate(x_0, eps, t), t, asked))
    return torch.cat(found)


def _require_usable(given: GivenImages, data: DataSpec) -> None:
    if len(given.images) == 0:
        raise DataError("--data holds no images", hint="give an .npz with `images`")
    if not data.classes:
        return
    if given.labels is None:
        raise DataError(
            "--data has no labels, and the plan's experts are asked for classes",
            hint="store `labels` beside `images`: whole numbers in the order of the plan's classes",
        )
    if int(given.labels.max()) >= len(data.classes):
        raise DataError(
            f"--data has the label {int(given.labels.max())}, and the plan has "
            f"{len(data.classes)} classes, numbered from 0",
            hint="store labels as whole numbers in the order of the plan's classes",
        )

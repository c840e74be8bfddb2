"""Images that somebody might choose to move a statistic, and data sets that differ by a unit."""

import numpy as np
import torch

from ddm_fed.embedding import dct_basis
from ddm_fed.privacy import ImageSet

KINDS = [
    "noise", "white", "black", "centre", "huge", "tiny", "largest", "alternating", "one-pixel",
    "nan", "one-nan", "inf", "minus-inf", "one-inf", "both-inf", "on-radius", "past-radius",
    "subnormal", "constant",
]  # fmt: skip


def make_image(kind, seed, plan):
    """One image of a kind that somebody might use to move the statistic, `(C, H, W)` float32."""
    rng = np.random.default_rng(seed)
    shape = plan.data.shape
    largest = np.finfo(np.float32).max
    image = rng.uniform(-1, 1, size=shape)
    spot = tuple(rng.integers(0, n) for n in shape)
    match kind:
        case "white" | "black":
            image[:] = 1 if kind == "white" else -1
        case "centre":
            image[:] = -0.25
        case "constant":
            image[:] = rng.uniform(-1, 1)
        case "huge":
            image *= 10.0 ** rng.integers(2, 38)
        case "tiny":
            image = -0.25 + image * 10.0 ** -rng.integers(3, 14)
        case "largest":
            image = largest * np.sign(image)
        case "alternating":
            image = 1.0 - 2.0 * (np.indices(shape).sum(0) % 2)
        case "one-pixel":
            image[:] = -0.25
            image[spot] = rng.choice([1.0, -1.0, 1e6, largest])
        case "nan" | "inf" | "minus-inf":
            image[:] = {"nan": np.nan, "inf": np.inf, "minus-inf": -np.inf}[kind]
        case "one-nan" | "one-inf":
            image[spot] = np.nan if kind == "one-nan" else np.inf
        case "both-inf":
            image = np.where(image > 0, np.inf, -np.inf)
        case "on-radius" | "past-radius":
            d = plan.data.channels * getattr(plan.router, "frequencies", 4)
            y = rng.normal(size=d)
            y *= float(getattr(plan.router, "radius", None) or 1) / np.linalg.norm(y)
            y *= 1.0 if kind == "on-radius" else 1 + 1e-6
            basis = dct_basis(shape, d // shape[0]).numpy()
            image = (float(getattr(plan.router, "centre", 0)) + y @ basis).reshape(shape)
        case "subnormal":
            image = np.full(shape, 1e-45)
    return torch.from_numpy(image.astype(np.float32))


def data_of(patients, plan, order=None):
    """The images of `patients`, one after the other or in `order`, as `plan` has them.

    A patient is a list of images, each a kind, a seed and a class. Under a plan for images, who
    they are of is not said.
    """
    rows = [(k, *image) for k, patient in enumerate(patients) for image in patient]
    rows = rows if order is None else [rows[i] for i in order]
    dense = {k: index for index, k in enumerate(dict.fromkeys(k for k, *_ in rows))}
    images = [make_image(kind, seed, plan) for _, kind, seed, _ in rows]
    stacked = torch.stack(images) if images else torch.zeros((0, *plan.data.shape))
    classes = len(plan.data.classes)
    labels = torch.tensor([cell % max(1, classes) for *_, cell in rows], dtype=torch.int64)
    units = torch.tensor([dense[k] for k, *_ in rows], dtype=torch.int64)
    return ImageSet(
        stacked,
        labels if classes else None,
        units=units if plan.privacy.unit == "patient" else None,
    )


def squared_norm(vector):
    """Exact, in Python's integers."""
    return sum(int(value) ** 2 for value in vector)

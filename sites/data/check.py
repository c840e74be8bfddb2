"""Looks at images before anything is spent on them: copies, near copies, images of one shade.

Copies matter to privacy: an image that lies in the data twice under two patients is protected as
two. Near copies are images whose 16 x 16 grey thumbnails differ by less than a shade and a half of
256 (root mean square): the same picture saved again, not two pictures of the same kind.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddm_fed.privacy import ImageSet, Private

SIDE = 16  # of a thumbnail
NEAR = 1.5 / 255  # root mean square of what differs, of the range from black to white
BLOCK = 2048
MOST_COMPARED = 50_000  # every one with every other: minutes on one core


class Findings(NamedTuple):
    """What was found; rows are those of the images.

    Attributes:
        copies: Groups of images that are equal.
        near: Pairs of images that are nearly equal, and not equal.
        constant: Images of one shade.
        across_units: How many groups and pairs lie in several units of privacy.
    """

    copies: list[list[int]]
    near: list[tuple[int, int]]
    constant: list[int]
    across_units: int


def check_images(images: Private[ImageSet]) -> Findings:
    """Returns what is odd about images as a training would see them; reads them once."""
    data = images.reveal()
    groups, thumbnails, constant = defaultdict[bytes, list[int]](list), list[Tensor](), list[int]()
    for start in range(0, len(data), BLOCK):
        batch = data.batch(slice(start, start + BLOCK))
        for row, image in enumerate(batch.numpy(), start):
            groups[hashlib.blake2b(image.tobytes(), digest_size=16).digest()].append(row)
        flat = batch.flatten(1)
        shade = (flat.amax(1) == flat.amin(1)).nonzero()[:, 0]
        constant += (shade + start).tolist()
        if start < MOST_COMPARED:
            grey = batch.mean(1, keepdim=True)
            thumbnails.append(torch.nn.functional.adaptive_avg_pool2d(grey, SIDE).flatten(1) / 2)
    copies = [rows for rows in groups.values() if len(rows) > 1]
    seen = set(constant) | {row for rows in copies for row in rows[1:]}
    compared = np.array([row for row in range(min(len(data), MOST_COMPARED)) if row not in seen])
    near = list(_near(torch.cat(thumbnails), compared)) if len(compared) else []
    units = None if data.units is None else data.units.numpy()
    return Findings(copies, near, constant, _across([*copies, *near], units))


def _near(thumbnails: Tensor, rows: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yields pairs of `rows` whose thumbnails lie close, each pair once."""
    chosen = thumbnails[torch.from_numpy(rows)]
    norms = chosen.square().sum(1)
    most = SIDE * SIDE * NEAR**2
    for start in range(0, len(rows), BLOCK):
        left, end = chosen[start : start + BLOCK], start + BLOCK
        for other in range(start, len(rows), BLOCK):
            right = chosen[other : other + BLOCK]
            apart = norms[start:end, None] + norms[None, other : other + BLOCK]
            close = (apart - 2 * left @ right.T <= most).nonzero()
            for one, two in close.tolist():
                if start + one < other + two:
                    yield int(rows[start + one]), int(rows[other + two])


def _across(groups: Sequence[Sequence[int]], units: NDArray[np.int64] | None) -> int:
    if units is None:
        return len(groups)
    return sum(len({int(units[row]) for row in rows}) > 1 for rows in groups)

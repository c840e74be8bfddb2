"""Samples beside the private images they are nearest to, and how near that is.

Private images among themselves say what is near: a distance within which one in twenty of them has
another. Of samples that resemble the images and copy none, about as many have one so near. How much
more often that is by chance follows from ranks: samples and images are exchangeable then, so the
distances of both, in order, come in any order alike. All of it shows or follows from private
images, so none of it leaves.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ddm_fed.evaluation import Nearest, Proportion, nearest, proportion
from ddm_fed.privacy import ImageSet, Private

SHOWN = 12
NEAR = 0.05  # share of private images that are as near to another one
MOST_COMPARED = 300  # private images that say what is near
RARE = 0.01  # how often chance may be taken for copies
LEAST = 20  # images
BLOCK_IMAGES = 1024
Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Neighbours:
    """Samples and their nearest private images. Private.

    Attributes:
        samples: The nearest of them, `(SHOWN, C, H, W)` uint8, the nearest first.
        images: The private image that each is nearest to.
        ratios: Distance of each pair, in medians of the distance between private images.
        near: Share of all samples that are as near to a private image as one in twenty private
            images is to another.
        p_value: How often chance makes so many of them, or more.
        private: Number of private images that were looked at.
        source: What was sampled, in words.
    """

    samples: NDArray[np.uint8]
    images: NDArray[np.uint8]
    ratios: tuple[float, ...]
    near: Proportion
    p_value: float
    private: int
    source: str

    @property
    def stands_out(self) -> bool:
        """Whether more samples are near than chance makes."""
        return self.p_value < RARE


def find_neighbours(samples: Rows, data: Private[ImageSet], source: str) -> Neighbours | None:
    """Returns the samples nearest to private images; None for fewer than 20 images.

    Args:
        samples: `(N, C H W)` in [-1, 1].
        data: The site's images, pixels of the same shape.
        source: What was sampled, in words.
    """
    images = data.reveal()
    if len(images) < LEAST:
        return None
    everything = np.arange(len(images))
    # by chance, and the same ones every time
    some = np.random.default_rng(0).permutation(len(images))[:MOST_COMPARED]
    apart = _nearest(_rows(images, some), images, everything, itself=some).distance
    found = _nearest(samples, images, everything)
    fewest = math.ceil(NEAR * len(some))
    hits = int((found.distance < np.sort(apart)[fewest - 1]).sum())
    first = np.argsort(found.distance, kind="stable")[:SHOWN]
    shape = (-1, *images.shape)
    return Neighbours(
        samples=_bytes(samples[first].reshape(shape)),
        images=_bytes(_rows(images, found.row[first]).reshape(shape)),
        ratios=tuple((found.distance[first] / max(float(np.median(apart)), 1e-12)).tolist()),
        near=proportion(hits, len(samples)),
        p_value=by_chance(hits, len(samples), fewest, len(some)),
        private=len(images),
        source=source,
    )


def by_chance(hits: int, samples: int, fewest: int, images: int) -> float:
    """Returns how often so many samples, or more, come before the `fewest`-th image in any order.

    That is: among the first `hits + fewest - 1` of both there are fewer than `fewest` images.

    Args:
        hits: Samples that come before it.
        samples: Their number.
        fewest: Which image it is, from 1.
        images: Their number.
    """
    first = hits + fewest - 1
    ways = sum(math.comb(images, i) * math.comb(samples, first - i) for i in range(fewest))
    return ways / math.comb(images + samples, first)


def _nearest(
    rows: Rows,
    images: ImageSet,
    among: NDArray[np.integer],
    itself: NDArray[np.integer] | None = None,
) -> Nearest:
    """Returns the nearest of some images to each of `rows`; a block of them in memory at a time.

    Args:
        rows: `(N, C H W)`.
        images: All images.
        among: Places of those that are looked at, increasing.
        itself: Place of each row among the images, which does not count; None if they are none.
    """
    best, place = np.full(len(rows), np.inf), np.zeros(len(rows), dtype=np.int64)
    for start in range(0, len(among), BLOCK_IMAGES):
        block = among[start : start + BLOCK_IMAGES]
        values = _rows(images, block)
        inside = np.zeros(len(rows), bool) if itself is None else np.isin(itself, block)
        parts = [(np.flatnonzero(~inside), np.ones(len(block), bool))]
        if itself is not None:  # each of these without the one that it is
            parts += [(np.array([row]), block != itself[row]) for row in np.flatnonzero(inside)]
        for chosen, kept in parts:
            if not len(chosen) or not kept.any():
                continue
            found = nearest(rows[chosen], values[kept])
            closer = found.distance < best[chosen]
            best[chosen[closer]] = found.distance[closer]
            place[chosen[closer]] = block[kept][found.row[closer]]
    return Nearest(best, place)


def _rows(images: ImageSet, places: NDArray[np.integer]) -> Rows:
    found: Rows = images.batch(torch.from_numpy(np.asarray(places))).flatten(1).numpy()
    return found


def _bytes(images: Rows) -> NDArray[np.uint8]:
    scaled: NDArray[np.uint8] = ((images.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
    return scaled

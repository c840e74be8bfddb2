"""A public basis of images in which noise stays noise: low-frequency cosines.

The rows are orthonormal and fixed by the image's shape alone, so nothing private is in them, and
P eps of white noise eps is white noise again. That is what lets a router score noised images.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def dct_basis(shape: tuple[int, int, int], frequencies: int) -> Tensor:
    """Returns the `frequencies` lowest DCT-II functions of every channel.

    Args:
        shape: One image's `(C, H, W)`.
        frequencies: Number per channel; lowest first, by the length of the frequency vector.

    Returns:
        Orthonormal rows, `(C * frequencies, C * H * W)`, float64.
    """
    return _dct_rows(tuple(shape), frequencies).clone()  # of the caller's own


@lru_cache(maxsize=4)  # one plan asks again for each message, each unit and each part of a fit
def _dct_rows(shape: tuple[int, int, int], frequencies: int) -> Tensor:
    channels, height, width = shape
    rows, columns = _dct_matrix(height), _dct_matrix(width)
    pairs = _lowest_first(height, width)[:frequencies]
    functions = np.stack([np.outer(rows[i], columns[j]).ravel() for i, j in pairs])
    return torch.from_numpy(np.kron(np.eye(channels), functions))


def dct_matrices(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Returns the orthonormal DCT-II matrices of a channel, `(H, H)` and `(W, W)`, float64.

    Rows of the first times an image times columns of the second is every coefficient of it, at H W
    (H + W) multiplications where `dct_basis` of all frequencies takes (H W)^2.
    """
    return torch.from_numpy(_dct_matrix(height)), torch.from_numpy(_dct_matrix(width))


def frequency_order(height: int, width: int) -> Tensor:
    """Returns where in a flattened channel the frequencies lie, lowest first, `(H W,)` int64."""
    return torch.tensor([i * width + j for i, j in _lowest_first(height, width)])


def _lowest_first(height: int, width: int) -> list[tuple[int, int]]:
    pairs = [(i, j) for i in range(height) for j in range(width)]
    pairs.sort(key=lambda ij: ((ij[0] / height) ** 2 + (ij[1] / width) ** 2, ij))
    return pairs


def _dct_matrix(size: int) -> NDArray[np.float64]:
    """Returns the orthonormal DCT-II matrix, one function per row, `(size, size)`."""
    k, n = np.arange(size)[:, None], np.arange(size)[None]
    matrix: NDArray[np.float64] = np.sqrt(2 / size) * np.cos(np.pi * (n + 0.5) * k / size)
    matrix[0] /= np.sqrt(2)
    return matrix

"""The Inception-v3 of the Frechet inception distance, as a network without weights of its own.

Names of tensors are those of the converted TensorFlow weights that pytorch-fid and torch-fidelity
use, so that those fit. It differs from torchvision's in its averages at borders, in one maximum in
place of an average, and in how it enlarges images; figures of the one are none of the other.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

SIZE = 299
FEATURES = 2048
CLASSES = 1008
Pool = Literal["average", "maximum", "halving"]
Width = int | tuple[int, int]
Step = tuple[str, int, Width]
"""Name, output channels, kernel. A kernel of one number is square."""


class _Conv(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: Width, stride: int, pad: bool) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if pad else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Branches side by side, the last of them a pool; `halving` blocks end in stride 2."""

    def __init__(
        self, inputs: int, branches: Sequence[Sequence[Step]], pool: Pool, pooled: int = 0
    ) -> None:
        super().__init__()
        self._pool, self._branches = pool, [[step[0] for step in branch] for branch in branches]
        for branch in branches:
            width = inputs
            for name, outputs, kernel in branch:
                last = name == branch[-1][0] and pool == "halving"
                self.add_module(name, _Conv(width, outputs, kernel, 2 if last else 1, pad=not last))
                # a and b of one number are two convolutions of the same input
                width = width if name.endswith("a") else outputs
        if pooled:
            self.branch_pool = _Conv(inputs, pooled, 1, 1, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for names in self._branches:
            y = x
            for name in names:
                if name.endswith("b"):
                    continue
                module = self.get_submodule(name)
                if name.endswith("a"):
                    y = torch.cat([module(y), self.get_submodule(f"{name[:-1]}b")(y)], 1)
                else:
                    y = module(y)
            found.append(y)
        if self._pool == "halving":
            return torch.cat([*found, functional.max_pool2d(x, 3, stride=2)], 1)
        if self._pool == "maximum":
            y = functional.max_pool2d(x, 3, stride=1, padding=1)
        else:
            y = functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return torch.cat([*found, self.branch_pool(y)], 1)


def _a(inputs: int, pooled: int) -> _Mixed:
    double: list[Step] = [(f"branch3x3dbl_{n}", width, k) for n, width, k in DOUBLE]
    five: list[Step] = [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)]
    return _Mixed(inputs, [[("branch1x1", 64, 1)], five, double], "average", pooled)


DOUBLE = ((1, 64, 1), (2, 96, 3), (3, 96, 3))


def _b(inputs: int) -> _Mixed:
    double: list[Step] = [(f"branch3x3dbl_{n}", width, k) for n, width, k in DOUBLE]
    return _Mixed(inputs, [[("branch3x3", 384, 3)], double], "halving")


def _c(inputs: int, width: int) -> _Mixed:
    row, column = (1, 7), (7, 1)
    seven: list[Step] = [
        ("branch7x7_1", width, 1),
        ("branch7x7_2", width, row),
        ("branch7x7_3", 192, column),
    ]
    double: list[Step] = [
        ("branch7x7dbl_1", width, 1),
        ("branch7x7dbl_2", width, column),
        ("branch7x7dbl_3", width, row),
        ("branch7x7dbl_4", width, column),
        ("branch7x7dbl_5", 192, row),
    ]
    return _Mixed(inputs, [[("branch1x1", 192, 1)], seven, double], "average", 192)


def _d(inputs: int) -> _Mixed:
    seven: list[Step] = [
        ("branch7x7x3_1", 192, 1),
        ("branch7x7x3_2", 192, (1, 7)),
        ("branch7x7x3_3", 192, (7, 1)),
        ("branch7x7x3_4", 192, 3),
    ]
    return _Mixed(inputs, [[("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)], seven], "halving")


def _e(inputs: int, pool: Pool) -> _Mixed:
    def split(name: str) -> list[Step]:
        return [(f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1))]

    three: list[Step] = [("branch3x3_1", 384, 1), *split("branch3x3_2")]
    double: list[Step] = [
        ("branch3x3dbl_1", 448, 1),
        ("branch3x3dbl_2", 384, 3),
        *split("branch3x3dbl_3"),
    ]
    return _Mixed(inputs, [[("branch1x1", 320, 1)], three, double], pool, 192)


class InceptionV3(nn.Module):
    """Images `(B, 3, H, W)` of values 0 to 255 to features `(B, 2048)`.

    Source: Szegedy et al. 2016, arXiv:1512.00567; Heusel et al. 2017, arXiv:1706.08500; tensor
    names and borders as in pytorch-fid and torch-fidelity.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, 2, pad=False)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3, 1, pad=False)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, 1, pad=True)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1, 1, pad=False)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3, 1, pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        self.Mixed_6a = _b(288)
        self.Mixed_6b, self.Mixed_6c = _c(768, 128), _c(768, 160)
        self.Mixed_6d, self.Mixed_6e = _c(768, 160), _c(768, 192)
        self.Mixed_7a = _d(768)
        self.Mixed_7b, self.Mixed_7c = _e(1280, "average"), _e(2048, "maximum")
        self.fc = nn.Linear(FEATURES, CLASSES)  # unused for features; the weights hold it

    def forward(self, images: Tensor) -> Tensor:
        """Returns the features before the last layer."""
        x = (enlarged(images, SIZE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, stride=2)))
        x = functional.max_pool2d(x, 3, stride=2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean((2, 3))


def enlarged(images: Tensor, size: int) -> Tensor:
    """Returns images of `size` x `size` as TensorFlow 1 resized them: corners, not centres, meet.

    Args:
        images: `(B, C, H, W)`.
        size: Of the result.
    """
    rows, columns = (_weights(length, size, images) for length in images.shape[2:])
    return rows @ images @ columns.T


def _weights(length: int, size: int, like: Tensor) -> Tensor:
    """Returns the matrix `(size, length)` of linear interpolation along one axis."""
    at = torch.arange(size, dtype=torch.float64) * (length / size)
    low = at.floor().long()
    high = (low + 1).clamp(max=length - 1)
    part = (at - low)[:, None]
    eye = torch.eye(length, dtype=torch.float64)
    return (eye[low] * (1 - part) + eye[high] * part).to(like)

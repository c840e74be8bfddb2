"""Names of networks, as plans use them: `DiT-S/2` is size S with patches of 2 by 2 pixels.

Sizes Ti to XL are those of DiT (Peebles and Xie 2023, arXiv:2212.09748, Table 1; Ti as in DeiT).
Nano and Micro are ours: small enough for a laptop, a test, or 8 by 8 images.
"""

import re
from typing import NamedTuple


class DitSize(NamedTuple):
    """Depth in blocks, width in channels, and number of attention heads."""

    depth: int
    width: int
    heads: int


DIT_SIZES = {
    "Nano": DitSize(depth=3, width=64, heads=4),
    "Micro": DitSize(depth=4, width=128, heads=4),
    "Ti": DitSize(depth=12, width=192, heads=3),
    "S": DitSize(depth=12, width=384, heads=6),
    "B": DitSize(depth=12, width=768, heads=12),
    "L": DitSize(depth=24, width=1024, heads=16),
    "XL": DitSize(depth=28, width=1152, heads=16),
}
_NAME = re.compile(r"DiT-([A-Za-z]+)/([1248])")


def parse_architecture(name: str) -> tuple[DitSize, int]:
    """Returns the size and the patch width in pixels that `name` stands for.

    Raises:
        ValueError: `name` is not `DiT-SIZE/PATCH` with a known size and a patch of 1, 2, 4 or 8.
    """
    match = _NAME.fullmatch(name)
    if match is None or match[1] not in DIT_SIZES:
        raise ValueError(
            f"unknown architecture `{name}`; use DiT-SIZE/PATCH with SIZE one of "
            f"{', '.join(DIT_SIZES)} and PATCH one of 1, 2, 4, 8"
        )
    return DIT_SIZES[match[1]], int(match[2])

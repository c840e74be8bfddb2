"""Names of networks, as plans use them.

| name                  | network                                                                |
| --------------------- | ---------------------------------------------------------------------- |
| `DiT-S/2`             | diffusion transformer, size S, patches of 2 by 2 pixels                |
| `DiT-S/2-single`      | one modulation shared by all blocks (adaLN-single)                     |
| `DiT-S/2-qknorm-rope` | queries and keys normalised, rotary positions; suffixes in this order  |
| `DiT-S/2-learned`     | learned positions                                                      |
| `DiT-S/2-times128`    | times in 128 frequencies instead of 64, as diffusers' DiT has them     |
| `DiT-S/2-grid16x16`   | its positions are those of 16 by 16 patches, stretched over the image  |
| `MMDiT-3B/2`          | two streams, condition and image, that attend to each other; -grid too |
| `UNet-S`              | diffusers' `UNet2DModel`                                               |
| `UNet-128-256a-256/2` | any other: channels of its levels, `a` where one attends; then blocks  |
| `Conv-Nano/2`         | convolutions at one resolution, of patches of 2 by 2 pixels            |
| `waves==1.0:Waves`    | one that an installed package brings: PACKAGE==VERSION:NAME            |
| `mixture`             | none: the exact velocity of the mixture that the site releases         |
| `mixture+DiT-S/2`     | that velocity, plus a network that learns only what it leaves          |

Sizes Ti to XL are those of DiT (Peebles and Xie 2023, arXiv:2212.09748, Table 1; Ti as in DeiT).
Nano and Micro are ours: small enough for a laptop, a test, or 8 by 8 images.
"""

import re
from typing import Literal, NamedTuple

from ddm_fed.errors import guess


class DitSize(NamedTuple):
    """Depth in blocks, width in channels, and number of attention heads."""

    depth: int
    width: int
    heads: int


class MmditSize(NamedTuple):
    """Blocks of two streams, then blocks of one; width in channels; number of heads."""

    double_blocks: int
    single_blocks: int
    width: int
    heads: int


class UnetSize(NamedTuple):
    """What `UNet2DModel` is built from.

    Attributes:
        channels: Of every level.
        blocks: ResNet blocks per level.
        attends: Which levels attend.
        head: Channels of an attention head; None for one head.
        groups: Of normalisation.
        ddpm: Whether times, paddings and norms are those of DDPM's published networks.
    """

    channels: tuple[int, ...]
    blocks: int
    attends: tuple[bool, ...]
    head: int | None = 32
    groups: int = 32
    ddpm: bool = False


class ConvSize(NamedTuple):
    """Depth in blocks of one convolution each, and width in channels."""

    depth: int
    width: int


DIT_SIZES = {
    "Nano": DitSize(depth=3, width=64, heads=4),
    "Micro": DitSize(depth=4, width=128, heads=4),
    "Ti": DitSize(depth=12, width=192, heads=3),
    "S": DitSize(depth=12, width=384, heads=6),
    "B": DitSize(depth=12, width=768, heads=12),
    "L": DitSize(depth=24, width=1024, heads=16),
    "XL": DitSize(depth=28, width=1152, heads=16),
}
# 3B has the width and depth of the paper's largest experts (arXiv:2501.05450, section 4.4).
MMDIT_SIZES = {
    "Nano": MmditSize(double_blocks=1, single_blocks=2, width=64, heads=4),
    "3B": MmditSize(double_blocks=4, single_blocks=26, width=2560, heads=20),
}
UNET_SIZES = {
    # groups hold at least four channels, whose mean survives the norm
    "Nano": UnetSize(channels=(16, 32), blocks=1, attends=(False, True), groups=4),
    "S": UnetSize(channels=(64, 128, 128), blocks=2, attends=(False, True, True), groups=16),
    "M": UnetSize(channels=(128, 256, 256), blocks=2, attends=(False, True, True)),
    "L": UnetSize(channels=(128, 256, 256, 512), blocks=3, attends=(False, True, True, True)),
}
CONV_SIZES = {"Nano": ConvSize(depth=4, width=32), "S": ConvSize(depth=8, width=64)}


class Grid(NamedTuple):
    """Rows and columns of patches that positions are made for, and stretched from to others."""

    rows: int
    columns: int


class DitArchitecture(NamedTuple):
    """What a name such as `DiT-S/2-single-rope` says."""

    size: DitSize
    patch: int
    modulation: Literal["zero", "single"] = "zero"
    qk_norm: bool = False
    positions: Literal["sincos", "rope", "learned"] = "sincos"
    more_times: bool = False
    grid: Grid | None = None


class MmditArchitecture(NamedTuple):
    """What a name such as `MMDiT-3B/2` says."""

    size: MmditSize
    patch: int
    grid: Grid | None = None


class UnetArchitecture(NamedTuple):
    """What a name such as `UNet-S` says."""

    size: UnetSize


class ConvArchitecture(NamedTuple):
    """What a name such as `Conv-Nano/2` says."""

    size: ConvSize
    patch: int


class PackageArchitecture(NamedTuple):
    """What a name such as `waves==1.0:Waves` says: whose network, in which version, which one."""

    package: str
    version: str
    name: str


NetworkArchitecture = (
    DitArchitecture | MmditArchitecture | UnetArchitecture | ConvArchitecture | PackageArchitecture
)


class MixtureArchitecture(NamedTuple):
    """What the names `mixture` and `mixture+DiT-S/2` say; the network is None in the first."""

    network: NetworkArchitecture | None


Architecture = NetworkArchitecture | MixtureArchitecture
MIXTURE, PLUS = "mixture", "mixture+"
_GRID = r"(?:-grid([1-9][0-9]{0,2})x([1-9][0-9]{0,2}))?"
_DIT = re.compile(
    r"DiT-([A-Za-z]+)/([1248])(-single)?(-qknorm)?(?:-(rope|learned))?(-times128)?" + _GRID
)
_MMDIT = re.compile(r"MMDiT-([0-9A-Za-z]+)/([1248])" + _GRID)
_UNET = re.compile(r"UNet-([A-Za-z]+)")
_LEVEL = r"[1-9][0-9]{0,3}a?"
_ANY_UNET = re.compile(
    rf"UNet-({_LEVEL}(?:-{_LEVEL}){{0,7}})/([1-8])(-ddpm)?"
    r"(?:-head([1-9][0-9]{0,3}))?(?:-groups([1-9][0-9]{0,2}))?"
)
_PACKAGE = re.compile(
    r"([a-z0-9]{1,40}(?:-[a-z0-9]{1,40}){0,4})"  # in its normal form
    r"==([0-9][0-9A-Za-z.+]{0,39}):([A-Za-z][0-9A-Za-z]{0,39})"
)
DEFAULT_HEAD, DEFAULT_GROUPS = 8, 32  # diffusers' own
_CONV = re.compile(r"Conv-([A-Za-z]+)/([1248])")


def parse_architecture(name: str) -> Architecture:
    """Returns the network that `name` stands for.

    Raises:
        ValueError: `name` is none of the forms above, or its size is unknown.
    """
    if name == MIXTURE:
        return MixtureArchitecture(None)
    if name.startswith(PLUS) and not name.removeprefix(PLUS).startswith(MIXTURE):
        network = parse_architecture(name.removeprefix(PLUS))
        if not isinstance(network, MixtureArchitecture):
            return MixtureArchitecture(network)
    if (match := _DIT.fullmatch(name)) and match[1] in DIT_SIZES:
        return DitArchitecture(
            DIT_SIZES[match[1]],
            int(match[2]),
            "single" if match[3] else "zero",
            match[4] is not None,
            {"rope": "rope", "learned": "learned"}.get(match[5], "sincos"),  # type: ignore[arg-type]
            match[6] is not None,
            _grid(match[7], match[8]),
        )
    if (match := _MMDIT.fullmatch(name)) and match[1] in MMDIT_SIZES:
        grid = _grid(match[3], match[4])
        return MmditArchitecture(MMDIT_SIZES[match[1]], int(match[2]), grid)
    if (match := _UNET.fullmatch(name)) and match[1] in UNET_SIZES:
        return UnetArchitecture(UNET_SIZES[match[1]])
    if match := _ANY_UNET.fullmatch(name):
        return UnetArchitecture(_unet_size(name, match))
    if (match := _CONV.fullmatch(name)) and match[1] in CONV_SIZES:
        return ConvArchitecture(CONV_SIZES[match[1]], int(match[2]))
    if match := _PACKAGE.fullmatch(name):
        return PackageArchitecture(match[1], match[2], match[3])
    near = guess(name, _names())
    raise ValueError(
        f"unknown architecture `{name}`{near or ';'} use DiT-SIZE/PATCH with SIZE one of "
        f"{', '.join(DIT_SIZES)} and PATCH one of 1, 2, 4, 8, then -single, -qknorm, -rope or "
        "-learned, -times128, and -gridROWSxCOLUMNS if wanted; MMDiT-SIZE/PATCH with SIZE one of "
        f"{', '.join(MMDIT_SIZES)}, then -gridROWSxCOLUMNS if wanted; "
        f"Conv-SIZE/PATCH with SIZE one of {', '.join(CONV_SIZES)}; "
        f"UNet-SIZE with SIZE one of {', '.join(UNET_SIZES)}, or UNet-CHANNELS/BLOCKS such as "
        "UNet-128-256a-256/2; PACKAGE==VERSION:NAME of an installed package; mixture; or mixture+ "
        "and one of these"
    )


def _grid(rows: str | None, columns: str | None) -> Grid | None:
    return Grid(int(rows), int(columns)) if rows and columns else None


def _names() -> list[str]:
    """Returns names of networks, for a guess at a misspelt one."""
    dit = [
        f"DiT-{size}/{patch}{single}{norm}{where}"
        for size in DIT_SIZES
        for patch in "1248"
        for single in ("", "-single")
        for norm in ("", "-qknorm")
        for where in ("", "-rope", "-learned")
    ]
    mmdit = [f"MMDiT-{size}/{patch}" for size in MMDIT_SIZES for patch in "1248"]
    conv = [f"Conv-{size}/{patch}" for size in CONV_SIZES for patch in "1248"]
    return [*dit, *mmdit, *conv, *(f"UNet-{size}" for size in UNET_SIZES), MIXTURE]


def unet_name(size: UnetSize) -> str:
    """Returns the name of that `UNet2DModel`, which `parse_architecture` reads back."""
    for name, known in UNET_SIZES.items():
        if size == known:
            return f"UNet-{name}"
    levels = zip(size.channels, size.attends, strict=True)
    parts = ["-".join(f"{width}{'a' * attends}" for width, attends in levels) + f"/{size.blocks}"]
    if size.ddpm:
        parts.append("ddpm")
    if size.head is not None and (size.ddpm or size.head != DEFAULT_HEAD):
        parts.append(f"head{size.head}")
    if size.groups != DEFAULT_GROUPS:
        parts.append(f"groups{size.groups}")
    return f"UNet-{'-'.join(parts)}"


def _unet_size(name: str, match: re.Match[str]) -> UnetSize:
    levels = match[1].split("-")
    channels = tuple(int(level.removesuffix("a")) for level in levels)
    ddpm = match[3] is not None
    head = int(match[4]) if match[4] else None if ddpm else DEFAULT_HEAD
    groups = int(match[5] or DEFAULT_GROUPS)
    attends = tuple(level.endswith("a") for level in levels)
    for width, divided in zip(channels, (*attends[:-1], True), strict=True):  # its middle attends
        if width % groups or (divided and head is not None and width % head):
            raise ValueError(
                f"`{name}`: {width} channels are not divided by {groups} groups"
                + (f" and heads of {head}" if divided and head is not None else "")
            )
    return UnetSize(channels, int(match[2]), attends, head, groups, ddpm)


def network_of(name: str) -> str | None:
    """Returns the name of the network that is trained, without a mixture; None if none is."""
    return None if name == MIXTURE else name.removeprefix(PLUS)


def adds_to_mixture(name: str) -> bool:
    """Returns whether an expert of that name is the mixture a site releases, or adds to it."""
    return name == MIXTURE or name.startswith(PLUS)


def require_reads_text(name: str) -> None:
    """Refuses an architecture whose network could not read a caption.

    Raises:
        ValueError: naming it, and what to choose.
    """
    network = network_of(name)  # a mixture alone is of all captions
    reads = network is None or network.startswith(("DiT-", "MMDiT-"))
    if not reads:
        raise ValueError(
            f"{name} attends to no tokens, so it cannot read captions: choose DiT or MMDiT, or "
            "mixture with one of them"
        )


def require_fit(name: str, height: int, width: int) -> None:
    """Refuses an architecture that cannot take images of this size.

    Raises:
        ValueError: naming both.
    """
    network = network_of(name)
    if network is None:
        return
    architecture = parse_architecture(network)
    if isinstance(architecture, MixtureArchitecture):
        raise TypeError(f"{network} is not the name of a network")
    if isinstance(architecture, PackageArchitecture):  # its own code knows
        return
    if isinstance(architecture, UnetArchitecture):
        factor = 2 ** (len(architecture.size.channels) - 1)
        reason = f"halves images {len(architecture.size.channels) - 1} times"
    else:
        factor = architecture.patch
        reason = f"cuts patches of {factor} pixels"
    if height % factor or width % factor:
        raise ValueError(f"{name} {reason}, which does not tile {height} x {width} images")

"""`config.json` of a diffusers autoencoder: every key known, every number bounded.

It decides how large a network is built, so nothing of it is handed on unread.
"""

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

from ddm_fed.errors import DataError, printable
from ddm_fed.records import AutoencoderKind

MOST_CHANNELS, MOST_BLOCKS, MOST_LEVELS, MOST_LATENT = 4096, 16, 8, 64
CLASSES: dict[str, AutoencoderKind] = {"AutoencoderKL": "kl", "AutoencoderTiny": "tiny"}
ACTIVATIONS = ("silu", "swish", "mish", "gelu", "relu")
Check = Callable[[Any], bool]


class AutoencoderConfig(NamedTuple):
    """What a `config.json` says.

    Attributes:
        kind: Which class it is of.
        arguments: Of the class, all of them checked.
        image_channels: Of the images it takes and gives.
        channels: Of its latents.
        factor: How many pixels of a row become one latent.
        scale: What its author says latents are to be multiplied by; None if nothing.
        shift: What its author says is to be taken off before.
    """

    kind: AutoencoderKind
    arguments: dict[str, Any]
    image_channels: int
    channels: int
    factor: int
    scale: Decimal | None
    shift: Decimal


def _number(most: int, least: int = 1) -> Check:
    return lambda value: type(value) is int and least <= value <= most


def _several(each: Check) -> Check:
    return lambda value: (
        isinstance(value, list) and 1 < len(value) <= MOST_LEVELS and all(map(each, value))
    )


def _one_of(*values: Any) -> Check:
    return lambda value: any(type(value) is type(each) and value == each for each in values)


_FLAG = _one_of(True, False)
_SHARED: dict[str, Check] = {
    "in_channels": _one_of(1, 3),
    "out_channels": _one_of(1, 3),
    "act_fn": _one_of(*ACTIVATIONS),
    "latent_channels": _number(MOST_LATENT),
}
_ARGUMENTS: dict[AutoencoderKind, dict[str, Check]] = {
    "kl": _SHARED
    | {
        "down_block_types": _several(_one_of("DownEncoderBlock2D")),
        "up_block_types": _several(_one_of("UpDecoderBlock2D")),
        "block_out_channels": _several(_number(MOST_CHANNELS)),
        "layers_per_block": _number(MOST_BLOCKS),
        "norm_num_groups": _number(MOST_CHANNELS),
        "use_quant_conv": _FLAG,
        "use_post_quant_conv": _FLAG,
        "mid_block_add_attention": _FLAG,
    },
    "tiny": _SHARED
    | {
        "encoder_block_out_channels": _several(_number(MOST_CHANNELS)),
        "decoder_block_out_channels": _several(_number(MOST_CHANNELS)),
        "num_encoder_blocks": _several(_number(MOST_BLOCKS)),
        "num_decoder_blocks": _several(_number(MOST_BLOCKS)),
        "upsampling_scaling_factor": _one_of(2),
        "upsample_fn": _one_of("nearest"),
    },
}
_NEEDED: dict[AutoencoderKind, tuple[str, ...]] = {
    "kl": ("block_out_channels", "down_block_types", "up_block_types"),
    "tiny": (
        "encoder_block_out_channels",
        "decoder_block_out_channels",
        "num_encoder_blocks",
        "num_decoder_blocks",
    ),
}
# They change nothing of what is computed here: scale and shift are the plan's.
_UNUSED = {
    "sample_size",
    "force_upcast",
    "latents_mean",
    "latents_std",
    "latent_magnitude",
    "latent_shift",
}
_HINT = (
    "give a folder of diffusers' AutoencoderKL or AutoencoderTiny, with the config.json that "
    "diffusers wrote; `ddm-coord autoencoder train` makes one"
)


def read_config(data: bytes, what: str) -> AutoencoderConfig:
    """Returns what the bytes of a `config.json` say.

    Raises:
        DataError: it is no unambiguous JSON, of another class, or holds what no autoencoder here
            may have.
    """
    found = _parsed(data, what)
    name = found.get("_class_name") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(name, str) or name not in CLASSES:
        raise _refused(what, f"its `_class_name` is {printable(str(name))[:80]}")
    kind = CLASSES[name]
    checks, arguments = _ARGUMENTS[kind], dict[str, Any]()
    author = {key: found.get(key) for key in ("scaling_factor", "shift_factor")}
    for key, value in found.items():
        if key.startswith("_") or key in _UNUSED or key in author:
            continue
        if kind == "tiny" and key == "block_out_channels":
            continue  # diffusers writes the decoder's channels a second time
        if key not in checks:
            raise _refused(what, f"`{printable(key)[:80]}` is unknown here")
        if not checks[key](value):
            raise _refused(what, f"`{key}` is {printable(str(value))[:80]}")
        arguments[key] = tuple(value) if isinstance(value, list) else value
    for key in _NEEDED[kind]:
        if key not in arguments:
            raise _refused(what, f"`{key}` is missing")
    return _described(kind, arguments, author, what)


def _parsed(data: bytes, what: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) != len(pairs):
            raise ValueError("a key stands in it twice")
        return dict(pairs)

    def never(name: str) -> float:
        raise ValueError(f"it holds {name}")

    try:  # not `parse_json`, whose documents have no floats
        return json.loads(data, object_pairs_hook=once, parse_constant=never)
    except (ValueError, RecursionError) as error:
        raise _refused(what, f"it is no JSON that can be read: {error}") from None


def _described(
    kind: AutoencoderKind, arguments: dict[str, Any], author: dict[str, Any], what: str
) -> AutoencoderConfig:
    image_channels = arguments.setdefault("in_channels", 3)
    if arguments.setdefault("out_channels", 3) != image_channels:
        raise _refused(what, "`in_channels` and `out_channels` differ")
    channels: int = arguments.setdefault("latent_channels", 4)
    if kind == "kl":
        levels = {len(arguments[key]) for key in _NEEDED[kind]}
        groups = arguments.setdefault("norm_num_groups", 32)
        if any(count % groups for count in arguments["block_out_channels"]):
            raise _refused(what, "`norm_num_groups` does not divide `block_out_channels`")
    else:
        levels = {len(arguments[key]) for key in _NEEDED[kind]}
        for key in ("encoder_block_out_channels", "decoder_block_out_channels"):
            if len(set(arguments[key])) > 1:
                raise _refused(what, f"`{key}` differ, which diffusers cannot build")
    if len(levels) > 1:
        raise _refused(what, "its lists are not of one length")
    scale, shift = (_decimal(key, author[key], what) for key in author)
    positive = scale if scale is not None and scale > 0 else None
    factor = 2 ** (levels.pop() - 1)
    return AutoencoderConfig(
        kind, arguments, image_channels, channels, factor, positive, shift or Decimal(0)
    )


def _decimal(key: str, value: Any, what: str) -> Decimal | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not abs(value) < 1e6:
        raise _refused(what, f"`{key}` is {printable(str(value))[:80]}")
    return Decimal(repr(value))


def _refused(what: str, reason: str) -> DataError:
    return DataError(f"{what} describes no autoencoder that can be opened: {reason}", hint=_HINT)

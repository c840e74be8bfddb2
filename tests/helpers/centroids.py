"""Plans whose sites release centroids, and an embedder's weights as the tests make them."""

import hashlib
import warnings

import torch
from safetensors.torch import save_file

from ddm_fed.embedding.public_weights import import_torchvision
from ddm_fed.mixture import anchor_lines
from ddm_fed.records import read_plan_toml

TIMM_NAME = "test_efficientnet.r160_in1k"


def centroid_plan(anchors, embedder, *, router, unit="image", shape=(1, 8, 8), keys=""):
    """A plan with the centroids of `anchors`, whose digest is `embedder`'s."""
    return read_plan_toml(
        plan_text(anchors, embedder, router=router, unit=unit, shape=shape, keys=keys)
    )


def plan_text(anchors, embedder, *, router, unit="image", shape=(1, 8, 8), keys=""):
    """The same as people write it; `keys` are further lines of `router.centroids`."""
    lines = anchor_lines(anchors, embedder).replace("blurred", "timm:blurred")
    lines = lines.replace("[router.centroids]", f"[router.centroids]\n{keys}")
    settings = "\n".join(router.split(", "))
    size = "channels = {}\nheight = {}\nwidth = {}".format(*shape)
    return f"""
federation = "test"
expires_at = 2036-01-01T00:00:00Z
[data]
{size}
[expert]
architecture = "DiT-Nano/2"
[training]
steps = 3
batch_size = 16
[privacy]
max_epsilon = 8
unit = "{unit}"
[router]
{settings}
{lines}
"""


def timm_weights(path, seed=1):
    """Writes weights of a small network of timm, drawn at random, and returns their digest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()
        import timm
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = timm.create_model(TIMM_NAME, pretrained=False, num_classes=5)
    save_file({name: v.contiguous() for name, v in network.state_dict().items()}, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()

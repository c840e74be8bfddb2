"""Distances of samples in features of CLIP and of timm's networks, by the real command.

The networks are of the real architectures, small, with drawn weights. What a figure should be is
found another way: the package's own network asked directly, and scipy's root of a matrix.
"""

import hashlib
import json
import warnings

import commands
import numpy as np
import pytest
import torch
from captions import write_clip
from centroids import TIMM_NAME, timm_weights
from safetensors.torch import load_file, save_file
from scipy.linalg import sqrtm

from ddm_fed.embedding.base import prepared
from ddm_fed.embedding.clip import MEAN, STD
from ddm_fed.embedding.public_weights import import_torchvision

pytestmark = pytest.mark.slow

SIDE = 32  # what the small CLIP reads, so that nothing has to be resized


@pytest.fixture
def inputs(tmp_path):
    """Sixty samples that are darker than sixty real images, in colour."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "samples"
    folder.mkdir()
    shape = (60, 3, SIDE, SIDE)
    real, drawn = rng.integers(0, 256, shape, np.uint8), rng.integers(0, 160, shape, np.uint8)
    np.savez(folder / "samples.npz", images=drawn)
    (folder / "samples.json").write_text(json.dumps({"ensemble_sha256": "ab" * 32}))
    np.savez(tmp_path / "real.npz", images=real)
    return tmp_path, real, drawn


def evaluate(folder, features, *words, run=commands.done, program="ddm-coord"):
    given = ("evaluate", folder / "samples", "--real", folder / "real.npz", "--features", features)
    return run(program, *given, "--out", folder / "out", "--training-steps", 5, *words)


def report_of(folder):
    return json.loads((folder / "out" / "evaluation.json").read_bytes())


def frechet(real, drawn):
    """The distance as it is written, in place of eigenvalues of a symmetric matrix."""
    a, b = np.cov(real, rowvar=False), np.cov(drawn, rowvar=False)
    apart = np.square(real.mean(0) - drawn.mean(0)).sum()
    return apart + np.trace(a + b - 2 * sqrtm(a @ b).real)


def unit(images):
    return torch.from_numpy(images).float() / 127.5 - 1


def test_clip_fid_is_that_of_the_networks_own_outputs(inputs):
    folder, real, drawn = inputs
    weights = write_clip(folder / "clip.safetensors")
    evaluate(folder, "clip", "--weights", weights, "--train", folder / "real.npz")
    import clip

    with torch.random.fork_rng():
        network = clip.model.CLIP(24, SIDE, 1, 64, 16, 77, 49408, 64, 1, 2).float().eval()
    kept = load_file(weights)
    network.load_state_dict({name: kept[name] for name in network.state_dict()})
    mean, std = (torch.tensor(each).reshape(1, 3, 1, 1) for each in (MEAN, STD))
    with torch.no_grad():
        own = [
            network.encode_image((torch.from_numpy(each) / 255 - mean) / std).double().numpy()
            for each in (real, drawn)
        ]
    report = report_of(folder)
    assert report["results"]["fidelity"]["frechet"] == pytest.approx(frechet(*own), rel=1e-3)
    assert report["results"]["two_sample"]["per_side"] == 60
    # outputs are told apart by their lengths as well, so directions have another distance
    rows = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in own]
    assert abs(frechet(*rows) / frechet(*own) - 1) > 0.1
    # copies are looked for in these features too: the real images are the training images here
    assert set(report["results"]["memorization"]) == {"pixels", "clip"}
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert report["protocol"]["extractor"] == {"name": "clip", "sha256": digest, "width": 24}
    assert report["protocol"]["weights_file_sha256"] == digest


def test_fid_of_a_network_of_timm_is_that_of_the_networks_own_outputs(inputs):
    folder, _, _ = inputs
    rng = np.random.default_rng(1)  # small and grey, so that the network's preparation is in it
    images = [rng.integers(0, most, (40, 1, 8, 8), np.uint8) for most in (256, 160)]
    np.savez(folder / "real.npz", images=images[0])
    np.savez(folder / "samples" / "samples.npz", images=images[1])
    weights = folder / "timm.safetensors"
    digest = timm_weights(weights)
    evaluate(folder, f"timm:{TIMM_NAME}", "--weights", weights, program="ddm-site")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()
        import timm
    with torch.random.fork_rng():
        network = timm.create_model(TIMM_NAME, pretrained=False, num_classes=5).eval()
    network.load_state_dict(load_file(weights))
    settings = network.pretrained_cfg
    with torch.no_grad():
        own = [
            network.forward_head(
                network.forward_features(
                    prepared(unit(each), settings["input_size"][-1], settings["mean"],
                             settings["std"])
                ),
                pre_logits=True,
            ).double().numpy()
            for each in images
        ]  # fmt: skip
    report = report_of(folder)
    found = report["results"]["fidelity"]
    assert found["frechet"] == pytest.approx(frechet(*own), rel=1e-3)
    extractor = {"name": f"timm:{TIMM_NAME}", "sha256": digest, "width": found["features"]}
    assert report["protocol"]["extractor"] == extractor
    # another file of the same network is another measurement, and overwrites nothing
    timm_weights(weights, seed=2)
    refused = evaluate(folder, f"timm:{TIMM_NAME}", "--weights", weights, run=commands.run)
    assert refused.code != 0
    assert "other samples, images or options" in refused.err
    assert report_of(folder) == report


@pytest.mark.parametrize(
    ("features", "words", "message"),
    [
        ("clip", (), "--weights and --features"),
        ("classifier", ("--weights", "clip.safetensors"), "--weights and --features"),
        ("clip", ("--weights", "none.safetensors"), "none.safetensors, the weights of an embedder"),
        ("clip", ("--weights", "other.safetensors"), "does not hold a CLIP network"),
        ("clip", ("--weights", "real.npz"), "is not a safetensors file"),
        ("clip", ("--weights", "broken.safetensors"), "features of clip are not finite"),
        ("timm:no_such_net", ("--weights", "clip.safetensors"), "no network named `no_such_net`"),
        ("timm:", ("--weights", "clip.safetensors"), "--features"),
        ("timm:hf-hub:x/y", ("--weights", "clip.safetensors"), "has no network named"),
        ("resnet", ("--weights", "clip.safetensors"), "--features"),
    ],
)
def test_features_that_cannot_be_had_are_named_and_nothing_is_written(
    inputs, features, words, message
):
    folder, _, _ = inputs
    kept = load_file(write_clip(folder / "clip.safetensors"))
    save_file({"weight": torch.zeros(3)}, folder / "other.safetensors")
    kept["visual.proj"] = kept["visual.proj"] * torch.nan
    save_file(kept, folder / "broken.safetensors")
    words = [folder / word if word.endswith(("safetensors", "npz")) else word for word in words]
    refused = evaluate(folder, features, *words, run=commands.run)
    assert refused.code != 0
    assert message in refused.err
    assert "Traceback" not in refused.err
    assert not (folder / "out").exists()

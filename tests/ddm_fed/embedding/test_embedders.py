"""CLIP and timm from files at hand, on small networks with drawn weights that the tests make."""

import hashlib
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ddm_fed.embedding import (
    ClipEmbedder,
    TimmEmbedder,
    encode_texts,
    open_embedder,
    open_text_encoder,
)
from ddm_fed.embedding.base import prepared
from ddm_fed.embedding.clip import MEAN, STD
from ddm_fed.embedding.public_weights import import_torchvision, read_checkpoint
from ddm_fed.errors import DataError, DigestError, FileSetError, StateError
from ddm_fed.records import TextSpec

TIMM_NAME = "test_vit.r160_in1k"
OTHER_SHA256 = "0" * 64


def digest_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def generator(seed):
    return torch.Generator().manual_seed(seed)


def draw(module, seed):
    """Fills every parameter with drawn values that 16 bits cannot hold exactly."""
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator(seed))
        parameter.data = noise * 0.2 / max(parameter.shape[-1:], default=1) ** 0.5 + parameter.data
        seed += 1
    return module.eval().requires_grad_(False)


def images(count, shape=(3, 32, 32), seed=5):
    return torch.rand((count, *shape), generator=generator(seed)) * 2 - 1


def clip_package():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()
        import clip
    return clip


@pytest.fixture(scope="module")
def clip_network():
    """A CLIP as small as its package can build: heads have 64 channels."""
    with torch.random.fork_rng():
        network = clip_package().model.CLIP(
            embed_dim=24, image_resolution=32, vision_layers=2, vision_width=64,
            vision_patch_size=8, context_length=77, vocab_size=49408, transformer_width=64,
            transformer_heads=1, transformer_layers=2,
        )  # fmt: skip
    return draw(network.float(), 1)


@pytest.fixture(scope="module")
def clip_file(clip_network, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    state = {name: value.contiguous() for name, value in clip_network.state_dict().items()}
    # the TorchScript archives hold these beside the weights
    state |= {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77)}
    state |= {"vocab_size": torch.tensor(49408)}
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def clip(clip_file):
    return ClipEmbedder.open(clip_file, digest_of(clip_file))


@pytest.fixture(scope="module")
def timm_network():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()
        import timm
    with torch.random.fork_rng():
        return draw(timm.create_model(TIMM_NAME, pretrained=False, num_classes=7), 1)


@pytest.fixture(scope="module")
def timm_file(timm_network, tmp_path_factory):
    path = tmp_path_factory.mktemp("timm") / "timm.safetensors"
    save_file({name: v.contiguous() for name, v in timm_network.state_dict().items()}, path)
    return path


# --- preparation ---


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96), (100, 40), (20, 20)])
def test_prepared_images_are_those_of_pillow(height, width):
    """The package resizes files with Pillow; bytes limit how near the two can be."""
    size = 32
    # in the middle of the range: Pillow cuts overshoots after each of its two passes
    pixels = torch.randint(64, 192, (height, width, 3), generator=generator(1), dtype=torch.uint8)
    shorter = min(height, width)
    sides = (round(width * size / shorter), round(height * size / shorter))
    resized = Image.fromarray(pixels.numpy()).resize(sides, Image.Resampling.BICUBIC)
    left, top = (sides[0] - size) // 2, (sides[1] - size) // 2
    cropped = resized.crop((left, top, left + size, top + size))
    expected = torch.tensor(list(cropped.tobytes())).reshape(size, size, 3).permute(2, 0, 1) / 255
    mean, std = torch.tensor(MEAN).reshape(3, 1, 1), torch.tensor(STD).reshape(3, 1, 1)
    given = pixels.permute(2, 0, 1)[None].float() / 127.5 - 1
    found = prepared(given, size, MEAN, STD)[0] * std + mean
    assert (found - expected).abs().max() < 1.6 / 255


def test_prepared_grey_image_has_three_equal_channels():
    grey = images(2, (1, 28, 28))
    found = prepared(grey, 32, (0, 0, 0), (1, 1, 1))
    assert found.shape == (2, 3, 32, 32)
    assert torch.equal(found[:, 0], found[:, 2])


def test_prepared_latents_are_refused():
    with pytest.raises(ValueError, match="grey or colour"):
        prepared(images(1, (4, 8, 8)), 32, MEAN, STD)


# --- weights ---


def test_weights_of_another_digest_are_refused_before_they_are_parsed(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"not safetensors, and never parsed")
    with pytest.raises(DigestError, match="expected 0000"):
        read_checkpoint(path, OTHER_SHA256)


def test_weights_that_are_a_pickle_are_refused_though_the_digest_is_theirs(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(DataError, match="not a safetensors file"):
        read_checkpoint(path, digest_of(path))


def test_weights_that_are_missing_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match="is missing") as caught:
        read_checkpoint(tmp_path / "none", OTHER_SHA256)
    assert "convert" in caught.value.hint


def test_weights_behind_a_link_are_refused(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"x")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(FileSetError):
        read_checkpoint(tmp_path / "link", digest_of(target))


# --- CLIP ---


@pytest.mark.slow
def test_clip_embeddings_are_those_of_the_network_itself(clip, clip_network):
    given = images(5)
    mean, std = torch.tensor(MEAN).reshape(1, 3, 1, 1), torch.tensor(STD).reshape(1, 3, 1, 1)
    expected = clip_network.encode_image(((given + 1) / 2 - mean) / std)
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(clip.images(given), expected, rtol=0, atol=1e-6)


def test_clip_texts_are_those_of_the_network_itself(clip, clip_network):
    texts = ["a chest x-ray", "a photo of a cat"]
    expected = clip_network.encode_text(clip_package().tokenize(texts))
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(clip.texts(texts), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(expected[0], expected[1])


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 40, 64)])
def test_clip_embeddings_have_norm_one_whatever_the_image(clip, shape):
    found = clip.images(images(3, shape))
    assert found.shape == (3, clip.dimension)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


def test_clip_says_what_it_is(clip, clip_file):
    assert (clip.name, clip.dimension, clip.digest) == ("clip", 24, digest_of(clip_file))


def test_clip_text_that_is_too_long_is_refused(clip):
    with pytest.raises(ValueError, match="too long"):
        clip.texts(["cat " * 200])


def test_clip_of_another_digest_is_refused(clip_file):
    with pytest.raises(DigestError):
        ClipEmbedder.open(clip_file, OTHER_SHA256)


def test_clip_of_weights_of_another_network_is_refused(clip_file, clip_network, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(DataError, match="does not hold a CLIP network"):
        ClipEmbedder.open(path, digest_of(path))
    state = {name: value.contiguous() for name, value in clip_network.state_dict().items()}
    del state["visual.ln_post.weight"]
    save_file(state, path)
    with pytest.raises(DataError, match=r"visual\.ln_post\.weight"):
        ClipEmbedder.open(path, digest_of(path))


@pytest.mark.slow
def test_clip_in_a_fresh_interpreter_opens_beside_a_torch_without_cuda(clip_file):
    code = (
        "import sys; from pathlib import Path; from ddm_fed.embedding import ClipEmbedder\n"
        "assert 'clip' not in sys.modules and 'torchvision' not in sys.modules\n"
        f"e = ClipEmbedder.open(Path({str(clip_file)!r}), {digest_of(clip_file)!r})\n"
        "print(e.texts(['a cat']).shape[1])"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (run.stdout.strip(), run.returncode) == ("24", 0), run.stderr


@pytest.mark.parametrize("name", ["clip", f"timm:{TIMM_NAME}"])
def test_embedder_without_its_package_says_what_to_install(name, tmp_path, monkeypatch):
    package = name.partition(":")[0]
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(StateError, match=f"`{package}` cannot be imported") as caught:
        open_embedder(name, tmp_path / "weights", OTHER_SHA256)
    assert caught.value.hint == f"pip install 'ddm-fed[{package}]'"


# --- timm ---


def test_timm_embeddings_are_those_of_the_network_itself(timm_file, timm_network):
    embedder = open_embedder(f"timm:{TIMM_NAME}", timm_file, digest_of(timm_file))
    assert isinstance(embedder, TimmEmbedder)
    settings = timm_network.pretrained_cfg
    given = images(4, settings["input_size"])
    mean = torch.tensor(settings["mean"]).reshape(1, 3, 1, 1)
    std = torch.tensor(settings["std"]).reshape(1, 3, 1, 1)
    ready = ((given + 1) / 2 - mean) / std
    # what the classifier is given, just before its last layer
    expected = timm_network.forward_head(timm_network.forward_features(ready), pre_logits=True)
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(embedder.images(given), expected, rtol=0, atol=1e-6)
    assert embedder.dimension == expected.shape[1]
    assert embedder.name == f"timm:{TIMM_NAME}"
    assert embedder.digest == digest_of(timm_file)


@pytest.mark.parametrize(
    "name",
    ["no_such_network", "hf-hub:timm/resnet18", "local-dir:/tmp/x", "../resnet18", "resnet18 "],
)
def test_timm_names_that_lead_elsewhere_are_refused(name, timm_file):
    with pytest.raises(DataError, match="has no network named"):
        TimmEmbedder.open(name, timm_file, digest_of(timm_file))


def test_timm_of_weights_of_another_network_is_refused(timm_file):
    with pytest.raises(DataError, match="does not hold the network `resnet18`"):
        TimmEmbedder.open("resnet18", timm_file, digest_of(timm_file))


def test_open_embedder_with_an_unknown_name_is_refused(tmp_path):
    for name in ("vgg", "timm", "timm:", "CLIP"):
        with pytest.raises(ValueError, match="unknown embedder"):
            open_embedder(name, tmp_path, OTHER_SHA256)


# --- captions ---


def test_states_of_texts_are_those_of_the_package(clip, clip_network):
    texts = ["a boot", "Ein großer Stiefel mit Schnürsenkeln", "a " * 200]
    tokens, pooled, lengths = clip.states(texts, 77)
    read = clip_package().tokenize(texts, truncate=True)
    expected = torch.nn.functional.normalize(clip_network.encode_text(read), dim=1)
    assert (torch.from_numpy(pooled).float() - expected).abs().max() < 1e-3
    assert lengths.tolist() == [4, lengths[1], 77]
    # the state of the mark at the end, projected, is the pooled vector
    ends = torch.from_numpy(tokens).float()[range(3), lengths - 1] @ clip_network.text_projection
    assert (torch.nn.functional.normalize(ends, dim=1) - expected).abs().max() < 1e-2
    shorter, _, same = clip.states(texts, 3)
    assert np.array_equal(shorter, tokens[:, :3])
    assert np.array_equal(same, lengths)


def test_text_encoder_is_the_one_of_the_plan(clip_file):
    spec = TextSpec(sha256=digest_of(clip_file), context=77, tokens=16, width=64, pooled=24)
    encoder = open_text_encoder(clip_file, spec)
    with pytest.raises(DigestError):
        open_text_encoder(clip_file, spec.model_copy(update={"sha256": OTHER_SHA256}))
    with pytest.raises(DataError, match="says 77, 65 and 24"):
        open_text_encoder(clip_file, spec.model_copy(update={"width": 65}))
    encoded = encode_texts(encoder, spec, ["a boot", "", "a coat", "a boot"])
    told = encoded.condition(["a coat", "", "a boot"])
    assert told.mask.sum(1).tolist() == [4, 0, 4]
    assert not told.tokens[1].any()
    assert not told.pooled[1].any()
    alone = encode_texts(encoder, spec, ["a boot"]).condition(["a boot"])
    assert torch.equal(told.rows(slice(2, 3)).tokens, alone.tokens)
    with pytest.raises(ValueError, match="a caption was not encoded") as error:
        encoded.condition(["a secret"])
    assert "secret" not in str(error.value)

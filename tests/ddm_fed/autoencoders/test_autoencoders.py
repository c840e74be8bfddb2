"""Opening a public autoencoder: only the one that is named, and nothing else than one."""

import hashlib
import json

import pytest
import torch
from latents import CHANNELS, PIXELS, data_of, make_folder, opened, pictures

from ddm_fed.autoencoders import open_autoencoder, read_folder
from ddm_fed.autoencoders.config import read_config
from ddm_fed.autoencoders.fit import CHECKPOINT_FILE, FitOptions, fit_autoencoder
from ddm_fed.embedding.public_weights import import_torchvision
from ddm_fed.errors import CheckpointError, DataError, DigestError, OptionError
from ddm_fed.progress import Watch
from ddm_fed.records import DataSpec
from ddm_fed.storage.tensors import read_own_tensors

WEIGHTS = "diffusion_pytorch_model.safetensors"
GOOD = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 8,
}


def theirs(folder, kind):
    import_torchvision()
    from diffusers import AutoencoderKL, AutoencoderTiny

    network = (AutoencoderKL if kind == "kl" else AutoencoderTiny).from_pretrained(folder)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_encoding_and_decoding_equal_those_of_diffusers_from_the_same_folder(tmp_path, kind):
    folder = make_folder(tmp_path / "ae", kind=kind)
    ours, network, images = opened(folder), theirs(folder, kind), pictures(5, seed=3)
    scale, shift = float(ours.spec.scale), float(ours.spec.shift)
    if kind == "kl":
        posterior = network.encode(images).latent_dist
        wanted, deviation = posterior.mean, posterior.std
    else:
        wanted = network.encode(images).latents
        deviation = torch.zeros_like(wanted)

    means, deviations = ours.encode(images)
    back = ours.decode(means)

    assert means.shape == (5, *ours.data.shape) == (5, CHANNELS, PIXELS // 2, PIXELS // 2)
    torch.testing.assert_close(means, ((wanted - shift) * scale).clamp(-4, 4))
    torch.testing.assert_close(deviations, deviation * scale)
    decoded = network.decode(means / scale + shift).sample.clamp(-1, 1)
    torch.testing.assert_close(back, decoded)


def test_folder_saved_by_diffusers_opens_and_its_digest_is_what_the_shell_says(tmp_path):
    folder = make_folder(tmp_path / "ours")
    theirs(folder, "kl").save_pretrained(tmp_path / "theirs")

    found = read_folder(tmp_path / "theirs")

    lines = "".join(
        f"{hashlib.sha256((tmp_path / 'theirs' / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("config.json", WEIGHTS)
    )
    assert found.sha256 == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize("changed", ["config.json", WEIGHTS])
def test_another_autoencoder_is_refused_before_anything_of_it_is_parsed(tmp_path, changed):
    folder = make_folder(tmp_path / "ae")
    spec = data_of(folder)
    (folder / changed).write_bytes(b"{not even JSON")

    with pytest.raises(DigestError, match="another autoencoder than the plan's"):
        open_autoencoder(folder, spec)


def test_plan_of_pixels_and_plan_of_latents_ask_for_what_they_need(tmp_path):
    folder = make_folder(tmp_path / "ae")

    with pytest.raises(OptionError, match="--autoencoder is missing"):
        open_autoencoder(None, data_of(folder))
    with pytest.raises(OptionError, match="the plan's images are pixels"):
        open_autoencoder(folder, DataSpec(channels=1, height=8, width=8))
    assert open_autoencoder(None, DataSpec(channels=1, height=8, width=8)) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "UNet2DModel"}, "UNet2DModel"),
        ({"block_out_channels": [8, 1 << 20]}, "block_out_channels"),
        ({"block_out_channels": [8, 12]}, "norm_num_groups"),
        ({"down_block_types": ["DownEncoderBlock2D", "AttnDownBlock2D"]}, "down_block_types"),
        ({"latent_channels": True}, "latent_channels"),
        ({"layers_per_block": 10**9}, "layers_per_block"),
        ({"trust_remote_code": True}, "is unknown here"),
        ({"up_block_types": ["UpDecoderBlock2D"] * 3}, "one length"),
        ({"in_channels": 1}, "differ"),
        ({"scaling_factor": float("nan")}, "NaN"),
    ],
)
def test_config_that_describes_something_else_is_refused_by_name(change, words):
    with pytest.raises(DataError, match=words):
        read_config(json.dumps(GOOD | change).encode(), "config.json")
    read_config(json.dumps(GOOD).encode(), "config.json")


def test_pickled_weights_and_whole_pipelines_are_refused_with_what_to_do(tmp_path):
    folder = make_folder(tmp_path / "pipeline" / "vae")
    with pytest.raises(DataError) as caught:
        read_folder(tmp_path / "pipeline")
    assert str(folder) in caught.value.hint
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(DataError) as caught:
        read_folder(folder)
    assert "pickled" in caught.value.hint


def test_grey_images_pass_through_an_autoencoder_of_colour(tmp_path):
    coder = opened(make_folder(tmp_path / "ae", image_channels=3), channels=1)
    grey = pictures(3)

    means, _ = coder.encode(grey)

    assert coder.decode(means).shape == grey.shape
    torch.testing.assert_close(means, coder.encode(grey.expand(-1, 3, -1, -1))[0])


def test_training_that_was_stopped_ends_with_the_weights_of_one_that_was_not(tmp_path):
    options = FitOptions(factor=2, channels=2, width=8, steps=6, batch_size=4)
    images = pictures(12)
    fit_autoencoder(images, tmp_path / "whole", options)

    class StoppedError(Exception):
        pass

    def stop(report):
        if report.step == 4:
            raise StoppedError

    with pytest.raises(StoppedError):
        fit_autoencoder(
            images, tmp_path / "again", options, checkpoint_every_s=0.0, watch=Watch(stop)
        )
    assert (tmp_path / "again" / CHECKPOINT_FILE).exists()
    with pytest.raises(CheckpointError):
        fit_autoencoder(pictures(12, seed=9), tmp_path / "again", options)
    fit_autoencoder(images, tmp_path / "again", options)

    whole, again = (read_own_tensors(tmp_path / name / WEIGHTS) for name in ("whole", "again"))
    assert all((whole[name] == again[name]).all() for name in whole)
    assert read_folder(tmp_path / "whole").sha256 == read_folder(tmp_path / "again").sha256

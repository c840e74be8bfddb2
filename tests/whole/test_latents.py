"""A federation of latents by real commands: three sites, a kill while images are encoded."""

import json
import time

import commands
import numpy as np
import pytest
from commands import done_here as done
from commands import here
from latents import PIXELS, block_of, make_folder, pictures

pytestmark = pytest.mark.processes
SITES = ("one", "two", "three")
PLAN = """
federation = "latents"
expires_at = 2036-01-01T00:00:00Z
[data]
channels = 1
height = 16
width = 16
LATENT
[expert]
architecture = "DiT-Nano/2"
[training]
steps = 3
batch_size = 8
[router]
kind = "mixture"
epsilon = 4
frequencies = 6
radius = 12
[privacy]
max_epsilon = 5
"""


def save(path, count, seed):
    images = ((pictures(count, seed) + 1) * 127.5).round().byte().numpy()
    np.savez_compressed(path, images=images[:, 0])
    return path


def test_three_sites_train_latents_and_only_their_autoencoder_decodes_samples(tmp_path):
    right = make_folder(tmp_path / "autoencoder", seed=1)
    wrong = make_folder(tmp_path / "another", seed=2)
    hub = tmp_path / "hub"
    root = done("ddm-coord", "init", hub, "--federation", "latents").out.strip()
    for name in SITES:
        done("ddm-site", "init", tmp_path / name, "--name", name, "--root", root)
    requests = [tmp_path / name / "enrolment.dsse.json" for name in SITES]
    done("ddm-coord", "roster", "add", *requests, "--coordinator", hub)
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.replace("LATENT", block_of(right)))
    told = json.loads(
        done("ddm-coord", "plan", "show", plan, "--autoencoder", right, "--json").out
    )["latent"]
    assert told["shape"] == [2, 8, 8]
    assert told["bytes_per_image"] == 2 * 4 * 2 * 8 * 8
    assert told["encode_flops"] > 0 < told["decode_flops"]
    done("ddm-coord", "publish", plan, "--coordinator", hub)

    data = [save(tmp_path / f"{name}.npz", 600, seed) for seed, name in enumerate(SITES)]
    for name, file in zip(SITES, data, strict=True):
        common = ("--site", tmp_path / name, "--plan", hub / "published")
        words = ("train", *common, "--data", file, "--yes", "--autoencoder")
        if name == "one":
            refused = here("ddm-site", *words, wrong)
            assert (refused.code, "error[DDM206]" in refused.err) == (1, True)
            _kill_while_encoding(tmp_path / name, *words, right)
        trained = done("ddm-site", *words, right, "--sample-every", 3)
        assert "600 latents of 2 x 8 x 8" in trained.err
        assert list((tmp_path / name / "private").glob("*/samples-*.png"))
        (store,) = (tmp_path / name / "private" / "latents").iterdir()
        assert (store / "means.f32").stat().st_size == 600 * 4 * 2 * 8 * 8
        assert (store / "means.f32").stat().st_mode & 0o077 == 0
        done("ddm-site", "review", *common)
        done("ddm-site", "release", *common)
        done("ddm-site", "submit", *common, "--to", hub / "inbox")
    done("ddm-coord", "admit", "--coordinator", hub)
    done("ddm-coord", "assemble", tmp_path / "ensemble", "--coordinator", hub)

    few = ("sample", tmp_path / "ensemble", "--root", root, "--count", 6, "--steps", 2, "--out")
    for given, code, status in ((), "DDM107", 2), (("--autoencoder", wrong), "DDM206", 1):
        refused = here("ddm-coord", *few, tmp_path / "none", *given)
        assert (refused.code, f"error[{code}]" in refused.err) == (status, True)
        assert not (tmp_path / "none" / "samples.npz").exists()
    done("ddm-coord", *few, tmp_path / "out", "--autoencoder", right, "--latents")
    with np.load(tmp_path / "out" / "samples.npz") as found:
        assert found["images"].shape == (6, 1, PIXELS, PIXELS)
        assert found["latents"].shape == (6, 2, 8, 8)
        assert np.abs(found["latents"]).max() <= 4
    assert (tmp_path / "out" / "grid.png").exists()
    done("ddm-coord", *few, tmp_path / "raw", "--latents")
    judged = here("ddm-coord", "evaluate", tmp_path / "raw", "--real", data[0])
    assert (judged.code, "were not decoded" in judged.err) == (1, True)

    # an expert of one autoencoder's latents does not pass for one of another's
    plan.write_text(PLAN.replace("LATENT", block_of(wrong)))
    done("ddm-coord", "publish", plan, "--coordinator", hub)
    mixed = here("ddm-coord", "assemble", tmp_path / "mixed", "--coordinator", hub)
    assert mixed.code == 1
    assert not (tmp_path / "mixed").exists()


def _kill_while_encoding(site, *words):
    """Kills a training as soon as some of its images are encoded."""
    with commands.Started("ddm-site", *words) as started:
        until = time.monotonic() + 200
        while not any(file.stat().st_size for file in site.glob("private/latents/*/means.f32")):
            assert started.poll() is None, started.said()
            assert time.monotonic() < until
            time.sleep(0.01)
        started.kill()
        started.wait(60)
    (file,) = site.glob("private/latents/*/means.f32")
    assert file.stat().st_size < 600 * 4 * 2 * 8 * 8, "it was encoded before it could be killed"

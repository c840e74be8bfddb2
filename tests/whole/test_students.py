"""Students by real commands: killed and continued, of latents with classes, and stale."""

import json
import time
from decimal import Decimal

import commands
import numpy as np
import pytest
import torch
from commands import done, run
from federation import Federation, train
from latents import PIXELS, block_of, make_folder, pictures

from coordinator.ensembles.assemble import assemble
from coordinator.inbox.admission import admit_arrivals
from coordinator.roster import changes, proposals
from coordinator.workspace import CoordinatorFolder
from ddm_fed.distillation.train import work_folder
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import read_plan_toml
from sites.outbox import stages as outbox
from sites.transport import submit
from sites.transport.base import FolderTransport
from sites.workspace import SiteFolder, SiteSettings

pytestmark = pytest.mark.processes
PLAN = """
federation = "test"
expires_at = 2036-01-01T00:00:00Z
[data]
channels = 1
height = 16
width = 16
conditioning = "class"
classes = ["cat", "dog"]
LATENT
[expert]
architecture = "mixture+DiT-Nano/2"
[training]
steps = 2
batch_size = 16
[router]
kind = "mixture"
epsilon = 8
frequencies = 4
radius = 12
[privacy]
max_epsilon = 20
"""
SITES = ("north", "south")


def build(path):
    """A federation of latents with classes in `path`, admitted, and its ensemble."""
    coder = make_folder(path / "autoencoder", seed=1)
    home = CoordinatorFolder.create(path / "consortium", "test")
    proposals.complete_genesis(home)
    for name in SITES:
        settings = SiteSettings(name=name, root=home.settings.root, max_epsilon=Decimal(50))
        SiteFolder.create(path / name, settings)
    changes.add(home, [path / name / "enrolment.dsse.json" for name in SITES])
    proposals.publish_plan(home, read_plan_toml(PLAN.replace("LATENT", block_of(coder))))
    fed = Federation(path)
    for label, name in enumerate(SITES):
        draws = torch.Generator().manual_seed(label)
        latents = torch.randn((200, 2, 8, 8), generator=draws).clamp(-4, 4)
        fed.look(name)
        images = Private(ImageSet(latents, torch.full((200,), label), bound=4.0))
        train(fed.site(name), fed.trust, images, seed=label)
        outbox.review(fed.site(name), fed.trust)
        outbox.release(fed.site(name), fed.trust)
        submit.submit(fed.site(name), fed.trust, FolderTransport(fed.inbox))
    admit_arrivals(fed.home, fed.trust)
    assemble(fed.home, path / "ensemble", router=None, without=())
    return fed


def kill_after(checkpoints, out, *words):
    """Kills a distillation as soon as it has written a checkpoint of a step."""
    with commands.Started("ddm-coord", *words) as started:
        file, seen = work_folder(out) / "checkpoint.safetensors", set[int]()
        until = time.monotonic() + 200
        while len(seen) <= checkpoints:
            assert started.poll() is None, started.said()
            assert time.monotonic() < until
            if file.exists():
                seen.add(file.stat().st_ino)  # a new file every time
            time.sleep(0.002)
        started.kill()
        started.wait(60)
    assert not out.exists()


def test_student_of_latents_with_classes_is_killed_continued_verified_sampled_and_stale(tmp_path):
    fed = build(tmp_path)
    at, ensemble, root = ("--coordinator", fed.home.path), tmp_path / "ensemble", fed.root
    how = ("--samples", 40, "--solver-steps", 2, "--steps", 60, "--checkpoint-every", 0)
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    words = ("distill", ensemble, *at, *how, "--out")
    kill_after(2, cut, *words, cut)
    done("ddm-coord", *words, cut)
    told = json.loads(done("ddm-coord", *words, whole, "--json").out)
    files = sorted(path.relative_to(cut) for path in cut.rglob("*") if path.is_file())
    assert [(whole / name).read_bytes() == (cut / name).read_bytes() for name in files] == [
        True
    ] * len(files)
    assert told["design"]["architecture"] == "DiT-Nano/2"
    assert told["distillation"]["gigaflops"]["student"] > "0"

    elsewhere = ("verify", cut, "--root", root)
    shown = json.loads(done("ddm-coord", *elsewhere, "--json", cwd=tmp_path).out)
    assert (shown["verified"], list(shown["members"])) == ("student", list(SITES))

    # images of every class, as often as the sites have it, and of no site
    few = ("sample", cut, "--count", 24, "--steps", 2, "--out")
    raw, decoded = tmp_path / "raw", tmp_path / "decoded"
    done("ddm-coord", *few, raw, "--root", root, "--latents", "--guidance", 2)
    done("ddm-site", *few, decoded, "--site", fed.site("north").path, *_decoder(tmp_path))
    with np.load(raw / "samples.npz") as found:
        assert set(found.files) == {"latents", "labels"}
        assert found["latents"].shape == (24, 2, 8, 8)
    with np.load(decoded / "samples.npz") as found:
        assert set(found.files) == {"images", "labels"}
        assert np.bincount(found["labels"]).min() >= 8
    summary = json.loads((decoded / "samples.json").read_text())
    nothing = ("router", "strategy", "site_counts", "intended_shares", "attribution")
    assert [summary[name] for name in nothing] == [None] * len(nothing)
    real = _images(tmp_path / "real.npz")
    judged = done(
        "ddm-coord", "evaluate", decoded, "--real", real, "--train", real, "--training-steps", 3,
        "--out", tmp_path / "evaluation", "--json",
    )  # fmt: skip
    assert "frechet" in json.loads(judged.out)["results"]["fidelity"]

    gone = ("remove", "south", "--reason", "consent withdrawn", "--out", tmp_path / "without", *at)
    assert "STALE: student" in done("ddm-coord", *gone).err
    stale = run("ddm-coord", "verify", cut, *at)
    assert (stale.code, "STALE: `south` was removed" in stale.err) == (1, True)
    refused = run("ddm-coord", *few, tmp_path / "none", *at)
    assert (refused.code, "error[DDM104]" in refused.err) == (1, True)
    assert "is stale" in refused.err
    late = run("ddm-coord", *words, tmp_path / "late")
    assert (late.code, "is stale" in late.err) == (1, True)
    assert not (tmp_path / "none").exists()


def test_student_of_given_images_says_so(tmp_path):
    fed = build(tmp_path)
    given, out = _images(tmp_path / "given.npz"), tmp_path / "student"
    words = ("distill", tmp_path / "ensemble", "--coordinator", fed.home.path, "--out", out)
    words = (*words, "--steps", 2, "--data", given)
    missing = run("ddm-coord", *words)
    assert (missing.code, "--autoencoder" in missing.err) == (2, True)
    made = done("ddm-coord", *words, *_decoder(tmp_path), "--teacher", "ensemble", "--json")
    found = json.loads(made.out)
    assert found["distillation"]["source"] == "data"
    assert found["distillation"]["images"] == 60
    assert found["distillation"]["gigaflops"]["drawing"] == "0"
    assert found["privacy"]["post_processing"] is False


def _decoder(path):
    return ("--autoencoder", path / "autoencoder")


def _images(path):
    pixels = ((pictures(60) + 1) * 127.5).round().byte().numpy()
    np.savez(path, images=pixels[:, 0].reshape(60, PIXELS, PIXELS), labels=np.arange(60) % 2)
    return path

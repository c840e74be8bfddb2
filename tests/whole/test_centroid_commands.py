"""Centroids alone as the router of a plan, by the real commands; patients as units."""

import json
import re

import numpy as np
import pytest
from centroids import TIMM_NAME, timm_weights
from commands import done_here as done
from commands import here

pytestmark = pytest.mark.processes
PLAN = """
federation = "test"
expires_at = 2036-01-01T00:00:00Z
[data]
channels = 1
height = 8
width = 8
[expert]
architecture = "DiT-Nano/2"
[training]
steps = 3
batch_size = 16
[privacy]
max_epsilon = 8
unit = "patient"
[router]
"""
ALONE = 'kind = "centroid"\nepsilon = 8\n'
FOR_ANCHORS = PLAN + 'kind = "prior"\nepsilon = 8\n'


def images(seed, count=120):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 8, 8), dtype=np.uint8) // (1 + seed)


def test_plan_of_centroids_alone_goes_from_public_images_to_attributed_samples(tmp_path):
    weights = tmp_path / "network.safetensors"
    timm_weights(weights)
    (tmp_path / "first.toml").write_text(FOR_ANCHORS)
    np.savez(tmp_path / "public.npz", images=np.concatenate([images(0), images(1)]))
    embedder = ("--embedder", f"timm:{TIMM_NAME}", "--weights", weights)
    found = done(
        "ddm-coord",
        *("plan", "anchors", tmp_path / "public.npz", "--plan", tmp_path / "first.toml"),
        *(*embedder, "--components", 4, "--dimensions", 6),
    )
    (tmp_path / "plan.toml").write_text(PLAN + ALONE + found.out)
    hub = tmp_path / "hub"
    root = done("ddm-coord", "init", hub, "--federation", "test").out.strip()
    for name in ("one", "two"):
        done("ddm-site", "init", tmp_path / name, "--name", name, "--root", root)
        request = tmp_path / name / "enrolment.dsse.json"
        done("ddm-coord", "roster", "add", request, "--coordinator", hub)
    done("ddm-coord", "publish", tmp_path / "plan.toml", "--coordinator", hub)
    for seed, name in enumerate(("one", "two")):
        patients = np.arange(120) // 2
        np.savez(tmp_path / f"{name}.npz", images=images(seed), units=patients)
        common = ("--site", tmp_path / name, "--plan", hub / "published")
        train = ("train", *common, "--data", tmp_path / f"{name}.npz")
        refused = here("ddm-site", *train)
        assert refused.code in (1, 2)
        assert "--embedder-weights" in refused.err
        assert "nothing" in done("ddm-site", "ledger", *common[:2]).err.lower() or (
            not (tmp_path / name / "ledger.jsonl").exists()
            or not (tmp_path / name / "ledger.jsonl").read_bytes()
        )
        done("ddm-site", *train, "--embedder-weights", weights)
        reviewed = done("ddm-site", "review", *common)
        assert "centroids" in reviewed.out + reviewed.err
        budget = done("ddm-site", "budget", *common)
        assert "centroids" in budget.out + budget.err
        done("ddm-site", "release", *common)
        done("ddm-site", "submit", *common, "--to", hub / "inbox")
    done("ddm-coord", "admit", "--coordinator", hub)
    ensemble = tmp_path / "ensemble"
    done("ddm-coord", "assemble", ensemble, "--coordinator", hub)
    facts = json.loads(done("ddm-coord", "verify", ensemble, "--root", root, "--json").out)
    assert len(facts["members"]) == 2
    sample = ("sample", ensemble, "--root", root, "--count", 4, "--steps", 5, "--attribution")
    sample = (*sample, "--strategy", "sticky-then-routed-0.4", "--out", tmp_path / "samples")
    refused = here("ddm-coord", *sample)
    assert refused.code in (1, 2)
    assert re.search("embedder-weights", refused.err)
    done("ddm-coord", *sample, "--embedder-weights", weights)
    with np.load(tmp_path / "samples" / "samples.npz") as archive:
        assert archive["images"].shape == (4, 1, 8, 8)
        np.testing.assert_allclose(archive["attribution"].sum(1), 1, atol=1e-5)

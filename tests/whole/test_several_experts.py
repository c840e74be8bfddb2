"""One institution divides its own images by public centres and submits several experts."""

import json

import commands
import numpy as np
import pytest
from federation import PLAN_TOML, create_federation

from ddm_fed.records import read_plan_toml

pytestmark = pytest.mark.processes
PARTS = ("hospital-a-1", "hospital-a-2")
PLAN = PLAN_TOML.replace("max_epsilon = 3", 'max_epsilon = 3\nunit = "patient"').replace(
    'architecture = "DiT-Nano/2"', 'architecture = "mixture"'
)


def halves(seed, count):
    """Images that are bright above or below, by turns."""
    pixels = np.random.default_rng(seed).integers(0, 60, (count, 8, 8)).astype(np.uint8)
    pixels[::2, :4] += 190
    pixels[1::2, 4:] += 190
    return pixels


@pytest.fixture
def divided(tmp_path):
    """The shards of a hospital: patients of three images each, of which two are alike."""
    np.save(tmp_path / "public.npy", halves(0, 60))
    np.save(tmp_path / "own.npy", halves(1, 96))
    kind = np.arange(96) % 2
    patients = np.where(np.arange(96) < 90, 2 * (np.arange(96) // 6) + kind, 30)
    np.save(tmp_path / "own.units.npy", patients)
    at = ("--islands", 2, "--out")
    commands.done("ddm-coord", "partition", tmp_path / "public.npy", *at, tmp_path / "public")
    centres = ("--centres", tmp_path / "public" / "centres.npy")
    commands.done("ddm-site", "partition", tmp_path / "own.npy", *at, tmp_path / "own", *centres)
    return tmp_path / "own" / "shards"


def test_every_part_is_a_site_and_no_patient_pays_for_more_than_one(tmp_path, divided):
    units = [np.load(divided / f"island-{part}.units.npy") for part in (1, 2)]
    assert not set(units[0]) & set(units[1])
    assert len(set(units[0]) | set(units[1])) == 31
    fed = create_federation(tmp_path / "fed", read_plan_toml(PLAN), sites=(*PARTS, "hospital-b"))
    np.save(tmp_path / "b.npy", halves(2, 40))
    np.save(tmp_path / "b.units.npy", np.arange(40))
    data = (*(divided / f"island-{part}.npy" for part in (1, 2)), tmp_path / "b.npy")
    for site, images in zip((*PARTS, "hospital-b"), data, strict=True):
        common = ("--site", fed.path / site, "--plan", fed.published)
        # nobody is asked: parts by public centres are nothing to doubt
        commands.done("ddm-site", "train", *common, "--data", images)
        commands.done("ddm-site", "review", *common)
        commands.done("ddm-site", "release", *common)
        commands.done("ddm-site", "submit", *common, "--to", fed.inbox)
        ledger = json.loads(
            commands.done("ddm-site", "ledger", "--site", fed.path / site, "--json").out
        )
        assert 0 < float(ledger["releases_epsilon"]) <= 2.001
    commands.done("ddm-coord", "admit", "--coordinator", fed.path / "consortium")
    ensemble = tmp_path / "ensemble"
    commands.done("ddm-coord", "assemble", ensemble, "--coordinator", fed.path / "consortium")
    verified = json.loads(
        commands.done("ddm-coord", "verify", ensemble, "--root", fed.root, "--json").out
    )
    assert [member["site"] for member in verified["members"]] == [*PARTS, "hospital-b"]


def test_parts_by_clusters_of_their_own_images_are_doubted_before_anything_is_spent(tmp_path):
    np.save(tmp_path / "own.npy", halves(1, 40))
    commands.done(
        *("ddm-site", "partition", tmp_path / "own.npy", "--islands", 2, "--out", tmp_path / "own")
    )
    fed = create_federation(tmp_path / "fed", sites=PARTS[:1])
    site = fed.path / PARTS[0]
    shard = tmp_path / "own" / "shards" / "island-1.npy"
    refused = commands.run(
        *("ddm-site", "train", "--site", site, "--plan", fed.published, "--data", shard)
    )
    assert refused.code == 1
    assert "divided by clusters of these very images" in refused.err
    assert "--centres" in refused.err
    ledger = json.loads(commands.done("ddm-site", "ledger", "--site", site, "--json").out)
    assert not ledger["entries"]

"""Scans, shards and a table become one ensemble by the real commands; no tag of a scan leaves."""

import json
from pathlib import Path

import commands
import numpy as np
import pytest
from dicom import SECRET, write_dicom
from PIL import Image
from pydicom.uid import JPEGLSLossless, RLELossless
from shards import png, write_shard

pytestmark = pytest.mark.processes
PLAN = """
federation = "scans"
expires_at = 2036-01-01T00:00:00Z
[data]
channels = 1
height = 16
width = 16
fit = "pad"
[expert]
architecture = "DiT-Nano/4"
[training]
steps = 4
batch_size = 16
[router]
kind = "mixture"
epsilon = 4
frequencies = 6
radius = 5
[privacy]
max_epsilon = 5
unit = "patient"
"""
PATIENTS = [f"PID-{number:05}" for number in range(30)]


def scan(rng, bits=12):
    """A bright disc on a dim ground, as 12 bits of 24 x 16 pixels."""
    y, x = np.mgrid[:24, :16]
    disc = (y - rng.integers(8, 16)) ** 2 + (x - 8) ** 2 < rng.integers(9, 30)
    return (rng.integers(0, 400, (24, 16)) + disc * 3000).astype(np.uint16)


def scans(folder: Path) -> None:
    """Files of several syntaxes, windows and depths; two frames; some broken or to be left out."""
    rng = np.random.default_rng(0)
    for number, patient in enumerate(PATIENTS):
        path = folder / f"study-{number % 5}" / f"{number}.dcm"
        kind = {
            0: {},
            1: {"syntax": RLELossless},
            2: {"syntax": JPEGLSLossless, "WindowCenter": 1800, "WindowWidth": 3600},
            3: {"RescaleSlope": 1, "RescaleIntercept": -1024},
            4: {"PhotometricInterpretation": "MONOCHROME1"},
        }[number % 5]
        write_dicom(path, scan(rng), patient=patient, bits=12, **kind)
    frames = np.stack([scan(rng), scan(rng)])
    write_dicom(folder / "several.dcm", frames, patient=PATIENTS[0], bits=12)
    write_dicom(folder / "burned.dcm", scan(rng), bits=12, BurnedInAnnotation="YES")
    (folder / "broken.dcm").write_bytes((folder / "several.dcm").read_bytes()[:-300])


def test_three_sites_with_scans_shards_and_a_table_become_an_ensemble(tmp_path):
    hub = tmp_path / "hub"
    root = commands.done("ddm-coord", "init", hub, "--federation", "scans").out.strip()
    rng = np.random.default_rng(1)
    scans(tmp_path / "scans")
    entries = []
    for number in range(40):
        entries.append((f"{number:04}.png", png(number, (16, 20))))
        entries.append((f"{number:04}.json", {"patient_id": f"PID-X{number}"}))
    write_shard(tmp_path / "shards" / "a-000.tar", entries[:40])
    write_shard(tmp_path / "shards" / "a-001.tar", entries[40:])
    rows = ["file,unit"]
    for number in range(30):
        Image.fromarray(scan(rng) * 16).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,PID-Y{number}")
    (tmp_path / "all.csv").write_text("\n".join(rows))
    (tmp_path / "plan.toml").write_text(PLAN)
    data = {
        "one": tmp_path / "scans",
        "two": tmp_path / "shards" / "a-{000..001}.tar",
        "three": tmp_path / "all.csv",
    }
    for name in data:
        commands.done("ddm-site", "init", tmp_path / name, "--name", name, "--root", root)
        enrolment = tmp_path / name / "enrolment.dsse.json"
        commands.done("ddm-coord", "roster", "add", enrolment, "--coordinator", hub)
    commands.done("ddm-coord", "publish", tmp_path / "plan.toml", "--coordinator", hub)
    said = ""
    for name, source in data.items():
        common = ("--site", tmp_path / name, "--plan", hub / "published")
        checked = commands.done("ddm-site", "data", "check", source, *common)
        assert "padded with black and resized to 16 x 16" in checked.err
        trained = commands.done("ddm-site", "train", *common, "--data", source)
        assert "decoding" not in trained.err  # the check did
        review = commands.done("ddm-site", "review", *common)
        commands.done("ddm-site", "release", *common)
        submitted = commands.done("ddm-site", "submit", *common, "--to", hub / "inbox")
        said += checked.err + trained.err + review.out + review.err + submitted.err
        if name == "one":
            assert "one: 32 images" in trained.err
            assert "they are of 30 patients; the plan protects patients" in trained.err
            assert "burned.dcm" in trained.err
            assert "broken.dcm: pydicom cannot decode it" in trained.err
    commands.done("ddm-coord", "admit", "--coordinator", hub)
    ensemble = tmp_path / "ensemble"
    commands.done("ddm-coord", "assemble", ensemble, "--coordinator", hub)
    verified = commands.done("ddm-coord", "verify", ensemble, "--root", root, "--json").out
    assert len(json.loads(verified)["members"]) == 3
    out = tmp_path / "samples"
    options = ("--root", root, "--count", 6, "--steps", 3, "--out", out)
    commands.done("ddm-coord", "sample", ensemble, *options)
    with np.load(out / "samples.npz") as archive:
        assert archive["images"].shape == (6, 1, 16, 16)
    kept = b"".join(
        path.read_bytes()
        for place in ("hub", "ensemble", "samples", "one", "two", "three")
        for path in (tmp_path / place).rglob("*")
        if path.is_file()
    )
    for secret in (SECRET, "PID-"):  # not even in the private folder of the site
        assert secret.encode() not in kept
        assert secret not in said

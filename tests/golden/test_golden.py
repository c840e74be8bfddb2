"""What every release signed is verified and sampled by this version: see make.py.

Ensembles do not expire. A bundle by itself does, so it is verified at the moment it was made.
"""

import importlib.util
import json
import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from ddm_fed import __version__
from ddm_fed.bundle.submission import read_submission
from ddm_fed.bundle.verify import ENVELOPE_FILE, verify_bundle
from ddm_fed.trust.published import read_published

HERE = Path(__file__).parent
RELEASES = sorted(file.parent for file in HERE.glob("*/root"))
MAX_BYTES = 300_000


def load_maker():
    spec = importlib.util.spec_from_file_location("make_golden", HERE / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = load_maker()


@pytest.fixture(params=RELEASES, ids=lambda folder: folder.name)
def release(request) -> Path:
    return request.param


@pytest.fixture
def root(release: Path) -> str:
    return (release / "root").read_text().strip()


def test_this_version_has_its_artefacts_and_they_are_small():
    assert __version__ in {folder.name for folder in RELEASES}
    for folder in RELEASES:
        assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < MAX_BYTES


def test_ensemble_of_a_release_is_verified(run, release, root):
    ended = run("ddm-coord", "verify", release / "ensemble", "--root", root, "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["verified"] == "ensemble"


def test_ensemble_of_a_release_is_refused_with_a_byte_changed(run, release, root, tmp_path):
    copy = Path(shutil.copytree(release / "ensemble", tmp_path / "ensemble"))
    weights = copy / "sites" / "network" / "expert.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    ended = run("ddm-coord", "verify", copy, "--root", root)
    assert ended.code == 1
    assert "error[DDM206]" in ended.err


@pytest.mark.parametrize("site", make.SITES)
def test_bundle_of_a_release_is_verified_at_its_time(release, root, site):
    trust = read_published(release / "ensemble", root)
    folder = release / "ensemble" / "sites" / site
    signed = (folder / ENVELOPE_FILE).read_bytes()
    said = read_submission(signed, trust.chain, 0, what="the bundle").statement.predicate
    moment = said.issued_at + timedelta(hours=1)
    assert verify_bundle(folder, trust, moment, position=0).site == site


@pytest.mark.parametrize("name", make.SAMPLES)
def test_ensemble_of_a_release_is_sampled_to_the_same_images(run, release, root, name, tmp_path):
    words = ("sample", release / "ensemble", "--root", root, "--out", tmp_path / "out")
    ended = run("ddm-coord", *words, *make.ASKED, *make.SAMPLES[name])
    assert ended.code == 0, ended.err
    with np.load(release / f"{name}.npz") as then, np.load(tmp_path / "out/samples.npz") as now:
        assert set(then.files) <= set(now.files)
        for key in set(then.files) - {"images"}:  # also whose each is, where one site drew it
            assert np.array_equal(then[key], now[key])
        # another processor rounds otherwise: a pixel may fall to the next of 256 greys
        differ = np.abs(then["images"].astype(int) - now["images"].astype(int))
        assert differ.max() <= 1
        assert (differ > 0).mean() < 0.02

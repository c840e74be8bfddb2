"""`ddm-site data prepare`: what networks make of images, before training, by one job or many."""

from decimal import Decimal

import numpy as np
import pytest
from centroids import TIMM_NAME, plan_text, timm_weights
from latents import block_of, make_folder, pictures
from typer.testing import CliRunner

from ddm_fed.embedding import open_embedder
from ddm_fed.errors import OptionError, StateError
from ddm_fed.mixture import public_anchors
from sites.cli.main import app
from sites.workspace import SiteFolder, SiteSettings

COUNT = 13
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
kind = "prior"
epsilon = 4
[privacy]
max_epsilon = 5
"""


@pytest.fixture
def images(tmp_path):
    pixels = ((pictures(COUNT)[:, 0] + 1) * 127.5).round().byte().numpy()
    np.savez(tmp_path / "images.npz", images=pixels)
    return tmp_path / "images.npz"


@pytest.fixture
def latents(tmp_path):
    """A plan with an autoencoder, and the options that `prepare` takes for it."""
    folder = make_folder(tmp_path / "autoencoder")
    (tmp_path / "plan.toml").write_text(PLAN.replace("LATENT", block_of(folder)))
    return ("--plan", tmp_path / "plan.toml", "--autoencoder", folder)


def site(path):
    settings = SiteSettings(name=path.name, root="sha256:" + "ab" * 32, max_epsilon=Decimal(3))
    return SiteFolder.create(path, settings)


def prepare(*words):
    return CliRunner().invoke(app, ["data", "prepare", *map(str, words)])


def said(*words):
    done = prepare(*words)
    assert done.exit_code == 0, done.output
    return done.output


def kept(home):
    """The files that were kept, and that nobody else may read them."""
    found = {}
    for path in (home.path / "private").rglob("*"):
        if path.is_file() and path.name != ".lock":
            assert path.stat().st_mode & 0o077 == 0
            found[str(path.relative_to(home.path))] = path.read_bytes()
    return found


def test_parts_by_the_command_are_put_together_by_it(tmp_path, images, latents):
    one, many = site(tmp_path / "one"), site(tmp_path / "many")
    assert "all 13 images are prepared" in said(images, "--site", one.path, *latents)
    for part in ("2/3", "3/3"):
        told = said(images, "--site", many.path, *latents, "--part", part)
        assert "of 13 images are done. When those of all parts are" in told
    said(images, "--site", many.path, *latents)  # the first part is missing
    assert kept(many) == kept(one)
    assert any("means.f32" in name for name in kept(one))
    assert not (one.path / "ledger.jsonl").exists()


def test_part_that_was_damaged_is_refused_by_name(tmp_path, images, latents):
    home = site(tmp_path / "one")
    said(images, "--site", home.path, *latents, "--part", "1/2")
    (file,) = home.path.rglob(".part-1-of-2/means.f32")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    done = prepare(images, "--site", home.path, *latents)
    assert isinstance(done.exception, StateError)
    assert ".part-1-of-2/means.f32 is not what an earlier run left" in done.exception.message


@pytest.mark.parametrize(
    ("part", "message"),
    [("3/2", "--part 3/2 is no part"), ("1/14", "--part 1/14: 13 images are computed in 13")],
)
def test_part_that_cannot_be_is_refused(tmp_path, images, latents, part, message):
    home = site(tmp_path / "one")
    done = prepare(images, "--site", home.path, *latents, "--part", part)
    assert isinstance(done.exception, OptionError)
    assert message in done.exception.message
    assert not list(home.path.rglob(".part-*"))


def test_plan_of_pixels_leaves_nothing_to_prepare(tmp_path, images):
    home = site(tmp_path / "one")
    (tmp_path / "plan.toml").write_text(PLAN.replace("LATENT", ""))
    told = said(images, "--site", home.path, "--plan", tmp_path / "plan.toml")
    assert "no latents and no centroids" in told


@pytest.mark.slow
def test_images_are_embedded_in_parts_where_the_plan_has_centroids(tmp_path, images):
    weights = tmp_path / "network.safetensors"
    embedder = open_embedder(f"timm:{TIMM_NAME}", weights, timm_weights(weights))
    anchors = public_anchors(embedder.images(pictures(20, seed=5)), 4, 0, dimensions=6)
    router = 'kind = "centroid"\nepsilon = 8'
    text = plan_text(anchors, embedder, router=router, shape=(1, 16, 16))
    (tmp_path / "plan.toml").write_text(text)
    common = ("--plan", tmp_path / "plan.toml", "--embedder-weights", weights)
    one, many = site(tmp_path / "one"), site(tmp_path / "many")
    said(images, "--site", one.path, *common)
    for part in ("1/2", "2/2"):
        said(images, "--site", many.path, *common, "--part", part)
    said(images, "--site", many.path, *common)
    assert kept(many) == kept(one)
    assert sum(len(data) for name, data in kept(one).items() if "directions.f64" in name) == (
        COUNT * 6 * 8
    )

"""`ddm_fed.load`: verified as the command does, and the very images of the command."""

import hashlib
import io
import json

import numpy as np
import pytest
import torch
from federation import SITES, flip
from PIL import Image

import ddm_fed
from coordinator.ensembles.remove import remove
from ddm_fed.errors import DataError, OptionError, RefusedError, StateError


@pytest.fixture
def loaded(stages):
    return ddm_fed.load(stages.ensemble, stages.admitted.root, device="cpu", progress=False)


def command(run, stages, out, *words):
    at = ("--root", stages.admitted.root, "--out", out, "--no-png", "--device", "cpu")
    done = run("ddm-coord", "sample", stages.ensemble, *at, *words)
    assert done.code == 0, done.err
    with np.load(out / "samples.npz") as found:
        return dict(found)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (("--count", 5, "--steps", 2), {"count": 5, "steps": 2}),
        (
            ("--count", 6, "--steps", 2, "--seed", 3, "--strategy", "full", "--in-flight", 4),
            {"count": 6, "steps": 2, "seed": 3, "strategy": "full", "in_flight": 4},
        ),
        (
            ("--count", 5, "--steps", 3, "--solver", "sde", "--attribution"),
            {"count": 5, "steps": 3, "solver": "sde", "attribution": True},
        ),
    ],
)
def test_sample_gives_the_very_images_of_the_command(run, stages, scratch, loaded, words, options):
    told = command(run, stages, scratch / "out", *words)
    found = loaded.sample(**options)
    assert np.array_equal(found.images, told["images"].transpose(0, 2, 3, 1))
    if "sites" in told:
        assert found.sites.tolist() == [SITES[place] for place in told["sites"]]
    else:
        assert found.sites is None
    if "attribution" in told:
        assert np.array_equal(found.attribution, told["attribution"])
    assert found.labels is None


def test_another_seed_gives_other_images(loaded):
    first, second = (loaded.sample(2, seed=seed, steps=2).images for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_grid_is_a_picture_of_the_samples_and_what_a_notebook_shows(loaded):
    found = loaded.sample(4, steps=2)
    grid = found.grid(zoom=1)
    assert grid.size == (2 * 9 + 1, 2 * 9 + 1)
    assert np.array_equal(np.asarray(grid)[1:9, 1:9], found.images[0, :, :, 0])
    assert Image.open(io.BytesIO(found._repr_png_())).size == found.grid().size
    assert "4 samples, each 8 x 8 x 1" in repr(found)


def test_folder_that_was_altered_is_refused(ensemble, stages):
    flip(ensemble / "sites" / "hospital-b" / "expert.safetensors", -1)
    with pytest.raises(RefusedError, match="hospital-b"):
        ddm_fed.load(ensemble, stages.admitted.root, progress=False)


def test_other_fingerprint_is_refused(stages):
    with pytest.raises(RefusedError):
        ddm_fed.load(stages.ensemble, "sha256:" + "b" * 64, progress=False)
    with pytest.raises(RefusedError):
        ddm_fed.load(stages.ensemble, "no fingerprint", progress=False)


def test_ensemble_whose_member_was_removed_is_refused_if_newer_documents_are_given(
    copy_of, ensemble
):
    fed = copy_of("admitted")
    published = {"published": fed.published, "progress": False}
    assert ddm_fed.load(ensemble, fed.root, **published).report()["stale"] == []
    remove(fed.home, "hospital-b", reason="consent withdrawn", delete_weights=False)
    for verb in (ddm_fed.load, ddm_fed.verify):
        with pytest.raises(StateError, match="consent withdrawn"):
            verb(ensemble, fed.root, **published)


def test_report_says_what_verify_says_and_the_shares(run, stages, loaded):
    done = run("ddm-coord", "verify", stages.ensemble, "--root", stages.admitted.root, "--json")
    told, report = json.loads(done.out), loaded.report()
    assert ddm_fed.verify(stages.ensemble, stages.admitted.root, progress=False) == told
    assert json.loads(json.dumps({name: report[name] for name in told})) == told
    assert report["sites"] == list(SITES)
    assert sum(report["shares"].values()) == pytest.approx(1)
    assert report["shape"] == [1, 8, 8]


def test_verify_of_published_folder_and_bundle_says_what_the_command_says(
    run, stages, bundle, monkeypatch
):
    fed = stages.submitted
    for target, more in ((fed.published, ()), (bundle, ("--published", fed.published))):
        words = ("verify", target, "--root", fed.root, "--json", *more)
        told = json.loads(run("ddm-coord", *words).out)
        options = {"published": fed.published} if more else {}
        assert ddm_fed.verify(target, fed.root, progress=False, **options) == told
    with pytest.raises(ValueError, match="verified with `published`"):
        ddm_fed.verify(bundle, fed.root, progress=False)


# --- velocity ---


def test_velocity_is_the_sum_of_the_sites_velocities_by_the_routers_weights(loaded):
    x = torch.randn((4, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    parts = torch.stack([loaded.velocity(x, 0.6, site=site) for site in loaded.sites], 1)
    router = loaded._ensemble.router
    weights = router.log_posterior(x, torch.full((4,), 0.6), None).exp().float()
    expected = (weights[:, :, None, None, None] * parts).sum(1)
    torch.testing.assert_close(loaded.velocity(x, 0.6), expected, rtol=0, atol=1e-6)


def test_velocity_by_hand_with_euler_makes_the_samples_of_full(loaded):
    drawn = loaded.sample(3, strategy="full", solver="euler", steps=4, latents=False)
    noise = []
    for index in range(3):
        seed = hashlib.sha256(f"0/noise/{index}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(seed[:8], "big") >> 1)
        noise.append(torch.randn((1, 8, 8), generator=generator))
    x = torch.stack(noise)
    with torch.no_grad():
        for step in range(4):
            x = x - 0.25 * loaded.velocity(x, 1 - step / 4)
    pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.abs(pixels.astype(int) - drawn.images).max() <= 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strategy": "sticky"}, "draws sites"),
        ({"strategy": "nearest"}, "unknown strategy"),
        ({"site": "hospital-z"}, "hospital-z"),
        ({"guidance": 2.0}, "needs a condition"),
        ({"condition": "cat"}, "no class of the plan"),
    ],
)
def test_velocity_refuses_what_means_nothing(loaded, options, said):
    with pytest.raises(ValueError, match=said):
        loaded.velocity(torch.zeros((2, 1, 8, 8)), 0.5, **options)


def test_velocity_of_states_of_another_shape_is_refused(loaded):
    with pytest.raises(DataError, match=r"expected \(N, 1, 8, 8\)"):
        loaded.velocity(torch.zeros((2, 8, 8)), 0.5)


# --- attribution ---


def test_attribution_is_the_routers_posterior_of_nearly_clean_images(loaded):
    drawn = loaded.sample(20, steps=2)
    found = loaded.attribution(drawn.images)
    assert found.shape == (20, 3)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-9)
    assert np.array_equal(found, loaded.attribution(drawn.images))
    # the noise of t = 0.05 moves it little from what the router says of the images themselves
    x = torch.from_numpy(drawn.images).permute(0, 3, 1, 2) / 127.5 - 1
    clean = loaded._ensemble.router.log_posterior(0.95 * x, torch.full((20,), 0.05), None).exp()
    assert np.abs(found - clean.numpy()).mean() < 0.1


def test_attribution_by_a_router_that_looks_at_no_image_is_refused(stages):
    blind = ddm_fed.load(stages.ensemble, stages.admitted.root, router="prior", progress=False)
    with pytest.raises(OptionError, match="looks at no image"):
        blind.attribution(np.zeros((1, 8, 8, 1), np.uint8))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": 0}, "count 0"),
        ({"steps": 0}, "steps must be positive"),
        ({"guidance": float("nan")}, "guidance nan"),
        ({"strategy": "nearest"}, "unknown strategy"),
        ({"solver": "runge"}, "solver 'runge'"),
        ({"label": "cat"}, "--class cat"),
        ({"latents": True}, "--latents"),
        ({"prompts": "a cat"}, "--prompt"),
    ],
)
def test_sample_refuses_what_the_command_refuses(loaded, options, said):
    with pytest.raises((OptionError, ValueError), match=said):
        loaded.sample(**options)


# --- students ---


@pytest.fixture
def student(run, copy_of, ensemble, scratch):
    fed = copy_of("admitted")
    at = ("--coordinator", fed.home.path, "--out", scratch / "student")
    how = ("--samples", 20, "--solver-steps", 2, "--steps", 2)
    done = run("ddm-coord", "distill", ensemble, *at, *how)
    assert done.code == 0, done.err
    return fed, scratch / "student"


def test_student_loads_the_same_way_and_gives_the_images_of_the_command(run, student, scratch):
    fed, folder = student
    out = ("--out", scratch / "out", "--no-png", "--device", "cpu", "--root", fed.root)
    done = run("ddm-coord", "sample", folder, *out, "--count", 4, "--steps", 2, "--seed", 2)
    assert done.code == 0, done.err
    loaded = ddm_fed.load(folder, fed.root, device="cpu", progress=False)
    found = loaded.sample(4, steps=2, seed=2)
    with np.load(scratch / "out" / "samples.npz") as told:
        assert np.array_equal(found.images, told["images"].transpose(0, 2, 3, 1))
    assert (found.sites, loaded.shares, loaded.is_student) == (None, {}, True)
    assert loaded.report()["verified"] == "student"
    assert loaded.velocity(torch.zeros((2, 1, 8, 8)), 0.5).shape == (2, 1, 8, 8)
    for refused in (
        lambda: loaded.attribution(found.images),
        lambda: loaded.sample(2, strategy="sticky"),
        lambda: loaded.velocity(torch.zeros((2, 1, 8, 8)), 0.5, site="hospital-a"),
        lambda: ddm_fed.load(folder, fed.root, router="prior", progress=False),
    ):
        with pytest.raises(OptionError, match="a student is one network"):
            refused()

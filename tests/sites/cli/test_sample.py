"""`ddm-site sample` and `evaluate`: a site uses an ensemble with its own program and pin."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from federation import SITES
from typer.testing import CliRunner

import coordinator.cli.main
import sites.cli.main
from coordinator.ensembles.assemble import assemble
from coordinator.ensembles.remove import remove
from ddm_fed.errors import LogError, RefusedError, RosterError, StateError
from ddm_fed.evaluation.report import LEAST

A, B, _ = SITES


@pytest.fixture
def fed(copy_of, ensemble):
    """A federation that has admitted everything, with the folder of one site, and its ensemble."""
    fed = copy_of("admitted", A)
    fed.look(A)
    return fed


def run(app, *words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    return SimpleNamespace(
        code=done.exit_code, said=" ".join(done.output.split()), raised=done.exception
    )


def sample(fed, ensemble, out, *more):
    words = ("sample", ensemble, "--site", fed.path / A, "--out", out, "--steps", 2, *more)
    return run(sites.cli.main.app, *words)


def test_site_draws_the_very_samples_that_its_coordinator_draws(fed, ensemble, scratch):
    few = ("--count", 6, "--steps", 2, "--seed", 3)
    mine = sample(fed, ensemble, scratch / "mine", *few)
    assert mine.code == 0, mine.said
    home = ("--coordinator", fed.home.path, "--out", scratch / "theirs")
    assert run(coordinator.cli.main.app, "sample", ensemble, *home, *few).code == 0
    for name in ("samples.npz", "samples.json", "grid.png"):
        assert (scratch / "mine" / name).read_bytes() == (scratch / "theirs" / name).read_bytes()


def test_site_refuses_an_ensemble_whose_member_was_removed_once_it_has_fetched_that(
    fed, ensemble, scratch
):
    remove(fed.home, B, reason="consent withdrawn", delete_weights=False)
    assert sample(fed, ensemble, scratch / "before", "--count", 2).code == 0
    fed.look(A)
    found = sample(fed, ensemble, scratch / "after", "--count", 2)
    assert isinstance(found.raised, StateError)
    assert f"`{B}` was removed on" in found.raised.message
    assert "ddm-site ensemble" in found.raised.hint
    assert not (scratch / "after").exists()


def test_site_that_has_seen_less_than_the_ensemble_samples_it(fed, scratch):
    """A log that goes on from the one it saw says nothing against the ensemble."""
    remove(fed.home, B, reason="consent withdrawn", delete_weights=False)
    assemble(fed.home, scratch / "newer", router=None, without=())
    found = sample(fed, scratch / "newer", scratch / "out", "--count", 2)
    assert found.code == 0, found.said


def test_site_refuses_an_ensemble_of_another_history_than_it_saw(copy_of, fed, scratch):
    fork = fed.copy(scratch / "fork", "consortium")
    for federation, reason in ((fed, "one"), (fork, "another")):
        remove(federation.home, B, reason=reason, delete_weights=False)
    fed.look(A)
    assemble(fork.home, scratch / "forked", router=None, without=())
    found = sample(fed, scratch / "forked", scratch / "out", "--count", 2)
    assert isinstance(found.raised, (LogError, RosterError))
    assert not (scratch / "out").exists()


def test_site_believes_its_own_pin_and_no_other(fed, ensemble, scratch):
    settings = fed.path / A / "site.toml"
    settings.write_text(settings.read_text().replace(fed.root, "sha256:" + "b" * 64))
    found = sample(fed, ensemble, scratch / "out", "--count", 2)
    assert isinstance(found.raised, RefusedError)
    assert not (scratch / "out").exists()


def test_site_evaluates_what_it_drew_without_any_coordinator(fed, ensemble, scratch):
    found = sample(fed, ensemble, scratch / "samples", "--count", 2 * LEAST, "--no-png")
    assert found.code == 0, found.said
    shutil.rmtree(fed.home.path)
    pixels = np.random.default_rng(0).integers(0, 256, (2 * LEAST, 1, 8, 8), np.uint8)
    np.savez(scratch / "real.npz", images=pixels)
    words = ("--real", scratch / "real.npz", "--train", scratch / "real.npz")
    words = (*words, "--out", scratch / "evaluation", "--training-steps", 2, "--json")
    found = run(sites.cli.main.app, "evaluate", scratch / "samples", *words)
    assert found.code == 0, found.said
    report = json.loads((scratch / "evaluation" / "evaluation.json").read_text())
    assert report["inputs"]["samples"]["count"] == 2 * LEAST

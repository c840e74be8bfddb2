"""`sites.api`: a site's steps from Python spend in the ledger that the commands spend in."""

import json

import numpy as np
import pytest
from federation import SITES, create_federation

import sites.api
from ddm_fed.errors import DataError, StateError
from ddm_fed.training import RunOptions
from sites.privacy.ledger import open_ledger

pytestmark = pytest.mark.slow
A = SITES[0]


@pytest.fixture
def fed(scratch):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8)
    np.savez(scratch / "images.npz", images=pixels)
    return create_federation(scratch / "federation", sites=(A,))


def test_python_and_the_commands_share_one_ledger_and_one_draft(fed, scratch, run):
    at = (fed.path / A, fed.published)
    draft = sites.api.train(*at, str(scratch / "images.npz"), options=RunOptions(seed=1))
    spent = open_ledger(fed.site(A)).entries()
    assert len(spent) == 3

    told = run("ddm-site", "ledger", "--site", at[0], "--json")
    assert len(json.loads(told.out)["entries"]) == 3
    words = ("train", "--site", at[0], "--plan", at[1], "--data", scratch / "images.npz")
    done = run("ddm-site", *words, "--seed", 1)
    assert done.code == 0, done.err
    assert "nothing more is spent" in done.err
    assert str(draft) in done.err
    assert open_ledger(fed.site(A)).entries() == spent

    with pytest.raises(StateError, match="was not reviewed"):
        sites.api.release(*at)
    egress = sites.api.review(*at)
    told = run("ddm-site", "review", "--site", at[0], "--plan", at[1], "--json")
    assert egress.model_dump(mode="json") == json.loads(told.out)
    released = sites.api.release(*at)
    assert (released.parent, released.name) == (fed.site(A).released, draft.name)


def test_images_that_look_like_a_mistake_are_refused_before_anything_is_spent(fed, scratch):
    np.savez(scratch / "dark.npz", images=np.ones((24, 8, 8), np.uint8))
    with pytest.raises(DataError, match="look like a mistake"):
        sites.api.train(fed.path / A, fed.published, str(scratch / "dark.npz"))
    assert open_ledger(fed.site(A)).entries() == ()

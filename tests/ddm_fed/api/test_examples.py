"""The examples of docs/api.md, run line by line on the real federation of the tests."""

import doctest
import shutil

import numpy as np
import pytest
from documents import ROOT
from federation import PLAN_TOML

PAGE = ROOT / "docs" / "api.md"


@pytest.fixture
def folder(copy_of, ensemble, scratch, monkeypatch):
    """The folders that the page speaks of, where it would be typed."""
    fed = copy_of("admitted", "hospital-a")
    here = ensemble.parent
    (fed.path / "hospital-a").rename(here / "hospital-a")
    shutil.copytree(fed.published, here / "published")
    for work in (here / "hospital-a" / "private").iterdir():  # as if it had not trained yet
        if work.is_dir():
            shutil.rmtree(work)
    (here / "plan.toml").write_text(PLAN_TOML)
    pixels = np.random.default_rng(5).integers(0, 256, (24, 8, 8), dtype=np.uint8)
    np.savez(here / "images.npz", images=pixels)
    monkeypatch.chdir(here)
    return fed


def test_examples_of_the_page_show_what_happens(folder):
    said: list[str] = []
    test = doctest.DocTestParser().get_doctest(
        PAGE.read_text().replace("```", ""), {"ROOT": folder.root}, PAGE.name, str(PAGE), 0
    )
    assert len(test.examples) > 20
    found = doctest.DocTestRunner().run(test, out=said.append)
    assert found.failed == 0, "".join(said)

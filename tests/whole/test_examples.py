"""The examples as their READMEs tell people to start them.

Those that are one shell script run in their short form, which differs in numbers only.
"""

import re
import shutil

import numpy as np
import pytest
import scripts
from documents import ROOT, blocks_of

EXAMPLES = ROOT / "examples"
pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]


def start(name, folder, *options, **more):
    """Runs the script of an example as its README has it, and returns what it said."""
    block = blocks_of(EXAMPLES / name / "README.md")[0]
    activate, line = block.text.splitlines()
    script = f"examples/{name}/run.sh"
    assert (activate, line) == (". .venv/bin/activate", script)
    words = (ROOT / script, "--short", "--out", "run", *options)
    return scripts.run(*words, cwd=folder, timeout=880, **more)


def test_hospitals_without_a_network_end_with_an_ensemble_and_two_pages(scratch):
    said = start("hospitals", scratch)
    assert re.search(r"hospital-3 .*admitted", said)
    page = (scratch / "run" / "report.html").read_text()
    assert "hospital-3" in page
    private = scratch / "run" / "hospital-3" / "private" / "report.html"
    assert private.stat().st_mode & 0o077 == 0
    assert list((scratch / "run" / "hospital-3" / "receipts").iterdir())
    assert (scratch / "run" / "samples" / "grid.png").is_file()


def test_site_that_left_is_as_if_it_never_came_and_what_knew_it_is_refused(scratch):
    said = start("remove-a-site", scratch)
    assert "equal, bit for bit" in said
    assert said.count("(refused, as it should be)") == 4
    assert said.count("STALE: `hospital-c` was removed") == 2
    assert "goes on to be used" not in said


def test_captions_stay_and_prompts_say_what_is_drawn(scratch):
    said = start("text", scratch)
    assert "none found" in said
    assert "prompt 9: " in said
    assert (scratch / "run" / "samples" / "images" / "000000.png").is_file()


def test_islands_as_their_readme_starts_them_end_with_samples(scratch):
    here = scratch / "examples" / "islands"
    shutil.copytree(EXAMPLES / "islands", here)
    plan = (here / "plan.toml").read_text()
    (here / "plan.toml").write_text(plan.replace("steps = 3000", "steps = 2"))
    images = np.random.default_rng(0).integers(0, 256, (80, 28, 28), np.uint8)
    np.savez(scratch / "images.npz", images=images, labels=np.arange(80) % 10)
    line = blocks_of(here / "README.md")[0].text
    scripts.run("bash", "-euc", line, cwd=scratch, timeout=880)
    assert (scratch / "islands-run" / "samples" / "samples.npz").is_file()


@pytest.mark.parametrize("name", ["hospitals", "remove-a-site", "text"])
def test_folder_that_is_there_is_left_alone(tmp_path, name):
    (tmp_path / "run").mkdir()
    words = (EXAMPLES / name / "run.sh", "--out", "run")
    assert "run is there already" in scripts.run(*words, cwd=tmp_path, expect=1)
    assert list((tmp_path / "run").iterdir()) == []

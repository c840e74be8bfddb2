"""examples/custom-expert as it stands: installed with pip, trained, admitted, sampled."""

import shutil
import subprocess
import sys
from pathlib import Path

import commands
import numpy as np
import pytest
import scripts

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom-expert"
PIP = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(1200)
def test_network_of_an_installed_package_goes_from_training_to_samples(scratch):
    shutil.copytree(EXAMPLE, scratch / "source", ignore=shutil.ignore_patterns("__pycache__"))
    target = scratch / "installed"
    words = [sys.executable, *PIP, "--target", target, scratch / "source"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=1100)
    assert done.returncode == 0, done.stderr
    shown = commands.run("ddm-coord", "plan", "show", EXAMPLE / "plan.toml")
    assert "pip install waves-expert==1.0" in shown.err
    words = ("python", EXAMPLE / "run.py", scratch / "run")
    scripts.run(*words, cwd=scratch, timeout=1100, variables={"PYTHONPATH": str(target)})
    with np.load(scratch / "run" / "samples" / "samples.npz") as drawn:
        assert drawn["images"].shape == (16, 1, 8, 8)
        assert drawn["images"].std() > 10

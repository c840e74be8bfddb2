"""examples/custom-expert as it stands: installed with pip, trained, admitted, sampled."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom-expert"
PIP = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")


def ended(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"} | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=1100,
    )


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(1200)  # twenty commands, each of which imports torch
def test_network_of_an_installed_package_goes_from_training_to_samples(scratch):
    shutil.copytree(EXAMPLE, scratch / "source", ignore=shutil.ignore_patterns("__pycache__"))
    target = scratch / "installed"
    done = ended(*PIP, "--target", target, scratch / "source")
    assert done.returncode == 0, done.stderr
    show = (Path(sys.executable).parent / "ddm-coord", "plan", "show", EXAMPLE / "plan.toml")
    assert "pip install waves-expert==1.0" in ended(*show).stderr
    done = ended(EXAMPLE / "run.py", scratch / "run", PYTHONPATH=str(target))
    assert done.returncode == 0, done.stderr
    with np.load(scratch / "run" / "samples" / "samples.npz") as drawn:
        assert drawn["images"].shape == (16, 1, 8, 8)
        assert drawn["images"].std() > 10

"""Another package called `sites` or `coordinator` does no harm to our programs, nor ours to it.

The scripts themselves run, from the first line of Python on: what comes first on Python's path is
what is tested. tests/whole/test_designs.py does the same with torchrun.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment

NAMES = ("sites", "coordinator")
BIN = Path(sys.executable).parent


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder with somebody else's packages of our names, which say so when they are imported."""
    folder = tmp_path / "foreign"
    for name in NAMES:
        (folder / name / "cli").mkdir(parents=True)
        (folder / name / "__init__.py").write_text("print('somebody else')\n")
        (folder / name / "workspace.py").write_text("raise SystemExit('somebody else')\n")
        (folder / name / "cli" / "__init__.py").write_text("raise SystemExit('somebody else')\n")
    return folder


def said_by(*words: object, cwd: Path, **variables: str) -> str:
    ended = subprocess.run(
        list(map(str, words)),
        env=environment(**variables),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("place", ["PYTHONPATH", "working directory", "sitecustomize"])
def test_programs_run_beside_foreign_packages_of_their_names(foreign, place, tmp_path):
    variables = {} if place == "working directory" else {"PYTHONPATH": str(foreign)}
    if place == "sitecustomize":  # imported before any line of ours
        lines = [f"import {name}\n" for name in NAMES]
        (foreign / "sitecustomize.py").write_text("".join(lines))
    said = said_by(
        *(BIN / "ddm-coord", "init", tmp_path / "hub", "--federation", "test"),
        cwd=foreign,
        **variables,
    )
    root = next(word for word in said.split() if word.startswith("sha256:"))
    words = ("init", tmp_path / "site", "--name", "hospital-a", "--root", root)
    said += said_by(BIN / "ddm-site", *words, cwd=foreign, **variables)
    assert (tmp_path / "site" / "enrolment.dsse.json").exists()
    assert said.count("somebody else") == (4 if place == "sitecustomize" else 0)


def test_a_program_that_imports_the_library_keeps_its_own_packages(foreign, tmp_path):
    code = "import ddm_fed, ddm_fed.programs, sites; print(sites.__file__)"
    said = said_by(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(foreign))
    assert said.splitlines() == ["somebody else", str(foreign / "sites" / "__init__.py")]

"""`make` installs with a line a phase: pip's warnings stay out of sight, its errors do not."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "install.py"
METADATA = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A folder with one package in it, real enough for pip."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "")
        wheel.writestr("tiny-1.0.dist-info/METADATA", METADATA)
        wheel.writestr("tiny-1.0.dist-info/WHEEL", WHEEL)
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    return folder


def install(index: Path, package: str) -> subprocess.CompletedProcess[str]:
    """Installs from a folder, and from one that is not there, of which pip warns."""
    places = ("--no-index", "--find-links", index, "--find-links", "/nowhere/at/all")
    target = ("--target", index.parent / "target")
    return subprocess.run(
        [sys.executable, SCRIPT, sys.executable, *places, *target, package],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.slow
def test_installation_says_its_phases_and_not_the_warnings_of_pip(index):
    done = install(index, "tiny")
    assert done.returncode == 0
    assert (index.parent / "target" / "tiny.py").exists()
    assert "  installing 1 package" in done.stderr.splitlines()
    assert "WARNING" not in done.stderr


def test_failed_installation_shows_the_error_and_ends_with_its_status(index):
    done = install(index, "no-such-package")
    assert done.returncode == 1
    assert "ERROR: No matching distribution found for no-such-package" in done.stderr
    assert "/nowhere/at/all" not in done.stderr
    assert "Successfully" not in done.stderr
    assert "pip ended with status 1" in done.stderr

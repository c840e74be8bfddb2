"""`make` installs with a line a phase: pip's warnings stay out of sight, its errors do not."""

import importlib.util
import os
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


def install(index: Path, package: str, tool: str = "pip") -> subprocess.CompletedProcess[str]:
    """Installs from a folder, and from one that is not there, of which pip warns."""
    places = ("--no-index", "--find-links", index)
    if tool == "pip":
        places += ("--find-links", "/nowhere/at/all")
    target = ("--target", index.parent / "target")
    return subprocess.run(
        [sys.executable, SCRIPT, sys.executable, *places, *target, package],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | {"DDM_INSTALL_WITH": tool},
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


@pytest.mark.slow
def test_uv_installs_where_it_is_asked_for_and_pip_where_uv_cannot(index):
    done = install(index, "tiny", "uv")
    assert done.returncode == 0, done.stderr
    assert (index.parent / "target" / "tiny.py").exists()
    assert "so pip does" not in done.stderr
    done = install(index, "no-such-package", "uv")
    assert done.returncode == 1
    assert "uv could not install, so pip does" in done.stderr
    assert "pip ended with status 1" in done.stderr


def test_uv_is_told_what_pip_is_set_to():
    spec = importlib.util.spec_from_file_location("install", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    listed = """global.find-links='/else'
:env:.find-links='/here /there'
:env:.cert='/etc/ca.crt'
global.extra-index-url='file:///simple'
install.constraint='/etc/constraints'
"""
    settings = module.settings_of_pip(listed)
    assert settings["cert"] == "/etc/ca.crt"
    assert module.options_of_uv(settings) == [
        *("--index-strategy", "unsafe-best-match"),
        *("--index", "file:///simple"),
        *("--find-links", "/here", "--find-links", "/there"),
        *("--constraint", "/etc/constraints"),
    ]

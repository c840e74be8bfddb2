"""The Flower app that ships: the bytes sites pin, and what pinning holds off."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest
from flower_deployment import APP
from flwr.app import Context, RecordDict
from flwr.app.user_config import UserConfig
from flwr.cli.app import app as flwr
from typer.testing import CliRunner

from coordinator.inbox.flower_app import Pulling
from ddm_fed.errors import StateError

# what `flwr build` itself uses
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
EXAMPLE = APP.parent
CONFIG = tomllib.loads((APP / "pyproject.toml").read_text())


@pytest.fixture
def build(monkeypatch):
    """Builds an app with `flwr build`, in this process; returns the file."""

    def build(app: Path, folder: Path) -> Path:
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setenv("FLWR_HOME", str(folder / "home"))
        monkeypatch.setenv("FLWR_DISABLE_UPDATE_CHECK", "1")
        monkeypatch.setattr(sys, "path", list(sys.path))
        done = CliRunner().invoke(flwr, ["build", "--app", str(app)])
        for name in [name for name in sys.modules if name.partition(".")[0] == "ddm_pull"]:
            del sys.modules[name]  # it looks for the app's modules, and is to find those of `app`
        assert done.exit_code == 0, done.output
        (found,) = folder.glob("*.fab")
        return found

    return build


@pytest.mark.slow
def test_app_has_the_digest_that_sites_are_told_to_pin(build, tmp_path):
    copy = shutil.copytree(APP, tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    fab = build(copy, tmp_path / "built")

    digest, name = (EXAMPLE / "app.sha256").read_text().split()
    assert (hashlib.sha256(fab.read_bytes()).hexdigest(), fab.name) == (digest, name)


def test_app_makes_flower_install_nothing():
    assert CONFIG["project"]["dependencies"] == []


def test_configuration_of_the_app_is_complete():
    found = CONFIG["tool"]["flwr"]["app"]["config"]
    context = Context(1, 1, UserConfig(), RecordDict(), UserConfig(found))

    assert Pulling.from_run(context).part_bytes == 128 << 20
    for key in found:
        less = {name: value for name, value in found.items() if name != key}
        with pytest.raises(StateError, match="configuration is not complete"):
            Pulling.from_run(Context(1, 1, UserConfig(), RecordDict(), UserConfig(less)))


INSTALL = """
import os, sys
from pathlib import Path
from flwr.cli.install import install_from_fab

pinned, other = (Path(name).read_bytes() for name in sys.argv[1:])
install_from_fab(pinned, skip_prompt=True)
apps = Path(os.environ["FLWR_HOME"]) / "apps"
apps.chmod(0o555)
if os.geteuid() == 0:  # nothing is read-only to root
    os.seteuid(65534)
print("pinned", install_from_fab(pinned, skip_prompt=True).is_dir())
try:
    install_from_fab(other, skip_prompt=True)
    print("other ran")
except PermissionError:
    print("other refused")
"""


@pytest.mark.slow
def test_pinned_app_is_taken_and_another_one_refused(build, tmp_path):
    other = shutil.copytree(APP, tmp_path / "other", ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "ddm_pull" / "client_app.py").open("a") as file:
        file.write("print('run by the coordinator')\n")
    fabs = [build(APP, tmp_path / "one"), build(other, tmp_path / "two")]
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-c", INSTALL, *map(str, fabs)],
            env=os.environ | {"FLWR_HOME": home, "FLWR_TELEMETRY_ENABLED": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        (Path(home) / "apps").chmod(0o755)

    assert done.stdout.splitlines()[-2:] == ["pinned True", "other refused"], done.stderr

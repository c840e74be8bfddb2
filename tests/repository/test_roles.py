"""Who only verifies and samples installs no more than that; a role's extra brings all it needs."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from installed import PROJECT, Installation, brought_by
from packaging.utils import canonicalize_name

from ddm_fed.errors import EXTRA_OF

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
FIXED = ("flwr", "torch", "opacus", "cryptography", "grpcio", "protobuf", "clip-anytorch", "numpy")
PACKAGES = {
    "google": "protobuf",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "sklearn": "scikit-learn",
}


@pytest.fixture(scope="module")
def run():
    """Runs a command in an interpreter that has only what some extras bring."""
    made: dict[str, Installation] = {}

    def run(extras: str, program: str, *words: object) -> subprocess.CompletedProcess[str]:
        if extras not in made:
            made[extras] = Installation(extras)
        return made[extras].run(program, *words)

    yield run
    for each in made.values():
        each.close()


def golden():
    spec = importlib.util.spec_from_file_location("make_golden", GOLDEN / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ensemble():
    folder = GOLDEN / "0.1.0"
    return folder / "ensemble", "--root", (folder / "root").read_text().strip()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["verify", "sample"])
def test_base_verifies_and_samples(run, ensemble, tmp_path, command):
    drawn = ("--count", "2", "--steps", "2", "--strategy", "full", "--out", tmp_path / "out")
    done = run("-", "ddm-coord", command, *ensemble, *(drawn if command == "sample" else ()))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_reports_are_written_with_their_extra_alone(run, ensemble, tmp_path):
    done = run("report", "ddm-coord", "report", *ensemble, "--out", tmp_path / "report.html")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "words", "missing", "extra"),
    [
        (
            "ddm-site",
            ("init", "new", "--name", "a", "--root", "sha256:" + "a" * 64),
            "tomlkit",
            "site",
        ),
        ("ddm-coord", ("init", "new", "--federation", "x"), "tomlkit", "coordinator"),
        (
            "ddm-coord",
            ("export", "diffusers", "ENSEMBLE", "--out", "new"),
            "diffusers",
            "diffusers",
        ),
    ],
    ids=["site", "coordinator", "diffusers"],
)
def test_what_is_not_installed_is_named_with_the_command_that_installs_it(
    run, ensemble, tmp_path, monkeypatch, program, words, missing, extra
):
    monkeypatch.chdir(tmp_path)
    done = run(
        "-",
        program,
        *(each for word in words for each in (ensemble if word == "ENSEMBLE" else (word,))),
    )
    assert done.returncode == 1
    assert f"error[DDM104]: this needs `{missing}`, which is not installed" in done.stderr
    assert f"hint: pip install 'ddm-fed[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("program", ["site", "coord"])
def test_programs_say_on_windows_that_they_do_not_run_there(program):
    code = f"import os; from ddm_fed import programs; os.name = 'nt'; programs.{program}()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: DDM-Fed does not run on Windows: its locks")
    assert "hint: run it in WSL 2" in done.stderr


def test_import_without_the_locks_of_unix_says_why():
    code = "import sys; sys.modules['fcntl'] = None; import ddm_fed.storage.files"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith("ImportError: DDM-Fed needs Linux or macOS")


@pytest.mark.processes
@pytest.mark.timeout(900)  # a process of its own for each of fifteen commands
def test_each_role_does_all_its_work_with_its_own_extra(run, tmp_path, monkeypatch):
    maker = golden()

    def with_its_extra(program: str, *words: object) -> str:
        done = run({"ddm-site": "site", "ddm-coord": "coordinator"}[program], program, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    monkeypatch.setattr(maker, "run", with_its_extra)
    monkeypatch.setattr(maker, "PLAN", maker.PLAN.replace("steps = 300", "steps = 2"))
    monkeypatch.setattr(maker, "SAMPLES", {})
    (tmp_path / "made").mkdir()
    maker.make(tmp_path / "made", tmp_path)
    assert (tmp_path / "made" / "ensemble" / "ensemble.dsse.json").is_file()


def test_base_has_none_of_what_roles_bring_and_all_brings_everything():
    base, everything = brought_by([]), brought_by(["all"])
    assert {"torch", "cryptography", "numpy"} <= base
    assert not {"opendp", "opacus", "diffusers", "matplotlib", "scikit-learn", "grpcio"} & base
    assert set(FIXED) <= everything
    assert {*FIXED, "pytest"} <= brought_by(["dev"])
    extras = set(PROJECT["optional-dependencies"]) - {"dev", "checks", "simulation"}
    assert brought_by(sorted(extras)) == everything


@pytest.mark.parametrize(("module", "extra"), EXTRA_OF.items())
def test_extra_that_is_named_for_a_missing_package_brings_it(module, extra):
    package = canonicalize_name(PACKAGES.get(module, module))
    roles = [role for role in ("site", "coordinator") if package in brought_by([role])]
    assert roles
    if extra is not None:
        assert package in brought_by([extra])
        assert len(roles) == 2

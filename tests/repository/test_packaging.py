"""What an installation brings, and what it costs to ask it for help."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import ddm_fed

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = {
    canonicalize_name(line.name): line.specifier
    for line in map(
        Requirement,
        (
            text
            for text in (ROOT / "constraints.txt").read_text().splitlines()
            if text and not text.startswith("#")
        ),
    )
}
HEAVY = ("torch", "numpy", "flwr", "sklearn", "PIL", "opendp", "dp_accounting", "safetensors")
COMMANDS = {"ddm-site": "sites.cli.main", "ddm-coord": "coordinator.cli.main"}
HELP_CPU_S = 0.5


def python(code, **variables):
    """Returns what `code` prints in an interpreter of its own, started in another folder."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | variables,
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.strip()


def script(name):
    return Path(sys.executable).parent / name


def cpu_seconds_of(command):
    """Returns user and system time of a process; the machine may be busy, the process is not."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # it is reaped: tell Popen
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


def required():
    return [Requirement(text) for text in PROJECT["project"]["dependencies"]]


@pytest.mark.parametrize("module", ["ddm_fed", "ddm_fed.errors", "ddm_fed.storage.files"])
def test_import_of_the_foundations_loads_nothing_from_outside(module):
    code = (
        f"import sys; before = set(sys.modules); import {module}; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names) - {'ddm_fed'}))"
    )
    assert python(code) == "[]"


@pytest.mark.parametrize(
    "module", ["ddm_fed.records", "ddm_fed.signing", "ddm_fed.trust.published"]
)
def test_import_of_what_reads_signed_documents_loads_no_heavy_library(module):
    assert python(f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])") == "[]"


@pytest.mark.parametrize("module", COMMANDS.values())
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["init", "--help"]])
def test_help_loads_no_heavy_library(module, arguments):
    code = (
        f"import sys; sys.argv = ['ddm', *{arguments}]; from {module} import main\n"
        "try: main()\n"
        f"finally: print('\\n', [m for m in {(*HEAVY, 'pydantic')} if m in sys.modules])"
    )
    assert python(code).splitlines()[-1].strip() == "[]"


@pytest.mark.slow
def test_commands_about_keys_and_rosters_load_no_heavy_library(tmp_path):
    code = f"""
import sys
from contextlib import redirect_stdout
from io import StringIO
from importlib import import_module
def run(program, *words):
    sys.argv = [program, *map(str, words)]
    with redirect_stdout(StringIO()) as said:
        try: import_module({COMMANDS}[program]).main()
        except SystemExit as ended: assert not ended.code, sys.argv
    return said.getvalue().strip()
hub, site = {str(tmp_path / "hub")!r}, {str(tmp_path / "site")!r}
root = run("ddm-coord", "init", hub, "--federation", "test")
run("ddm-site", "init", site, "--name", "a", "--root", root)
run("ddm-coord", "roster", "add", site + "/enrolment.dsse.json", "--coordinator", hub)
run("ddm-coord", "roster", "show", "--coordinator", hub)
run("ddm-site", "keygen", site + "/officer.pem")
print([m for m in {(*HEAVY, "grpc", "scipy", "matplotlib")} if m in sys.modules])
"""
    assert python(code) == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_help_answers_at_once(command):
    assert min(cpu_seconds_of([script(command), "--help"]) for _ in range(3)) < HELP_CPU_S


@pytest.mark.parametrize("module", COMMANDS.values())
def test_import_of_a_command_turns_flower_telemetry_off(module):
    wanted = "FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK"
    assert python(f"import os, {module}; print([os.environ[name] for name in {wanted}])") == (
        "['0', '1']"
    )


@pytest.mark.parametrize("module", COMMANDS.values())
def test_import_of_a_command_respects_what_its_user_chose_about_telemetry(module):
    code = f"import os, {module}; print(os.environ['FLWR_TELEMETRY_ENABLED'])"
    assert python(code, FLWR_TELEMETRY_ENABLED="1") == "1"


def test_wheel_holds_exactly_the_three_packages():
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["ddm_fed", "sites", "coordinator"]}


def test_package_says_that_it_is_typed():
    assert (ROOT / "ddm_fed" / "py.typed").is_file()


def test_licence_file_is_there():
    assert all((ROOT / name).is_file() for name in PROJECT["project"]["license-files"])


def test_scripts_are_the_two_commands():
    scripts = PROJECT["project"]["scripts"]
    assert scripts == {"ddm-site": "ddm_fed.programs:site", "ddm-coord": "ddm_fed.programs:coord"}


def test_version_has_one_source():
    names = {}
    exec((ROOT / PROJECT["tool"]["hatch"]["version"]["path"]).read_text(), names)
    assert ddm_fed.__version__ == names["__version__"]
    assert str(Version(ddm_fed.__version__)) == ddm_fed.__version__


@pytest.mark.parametrize("command", COMMANDS)
def test_version_of_the_command_is_that_of_the_library(command):
    shown = subprocess.check_output([script(command), "--version"], text=True)
    assert shown == f"{command} {ddm_fed.__version__}\n"


def test_constraints_pin_torch_to_the_cpu_wheel_at_hand():
    assert str(CONSTRAINTS["torch"]) == "==2.13.0"


@pytest.mark.parametrize("requirement", required(), ids=str)
def test_constraint_of_a_dependency_is_an_exact_version_it_allows(requirement):
    (pin,) = CONSTRAINTS[canonicalize_name(requirement.name)]
    assert pin.operator == "=="
    assert requirement.specifier.contains(pin.version)


@pytest.mark.parametrize(
    "requirement",
    sorted(
        {
            Requirement(text)
            for extra, texts in PROJECT["project"]["optional-dependencies"].items()
            for text in texts
            if extra != "checks" and not text.startswith("ddm-fed[")
        },
        key=str,
    ),
    ids=str,
)
def test_constraint_of_what_an_extra_brings_is_a_version_it_allows(requirement):
    (pin,) = CONSTRAINTS[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pin.version)


@pytest.mark.slow
def test_bill_of_materials_of_a_release_is_valid_and_names_versions(tmp_path):
    """The command of CONTRIBUTING.md, of this environment.

    The same bill as XML is validated: the schema of JSON has each address parsed for minutes.
    """
    bill = tmp_path / "ddm-fed.cdx.json"
    words = ("environment", "--pyproject", ROOT / "pyproject.toml", "--output-reproducible")
    for told in (("--no-validate", "--of", "JSON", "-o", bill), ("--validate", "--of", "XML")):
        subprocess.run(
            [script("cyclonedx-py"), *words, *told, sys.executable],
            check=True,
            capture_output=True,
            timeout=250,
        )
    found = json.loads(bill.read_text())
    assert found["bomFormat"] == "CycloneDX"
    versions = {canonicalize_name(c["name"]): c["version"] for c in found["components"]}
    for requirement in required():
        name = canonicalize_name(requirement.name)
        assert versions[name] == version(name)
    assert found["metadata"]["component"]["name"] == "ddm-fed"
    assert str(Path.home()) not in bill.read_text()


def test_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == ddm_fed.__version__
    assert citation["license"] == PROJECT["project"]["license"]
    assert any(item["title"] == "Decentralized Diffusion Models" for item in citation["references"])


@pytest.mark.skipif(shutil.which("cffconvert") is None, reason="cffconvert is not installed")
def test_citation_is_valid():
    subprocess.run(["cffconvert", "--validate"], cwd=ROOT, check=True, timeout=120)

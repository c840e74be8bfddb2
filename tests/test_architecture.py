"""Who may import what. The tables are the design; the walk over the source holds it to them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("ddm_fed", "sites", "coordinator")
APPLICATIONS = ("sites", "coordinator")
GENERATED = ROOT / "ddm_fed" / "exchange" / "v1"
MAX_LINES = 450

# Concept of ddm_fed: what it may import. A row names only rows above it.
LAYERS = {
    "_version": set(),
    "errors": set(),
    "limits": set(),
    "heartbeat": set(),
    "proxies": set(),
    "console": {"errors", "heartbeat"},
    "litter": set(),
    "files": {"errors", "limits", "litter"},
    "digests": {"errors", "files"},
    "targets": {"errors", "litter"},
    "arrays": set(),
    "records": {"errors", "limits"},
    "evaluation": {"errors"},
    "pictures": {"errors"},
    "flows": {"records"},
    "embedding": {"errors", "files"},
    "weights": {"errors", "limits", "records"},
    "signing": {"errors", "files", "records"},  # files: a key is written whole or not at all
    "privacy": {"errors", "records"},
    "models": {"records", "weights", "flows"},
    "router": {"errors", "records", "embedding", "weights", "privacy", "flows"},
    "home": {"errors", "files", "records"},
    "store": {"errors", "files", "digests"},
    "log": {"errors", "files", "limits", "records", "signing"},
    "published": {"errors", "files", "limits", "records", "signing", "log"},
    "submission": {"errors", "records", "signing"},
    "oms": {"errors", "files", "records", "signing"},
    "training": {
        "_version",
        "errors",
        "files",
        "records",
        "flows",
        "weights",
        "privacy",
        "models",
    },
    "audit": {"records", "flows", "privacy", "evaluation"},
    "budget": {"records", "privacy", "router", "training"},
    "policy": {"errors", "records", "privacy", "router", "signing"},
    "bundle": {
        "digests",
        "errors",
        "litter",
        "files",
        "records",
        "weights",
        "signing",
        "privacy",
        "models",
        "router",
        "store",
        "log",
        "submission",
        "policy",
    },
    "reference": {
        "digests",
        "errors",
        "files",
        "limits",
        "records",
        "router",
        "signing",
        "weights",
        "bundle",
    },
    "receipts": {"errors", "records", "signing", "log"},
    "transfer": {"errors", "files", "records"},
    "flower": {"errors", "records"},
    "remote": {"errors", "files", "limits", "proxies"},
    "exchange": {"errors"},
    "experts": {"flows"},
    "ensemble": {"flows", "experts", "router"},
    "sampling": {"flows", "ensemble"},
    "assembly": {
        "digests",
        "errors",
        "files",
        "limits",
        "records",
        "weights",
        "signing",
        "router",
        "published",
        "log",
        "submission",
        "oms",
        "bundle",
    },
    "loading": {
        "errors",
        "files",
        "limits",
        "records",
        "weights",
        "flows",
        "experts",
        "models",
        "router",
        "bundle",
        "ensemble",
        "assembly",
    },
    "replay": {
        "errors",
        "records",
        "embedding",
        "flows",
        "experts",
        "router",
        "ensemble",
        "sampling",
        "assembly",
        "loading",
    },
    "staleness": {"errors", "log", "published", "signing", "submission", "assembly"},
}

# Outside package: the only places that may import it.
DOORS = {
    "cryptography": {"ddm_fed.signing", "ddm_fed.privacy.randomness"},
    "dp_accounting": {"ddm_fed.privacy.accountant"},
    "opendp": {"ddm_fed.privacy.mechanisms"},
    "opacus": {"ddm_fed.privacy.hooks"},
    "diffusers": {"ddm_fed.models"},
    "PIL": {"sites.data", "ddm_fed.pictures"},
    "sklearn": {
        "sites.data",
        "ddm_fed.evaluation.twosample",
        "ddm_fed.router.anchors",
        "coordinator.anchors",
    },
    "scipy": {"ddm_fed.router.sphere", "ddm_fed.privacy.selftest", "ddm_fed.audit"},
    "clip": {"ddm_fed.embedding.clip"},
    "timm": {"ddm_fed.embedding.timm"},
    "torchvision": {"ddm_fed.embedding.checkpoint"},
    "matplotlib": {"coordinator.evaluation_figures"},
    "google": {"ddm_fed.exchange"},
    "grpc": {
        "ddm_fed.exchange",
        "sites.network",
        "coordinator.answering",
        "coordinator.server",
        "coordinator.service",
    },
    "grpc_health": {"coordinator.health"},
    "fsspec": {"ddm_fed.remote"},
    "paramiko": {"ddm_fed.remote"},
    "rich": {"ddm_fed.console"},
    "typer": {
        "sites.cli",
        "sites.cli_head",
        "sites.cli_keys",
        "sites.cli_network",
        "sites.cli_privacy",
        "sites.cli_stick",
        "sites.cli_submit",
        "sites.cli_train",
        "sites.options",
        "coordinator.cli",
        "coordinator.cli_evaluate",
        "coordinator.cli_import",
        "coordinator.cli_plan",
        "coordinator.cli_reference",
        "coordinator.cli_roster",
        "coordinator.cli_router",
        "coordinator.cli_sample",
        "coordinator.cli_serve",
        "coordinator.cli_status",
        "coordinator.cli_verify",
        "coordinator.cli_web",
        "coordinator.options",
    },
    "safetensors": {
        "ddm_fed.weights",
        "ddm_fed.training",
        "ddm_fed.evaluation.features",
        "ddm_fed.embedding.checkpoint",
    },
    "pydantic": {
        "ddm_fed.records",
        "ddm_fed.signing.envelope",
        "ddm_fed.home",
        "sites.cli",
        "sites.cli_train",
        "coordinator.cli",
    },
    "keyring": {"ddm_fed.signing.passphrase"},
    "fcntl": {"ddm_fed.files"},
    "flwr": {"sites.flower_app", "coordinator.flower_app"},
    "httpx": {"coordinator.edge"},
    "starlette": {"coordinator.edge"},
    "uvicorn": {"coordinator.edge"},
    "jinja2": {"coordinator.pages"},
    "prometheus_client": {"coordinator.metrics"},
    # the read-only web page
    "http": {"coordinator.web"},
    "socket": {"coordinator.gate", "coordinator.web"},
    "socketserver": {"coordinator.web"},
    # nowhere: they run code out of files, reach a network, or start programs
    "pickle": set(),
    "marshal": set(),
    "shelve": set(),
    "dill": set(),
    "cloudpickle": set(),
    "joblib": set(),
    "urllib": set(),
    "requests": set(),
    "subprocess": set(),
    "random": set(),
}

# Read before anything is trusted, or by people who only want help: fast, and no tensor library.
TORCH_FREE = (
    "ddm_fed._version",
    "ddm_fed.errors",
    "ddm_fed.limits",
    "ddm_fed.console",
    "ddm_fed.files",
    "ddm_fed.records",
    "ddm_fed.signing",
    "ddm_fed.weights",
    "ddm_fed.published",
)

DYNAMIC_IMPORTS = ("__import__", "import_module", "importlib.import_module")
RUNS_CODE = {("torch", "load"), ("torch", "save"), ("torch", "jit"), ("torch", "hub")}


def module_of(path: Path, root: Path = ROOT) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def source_files():
    found = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
    return [path for path in found if not path.is_relative_to(GENERATED)]


def imports_of(source: str) -> set[str]:
    """Returns every dotted name `source` imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in DYNAMIC_IMPORTS:
            found.add(getattr(node.args[0], "value", "unknown"))
    return found


def within(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}.")


def layer_violations(module: str, source: str) -> list[str]:
    """Returns the imports of `module` that the table of layers forbids."""
    package, _, rest = module.partition(".")
    concept = rest.partition(".")[0]
    problems = []
    for name in sorted(imports_of(source)):
        target, _, inner = name.partition(".")
        other = inner.partition(".")[0]
        if target not in PACKAGES:
            continue
        if package in APPLICATIONS:
            forbidden = target in APPLICATIONS and target != package
        elif target in APPLICATIONS:
            forbidden = True
        elif not concept:  # ddm_fed/__init__.py is imported by everything below it
            forbidden = other != "_version"
        else:
            forbidden = other != concept and other not in LAYERS.get(concept, set())
        if forbidden:
            problems.append(f"{module} imports {name}")
    return problems


def door_violations(module: str, source: str) -> list[str]:
    """Returns the outside packages that `module` imports past their door."""
    problems = []
    for name in sorted(imports_of(source)):
        outside = name.partition(".")[0]
        door = DOORS.get(outside)
        if door is not None and not any(within(module, place) for place in door):
            problems.append(f"{module} imports {name}")
        if outside == "torch" and any(within(module, place) for place in TORCH_FREE):
            problems.append(f"{module} imports {name}")
    return problems


def code_runners(module: str, source: str) -> list[str]:
    """Returns the places of `module` that would run code out of a file: pickle in any dress."""
    problems = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in RUNS_CODE:
                problems.append(f"{module}:{node.lineno} uses {node.value.id}.{node.attr}")
        elif isinstance(node, ast.ImportFrom) and node.module == "torch":
            problems += [
                f"{module}:{node.lineno} imports torch.{alias.name}"
                for alias in node.names
                if ("torch", alias.name) in RUNS_CODE
            ]
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if ast.unparse(node.value) != "False":
                problems.append(f"{module}:{node.lineno} allows pickle")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("eval", "exec"):
            problems.append(f"{module}:{node.lineno} runs text")
    return problems


def exported_by(package: Path) -> set[str]:
    """Returns the names the `__init__.py` of `package` hands on."""
    nodes = ast.walk(ast.parse((package / "__init__.py").read_text()))
    return {
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def back_doors(module: str, source: str) -> list[str]:
    """Returns names taken from an inner module although its package exports them."""
    problems = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").count(".") != 2:
            continue
        package = node.module.rpartition(".")[0]
        folder = ROOT / package.replace(".", "/")
        if package.startswith("ddm_fed.") and not within(module, package) and folder.is_dir():
            taken = {alias.name for alias in node.names} & exported_by(folder)
            problems += [f"{module} takes {name} from {node.module}" for name in sorted(taken)]
    return problems


def everywhere(check):
    return [
        problem for path in source_files() for problem in check(module_of(path), path.read_text())
    ]


def test_layers_of_the_table_point_one_way():
    rows = list(LAYERS)
    assert [
        (row, used)
        for index, row in enumerate(rows)
        for used in sorted(LAYERS[row] - set(rows[:index]))
    ] == []


def test_layers_have_a_row_for_every_concept():
    entries = (ROOT / "ddm_fed").iterdir()
    concepts = {path.stem for path in entries if path.suffix == ".py" or path.is_dir()}
    assert concepts - {"__init__", "__pycache__"} == set(LAYERS)


def test_imports_keep_to_the_layers():
    assert everywhere(layer_violations) == []


def test_outside_packages_come_in_by_their_door():
    assert everywhere(door_violations) == []


def test_source_never_unpickles():
    assert everywhere(code_runners) == []


def test_packages_are_entered_by_what_they_export():
    assert everywhere(back_doors) == []


@pytest.mark.parametrize("path", source_files(), ids=module_of)
def test_file_is_short_enough_to_read(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize(
    ("check", "module", "source"),
    [
        (layer_violations, "sites.jobs", "import coordinator.cli"),
        (layer_violations, "coordinator.cli", "def f():\n    from sites.data import load_images"),
        (layer_violations, "ddm_fed.training", "from sites import data"),
        (layer_violations, "ddm_fed.records.plan", "from ddm_fed import console"),
        (layer_violations, "ddm_fed.privacy.accountant", "import ddm_fed.router.fit"),
        (layer_violations, "ddm_fed.bundle", "from ddm_fed.assembly import STATEMENT_FILE"),
        (layer_violations, "ddm_fed.nowhere", "from ddm_fed.errors import DataError"),
        (layer_violations, "ddm_fed", "from ddm_fed import records"),
        (layer_violations, "sites.x", "import importlib\nimportlib.import_module('coordinator')"),
        (door_violations, "ddm_fed.bundle", "from cryptography.hazmat import primitives"),
        (door_violations, "sites.outbox", "import rich.console"),
        (door_violations, "sites.jobs", "if TYPE_CHECKING:\n    from PIL import Image"),
        (door_violations, "ddm_fed.privacy", "class A:\n    def f(self):\n        import opendp"),
        (door_violations, "ddm_fed.training", "import pickle"),
        (door_violations, "ddm_fed.signing.keys", "import torch"),
        (door_violations, "ddm_fed.weights", "from torch.nn import Module"),
        (code_runners, "ddm_fed.bundle", "import torch\ntorch.load('x')"),
        (code_runners, "ddm_fed.bundle", "from torch import load"),
        (code_runners, "sites.data", "np.load('x', allow_pickle=True)"),
        (back_doors, "sites.data", "from ddm_fed.privacy.private import Private"),
    ],
)
def test_walk_with_a_forbidden_line_finds_it(check, module, source):
    assert len(check(module, source)) == 1


@pytest.mark.parametrize(
    ("check", "module", "source"),
    [
        (layer_violations, "sites.cli", "from ddm_fed import __version__, console"),
        (layer_violations, "sites.cli", "from sites import outbox"),
        (layer_violations, "ddm_fed.router.fit", "from ddm_fed.router.base import Router"),
        (door_violations, "ddm_fed.signing.keys", "import cryptography.exceptions"),
        (code_runners, "sites.data", "np.load('x', allow_pickle=False)"),
        (back_doors, "ddm_fed.privacy", "from ddm_fed.privacy.private import Private"),
    ],
)
def test_walk_with_an_allowed_line_finds_nothing(check, module, source):
    assert check(module, source) == []

"""Who may import what. The tables are the design; the walk over the source holds it to them."""

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("ddm_fed", "sites", "coordinator")
APPLICATIONS = ("sites", "coordinator")
GENERATED = ROOT / "ddm_fed" / "exchange" / "v1"
MAX_LINES = 450

# Folder or file of each tree: what it may import of the same tree. A row names only rows above it.
LAYERS: dict[str, dict[str, set[str]]] = {
    "ddm_fed": {
        "_version": set(),
        "errors": set(),
        "limits": set(),
        "progress": set(),
        "console": {"errors", "progress"},
        "pictures": {"errors"},
        "records": {"errors", "limits"},
        "storage": {"errors", "limits", "progress", "records"},
        "signing": {"errors", "records", "storage"},
        "doctor": {"errors", "console", "records", "signing"},
        "trust": {"errors", "limits", "records", "storage", "signing"},
        "flows": {"records"},
        "privacy": {"errors", "records", "flows"},
        "embedding": {"errors", "records", "storage", "flows"},
        "autoencoders": {"errors", "progress", "records", "storage", "embedding"},
        "partition": {"errors", "progress", "storage", "embedding"},
        "mixture": {"errors", "records", "storage", "flows", "privacy", "embedding"},
        "models": {"errors", "records", "storage", "flows", "embedding", "mixture"},
        "router": {
            "errors",
            "progress",
            "records",
            "storage",
            "flows",
            "privacy",
            "embedding",
            "mixture",
            "models",
        },
        "remote": {"errors", "limits", "storage"},
        "exchange": {"errors", "records", "storage"},
        "listening": {"errors", "console", "exchange"},
        "training": {
            "_version",
            "errors",
            "progress",
            "records",
            "storage",
            "flows",
            "privacy",
            "mixture",
            "models",
            "router",
        },
        "bundle": {
            "errors",
            "limits",
            "progress",
            "records",
            "storage",
            "signing",
            "trust",
            "privacy",
            "mixture",
            "models",
            "router",
        },
        "evaluation": {"errors", "pictures", "records", "storage", "embedding"},
        "ensemble": {
            "errors",
            "limits",
            "progress",
            "pictures",
            "records",
            "storage",
            "signing",
            "trust",
            "flows",
            "embedding",
            "autoencoders",
            "mixture",
            "models",
            "router",
            "bundle",
        },
        "distillation": {
            "errors",
            "limits",
            "progress",
            "records",
            "storage",
            "signing",
            "trust",
            "flows",
            "models",
            "router",
            "training",
            "bundle",
            "ensemble",
        },
        "auditing": {"progress", "records", "flows", "privacy", "evaluation"},
        "report": {
            "_version",
            "errors",
            "pictures",
            "records",
            "storage",
            "trust",
            "flows",
            "privacy",
            "mixture",
            "models",
            "router",
            "bundle",
            "evaluation",
            "ensemble",
            "distillation",
        },
        # command lines that both applications have
        "commands": {
            "_version",
            "errors",
            "console",
            "records",
            "signing",
            "storage",
            "embedding",
            "partition",
            "training",
            "ensemble",
            "distillation",
            "evaluation",
        },
        # the verbs that the package itself hands on
        "api": {
            "errors",
            "progress",
            "console",
            "pictures",
            "records",
            "storage",
            "trust",
            "flows",
            "privacy",
            "autoencoders",
            "bundle",
            "training",
            "ensemble",
            "distillation",
        },
        # what other programs load
        "export": {
            "errors",
            "progress",
            "records",
            "storage",
            "trust",
            "flows",
            "models",
            "ensemble",
            "distillation",
            "api",
        },
        "programs": set(),
    },
    "sites": {
        "workspace": set(),
        "published": {"workspace"},
        "data": set(),
        "privacy": {"workspace"},
        "outbox": {"workspace", "privacy"},
        "rotation": {"workspace", "outbox"},
        "train": {"workspace", "privacy", "outbox"},
        "report": {"workspace", "published", "privacy", "outbox", "train"},
        "serving": {"workspace", "outbox", "train"},
        "transport": {"workspace", "published", "outbox"},
        "doctor": {"workspace", "published", "data", "privacy", "outbox", "transport"},
        "cli": {
            "workspace",
            "published",
            "data",
            "privacy",
            "outbox",
            "rotation",
            "train",
            "report",
            "serving",
            "transport",
            "doctor",
        },
        "api": {"workspace", "data", "outbox", "train", "cli"},
    },
    "coordinator": {
        "workspace": set(),
        "journal": {"workspace"},
        "log": {"workspace"},
        "published": {"workspace"},
        "remote_experts": {"workspace"},
        "roster": {"workspace", "journal", "log"},
        "inbox": {"workspace", "journal", "log", "published", "roster"},
        "ensembles": {"workspace", "journal", "log", "inbox"},
        "status": {"workspace", "journal", "roster", "inbox", "ensembles"},
        "server": {"workspace", "published", "inbox", "ensembles", "status"},
        "doctor": {"workspace", "journal", "status"},
        "cli": {
            "workspace",
            "log",
            "remote_experts",
            "roster",
            "inbox",
            "ensembles",
            "status",
            "server",
            "doctor",
        },
    },
}

# Outside package: the only places that may import it.
IMPORTERS = {
    "cryptography": {"ddm_fed.signing", "ddm_fed.privacy.randomness"},
    "dp_accounting": {"ddm_fed.privacy.accountant", "ddm_fed.privacy.losses"},
    "opendp": {"ddm_fed.privacy.mechanisms"},
    "opacus": {"ddm_fed.auditing.second_accountant"},
    "diffusers": {"ddm_fed.models", "ddm_fed.autoencoders.networks", "ddm_fed.export"},
    "PIL": {"sites.data", "ddm_fed.pictures", "ddm_fed.export.pipeline"},
    "onnxruntime": {"ddm_fed.export.onnx_file"},
    "onnxscript": {"ddm_fed.export.onnx_file"},
    "braceexpand": {"sites.data.sources"},
    "pydicom": {"sites.data.dicom"},
    "pyarrow": {"sites.data.parquet"},
    "sklearn": {
        "sites.data",
        "ddm_fed.evaluation",
        "ddm_fed.mixture.directions",
        "ddm_fed.mixture.anchors",
        "ddm_fed.partition.clusters",
    },
    "scipy": {
        "ddm_fed.router.sphere",
        "ddm_fed.privacy.selftest",
        "ddm_fed.evaluation",
        "ddm_fed.auditing",
    },
    "clip": {"ddm_fed.embedding.clip"},
    "timm": {"ddm_fed.embedding.timm"},
    "torchvision": {"ddm_fed.embedding.public_weights"},
    "matplotlib": {"ddm_fed.evaluation.figures", "ddm_fed.report.charts"},
    "google": {"ddm_fed.exchange"},
    "grpc": {
        "ddm_fed.exchange",
        "sites.transport.grpc",
        "ddm_fed.listening",
        "coordinator.remote_experts",
    },
    "grpc_health": {"coordinator.server.health"},
    "fsspec": {"ddm_fed.remote"},
    "paramiko": {"ddm_fed.remote"},
    "tomlkit": {"ddm_fed.storage.workspace"},
    "tenacity": {"ddm_fed.exchange.retries"},
    "tensorboard": {"sites.train.tensorboard"},  # as torch.utils.tensorboard
    "mlflow": {"sites.train.mlflow"},
    "rich": {"ddm_fed.console"},
    "typer": {"sites.cli", "coordinator.cli", "ddm_fed.commands"},
    "safetensors": {
        "ddm_fed.storage.tensors",
        "ddm_fed.autoencoders.folder",
        "ddm_fed.training",
        "ddm_fed.evaluation.features",
        "ddm_fed.embedding.public_weights",
    },
    "pydantic": {
        "ddm_fed.records",
        "ddm_fed.signing.envelope",
        "ddm_fed.storage.workspace",
        "ddm_fed.commands.options",
        "sites.cli",
        "coordinator.cli",
    },
    "keyring": {"ddm_fed.signing.passphrase"},
    "fcntl": {"ddm_fed.storage.files"},
    "flwr": {"sites.transport.flower_app", "coordinator.inbox.flower_app"},
    "httpx": {"coordinator.server.flower_edge"},
    "starlette": {"coordinator.server.flower_edge"},
    "uvicorn": {"coordinator.server.flower_edge", "coordinator.server.web"},
    "h11": {"coordinator.server.web"},
    "jinja2": {
        "coordinator.server.web_pages",
        "ddm_fed.report.page",
        "ddm_fed.report.model_card",
    },
    "prometheus_client": {"coordinator.status.metrics"},
    # the read-only web page
    "http": {"coordinator.server.web"},
    "socket": {"ddm_fed.listening.gate", "coordinator.server.web"},
    # a browser, on a page of ours, to print it
    "subprocess": {"ddm_fed.report.printing"},
    # nowhere: they run code out of files, reach a network, or start programs
    "pickle": set(),
    "marshal": set(),
    "shelve": set(),
    "dill": set(),
    "cloudpickle": set(),
    "joblib": set(),
    "socketserver": set(),
    "urllib": set(),
    "requests": set(),
    "random": set(),
}

# Read before anything is trusted, or by people who only want help: fast, and no tensor library.
TORCH_FREE = (
    "ddm_fed._version",
    "ddm_fed.errors",
    "ddm_fed.limits",
    "ddm_fed.console",
    "ddm_fed.storage.files",
    "ddm_fed.records",
    "ddm_fed.signing",
    "ddm_fed.storage.tensors",
    "ddm_fed.trust.published",
)

DOORS = ("_version", "api")  # what `import ddm_fed` hands on, the second only when it is asked
DYNAMIC_IMPORTS = ("__import__", "import_module", "importlib.import_module")
RUNS_CODE = {("torch", "load"), ("torch", "save"), ("torch", "jit"), ("torch", "hub")}


PAGE = (ROOT / "docs" / "architecture.md").read_text()
ON_PAGE = re.compile(
    rf"\b(?:{'|'.join((*PACKAGES, 'protos', 'tests', 'examples', 'benchmarks', 'docs'))})"
    r"/[\w./-]*\w"
)
ROW_OF_PAGE = re.compile(r"^\| `([^`]+)` \| .+\? \|$", re.MULTILINE)


def module_of(path: Path, root: Path = ROOT) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def source_files():
    found = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
    return [path for path in found if not path.is_relative_to(GENERATED)]


@cache  # each check asks for every file's
def nodes_of(source: str) -> list[ast.AST]:
    """Returns the nodes of `source` that any check looks at, from anywhere in it."""
    kinds = (ast.Import, ast.ImportFrom, ast.Call, ast.Attribute, ast.keyword)
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]


def called(node: ast.Call) -> str:
    """Returns the name of what is called, `f` or `module.f`."""
    match node.func:
        case ast.Name(name):
            return name
        case ast.Attribute(ast.Name(module), name):
            return f"{module}.{name}"
    return ""


@cache
def imports_of(source: str) -> frozenset[str]:
    """Returns every dotted name `source` imports anywhere, also inside functions."""
    found = set()
    for node in nodes_of(source):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and called(node) in DYNAMIC_IMPORTS:
            found.add(getattr(node.args[0], "value", "unknown"))
    return frozenset(found)


def within(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}.")


def layer_violations(module: str, source: str) -> list[str]:
    """Returns the imports of `module` that the tables of layers forbid."""
    package, _, rest = module.partition(".")
    concept = rest.partition(".")[0]
    allowed = {concept} | LAYERS[package].get(concept, set())
    problems = []
    for name in sorted(imports_of(source)):
        target, _, inner = name.partition(".")
        other = inner.partition(".")[0]
        if target not in PACKAGES or (target == "ddm_fed" and package in APPLICATIONS):
            continue
        if target != package:
            problems.append(f"{module} imports {name}")
        elif not concept:  # the package itself is imported by everything below it
            problems += [f"{module} imports {name}"] if other not in DOORS else []
        elif other not in allowed:
            problems.append(f"{module} imports {name}")
    return problems


def files_imported(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Returns the modules of this project that each of `modules` imports."""
    graph = {}
    for module, path in modules.items():
        names = imports_of(path.read_text())
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        graph[module] = (found & set(modules)) - {module}
    return graph


def importer_violations(module: str, source: str) -> list[str]:
    """Returns the outside packages that `module` imports that it may not import."""
    problems = []
    for name in sorted(imports_of(source)):
        outside = name.partition(".")[0]
        places = IMPORTERS.get(outside)
        if places is not None and not any(within(module, place) for place in places):
            problems.append(f"{module} imports {name}")
        if outside == "torch" and any(within(module, place) for place in TORCH_FREE):
            problems.append(f"{module} imports {name}")
    return problems


def code_runners(module: str, source: str) -> list[str]:
    """Returns the places of `module` that would run code out of a file: pickle in any dress."""
    problems = []
    for node in nodes_of(source):
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
        elif isinstance(node, ast.Call) and called(node) in ("eval", "exec"):
            problems.append(f"{module}:{node.lineno} runs text")
    return problems


def exported_by(package: Path) -> set[str]:
    """Returns the names the `__init__.py` of `package` hands on."""
    nodes = nodes_of((package / "__init__.py").read_text())
    return {
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def names_past_a_package(module: str, source: str) -> list[str]:
    """Returns names taken from an inner module although its package exports them."""
    problems = []
    for node in nodes_of(source):
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


@pytest.mark.parametrize("tree", LAYERS)
def test_layers_of_the_table_point_one_way(tree):
    rows = list(LAYERS[tree])
    assert [
        (row, used)
        for index, row in enumerate(rows)
        for used in sorted(LAYERS[tree][row] - set(rows[:index]))
    ] == []


@pytest.mark.parametrize("tree", LAYERS)
def test_layers_have_a_row_for_every_folder_and_file_at_the_top(tree):
    entries = (ROOT / tree).iterdir()
    concepts = {path.stem for path in entries if path.suffix == ".py" or path.is_dir()}
    assert concepts - {"__init__", "__pycache__"} == set(LAYERS[tree])


def test_files_import_one_another_without_circles():
    graph = files_imported({module_of(path): path for path in source_files()})
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_imports_keep_to_the_layers():
    assert everywhere(layer_violations) == []


def test_outside_packages_are_imported_where_the_table_says():
    assert everywhere(importer_violations) == []


def test_source_never_unpickles():
    assert everywhere(code_runners) == []


def test_packages_are_entered_by_what_they_export():
    assert everywhere(names_past_a_package) == []


def test_every_file_is_short_enough_to_read():
    lines = {module_of(path): len(path.read_text().splitlines()) for path in source_files()}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}


@pytest.mark.parametrize(
    ("check", "module", "source"),
    [
        (layer_violations, "sites.train.pipeline", "import coordinator.cli.main"),
        (
            layer_violations,
            "coordinator.cli.main",
            "def f():\n    from sites.data import load_images",
        ),
        (layer_violations, "ddm_fed.training", "from sites import data"),
        (layer_violations, "ddm_fed.records.plan", "from ddm_fed import console"),
        (layer_violations, "ddm_fed.privacy.accountant", "import ddm_fed.router.closed_form"),
        (
            layer_violations,
            "ddm_fed.bundle.verify",
            "from ddm_fed.ensemble.folder import STATEMENT_FILE",
        ),
        (layer_violations, "ddm_fed.nowhere", "from ddm_fed.errors import DataError"),
        (layer_violations, "sites.outbox.stages", "from sites.train.expert import recorded"),
        (layer_violations, "coordinator.inbox.upload", "from coordinator.cli import main"),
        (layer_violations, "ddm_fed", "from ddm_fed import records"),
        (layer_violations, "sites.x", "import importlib\nimportlib.import_module('coordinator')"),
        (
            importer_violations,
            "ddm_fed.bundle.verify",
            "from cryptography.hazmat import primitives",
        ),
        (importer_violations, "sites.outbox.stages", "import rich.console"),
        (
            importer_violations,
            "sites.train.pipeline",
            "if TYPE_CHECKING:\n    from PIL import Image",
        ),
        (
            importer_violations,
            "ddm_fed.privacy",
            "class A:\n    def f(self):\n        import opendp",
        ),
        (importer_violations, "ddm_fed.training", "import pickle"),
        (importer_violations, "ddm_fed.signing.keys", "import torch"),
        (importer_violations, "ddm_fed.storage.tensors", "from torch.nn import Module"),
        (code_runners, "ddm_fed.bundle.verify", "import torch\ntorch.load('x')"),
        (code_runners, "ddm_fed.bundle.verify", "from torch import load"),
        (code_runners, "sites.data", "np.load('x', allow_pickle=True)"),
        (names_past_a_package, "sites.data", "from ddm_fed.privacy.private_value import Private"),
    ],
)
def test_walk_with_a_forbidden_line_finds_it(check, module, source):
    assert len(check(module, source)) == 1


@pytest.mark.parametrize(
    ("check", "module", "source"),
    [
        (layer_violations, "sites.cli.main", "from ddm_fed import __version__, console"),
        (layer_violations, "sites.cli.main", "from sites import workspace"),
        (layer_violations, "ddm_fed.router.closed_form", "from ddm_fed.router.base import Router"),
        (importer_violations, "ddm_fed.signing.keys", "import cryptography.exceptions"),
        (code_runners, "sites.data", "np.load('x', allow_pickle=False)"),
        (
            names_past_a_package,
            "ddm_fed.privacy",
            "from ddm_fed.privacy.private_value import Private",
        ),
    ],
)
def test_walk_with_an_allowed_line_finds_nothing(check, module, source):
    assert check(module, source) == []


# docs/architecture.md


@pytest.mark.parametrize("path", sorted(set(ON_PAGE.findall(PAGE))))
def test_path_on_the_page_exists(path):
    assert (ROOT / path).exists()


def test_page_draws_three_journeys():
    drawn = re.findall(r"```mermaid\n(.+?)```", PAGE, re.DOTALL)
    assert [len(set(ON_PAGE.findall(journey))) >= 7 for journey in drawn] == [True] * 3


@pytest.mark.parametrize("tree", LAYERS)
def test_table_of_a_tree_on_the_page_is_its_import_order(tree):
    rows = [row for row in ROW_OF_PAGE.findall(PAGE) if row.startswith(f"{tree}/")]
    assert [row.removeprefix(f"{tree}/").removesuffix(".py") for row in rows] == list(LAYERS[tree])


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_page_is_found_from(document):
    assert "docs/architecture.md" in (ROOT / document).read_text()

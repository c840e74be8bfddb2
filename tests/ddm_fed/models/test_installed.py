"""Networks of other packages: what is installed and offered is built, and nothing else is run."""

import sys
from textwrap import indent

import pytest
import torch

from ddm_fed.errors import StateError
from ddm_fed.models import expert_tensors, network_cost, network_named
from ddm_fed.records import DataSpec, ExpertDesign, parse_architecture

NETWORK = """
import torch
from torch import nn
from ddm_fed.models import ExpertNetwork

class Tiny(ExpertNetwork):
    def __init__(self, shape, classes):
        super().__init__(classes)
        self.head = nn.Conv2d(shape[0], shape[0], 1)
{more}
    def forward(self, x, t, condition=None):
        self.class_rows(t, condition)
        return self.head(x)
    def reset_parameters(self, generator):
        nn.init.zeros_(self.head.weight)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package as pip leaves it. Its module marks that it was run."""
    monkeypatch.syspath_prepend(tmp_path)
    written = set()

    def write(package="tiny-net", version="1.0", group="ddm_fed.networks", more="", whole=None):
        module = package.replace("-", "_")
        written.add(module)
        code = NETWORK.format(more=indent(more, " " * 8)) if whole is None else whole
        mark = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        (tmp_path / f"{module}.py").write_text(mark + code)
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata)
        (info / "entry_points.txt").write_text(f"[{group}]\nTiny = {module}:Tiny\n")

    yield write
    for module in written:
        sys.modules.pop(module, None)


def ran(tmp_path):
    return (tmp_path / "ran").exists()


def test_network_of_an_installed_package_has_tensors_a_cost_and_an_answer(install):
    install()
    data = DataSpec(channels=1, height=8, width=8)
    design = ExpertDesign(architecture="tiny-net==1.0:Tiny")
    assert expert_tensors(data, design) == {
        "head.weight": ("F32", (1, 1, 1, 1)),
        "head.bias": ("F32", (1,)),
    }
    assert network_cost(design.architecture, data.shape).parameters == 2
    network = network_named(design.architecture, data.shape, 0)
    assert network(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("installed", "wanted", "said"),
    [
        ({}, "other-net==1.0:Tiny", "pip install other-net==1.0"),
        ({}, "tiny-net==2.0:Tiny", "tiny-net 1.0 is installed"),
        ({}, "tiny-net==1.0:Large", "offers no network Large"),
        ({"group": "console_scripts"}, "tiny-net==1.0:Tiny", "nothing of it was imported"),
    ],
)
def test_plan_that_names_what_is_not_installed_and_offered_runs_nothing(
    install, tmp_path, installed, wanted, said
):
    install(**installed)
    with pytest.raises(StateError) as caught:
        network_named(wanted, (1, 8, 8), 0)
    assert said in str(caught.value)
    assert not ran(tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"more": "self.norm = nn.BatchNorm2d(4)"}, "batch norm, `norm`"),
        ({"more": "self.wide = nn.Parameter(torch.zeros(2, dtype=torch.float64))"}, "float64"),
        ({"more": "raise ValueError('only squares')"}, "only squares"),
        ({"more": "self.classes = 7"}, "7 classes"),
        ({"whole": "from torch.nn import Module\nTiny = lambda *_: Module()"}, "is a Module, no"),
        ({"more": "raise RuntimeError('boom')"}, "cannot be built: RuntimeError"),
        ({"whole": "def Tiny(shape): pass"}, "cannot be built: TypeError"),
        ({"whole": "import nowhere_at_all"}, "cannot be imported"),
        ({"whole": "raise RuntimeError('boom')"}, "cannot be imported: RuntimeError: boom"),
        ({"whole": ""}, "cannot be imported"),
    ],
)
def test_network_that_cannot_be_an_expert_is_refused_by_name(install, tmp_path, changed, said):
    install(**changed)
    with pytest.raises(StateError) as caught:
        network_named("tiny-net==1.0:Tiny", (1, 8, 8), 0)
    assert said in str(caught.value)
    assert "tiny-net==1.0:Tiny" in str(caught.value)
    assert ran(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "tiny-net:Tiny",
        "tiny-net==1.0:a.b",
        "../net==1.0:Tiny",
        "Tiny_Net==1.0:Tiny",
        "tiny-net==1.0:Tiny\n",
        "tiny-net @ file:///net==1.0:Tiny",
    ],
)
def test_name_that_is_no_package_version_and_network_is_unknown(name):
    with pytest.raises(ValueError, match="unknown architecture"):
        parse_architecture(name)

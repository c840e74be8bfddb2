"""The examples in the docstrings of the main types, run on the real federation of the tests."""

import doctest
import importlib
import inspect
import shutil

import pytest
import torch

from ddm_fed.bundle.verify import verify_bundle
from ddm_fed.ensemble.folder import verify_ensemble
from ddm_fed.ensemble.load import load_ensemble, load_releases
from ddm_fed.ensemble.strategy import Strategy
from ddm_fed.records import now
from ddm_fed.trust.published import PLAN_FILE, roster_file

EXAMPLES = (
    "ddm_fed.records.plan_toml.read_plan_toml",
    "ddm_fed.flows.path.LinearPath",
    "ddm_fed.flows.solvers.integrate",
    "ddm_fed.privacy.private_value.Private",
    "ddm_fed.privacy.private_value.ImageSet",
    "ddm_fed.privacy.dpsgd.PrivateStep",
    "ddm_fed.privacy.accountant.epsilon",
    "ddm_fed.router.closed_form.build_router",
    "ddm_fed.router.mixture.MixtureRouter",
    "ddm_fed.trust.chain.RosterChain",
    "ddm_fed.trust.chain.Trust",
    "ddm_fed.trust.log.Log",
    "ddm_fed.bundle.verify.sign_bundle",
    "ddm_fed.bundle.verify.verify_bundle",
    "ddm_fed.ensemble.folder.verify_ensemble",
    "ddm_fed.ensemble.velocity.Ensemble",
    "ddm_fed.ensemble.sampling.sample",
    "sites.workspace.SiteFolder",
    "sites.privacy.ledger.SiteLedger",
    "coordinator.workspace.CoordinatorFolder",
)
FLAGS = doctest.ELLIPSIS


@pytest.fixture
def names(stages, bundle, ensemble, scratch, request) -> dict:
    """What examples may take for granted: folders and documents of a real federation."""
    fed, folder = stages.admitted, scratch / "folder"
    if ".bundle." in request.node.callspec.id:
        shutil.copytree(bundle, folder)
    else:
        folder.mkdir()
    verified = verify_ensemble(ensemble, fed.root)
    return {
        "torch": torch,
        "now": now,
        "Strategy": Strategy,
        "folder": folder,
        "ensemble": ensemble if ".folder." in request.node.callspec.id else load_ensemble(verified),
        "root": fed.root,
        "trust": fed.trust,
        "plan": fed.trust.plan,
        "published": fed.published,
        "rosters": [(fed.published / roster_file(number)).read_bytes() for number in (1, 2)],
        "plan_envelope": (fed.published / PLAN_FILE).read_bytes(),
        "releases": load_releases(verified),
        "key": fed.key("hospital-a"),
        "submission": verify_bundle(bundle, fed.trust, now()).submission,
    }


def examples_of(name: str) -> doctest.DocTest:
    module_name, _, member = name.rpartition(".")
    module = importlib.import_module(module_name)
    found = getattr(module, member)
    line = inspect.getsourcelines(found)[1]
    text = inspect.getdoc(found) or ""
    return doctest.DocTestParser().get_doctest(text, vars(module), name, module.__file__, line)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_shows_what_happens(name, names):
    example = examples_of(name)
    assert example.examples
    example.globs = names | example.globs
    said: list[str] = []
    found = doctest.DocTestRunner(optionflags=FLAGS).run(example, out=said.append)
    assert found.failed == 0, "".join(said)

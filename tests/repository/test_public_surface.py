"""What scripts and notebooks may rely on. A change here is a line in the changelog."""

import inspect
import os
import subprocess
import sys

import pytest

import ddm_fed
import sites.api

NAMES = ["LoadedEnsemble", "SampleSet", "__version__", "load", "train_expert", "verify"]
SITE_NAMES = ["release", "review", "train"]
MEMBERS = {
    "LoadedEnsemble": [
        "attribution",
        "classes",
        "is_student",
        "report",
        "sample",
        "shape",
        "shares",
        "sites",
        "velocity",
    ],
    "SampleSet": [
        "attribution",
        "grid",
        "images",
        "labels",
        "latents",
        "notes",
        "of",
        "prompts",
        "sites",
    ],
}
SIGNATURES = {
    "load": "folder, root, *, published=None, router=None, device=None, precision='float32', "
    "resident=None, offload=False, autoencoder=None, text_encoder=None, embedder_weights=None, "
    "progress=True",
    "verify": "folder, root, *, published=None, progress=True",
    "train_expert": "images, labels=None, *, plan, checkpoint, architecture=None, options=None, "
    "progress=True",
    "LoadedEnsemble.sample": "self, count=64, *, seed=0, strategy=None, steps=50, solver='heun', "
    "guidance=1.0, label=None, prompts=(), router_temperature=1.0, attribution=False, "
    "latents=False, batch_size=256, in_flight=1024",
    "LoadedEnsemble.velocity": "self, x, t, condition=None, *, strategy=None, site=None, "
    "guidance=1.0",
    "LoadedEnsemble.attribution": "self, images, condition=None, *, seed=0",
    "LoadedEnsemble.report": "self",
    "SampleSet.grid": "self, *, columns=None, zoom=0, most=100",
}
SITE_SIGNATURES = {
    "train": "site, plan, data, *, value_range=None, max_bad_fraction=0.05, architecture=None, "
    "options=None, restart=False, text_encoder=None, autoencoder=None, embedder_weights=None, "
    "yes=False",
    "review": "site, plan",
    "release": "site, plan",
}


def signature(found) -> str:
    """Returns names, kinds and defaults of a callable's parameters; annotations are mypy's."""
    bare = inspect.signature(found)
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in bare.parameters.values()
    ]
    return str(inspect.Signature(parameters))[1:-1]


def test_names_of_the_package_are_those_of_the_documents():
    assert ddm_fed.__all__ == NAMES
    assert dir(ddm_fed) == sorted(NAMES)
    assert sites.api.__all__ == SITE_NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_there_and_explained(name):
    found = getattr(ddm_fed, name)
    assert name == "__version__" or inspect.getdoc(found)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature_stays(name):
    found = ddm_fed
    for part in name.split("."):
        found = getattr(found, part)
    assert signature(found) == SIGNATURES[name]


@pytest.mark.parametrize("name", SITE_SIGNATURES)
def test_signature_of_a_site_stays(name):
    assert signature(getattr(sites.api, name)) == SITE_SIGNATURES[name]


@pytest.mark.parametrize("name", MEMBERS)
def test_members_of_a_class_stay(name, stages):
    found = getattr(ddm_fed, name)
    loaded = ddm_fed.load(stages.ensemble, stages.admitted.root, progress=False)
    example = loaded if name == "LoadedEnsemble" else loaded.sample(1, steps=1)
    assert isinstance(example, found)
    assert [member for member in dir(example) if not member.startswith("_")] == MEMBERS[name]


def test_nothing_can_be_released_past_a_ledger():
    assert not hasattr(ddm_fed, "release")
    with pytest.raises(AttributeError, match="no attribute `release`"):
        ddm_fed.release  # noqa: B018


@pytest.mark.slow
def test_import_of_the_package_loads_no_torch_and_the_first_verb_does():
    code = (
        "import sys, ddm_fed; before = 'torch' in sys.modules; ddm_fed.load; "
        "print(before, 'torch' in sys.modules)"
    )
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"]

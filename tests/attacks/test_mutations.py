"""A short run of the campaign of benchmarks/mutations.py: nothing altered is admitted."""

import importlib.util
import sys
from pathlib import Path

import pytest
from federation import forge

from ddm_fed.ensemble.folder import STATEMENT_FILE, verify_ensemble
from ddm_fed.errors import PlanMismatchError


@pytest.fixture(scope="module")
def mutations():
    path = Path(__file__).parents[2] / "benchmarks" / "mutations.py"
    spec = importlib.util.spec_from_file_location("mutations", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutations"] = module
    spec.loader.exec_module(module)
    return module


def test_no_mutant_is_admitted_falls_or_takes_long(mutations, stages, scratch):
    result = mutations.campaign(stages, scratch, count=600, seed=1)
    assert result.failures == []
    assert result.mutants >= 550
    for kind, tally in result.kinds.items():
        assert tally.mutants == sum(tally.refused.values()) + sum(tally.accepted.values()), kind
        assert tally.refused, f"no mutant of `{kind}` was refused, so nothing was tested"


@pytest.mark.parametrize(
    ("document", "number", "named"),
    [("roster", "version", "roster version"), ("log", "size", "log size")],
)
def test_ensemble_with_a_wrong_number_beside_a_right_digest_is_refused(
    stages, ensemble, document, number, named
):
    def edit(statement):
        statement["predicate"][document][number] -= 1

    forge(ensemble / STATEMENT_FILE, edit, stages.admitted.coordinator_key())
    with pytest.raises(PlanMismatchError, match=f"names the {named}"):
        verify_ensemble(ensemble, stages.admitted.root)

"""A coordinator that shows one history of its log here and another there, of whatever length."""

import shutil
from pathlib import Path

import pytest
from federation import SITES, Federation

from coordinator.ensembles.assemble import assemble
from coordinator.inbox.admission import admit_arrivals
from ddm_fed.ensemble.folder import verify_ensemble
from ddm_fed.ensemble.staleness import find_staleness
from ddm_fed.errors import LogError
from sites.published import look

A, B, C = SITES
LENGTHS = [((A,), (B,)), ((A,), (B, C)), ((A, B), (C,))]
IDS = ["as-long", "longer", "shorter"]


def admitting(stages, folder: Path, *kept: str) -> Federation:
    """Returns a copy of the coordinator that admits these sites and no other, and the sites."""
    fed: Federation = stages.submitted.copy(folder, "consortium", *SITES)
    for name in SITES:
        if name not in kept:
            shutil.rmtree(fed.arrival(name))
    assert all(verdict.error is None for verdict in admit_arrivals(fed.home, fed.trust))
    assert fed.log.size == len(kept)
    return fed


@pytest.mark.parametrize(("seen", "shown"), LENGTHS, ids=IDS)
def test_other_history_of_any_length_is_refused_with_both_signed_heads(
    stages, scratch: Path, seen: tuple[str, ...], shown: tuple[str, ...]
):
    one, two = admitting(stages, scratch / "one", *seen), admitting(stages, scratch / "two", *shown)
    one.look(A)
    with pytest.raises(LogError, match="two histories, which differ from entry 0 on") as caught:
        look(one.site(A), two.published)
    heads = [fed.log.checkpoint.decode().split() for fed in (one, two)]
    assert all(word in caught.value.message for head in heads for word in head)
    assert one.look(A).log.head == one.log.head  # what it remembers is what it saw first


@pytest.mark.parametrize(("own", "newer"), LENGTHS[:2], ids=IDS[:2])
def test_ensemble_of_another_history_than_the_log_at_hand_is_refused(
    stages, scratch: Path, own: tuple[str, ...], newer: tuple[str, ...]
):
    one, two = admitting(stages, scratch / "one", *own), admitting(stages, scratch / "two", *newer)
    others = tuple(name for name in SITES if name not in own)
    assemble(one.home, scratch / "ensemble", router=None, without=others)
    verified = verify_ensemble(scratch / "ensemble", one.root)
    with pytest.raises(LogError, match="two histories"):
        find_staleness(verified, two.home.chain(), two.log)

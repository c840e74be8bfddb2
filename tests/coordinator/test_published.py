"""What a server knows of the published documents follows the files, also while they are written."""

import threading

import pytest
from federation import SITES, a_plan

from coordinator.published import PublishedView
from coordinator.roster import changes, proposals
from ddm_fed.errors import LogError
from ddm_fed.trust.log import LEAVES_FILE


@pytest.fixture
def fed(copy_of):
    return copy_of("admitted", *SITES)


def test_view_reads_again_only_when_something_changed(fed):
    view = PublishedView(fed.home)
    first = view.current()
    assert view.current() is first
    changes.revoke(fed.home, SITES[0])
    second = view.current()
    assert second is not first
    assert not second.trust.roster.site(SITES[0]).is_active
    proposals.publish_plan(fed.home, a_plan(steps="steps = 4"))
    assert view.current().trust.plan.training.steps == 4


def test_view_between_two_files_waits_for_the_other(fed):
    leaves = fed.published / LEAVES_FILE
    whole = leaves.read_bytes()
    leaves.write_bytes(whole.splitlines(keepends=True)[0])
    threading.Timer(0.3, lambda: leaves.write_bytes(whole)).start()
    assert PublishedView(fed.home).current().log.size == len(SITES)


def test_view_of_documents_that_do_not_hold_refuses(fed):
    leaves = fed.published / LEAVES_FILE
    leaves.write_bytes(leaves.read_bytes().splitlines(keepends=True)[0])
    view = PublishedView(fed.home)
    with pytest.raises(LogError):
        view.current()

"""A site that keeps its weights keeps them, also where it decided so late."""

import pytest
from federation import create_federation, train
from held import PLAN, A, images, keep_weights

from ddm_fed.bundle.verify import EXPERT_FILE
from ddm_fed.errors import BudgetError
from ddm_fed.records import BundleState, read_plan_toml
from sites.doctor import Examination
from sites.outbox import stages
from sites.train.pipeline import write_draft
from sites.transport import removable_medium, submit
from sites.transport.base import FolderTransport

KEPT = "`keep_weights = true` in site.toml"


@pytest.fixture
def late(tmp_path, request):
    """A site that trained, came as far as `request.param`, and then decided to keep its weights."""
    fed = create_federation(tmp_path / "fed", read_plan_toml(PLAN))
    train(fed.site(A), fed.trust, images(0), seed=0)
    if request.param != "draft":
        stages.review(fed.site(A), fed.trust)
    if request.param == "released":
        stages.release(fed.site(A), fed.trust)
    keep_weights(fed.site(A))
    return fed


def weights_in(folder):
    return list(folder.rglob(EXPERT_FILE))


@pytest.mark.parametrize("late", ["draft", "reviewed"], indirect=True)
def test_draft_with_weights_is_neither_reviewed_nor_released(late):
    for step in (stages.review, stages.release):
        with pytest.raises(BudgetError, match=KEPT):
            step(late.site(A), late.trust)
    assert not weights_in(late.site(A).released)


@pytest.mark.parametrize("late", ["released"], indirect=True)
def test_released_weights_are_not_sent_by_any_way_and_the_doctor_says_so(late, tmp_path):
    site = late.site(A)
    (sent,) = submit.submit(site, late.trust, FolderTransport(late.inbox))
    (exported,) = removable_medium.export(site, late.trust, tmp_path / "medium")
    for item in (sent, exported):
        assert item.state is BundleState.HELD_BACK
        assert KEPT in item.error.message
    assert not weights_in(late.inbox)
    assert not weights_in(tmp_path / "medium")
    looked = Examination(site, late.published, None, None, 10.0)
    looked.run()
    found = {line.what: line for line in looked.findings}
    assert found["outbox"].verdict == "fails"
    assert KEPT in found["outbox"].why


@pytest.mark.parametrize("late", ["released"], indirect=True)
def test_new_draft_goes_without_weights_and_leaves_the_older_bundle_behind(late):
    published = late.look(A)
    site = late.site(A)
    write_draft(site, published.trust, published.log)
    stages.review(site, late.trust)
    stages.release(site, late.trust)
    states = [item.state for item in submit.submit(site, late.trust, FolderTransport(late.inbox))]
    assert states == [BundleState.HELD_BACK, BundleState.SENT]
    assert not weights_in(late.inbox)

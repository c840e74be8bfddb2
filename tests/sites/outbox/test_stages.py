"""The way out of a site: nothing leaves that nobody reviewed, and nothing is sent twice."""

import re
import shutil
from decimal import Decimal
from pathlib import Path

import pytest
from federation import (
    Federation,
    Json,
    a_plan,
    flip,
    forge,
    forge_manifest,
    make_odd_file,
    random_images,
    snapshot,
    train,
)

from coordinator.inbox.admission import admit_arrivals
from coordinator.roster import proposals
from ddm_fed.bundle.verify import ENVELOPE_FILE, EXPERT_FILE, ROUTER_FILE, TENSOR_FILES
from ddm_fed.errors import (
    DdmFedError,
    DigestError,
    FileSetError,
    LogError,
    PlanMismatchError,
    SignatureError,
    StateError,
    UnknownSignerError,
)
from ddm_fed.records import EgressRecord, GaussianEvent, sha256_hex
from ddm_fed.storage.files import PART_PREFIX
from ddm_fed.trust import Trust
from sites.outbox import stages
from sites.outbox.review import EGRESS_FILE
from sites.outbox.stages import find_bundles
from sites.privacy.ledger import open_ledger
from sites.transport import submit as submitting
from sites.transport.base import FolderTransport
from sites.workspace import SiteFolder

A = "hospital-a"


@pytest.fixture
def fed(copy_of) -> Federation:
    """hospital-a with a draft that nobody has reviewed, and its coordinator."""
    return copy_of("drafted", A)


@pytest.fixture
def site(fed: Federation) -> SiteFolder:
    return fed.site(A)


def released(site: SiteFolder, trust: Trust) -> Path:
    stages.review(site, trust)
    return stages.release(site, trust)


def submit(fed: Federation) -> list[tuple[str, str]]:
    found = submitting.submit(fed.site(A), fed.trust, FolderTransport(fed.inbox))
    return [(item.digest, item.state) for item in found]


def wrong(fed: Federation) -> submitting.Submitted:
    """Returns the one bundle that is not as it should be."""
    found = submitting.submit(fed.site(A), fed.trust, FolderTransport(fed.inbox))
    (item,) = [item for item in found if item.error is not None]
    return item


def assert_wrong(fed: Federation, state: str, kind: type[DdmFedError], words: str) -> None:
    """Submits, and checks what the one bundle that is not as it should be ends with."""
    item = wrong(fed)
    assert (item.state, type(item.error)) == (state, kind)
    assert re.search(words, str(item.error)), item.error


def draft(site: SiteFolder) -> Path:
    (found,) = site.drafts.iterdir()
    return found


# Review


def test_review_records_what_would_leave_and_what_it_costs(site: SiteFolder, trust: Trust):
    review = stages.review(site, trust)
    assert review.folder == site.reviews / draft(site).name
    egress = EgressRecord.from_json((review.folder / EGRESS_FILE).read_bytes(), what="the review")
    assert egress == review.egress
    assert egress.submission_sha256 == review.bundle.payload_sha256
    assert (egress.releases_epsilon, egress.ledger_entries) == ("2.0000", 3)
    assert [entry.purpose for entry in review.bundle.submission.privacy.ledger] == [
        "expert",
        "router-location",
        "router-shape",
    ]
    assert not egress.expert_is_private


def test_review_names_every_file_by_its_true_digest_and_size(site: SiteFolder, trust: Trust):
    files = stages.review(site, trust).egress.files
    folder = draft(site)
    assert [(file.name, file.sha256, file.size_bytes) for file in files] == [
        (name, sha256_hex((folder / name).read_bytes()), (folder / name).stat().st_size)
        for name in TENSOR_FILES
    ]


def test_review_without_a_draft_is_refused(site: SiteFolder, trust: Trust):
    shutil.rmtree(draft(site))
    with pytest.raises(StateError, match="there is no draft to review") as caught:
        stages.review(site, trust)
    assert "ddm-site train" in caught.value.hint


def test_review_after_release_says_what_comes_next(site: SiteFolder, trust: Trust):
    released(site, trust)
    with pytest.raises(StateError, match="there is no draft to review") as caught:
        stages.review(site, trust)
    assert "ddm-site submit" in caught.value.hint


@pytest.mark.parametrize("name", TENSOR_FILES)
def test_review_of_a_draft_edited_after_signing_is_refused(
    site: SiteFolder, trust: Trust, name: str
):
    flip(draft(site) / name, -1)
    with pytest.raises(DigestError, match=f"`{name}` is not what was signed"):
        stages.review(site, trust)
    assert list(site.reviews.iterdir()) == []


def test_review_of_a_draft_with_another_file_is_refused(site: SiteFolder, trust: Trust):
    (draft(site) / "patients.csv").write_bytes(b"")
    with pytest.raises(FileSetError, match=r"`patients\.csv` does not belong there"):
        stages.review(site, trust)


@pytest.mark.parametrize("name", [*TENSOR_FILES, ENVELOPE_FILE])
def test_review_of_a_draft_without_one_of_its_files_is_refused(
    site: SiteFolder, trust: Trust, name: str
):
    (draft(site) / name).unlink()
    with pytest.raises(FileSetError, match=f"`{name}` is missing"):
        stages.review(site, trust)


def test_draft_under_construction_is_no_draft(site: SiteFolder, trust: Trust):
    draft(site).rename(site.drafts / f"{PART_PREFIX}.building")
    with pytest.raises(StateError, match="there is no draft to review"):
        stages.review(site, trust)


# Release


def test_release_moves_the_reviewed_draft(site: SiteFolder, trust: Trust):
    digest, before = draft(site).name, snapshot(draft(site))
    assert released(site, trust) == site.released / digest
    assert snapshot(site.released / digest) == before
    assert list(site.drafts.iterdir()) == []


def test_release_without_review_is_refused(site: SiteFolder, trust: Trust):
    with pytest.raises(StateError, match=f"the draft {draft(site).name[:16]}… was not reviewed"):
        stages.release(site, trust)
    assert list(site.released.iterdir()) == []


def test_release_of_another_draft_than_the_reviewed_one_is_refused(site: SiteFolder, trust: Trust):
    stages.review(site, trust)
    digest = forge_manifest(
        draft(site), lambda fields: fields.update(sequence=2), site.newest_key()
    )
    with pytest.raises(StateError, match=f"the draft {digest[:16]}… was not reviewed"):
        stages.release(site, trust)


@pytest.mark.parametrize("name", TENSOR_FILES)
def test_release_of_a_draft_edited_after_its_review_is_refused(
    site: SiteFolder, trust: Trust, name: str
):
    stages.review(site, trust)
    flip(draft(site) / name, -1)
    with pytest.raises(DigestError, match=f"`{name}` is not what was signed"):
        stages.release(site, trust)
    assert list(site.released.iterdir()) == []


def test_release_of_a_draft_signed_by_another_key_is_refused(
    site: SiteFolder, trust: Trust, site_keys
):
    stages.review(site, trust)
    forge_manifest(draft(site), lambda fields: None, site_keys["hospital-b"])
    with pytest.raises(UnknownSignerError, match="is signed by ed25519:"):
        stages.release(site, trust)


# Submit


def test_submit_copies_what_was_released_and_keeps_it(fed: Federation, site: SiteFolder):
    bundle = released(site, fed.trust)
    assert submit(fed) == [(bundle.name, "sent")]
    assert snapshot(fed.home.incoming / bundle.name) == snapshot(bundle)


def test_submit_sends_no_draft(fed: Federation, site: SiteFolder):
    bundle = released(site, fed.trust)
    shutil.copytree(bundle, site.drafts / "another")
    submit(fed)
    assert [path.name for path in fed.home.incoming.iterdir()] == [bundle.name]


def test_submit_of_a_draft_alone_is_refused(fed: Federation):
    with pytest.raises(StateError, match="nothing is released"):
        submit(fed)
    assert list(fed.home.incoming.iterdir()) == []


def test_submit_to_an_inbox_that_is_not_there_is_refused(fed: Federation, site: SiteFolder):
    released(site, fed.trust)
    missing = fed.path / "medium"
    with pytest.raises(StateError, match=f"the inbox {missing} does not exist"):
        submitting.submit(site, fed.trust, FolderTransport(missing))
    assert not missing.exists()


def test_submit_twice_copies_once(fed: Federation, site: SiteFolder):
    digest = released(site, fed.trust).name
    submit(fed)
    inode = (fed.home.incoming / digest).stat().st_ino
    assert submit(fed) == [(digest, "waiting")]
    assert (fed.home.incoming / digest).stat().st_ino == inode


def test_submit_after_admission_collects_the_receipt(fed: Federation, site: SiteFolder):
    digest = released(site, fed.trust).name
    submit(fed)
    admit_arrivals(fed.home, fed.trust)
    assert submit(fed) == [(digest, "admitted")]
    kept = site.receipts / f"{digest}.dsse.json"
    assert kept.read_bytes() == (fed.home.receipts / f"{digest}.dsse.json").read_bytes()
    assert list(fed.home.incoming.iterdir()) == []


def test_submit_remembers_the_receipt_when_the_inbox_forgot_it(fed: Federation, site: SiteFolder):
    digest = released(site, fed.trust).name
    submit(fed)
    admit_arrivals(fed.home, fed.trust)
    submit(fed)
    shutil.rmtree(fed.home.receipts)
    assert submit(fed) == [(digest, "admitted")]


def test_submit_starts_again_after_a_copy_that_was_killed(fed: Federation, site: SiteFolder):
    digest = released(site, fed.trust).name
    part = fed.home.incoming / f"{PART_PREFIX}{digest}"
    part.mkdir()
    (part / EXPERT_FILE).write_bytes(b"half")
    assert submit(fed) == [(digest, "sent")]
    assert [path.name for path in fed.home.incoming.iterdir()] == [digest]


def test_half_a_copy_is_not_taken_for_an_arrival(fed: Federation, site: SiteFolder):
    digest = released(site, fed.trust).name
    submit(fed)
    part = fed.home.incoming / f"{PART_PREFIX}{digest}"
    (fed.home.incoming / digest).rename(part)
    (part / ROUTER_FILE).unlink()
    assert admit_arrivals(fed.home, fed.trust) == []
    assert part.exists()


def test_submit_after_a_refusal_sends_again(fed: Federation, site: SiteFolder):
    digest = released(site, fed.trust).name
    submit(fed)
    flip(fed.home.incoming / digest / EXPERT_FILE, -1)
    admit_arrivals(fed.home, fed.trust)
    assert submit(fed) == [(digest, "sent")]
    (verdict,) = admit_arrivals(fed.home, fed.trust)
    assert verdict.error is None


def test_submit_of_a_released_bundle_that_was_edited_is_refused(fed: Federation, site: SiteFolder):
    bundle = released(site, fed.trust)
    flip(bundle / EXPERT_FILE, -1)
    assert_wrong(fed, "damaged", DigestError, f"`{EXPERT_FILE}` is not what was signed")
    assert list(fed.home.incoming.iterdir()) == []


def test_submit_of_a_released_link_is_refused(fed: Federation, site: SiteFolder, scratch: Path):
    bundle = released(site, fed.trust)
    (scratch / "secret").write_bytes(b"private")
    (bundle / EXPERT_FILE).unlink()
    (bundle / EXPERT_FILE).symlink_to(scratch / "secret")
    assert_wrong(fed, "damaged", FileSetError, f"`{EXPERT_FILE}` is a symbolic link")
    assert list(fed.home.incoming.iterdir()) == []


def test_submit_with_a_bundle_of_an_earlier_plan_still_sends_the_current_one(
    fed: Federation, site: SiteFolder
):
    released(site, fed.trust)  # never admitted, for example because it was refused
    proposals.publish_plan(fed.home, a_plan(steps="steps = 4"))
    fed.look(A)
    later = train(site, fed.trust, random_images(0))
    released(site, fed.trust)
    assert (later.name, "sent") in submit(fed)


def test_draft_that_does_not_say_all_that_was_spent_does_not_leave(
    fed: Federation, site: SiteFolder
):
    open_ledger(site).append(
        fed.trust.plan_sha256,
        "lost",
        "discrete-gaussian",
        GaussianEvent(noise_multiplier=Decimal(9)),
    )
    with pytest.raises(StateError, match="its ledger has grown by 1 entries since"):
        released(site, fed.trust)
    assert find_bundles(site.released) == []
    anew = train(site, fed.trust, random_images(0))
    assert released(site, fed.trust).name == anew.name


# Receipts


def test_receipt_signed_by_the_site_itself_is_refused(fed: Federation, site: SiteFolder):
    digest = offer_receipt(fed, site)
    forge(fed.home.receipts / f"{digest}.dsse.json", lambda _: None, site.newest_key())
    assert_wrong(fed, "bad receipt", UnknownSignerError, f"the receipt {digest[:16]}… is signed by")
    assert list(site.receipts.iterdir()) == []


def test_receipt_for_another_submission_is_refused(fed: Federation, site: SiteFolder):
    digest = offer_receipt(fed, site)

    def point_elsewhere(statement) -> None:
        statement["subject"][0]["digest"]["sha256"] = "0" * 64

    forge(fed.home.receipts / f"{digest}.dsse.json", point_elsewhere, fed.coordinator_key())
    assert_wrong(
        fed, "bad receipt", PlanMismatchError, f"the receipt {digest[:16]}… is not a receipt"
    )


def test_receipt_of_another_kind_is_refused(fed: Federation, site: SiteFolder):
    digest = offer_receipt(fed, site)
    forge(
        fed.home.receipts / f"{digest}.dsse.json",
        lambda statement: statement.update(predicateType="urn:other"),
        fed.coordinator_key(),
    )
    assert_wrong(fed, "bad receipt", LogError, f"the receipt {digest[:16]}… is neither a receipt")


def test_receipt_edited_after_signing_is_refused(fed: Federation, site: SiteFolder):
    digest = offer_receipt(fed, site)
    path = fed.home.receipts / f"{digest}.dsse.json"
    honest = path.read_bytes()
    forge(path, lambda statement: statement["predicate"].update(sequence=9), fed.coordinator_key())
    signature = honest[honest.index(b'"signatures"') :]
    forged = path.read_bytes()
    path.write_bytes(forged[: forged.index(b'"signatures"')] + signature)
    assert_wrong(
        fed, "bad receipt", SignatureError, f"the receipt {digest[:16]}… carries a signature"
    )


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_receipt_that_is_no_plain_file_is_refused_without_blocking(
    fed: Federation, site: SiteFolder, kind: str
):
    digest = released(site, fed.trust).name
    make_odd_file(fed.home.receipts / f"{digest}.dsse.json", kind)
    assert_wrong(fed, "bad receipt", FileSetError, digest)


def offer_receipt(fed: Federation, site: SiteFolder) -> str:
    """Brings the honest bundle of the site to admission; returns its digest."""
    digest = released(site, fed.trust).name
    submit(fed)
    admit_arrivals(fed.home, fed.trust)
    return digest


def test_submit_does_not_send_an_expired_bundle_and_sends_the_others(
    fed: Federation, site: SiteFolder
):
    valid = released(site, fed.trust)
    old = Path(shutil.copytree(valid, site.drafts / "old"))

    def expire(fields: Json) -> None:
        fields["issued_at"], fields["expires_at"] = "2020-01-01T00:00:00Z", "2020-02-01T00:00:00Z"

    digest = forge_manifest(old, expire, site.newest_key())
    old.rename(site.released / digest)
    states = dict(submit(fed))
    assert (states[digest], states[valid.name]) == ("expired", "sent")

"""Two pairs of eyes: with a data-protection officer nothing leaves that only the site signed."""

import json
import os
import pty
import shutil
from decimal import Decimal
from pathlib import Path

import pytest
from commands import done, run
from federation import (
    Federation,
    Json,
    a_plan,
    forge,
    forge_manifest,
    payload_of,
    random_images,
    snapshot,
    train,
)

from coordinator.inbox.admission import admit_arrivals
from coordinator.roster import changes, proposals
from coordinator.workspace import CoordinatorFolder
from ddm_fed.bundle.verify import ENVELOPE_FILE
from ddm_fed.errors import (
    CountersignatureError,
    DigestError,
    MalformedError,
    SignatureError,
    StateError,
    UnknownSignerError,
)
from ddm_fed.records import IN_TOTO_PAYLOAD, sha256_hex
from ddm_fed.signing import ENROLMENT_PAYLOAD, SigningKey, add_signature, new_key, write_key
from ddm_fed.trust.log import SUBMISSION_FILE
from sites.outbox import stages
from sites.outbox.approve import approve_request, approve_review, open_for_approval
from sites.outbox.review import EGRESS_FILE, REVIEW_FILE
from sites.outbox.review_page import PAGE_FILE
from sites.rotation import replace_officer
from sites.transport import submit
from sites.transport.base import FolderTransport
from sites.workspace import ENROLMENT_FILE, SiteFolder, SiteSettings

A = "hospital-a"
OFFICER = "officer.pem"


def create_site(path: Path, root: str, officer: SigningKey, name: str = A) -> SiteFolder:
    """Returns a site whose officer has not signed its request yet."""
    settings = SiteSettings(
        name=name, root=root, max_epsilon=Decimal(10), dpo_key=officer.public.hex
    )
    return SiteFolder.create(path, settings)


@pytest.fixture(scope="module")
def drafted(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A site with an officer and a draft nobody has reviewed. Never change it."""
    fed = Federation(tmp_path_factory.mktemp("approval"))
    home = CoordinatorFolder.create(fed.path / "consortium", "test")
    proposals.complete_genesis(home)
    (fed.path / "desk").mkdir()
    officer = write_key(fed.path / "desk" / OFFICER)
    site = create_site(fed.path / A, home.settings.root, officer)
    approve_request(site.path / ENROLMENT_FILE, officer)
    changes.add(home, [site.path / ENROLMENT_FILE])
    proposals.publish_plan(home, a_plan())
    fed.look(A)
    train(site, fed.trust, random_images(0))
    return fed


@pytest.fixture
def fed(drafted: Federation, scratch: Path) -> Federation:
    return drafted.copy(scratch / "fed", "consortium", A, "desk")


@pytest.fixture
def site(fed: Federation) -> SiteFolder:
    return fed.site(A)


@pytest.fixture
def officer(fed: Federation) -> SigningKey:
    return SigningKey.read(fed.path / "desk" / OFFICER)


def signers(envelope: Path) -> set[str]:
    return {item["keyid"] for item in json.loads(envelope.read_bytes())["signatures"]}


def payload_bytes(envelope: Path) -> str:
    found: str = json.loads(envelope.read_bytes())["payload"]
    return found


def assert_nothing_left(site: SiteFolder) -> None:
    assert list(site.released.iterdir()) == []
    assert len(list(site.drafts.iterdir())) == 1


def sign_alone(envelope: Path, key: SigningKey) -> None:
    """Leaves the payload as it is, with the signature of `key` and no other."""
    forge(envelope, lambda _: None, key)


# The way it is meant


def test_release_without_approval_is_refused(fed: Federation, site: SiteFolder):
    review = stages.review(site, fed.trust)
    assert review.egress.require == ("site", "dpo")
    before = snapshot(site.drafts)
    with pytest.raises(CountersignatureError, match="data-protection officer") as caught:
        stages.release(site, fed.trust)
    assert caught.value.code == "DDM215"
    assert snapshot(site.drafts) == before
    assert_nothing_left(site)


def test_approval_elsewhere_keeps_both_payloads_and_lets_the_draft_leave(
    fed: Federation, site: SiteFolder, officer: SigningKey, scratch: Path
):
    review = stages.review(site, fed.trust)
    before = {name: payload_bytes(review.folder / name) for name in (REVIEW_FILE, SUBMISSION_FILE)}
    egress = (review.folder / EGRESS_FILE).read_bytes()
    medium = Path(shutil.copytree(review.folder, scratch / "medium"))
    assert approve_review(medium, officer) == review.egress
    assert {name: payload_bytes(medium / name) for name in before} == before
    assert (medium / EGRESS_FILE).read_bytes() == egress
    both = {site.newest_key().public.keyid, officer.public.keyid}
    assert [signers(medium / name) for name in before] == [both, both]

    shutil.copytree(medium, review.folder, dirs_exist_ok=True)
    digest = review.bundle.payload_sha256
    target = stages.release(site, fed.trust)
    assert target == site.released / digest
    assert len(json.loads((target / ENVELOPE_FILE).read_bytes())["signatures"]) == 2
    assert signers(target / ENVELOPE_FILE) == both
    assert payload_bytes(target / ENVELOPE_FILE) == before[SUBMISSION_FILE]


def test_approved_submission_is_admitted(fed: Federation, site: SiteFolder, officer: SigningKey):
    approve_review(stages.review(site, fed.trust).folder, officer)
    stages.release(site, fed.trust)
    submit.submit(site, fed.trust, FolderTransport(fed.inbox))
    (verdict,) = admit_arrivals(fed.home, fed.trust)
    assert verdict.error is None


@pytest.mark.parametrize("first", ["old", "new"])
def test_replaced_officer_and_the_new_one_both_have_to_sign_until_the_next_roster(
    fed: Federation, officer: SigningKey, first: str
):
    new = SigningKey.generate()
    replace_officer(fed.site(A), fed.trust, new.public)
    site = fed.site(A)  # as site.toml says now
    folder = stages.review(site, fed.trust).folder
    one, other = (officer, new) if first == "old" else (new, officer)
    approve_review(folder, one)
    with pytest.raises(CountersignatureError):
        stages.release(site, fed.trust)
    assert_nothing_left(site)
    approve_review(folder, other)
    released = stages.release(site, fed.trust)
    all_three = {key.public.keyid for key in (site.newest_key(), officer, new)}
    assert signers(released / ENVELOPE_FILE) == all_three


def test_approval_given_twice_adds_one_signature(
    fed: Federation, site: SiteFolder, officer: SigningKey
):
    folder = stages.review(site, fed.trust).folder
    approve_review(folder, officer)
    before = snapshot(folder)
    approve_review(folder, officer)
    assert snapshot(folder) == before


def test_review_run_again_keeps_the_approval(
    fed: Federation, site: SiteFolder, officer: SigningKey
):
    folder = stages.review(site, fed.trust).folder
    approve_review(folder, officer)
    before = snapshot(folder)
    stages.review(site, fed.trust)
    assert snapshot(folder) == before


# One of the two


@pytest.mark.parametrize("name", [REVIEW_FILE, SUBMISSION_FILE])
def test_half_an_approval_is_refused(
    fed: Federation, site: SiteFolder, officer: SigningKey, name: str
):
    folder = stages.review(site, fed.trust).folder
    kept = (folder / name).read_bytes()
    approve_review(folder, officer)
    (folder / name).write_bytes(kept)
    with pytest.raises(CountersignatureError):
        stages.release(site, fed.trust)
    assert_nothing_left(site)


def sign_anyhow(folder: Path, key: SigningKey) -> None:
    """Adds a signature as somebody would who has another program."""
    for name in (REVIEW_FILE, SUBMISSION_FILE):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(add_signature(data, IN_TOTO_PAYLOAD, key, what=name))


@pytest.mark.parametrize("own", [True, False])
def test_signature_of_a_key_that_is_not_the_officers_does_not_count(
    fed: Federation, site: SiteFolder, own: bool
):
    folder = stages.review(site, fed.trust).folder
    sign_anyhow(folder, site.newest_key() if own else SigningKey.generate())
    with pytest.raises(CountersignatureError):
        stages.release(site, fed.trust)
    assert_nothing_left(site)


@pytest.mark.parametrize("own", [True, False])
def test_approval_with_a_key_that_is_not_the_officers_is_refused(
    fed: Federation, site: SiteFolder, officer: SigningKey, own: bool
):
    folder = stages.review(site, fed.trust).folder
    before = snapshot(folder)
    key = site.newest_key() if own else SigningKey.generate()
    with pytest.raises(UnknownSignerError, match="is not the one") as caught:
        approve_review(folder, key)
    assert officer.public.keyid in str(caught.value)
    assert snapshot(folder) == before


def test_review_that_was_changed_since_it_was_shown_is_not_approved(
    fed: Federation, site: SiteFolder, officer: SigningKey
):
    folder = stages.review(site, fed.trust).folder
    shown = open_for_approval(folder, officer.public).egress
    another_draft(site)
    other = stages.review(site, fed.trust).folder
    shutil.copytree(other, folder, dirs_exist_ok=True)
    with pytest.raises(StateError, match="was changed since it was shown"):
        approve_review(folder, officer, shown)
    assert snapshot(folder) == snapshot(other)


def test_review_that_the_officer_alone_signed_is_refused(
    fed: Federation, site: SiteFolder, officer: SigningKey
):
    folder = stages.review(site, fed.trust).folder
    approve_review(folder, officer)
    sign_alone(folder / REVIEW_FILE, officer)
    with pytest.raises(UnknownSignerError):
        stages.release(site, fed.trust)
    assert_nothing_left(site)


def test_draft_that_the_officer_alone_signed_is_refused(
    fed: Federation, site: SiteFolder, officer: SigningKey
):
    review = stages.review(site, fed.trust)
    approve_review(review.folder, officer)
    sign_alone(site.drafts / review.folder.name / ENVELOPE_FILE, officer)
    with pytest.raises(UnknownSignerError, match="is not signed by"):
        stages.release(site, fed.trust)
    assert_nothing_left(site)


@pytest.mark.parametrize(
    ("alone", "error"), [("officer", UnknownSignerError), ("site", CountersignatureError)]
)
def test_arrival_that_one_of_the_two_signed_is_refused(
    fed: Federation, site: SiteFolder, officer: SigningKey, alone: str, error: type
):
    approve_review(stages.review(site, fed.trust).folder, officer)
    stages.release(site, fed.trust)
    submit.submit(site, fed.trust, FolderTransport(fed.inbox))
    key = {"officer": officer, "site": site.newest_key()}[alone]
    sign_alone(fed.arrival(A) / ENVELOPE_FILE, key)
    (verdict,) = admit_arrivals(fed.home, fed.trust)
    assert type(verdict.error) is error


def test_bad_signature_in_the_review_does_not_spoil_the_draft(
    fed: Federation, site: SiteFolder, officer: SigningKey
):
    folder = stages.review(site, fed.trust).folder
    approve_review(folder, officer)
    found = json.loads((folder / SUBMISSION_FILE).read_bytes())
    for item in found["signatures"]:
        if item["keyid"] == officer.public.keyid:
            item["sig"] = "A" * 86 + "=="
    (folder / SUBMISSION_FILE).write_text(json.dumps(found))
    before = snapshot(site.drafts)
    with pytest.raises(SignatureError):
        stages.release(site, fed.trust)
    assert snapshot(site.drafts) == before


# Altered, or of another draft


def understate(folder: Path) -> None:
    """Lets the egress record say that less would be spent."""
    record = json.loads((folder / EGRESS_FILE).read_bytes())
    assert record["releases_epsilon"] == "2.0000"
    record["releases_epsilon"] = "0.1000"
    data = json.dumps(record, sort_keys=True, separators=(",", ":"))
    (folder / EGRESS_FILE).write_text(data)


def test_approval_of_an_edited_egress_record_is_refused(
    fed: Federation, site: SiteFolder, officer: SigningKey
):
    folder = stages.review(site, fed.trust).folder
    understate(folder)
    before = snapshot(folder)
    with pytest.raises(DigestError) as caught:
        approve_review(folder, officer)
    assert caught.value.code == "DDM206"
    assert snapshot(folder) == before


def test_release_with_an_egress_record_edited_after_approval_is_refused(
    fed: Federation, site: SiteFolder, officer: SigningKey
):
    folder = stages.review(site, fed.trust).folder
    approve_review(folder, officer)
    understate(folder)
    with pytest.raises(DigestError) as caught:
        stages.release(site, fed.trust)
    assert caught.value.code == "DDM206"
    assert_nothing_left(site)


def another_draft(site: SiteFolder) -> str:
    """Puts a newer draft, signed by the site, in the place of the present one."""
    (draft,) = site.drafts.iterdir()

    def later(fields: Json) -> None:
        fields["sequence"] += 1

    digest = forge_manifest(draft, later, site.newest_key())
    draft.rename(site.drafts / digest)
    return digest


def test_approved_review_of_another_draft_does_not_count(
    fed: Federation, site: SiteFolder, officer: SigningKey
):
    folder = stages.review(site, fed.trust).folder
    approve_review(folder, officer)
    digest = another_draft(site)
    with pytest.raises(StateError, match="was not reviewed"):
        stages.release(site, fed.trust)
    folder.rename(site.reviews / digest)
    with pytest.raises(StateError, match="says something else than the draft"):
        stages.release(site, fed.trust)
    assert_nothing_left(site)


@pytest.mark.parametrize("name", [REVIEW_FILE, SUBMISSION_FILE])
def test_approved_document_of_another_draft_does_not_count(
    fed: Federation, site: SiteFolder, officer: SigningKey, name: str
):
    first = stages.review(site, fed.trust).folder
    approve_review(first, officer)
    another_draft(site)
    second = stages.review(site, fed.trust).folder
    approve_review(second, officer)
    assert first != second
    shutil.copyfile(first / name, second / name)
    with pytest.raises(DigestError):
        stages.release(site, fed.trust)
    assert_nothing_left(site)


# Enrolment


def test_request_that_its_officer_did_not_sign_is_refused(fed: Federation, scratch: Path):
    other = create_site(scratch / "b", fed.root, SigningKey.generate(), "hospital-b")
    with pytest.raises(CountersignatureError, match="brings the dpo key") as caught:
        changes.add(fed.home, [other.path / ENROLMENT_FILE])
    assert caught.value.code == "DDM215"
    assert fed.home.chain().current.site("hospital-b") is None


def test_request_is_approved_only_with_a_key_it_brings(fed: Federation, scratch: Path):
    other = create_site(scratch / "b", fed.root, SigningKey.generate(), "hospital-b")
    before = snapshot(other.path)
    with pytest.raises(UnknownSignerError, match="does not bring the key"):
        approve_request(other.path / ENROLMENT_FILE, SigningKey.generate())
    assert snapshot(other.path) == before


def test_site_that_names_its_own_key_as_the_officers_is_not_made(fed: Federation, scratch: Path):
    (scratch / "b" / "keys").mkdir(parents=True)  # as a killed `init` leaves it
    own = new_key(scratch / "b" / "keys", "site")
    with pytest.raises(StateError, match="is the site's own"):
        create_site(scratch / "b", fed.root, own, "hospital-b")
    assert not (scratch / "b" / "site.toml").exists()


def test_enrolment_with_the_sites_key_as_the_officers_is_refused(fed: Federation, scratch: Path):
    officer = SigningKey.generate()
    other = create_site(scratch / "b", fed.root, officer, "hospital-b")
    request, key = other.path / ENROLMENT_FILE, other.newest_key()

    def same(fields: Json) -> None:
        (found,) = [item for item in fields["keys"] if item["role"] == "dpo"]
        found["public_key"] = key.public.hex

    forge(request, same, key, kind=ENROLMENT_PAYLOAD)
    assert len({item["public_key"] for item in payload_of(request)["keys"]}) == 1
    with pytest.raises(MalformedError, match="a key is named twice"):
        changes.add(fed.home, [request])
    assert fed.home.chain().current.site("hospital-b") is None


def test_enrolment_with_another_members_key_as_the_officers_is_refused(
    fed: Federation, site: SiteFolder, scratch: Path
):
    other = create_site(scratch / "b", fed.root, site.newest_key(), "hospital-b")
    approve_request(other.path / ENROLMENT_FILE, site.newest_key())
    with pytest.raises(StateError, match=f"the dpo key of `hospital-b` is taken, by `{A}`"):
        changes.add(fed.home, [other.path / ENROLMENT_FILE])


def test_review_sealed_by_a_stranger_who_copied_its_payload_is_refused(
    fed: Federation, site: SiteFolder, officer: SigningKey
):
    folder = stages.review(site, fed.trust).folder
    approve_review(folder, officer)
    sign_alone(folder / REVIEW_FILE, SigningKey.generate())
    with pytest.raises(UnknownSignerError):
        stages.release(site, fed.trust)
    assert_nothing_left(site)


# The officer at a desk: the real command


PERSON = "desk/officer.pem"


def at_desk(fed: Federation, *arguments: object, answer: str | None = None) -> tuple[int, str]:
    """Runs `ddm-site approve` as a process; with `answer`, at a terminal where somebody types."""
    if answer is None:
        ended = run("ddm-site", "approve", *arguments)
        return ended.code, ended.out + ended.err
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode() + b"\n")
    ended = run("ddm-site", "approve", *arguments, stdin=theirs)
    os.close(theirs)
    os.close(ours)
    return ended.code, ended.out + ended.err


def test_approve_shows_what_no_epsilon_covers_and_asks(fed: Federation, site: SiteFolder):
    folder = stages.review(site, fed.trust).folder
    before = snapshot(folder)
    code, said = at_desk(fed, folder, "--key", fed.path / PERSON)
    assert code == 1
    assert "NOT bounded by it: expert, made without noise" in said
    assert "nothing was signed: there is no terminal" in said
    assert "--yes" in said
    assert snapshot(folder) == before


@pytest.mark.slow
def test_approve_shows_what_review_shows(fed: Federation, site: SiteFolder):
    shown = done("ddm-site", "review", "--site", site.path, "--plan", fed.published)
    (folder,) = site.reviews.iterdir()
    code, said = at_desk(fed, folder, "--key", fed.path / PERSON, "--yes")
    assert code == 0
    for line in (shown.out + shown.err).splitlines():
        if not line.startswith(("next:", "the same as a page")):
            assert line in said


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1), ("", 1)])
def test_approve_at_a_terminal_signs_only_after_a_yes(
    fed: Federation, site: SiteFolder, officer: SigningKey, answer: str, code: int
):
    folder = stages.review(site, fed.trust).folder
    ended, said = at_desk(fed, folder, "--key", fed.path / PERSON, answer=answer)
    assert ended == code, said
    assert f"May this leave `{A}`?" in said
    assert (officer.public.keyid in signers(folder / REVIEW_FILE)) == (code == 0)


def test_approve_with_the_key_of_another_hospitals_officer_is_refused(
    fed: Federation, site: SiteFolder
):
    folder = stages.review(site, fed.trust).folder
    before = snapshot(folder)
    write_key(fed.path / "desk" / "other.pem")
    code, said = at_desk(fed, folder, "--key", fed.path / "desk" / "other.pem", "--yes")
    assert code == 1
    assert "error[DDM203]" in said
    assert snapshot(folder) == before


@pytest.mark.slow
def test_request_is_shown_before_it_is_signed(fed: Federation, scratch: Path):
    officer = write_key(scratch / "b.pem")
    request = create_site(scratch / "b", fed.root, officer, "hospital-b").path / ENROLMENT_FILE
    before = request.read_bytes()
    code, said = at_desk(fed, request, "--key", scratch / "b.pem")
    assert (code, request.read_bytes()) == (1, before)
    assert officer.public.keyid in said
    assert "need the signatures of site and dpo" in said
    assert at_desk(fed, request, "--key", scratch / "b.pem", "--yes")[0] == 0
    assert officer.public.keyid in signers(request)


def test_page_for_people_says_what_no_epsilon_covers_and_is_covered_by_the_signature(
    fed: Federation, site: SiteFolder, officer: SigningKey
):
    folder = stages.review(site, fed.trust).folder
    page = (folder / PAGE_FILE).read_text()
    for words in ("NOT bounded by it: expert", "epsilon 2.0000", folder.name, officer.public.keyid):
        assert words in page
    assert "<script" not in page
    (folder / PAGE_FILE).write_text(page.replace("NOT bounded", "Bounded"))
    with pytest.raises(DigestError):
        approve_review(folder, officer)
    with pytest.raises(DigestError):
        stages.release(site, fed.trust)


def test_page_of_a_lying_site_is_named(fed: Federation, site: SiteFolder, officer: SigningKey):
    folder = stages.review(site, fed.trust).folder
    page = (folder / PAGE_FILE).read_bytes().replace(b"NOT bounded", b"Bounded")
    (folder / PAGE_FILE).write_bytes(page)

    def cover(statement: Json) -> None:
        for item in statement["subject"]:
            if item["name"] == PAGE_FILE:
                item["digest"]["sha256"] = sha256_hex(page)

    forge(folder / REVIEW_FILE, cover, site.newest_key())
    code, said = at_desk(fed, folder, "--key", fed.path / PERSON)
    assert code == 1
    assert f"WARNING: {PAGE_FILE}" in said
    assert "NOT bounded by it: expert" in said


def test_review_of_an_earlier_version_says_how_to_get_its_page(
    fed: Federation, site: SiteFolder, officer: SigningKey
):
    folder = stages.review(site, fed.trust).folder
    (folder / PAGE_FILE).unlink()

    def without(statement: Json) -> None:
        statement["subject"] = [i for i in statement["subject"] if i["name"] != PAGE_FILE]

    forge(folder / REVIEW_FILE, without, site.newest_key())
    with pytest.raises(StateError, match="earlier version") as caught:
        approve_review(folder, officer)
    assert "ddm-site review" in caught.value.hint


def test_site_without_an_officer_has_nothing_to_approve(copy_of):
    alone = copy_of("drafted", A)
    folder = stages.review(alone.site(A), alone.trust).folder
    with pytest.raises(StateError, match="names no data-protection officer"):
        approve_review(folder, SigningKey.generate())

"""What a person looks at before anything leaves, and the signatures that say they did.

    outbox/reviews/DIGEST/
      review.html             all that would leave, and what it costs: for people, in any browser
      egress.json             the same for machines, and whose signature it needs
      review.dsse.json        an in-toto statement over both and the submission, by digest
      submission.dsse.json    the manifest, as it would leave

The folder holds nothing secret and no weights. A data-protection officer takes it to another
machine, runs `ddm-site approve FOLDER --key KEY.pem` there, and brings it back: both documents then
carry a second signature, over the same bytes as the first.
"""

from dataclasses import dataclass
from pathlib import Path

from ddm_fed.bundle.verify import VerifiedBundle
from ddm_fed.errors import DigestError, MalformedError, StateError
from ddm_fed.records import (
    IN_TOTO_PAYLOAD,
    MAX_DOCUMENT_BYTES,
    REVIEW_PREDICATE,
    SUBMISSION_PREDICATE,
    EgressFile,
    EgressRecord,
    PrivacyStatement,
    Require,
    Review,
    Statement,
    Submission,
    now,
    sha256_hex,
    subjects,
)
from ddm_fed.signing import (
    SignedPayload,
    SigningKey,
    VerifyKey,
    open_envelope,
    peek_payload,
    seal,
)
from ddm_fed.storage.files import read_bounded, write_atomically
from ddm_fed.trust.log import SUBMISSION_FILE
from sites.outbox.review_page import PAGE_FILE, review_page

EGRESS_FILE = "egress.json"
REVIEW_FILE = "review.dsse.json"


def describe(
    bundle: VerifiedBundle, require: Require, officers: tuple[str, ...] = ()
) -> EgressRecord:
    """Returns all that would leave with `bundle`: a pure function of what was signed.

    Args:
        bundle: The draft.
        require: Whose signatures it needs.
        officers: Keys, as hex, of the data-protection officers whom roster and site name.
    """
    submission = bundle.submission
    return EgressRecord(
        federation=submission.federation,
        plan_sha256=submission.plan_sha256,
        site=submission.site,
        sequence=submission.sequence,
        submission_sha256=bundle.payload_sha256,
        files=tuple(
            EgressFile(name=f.name, size_bytes=f.size_bytes, sha256=bundle.sha256[f.name])
            for f in submission.files
        ),
        expert=submission.expert,
        expert_is_private=submission.privacy.expert_is_private,
        head_is_private=submission.privacy.head_is_private,
        releases_epsilon=submission.privacy.releases_epsilon,
        delta=format(submission.privacy.delta, "f"),
        ledger_entries=len(submission.privacy.ledger),
        require=require,
        officers=officers,
        held_expert=submission.held_expert,
    )


def write_review(folder: Path, egress: EgressRecord, envelope: bytes, key: SigningKey) -> None:
    """Writes the four files of a review into `folder`, signed by the site."""
    data = egress.to_json()
    manifest = peek_payload(envelope, IN_TOTO_PAYLOAD, what=SUBMISSION_FILE)
    submission = Statement[Submission].from_json(manifest, what=SUBMISSION_FILE).predicate
    page = review_page(egress, submission.privacy)
    statement = Statement[Review](
        subject=subjects(
            {
                EGRESS_FILE: sha256_hex(data),
                PAGE_FILE: sha256_hex(page),
                SUBMISSION_FILE: egress.submission_sha256,
            }
        ),
        predicateType=REVIEW_PREDICATE,
        predicate=Review(federation=egress.federation, site=egress.site, reviewed_at=now()),
    )
    write_atomically(folder / EGRESS_FILE, data)
    write_atomically(folder / PAGE_FILE, page)
    write_atomically(folder / SUBMISSION_FILE, envelope)
    write_atomically(folder / REVIEW_FILE, seal(statement.to_json(), IN_TOTO_PAYLOAD, [key]))


@dataclass(frozen=True)
class ReviewFolder:
    """The documents of a review, which name each other by the right digests.

    Attributes:
        egress: What would leave.
        review: The envelope over egress record, page and submission.
        submission: The envelope of the manifest.
        privacy: What the manifest itself says it costs.
        page_is_ours: Whether the page is what this version writes for this manifest.
    """

    egress: EgressRecord
    review: bytes
    submission: bytes
    privacy: PrivacyStatement
    page_is_ours: bool


def read_review(folder: Path, expected: EgressRecord | None = None) -> ReviewFolder:
    """Returns the review in `folder` if its documents belong together; signatures come later.

    Args:
        folder: The review's folder.
        expected: What the egress record has to say; by default what the manifest itself says, as
            far as it goes.

    Raises:
        StateError: it was made for another policy or version.
        DigestError: the documents do not belong together.
        RefusedError: form.
    """
    data = read_bounded(folder / EGRESS_FILE, MAX_DOCUMENT_BYTES)
    review = read_bounded(folder / REVIEW_FILE, MAX_DOCUMENT_BYTES)
    submission = read_bounded(folder / SUBMISSION_FILE, MAX_DOCUMENT_BYTES)
    egress = EgressRecord.from_json(data, what=EGRESS_FILE)
    payload = peek_payload(review, IN_TOTO_PAYLOAD, what=REVIEW_FILE)
    statement = Statement[Review].from_json(payload, what=REVIEW_FILE)
    manifest = peek_payload(submission, IN_TOTO_PAYLOAD, what=SUBMISSION_FILE)
    named = {item.name: item.digest.sha256 for item in statement.subject}
    if PAGE_FILE not in named:
        raise StateError(
            f"the review {folder.name[:16]}… was written by an earlier version, without a page for "
            "people",
            hint="at the site, remove this folder and run `ddm-site review` again",
        )
    page = read_bounded(folder / PAGE_FILE, MAX_DOCUMENT_BYTES)
    found = {
        EGRESS_FILE: sha256_hex(data),
        PAGE_FILE: sha256_hex(page),
        SUBMISSION_FILE: sha256_hex(manifest),
    }
    if statement.predicate_type != REVIEW_PREDICATE or named != found:
        raise DigestError(
            f"the documents of the review {folder.name[:16]}… are not the ones that were signed",
            hint="one of them was altered or exchanged; run `ddm-site review` again after removing "
            "this folder",
        )
    if expected is not None and egress != expected:
        raise StateError(
            f"the review {folder.name[:16]}… says something else than the draft",
            hint="the policy of the site or of the roster has changed; remove the folder and run "
            "`ddm-site review` again",
        )
    privacy = _require_consistent(egress, manifest, statement.predicate)
    ours = page == review_page(egress, privacy)
    return ReviewFolder(egress, review, submission, privacy, ours)


def _require_consistent(egress: EgressRecord, manifest: bytes, review: Review) -> PrivacyStatement:
    """Returns what the manifest says of privacy, if the egress record says the same."""
    statement = Statement[Submission].from_json(manifest, what=SUBMISSION_FILE)
    submission = statement.predicate
    privacy = submission.privacy
    pairs = [
        (egress.submission_sha256, sha256_hex(manifest)),
        (egress.site, submission.site),
        (review.site, submission.site),
        (egress.sequence, submission.sequence),
        (egress.plan_sha256, submission.plan_sha256),
        (egress.expert_is_private, privacy.expert_is_private),
        (egress.head_is_private, privacy.head_is_private),
        (egress.releases_epsilon, privacy.releases_epsilon),
        (egress.delta, format(privacy.delta, "f")),
        (egress.ledger_entries, len(privacy.ledger)),
        (egress.held_expert, submission.held_expert),
        (
            sorted((file.name, file.size_bytes, file.sha256) for file in egress.files),
            sorted(
                (file.name, file.size_bytes, statement.digest_of(file.name) or "")
                for file in submission.files
            ),
        ),
    ]
    for said, signed in pairs:
        if said != signed:
            raise DigestError(
                f"the egress record says {said}, the manifest that would leave says {signed}",
                hint="do not approve it; ask who made this review",
            )
    if statement.predicate_type != SUBMISSION_PREDICATE:
        raise MalformedError(
            f"{SUBMISSION_FILE} is a statement of type `{statement.predicate_type}`",
            hint="this is not a submission; run `ddm-site review` again",
        )
    return privacy


def open_review(review: bytes, keys: list[VerifyKey]) -> SignedPayload:
    """Returns the review statement with those of `keys` that have signed it.

    Raises:
        RefusedError: a signature does not hold, or none of them signed.
    """
    return open_envelope(review, IN_TOTO_PAYLOAD, keys, what=REVIEW_FILE)

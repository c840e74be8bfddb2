"""Released bundles, one after the other, to the coordinator; their receipts back.

A site keeps its own copy of a bundle, whatever a mover says. Done is what has a signed receipt.
"""

from dataclasses import dataclass
from pathlib import Path

from ddm_fed.bundle import ENVELOPE_FILE, verify_bundle
from ddm_fed.errors import RefusedError, RevokedKeyError, StateError
from ddm_fed.files import Advance, read_bounded, write_atomically
from ddm_fed.receipts import read_receipt
from ddm_fed.records import MAX_DOCUMENT_BYTES, Statement, Submission, now
from ddm_fed.signing import Trust
from ddm_fed.submission import open_as_site
from sites.folder import SiteFolder
from sites.movers import Mover
from sites.outbox import find_bundles


@dataclass(frozen=True)
class Submitted:
    """Where one released bundle stands.

    Attributes:
        digest: Of its manifest.
        state: `admitted`, `waiting`, `sent` or `refused`; or why it is not sent, because it would
            be refused: `earlier plan`, `earlier reference`, `earlier key` or `expired`.
        error: Why the coordinator refused it.
    """

    digest: str
    state: str
    error: RefusedError | None = None


def submit(
    site: SiteFolder, trust: Trust, mover: Mover, *, advance: Advance = lambda _: None
) -> list[Submitted]:
    """Sends released bundles and collects receipts.

    Idempotent: what is there already is not sent again, what has a receipt is done.

    Args:
        site: The sender.
        trust: Whose receipts are believed.
        mover: The way.
        advance: Told the bytes that arrived.

    Raises:
        StateError: nothing is released.
        DdmFedError: the way is closed, just now or for good.
    """
    released = find_bundles(site.released)
    if not released:
        raise StateError("nothing is released", hint="run `ddm-site release` first")
    newest = signed_statement(released[-1], trust).predicate
    return [_submit_one(site, trust, mover, bundle, newest, advance) for bundle in released]


def _submit_one(
    site: SiteFolder,
    trust: Trust,
    mover: Mover,
    folder: Path,
    newest: Submission,
    advance: Advance,
) -> Submitted:
    digest = folder.name
    kept = site.receipts / f"{digest}.dsse.json"
    if kept.exists():
        keep_receipt(site, trust, digest, read_bounded(kept, MAX_DOCUMENT_BYTES))
        return Submitted(digest, "admitted")
    submission = signed_statement(folder, trust).predicate
    receipt = mover.collect(digest)
    if receipt is not None:
        keep_receipt(site, trust, digest, receipt)
        return Submitted(digest, "admitted")
    if submission.plan_sha256 != trust.plan_sha256:
        return Submitted(digest, "earlier plan")
    if submission.reference_sha256 not in (None, newest.reference_sha256):
        # the coordinator replaced it since, and this site followed
        return Submitted(digest, "earlier reference")
    if now() >= submission.expires_at:
        return Submitted(digest, "expired")
    try:
        verified = verify_bundle(folder, trust, now())
    except RevokedKeyError:
        return Submitted(digest, "earlier key")
    sent = mover.send(verified, folder, advance)
    if sent.receipt is not None:
        keep_receipt(site, trust, digest, sent.receipt)
    return Submitted(digest, sent.state)


def keep_receipt(site: SiteFolder, trust: Trust, digest: str, data: bytes) -> None:
    """Verifies the receipt `data` for the bundle `digest`, and keeps it.

    Raises:
        RefusedError: it is not the coordinator's, or for another bundle.
    """
    read_receipt(data, digest, trust.chain, what=f"the receipt {digest[:16]}…")
    kept = site.receipts / f"{digest}.dsse.json"
    if not kept.exists():
        write_atomically(kept, data)


def signed_statement(bundle: Path, trust: Trust) -> Statement[Submission]:
    """Returns what a bundle says of itself, signed by the site, now or at any time before."""
    envelope = read_bounded(bundle / ENVELOPE_FILE, MAX_DOCUMENT_BYTES)
    signed = open_as_site(envelope, trust.chain, what=f"the bundle {bundle.name[:16]}")
    return Statement[Submission].from_json(signed.payload, what=bundle.name)

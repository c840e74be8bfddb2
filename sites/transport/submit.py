"""Released bundles, one after the other, to the coordinator; their receipts back.

A site keeps its own copy of a bundle, whatever a transport says. Done is what has a signed receipt.
Each bundle has a state of its own: one that cannot go holds up no other.
"""

from dataclasses import dataclass
from pathlib import Path

from ddm_fed.bundle.policy import CLOCK_SKEW
from ddm_fed.bundle.submission import open_as_site
from ddm_fed.bundle.verify import ENVELOPE_FILE, VerifiedBundle, verify_bundle
from ddm_fed.errors import (
    BudgetError,
    DdmFedError,
    DigestError,
    ExpiredError,
    FileSetError,
    MalformedError,
    RefusedError,
    RevokedKeyError,
    SignatureError,
    StateError,
    ValuesError,
    WeightsError,
)
from ddm_fed.progress import Advance
from ddm_fed.records import MAX_DOCUMENT_BYTES, BundleState, Statement, Submission, now
from ddm_fed.storage.files import read_bounded, write_atomically
from ddm_fed.trust import Trust
from ddm_fed.trust.receipts import read_receipt
from sites.outbox.stages import find_bundles, member_of, require_kept
from sites.transport.base import Transport
from sites.workspace import SiteFolder

# errors that say that the site's own copy is no longer what it signed
DAMAGE = (DigestError, FileSetError, MalformedError, SignatureError, ValuesError, WeightsError)


@dataclass(frozen=True)
class Submitted:
    """Where one released bundle stands.

    Attributes:
        digest: Of its manifest.
        state: Sent, waiting, admitted or refused; superseded if a newer one was admitted; or why it
            is not sent, because it would be refused. A receipt may also not hold.
        error: What is wrong, where somebody has to do something about it.
    """

    digest: str
    state: BundleState
    error: DdmFedError | None = None


@dataclass(frozen=True)
class _Outgoing:
    """A released bundle; `submission` is what it says of itself, `error` why that is unknown."""

    folder: Path
    submission: Submission | None
    error: RefusedError | None = None


def submit(
    site: SiteFolder, trust: Trust, transport: Transport, *, advance: Advance = lambda _: None
) -> list[Submitted]:
    """Sends released bundles and collects receipts, oldest first.

    Idempotent: what is there already is not sent again, what has a receipt is done.

    Args:
        site: The sender.
        trust: Whose receipts are believed.
        transport: The way.
        advance: Told the bytes that arrived.

    Raises:
        StateError: nothing is released.
        ExchangeError, InputError: the way is closed, just now or for good.
    """
    outgoing = [_read(folder, trust) for folder in find_bundles(site.released)]
    if not outgoing:
        raise StateError("nothing is released", hint="run `ddm-site release` first")
    settled = {item.folder.name: _collect(site, trust, transport, item) for item in outgoing}
    last = max(
        (
            item.submission.sequence
            for item in outgoing
            if item.submission is not None and _is_admitted(settled[item.folder.name])
        ),
        default=0,
    )
    newest = next((i.submission for i in reversed(outgoing) if i.submission is not None), None)
    return [
        settled[item.folder.name] or _send(site, trust, transport, item, newest, last, advance)
        for item in outgoing
    ]


def _is_admitted(found: Submitted | None) -> bool:
    return found is not None and found.state is BundleState.ADMITTED


def _read(folder: Path, trust: Trust) -> _Outgoing:
    try:
        return _Outgoing(folder, signed_statement(folder, trust).predicate)
    except RefusedError as error:
        return _Outgoing(folder, None, error)


def _collect(
    site: SiteFolder, trust: Trust, transport: Transport, item: _Outgoing
) -> Submitted | None:
    """Returns that a bundle is admitted, or has a receipt that does not hold; else None."""
    digest = item.folder.name
    kept = site.receipts / f"{digest}.dsse.json"
    try:
        if kept.exists():
            keep_receipt(site, trust, digest, read_bounded(kept, MAX_DOCUMENT_BYTES))
            return Submitted(digest, BundleState.ADMITTED)
        receipt = transport.collect(digest)
        if receipt is None:
            return None
        keep_receipt(site, trust, digest, receipt)
    except RefusedError as error:
        return Submitted(digest, BundleState.BAD_RECEIPT, error)
    return Submitted(digest, BundleState.ADMITTED)


def _send(
    site: SiteFolder,
    trust: Trust,
    transport: Transport,
    item: _Outgoing,
    newest: Submission | None,
    last: int,
    advance: Advance,
) -> Submitted:
    digest, submission = item.folder.name, item.submission
    if submission is None:
        return Submitted(digest, BundleState.DAMAGED, item.error)
    if submission.sequence < last:
        return Submitted(digest, BundleState.SUPERSEDED)
    if submission.plan_sha256 != trust.plan_sha256:
        return Submitted(digest, BundleState.EARLIER_PLAN)
    reference = newest.reference_sha256 if newest is not None else None
    if submission.reference_sha256 not in (None, reference):
        # the coordinator replaced it since, and this site followed
        return Submitted(digest, BundleState.EARLIER_REFERENCE)
    if now() >= submission.expires_at:
        return Submitted(digest, BundleState.EXPIRED)
    try:
        require_kept(site.settings, submission)
        verified = verify_bundle(item.folder, trust, now())
    except BudgetError as error:
        return Submitted(digest, BundleState.HELD_BACK, error)
    except RefusedError as error:
        return _not_sent(site, trust, digest, submission, error)
    return _deliver(site, trust, transport, item.folder, verified, advance)


def _not_sent(
    site: SiteFolder, trust: Trust, digest: str, submission: Submission, error: RefusedError
) -> Submitted:
    """Returns the state of a bundle that its own site does not let go, for `error`."""
    if isinstance(error, RevokedKeyError):
        keys = member_of(site, trust).keys
        replaced = any(key.is_active for key in keys if key.role == "site")
        return (
            Submitted(digest, BundleState.EARLIER_KEY)
            if replaced
            else Submitted(digest, BundleState.REVOKED_KEY, error)
        )
    if isinstance(error, ExpiredError) and submission.issued_at > now() + CLOCK_SKEW:
        return Submitted(digest, BundleState.FROM_THE_FUTURE, error)
    damaged = isinstance(error, DAMAGE)
    return Submitted(digest, BundleState.DAMAGED if damaged else BundleState.HELD_BACK, error)


def _deliver(
    site: SiteFolder,
    trust: Trust,
    transport: Transport,
    folder: Path,
    verified: VerifiedBundle,
    advance: Advance,
) -> Submitted:
    digest = folder.name
    try:
        sent = transport.send(verified, folder, advance)
    except RefusedError as error:
        return Submitted(digest, BundleState.REFUSED, error)
    if sent.receipt is not None:
        try:
            keep_receipt(site, trust, digest, sent.receipt)
        except RefusedError as error:
            return Submitted(digest, BundleState.BAD_RECEIPT, error)
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
    return open_as_site(envelope, trust.chain, what=f"the bundle {bundle.name[:16]}")[1]

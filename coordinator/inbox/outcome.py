"""From a bundle that has just arrived to its receipt, or to the reason why it is refused."""

from dataclasses import dataclass
from time import monotonic, sleep

from coordinator import journal
from coordinator.inbox.admission import admit_arrivals
from coordinator.inbox.claim import claim_of
from coordinator.workspace import CoordinatorFolder
from ddm_fed.errors import BusyError
from ddm_fed.records import MAX_DOCUMENT_BYTES, is_sha256
from ddm_fed.storage.files import read_bounded
from ddm_fed.trust.log import Log

RETRY_S = 0.2


@dataclass(frozen=True)
class Refusal:
    """Why a bundle was refused, in the words of the error."""

    code: str
    message: str
    hint: str


@dataclass(frozen=True)
class Outcome:
    """What became of a bundle; neither of the two while it waits.

    Attributes:
        receipt: The signed receipt's envelope.
        refusal: Why it was refused.
    """

    receipt: bytes | None = None
    refusal: Refusal | None = None


def deliver(home: CoordinatorFolder, digest: str, *, timeout_s: float = 60.0) -> Outcome:
    """Verifies and admits the bundle `digest` in the inbox; returns what became of it.

    Args:
        home: The coordinator.
        digest: Of the bundle's manifest.
        timeout_s: How long another command may hold the folder; after that the bundle waits.

    Raises:
        ExpiredError: the plan or the roster is no longer in force.
        StateError: a new coordinator key still waits for signatures.
    """
    until = monotonic() + timeout_s
    while outcome_of(home, digest) == Outcome():
        try:
            with home.changing():
                admit_arrivals(home, home.trust(), only=digest)
            break
        except BusyError:
            if monotonic() > until:
                break
            sleep(RETRY_S)
    return outcome_of(home, digest)


def outcome_of(home: CoordinatorFolder, digest: str) -> Outcome:
    """Returns what became of the bundle `digest`, if anything did yet; nothing if it is none."""
    if not is_sha256(digest):  # it becomes a part of paths
        return Outcome()
    receipt = home.receipts / f"{digest}.dsse.json"
    if receipt.exists():
        return Outcome(receipt=read_bounded(receipt, MAX_DOCUMENT_BYTES))
    if (home.incoming / digest).exists():
        return Outcome()
    for event in reversed(journal.refusals(home)):
        if event["arrival"] == digest:
            return Outcome(refusal=Refusal(event["code"], event["message"], event["hint"]))
    return Outcome()


def claimed_site(home: CoordinatorFolder, log: Log, digest: str) -> str | None:
    """Returns whose the bundle `digest` is: by the log, or by its own signature.

    None if nothing of that digest waits, was admitted or was refused here.
    """
    if not is_sha256(digest):
        return None
    entry = log.find(digest)
    if entry is not None and entry.receipt is not None:
        return entry.receipt.site
    if (home.incoming / digest).exists():
        claim = claim_of(home.incoming / digest, home.chain())
        return claim.site if claim is not None and claim.signed else None
    for event in reversed(journal.refusals(home)):
        if event["arrival"] == digest:
            return str(event["claimed_site"]) if event.get("claim_signed") else None
    return None

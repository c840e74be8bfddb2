"""From what arrived to what may be assembled: quarantined, then verified, then admitted.

Each stage is a type that only the stage before makes, and only the next one takes.

    quarantine(arrival)     -> Quarantined     the manifest is in memory; no weight was read
    verify(Quarantined)     -> VerifiedBundle  signatures, plan and files hold; the store has it
    admit(VerifiedBundle)   -> Admitted        the log agrees, and has a leaf for it

Whoever can write to the inbox can change a bundle at any time and gains nothing: what is verified
is the store's own copy. The leaf is written last and in one step, so a kill at any moment leaves a
bundle either admitted or as if it had just arrived; the same command goes on from there.
"""

import os
import re
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from coordinator import journal
from coordinator.inbox.claim import admitted_digests, claim_of, read_admitted
from coordinator.inbox.history import released_units
from coordinator.inbox.manifest import judge_manifest
from coordinator.inbox.quotas import forget_evidence, forget_refused
from coordinator.log import OwnLog, append, publish_log, read_book
from coordinator.roster.proposals import pending_roster
from coordinator.workspace import CoordinatorFolder
from ddm_fed.bundle.submission import read_submission
from ddm_fed.bundle.verify import (
    ENVELOPE_FILE,
    ROUTER_FILE,
    VerifiedBundle,
    arrived_files,
    verify_files,
)
from ddm_fed.errors import (
    EquivocationError,
    RefusedError,
    RevokedKeyError,
    StateError,
    printable,
)
from ddm_fed.progress import Advance
from ddm_fed.records import (
    IN_TOTO_PAYLOAD,
    MAX_DOCUMENT_BYTES,
    Receipt,
    Submission,
    ledger_head,
    now,
    sha256_hex,
)
from ddm_fed.signing import peek_payload
from ddm_fed.storage.files import (
    PART_PREFIX,
    read_bounded,
    sweep_parts,
    write_atomically,
)
from ddm_fed.storage.junk import is_junk
from ddm_fed.trust import Trust, require_in_force
from ddm_fed.trust.log import Log, LogEntry
from ddm_fed.trust.published import PLAN_FILE
from ddm_fed.trust.receipts import sign_receipt


@dataclass(frozen=True)
class Quarantined:
    """Something that arrived: the right files by name, and a manifest nobody has believed yet."""

    arrival: Path
    envelope: bytes
    names: tuple[str, ...]

    @property
    def what(self) -> str:
        """Its name, for messages."""
        return f"the bundle {self.arrival.name[:16]}"


@dataclass(frozen=True)
class Admitted:
    """A submission that has a leaf in the log, as the store's own signed documents describe it."""

    entry: LogEntry
    submission: Submission
    envelope: bytes
    sha256: Mapping[str, str]

    @property
    def payload_sha256(self) -> str:
        """The digest of the signed manifest."""
        return self.entry.submission_sha256


class Known(NamedTuple):
    """What a command verified once, when it began, and hands on to all that it does."""

    trust: Trust
    log: OwnLog


@dataclass(frozen=True)
class Verdict:
    """What became of one arrival: admitted, or refused with the reason."""

    name: str
    admitted: Admitted | None
    error: RefusedError | None


def quarantine(arrival: Path) -> Quarantined:
    """Returns the arrival with its manifest read; nothing of it is believed.

    Raises:
        FileSetError: it is not a folder with exactly the files of a bundle.
    """
    what = f"the bundle {arrival.name[:16]}"
    names = arrived_files(arrival, what=what, travelled=True)
    return Quarantined(arrival, read_bounded(arrival / ENVELOPE_FILE, MAX_DOCUMENT_BYTES), names)


def verify(
    home: CoordinatorFolder,
    trust: Trust,
    log: Log,
    held: Quarantined,
    *,
    advance: Advance = lambda _: None,
) -> VerifiedBundle:
    """Returns the bundle, verified, its files copied into the store while they were hashed.

    The manifest is judged before a byte of the weights is read.

    Raises:
        RefusedError: the first rule that fails.
    """
    manifest = read_submission(held.envelope, trust.chain, log.size, what=held.what)
    digests = judge_manifest(home, trust, log, manifest, what=held.what)
    return verify_files(
        manifest,
        held.envelope,
        digests,
        {name: held.arrival / name for name in held.names},
        trust,
        what=held.what,
        store=home.blobs,
        advance=advance,
    )


def admit(home: CoordinatorFolder, trust: Trust, log: OwnLog, bundle: VerifiedBundle) -> OwnLog:
    """Writes the manifest and then the leaf that admits `bundle`; returns the log after it."""
    file = home.manifest(bundle.payload_sha256)
    if not file.exists():
        write_atomically(file, bundle.envelope, mode=0o440)
    receipt = Receipt(
        federation=trust.plan.federation,
        site=bundle.site,
        sequence=bundle.submission.sequence,
        log_index=log.size,
        plan_sha256=trust.plan_sha256,
        roster=trust.chain.reference,
        ledger=ledger_head(bundle.submission.privacy.ledger),
        admitted_at=now(),
    )
    envelope = sign_receipt(receipt, bundle.payload_sha256, home.key(trust.chain))
    return append(home, trust.chain, log, envelope)


def admitted_bundles(home: CoordinatorFolder, trust: Trust, log: Log) -> list[Admitted]:
    """Returns everything the log admitted and the store still has, in the order of the log."""
    found = []
    for entry in log.receipts():
        item = _admitted(home, entry)
        what = f"the manifest of entry {entry.index}"
        with suppress(RevokedKeyError):  # a key that was stolen by then: it counts no longer
            read_submission(item.envelope, trust.chain, entry.index, what=what)
            found.append(item)
    return found


def _admitted(home: CoordinatorFolder, entry: LogEntry) -> Admitted:
    """Returns the manifest of a receipt from the store; the log vouches for its digest."""
    sha256 = entry.submission_sha256
    envelope, statement = read_admitted(home.manifest(sha256), sha256)
    digests = admitted_digests(home, sha256)
    return Admitted(entry, statement.predicate, envelope, digests)


def drop_unreferenced(home: CoordinatorFolder, log: Log) -> None:
    """Deletes from the store what belongs to nothing admitted: parts of what was refused."""
    admitted = [entry.submission_sha256 for entry in log.receipts()]
    blobs = {sha256 for item in admitted for sha256 in admitted_digests(home, item).values()}
    manifests = {home.manifest(item).name for item in admitted}
    for folder, referenced in ((home.blobs.folder, blobs), (home.manifests, manifests)):
        for file in folder.iterdir():
            if file.name not in referenced and not file.is_dir():  # folders are a NAS's own
                file.unlink()


def current_members(home: CoordinatorFolder, trust: Trust, log: Log) -> dict[str, Admitted]:
    """Returns the newest admitted submission under the plan of every site not removed since."""
    current = log.current(trust.plan_sha256)
    return {
        item.submission.site: item
        for item in admitted_bundles(home, trust, log)
        if current.get(item.submission.site) == item.entry
    }


class Taken(NamedTuple):
    """What became of each arrival, in their order, and what is known after the last."""

    verdicts: list[Verdict]
    known: Known


def admit_arrivals(
    home: CoordinatorFolder, trust: Trust, *, only: str | None = None
) -> list[Verdict]:
    """Returns the verdicts of `take_arrivals`, for who needs nothing else."""
    return take_arrivals(home, trust, only=only).verdicts


def take_arrivals(
    home: CoordinatorFolder,
    trust: Trust,
    *,
    only: str | None = None,
    later: Collection[str] = (),
    advance: Advance = lambda _: None,
) -> Taken:
    """Verifies everything in the inbox; admits it, or moves it to `refused` with the reason.

    Args:
        home: The coordinator.
        trust: The published plan and rosters.
        only: The one arrival to look at; what else waits is not waited for.
        later: Arrivals that stay as they are; see `coordinator.inbox.ledger_prices`.
        advance: Told the bytes that were hashed.

    Raises:
        ExpiredError: the published plan or roster is no longer in force.
        StateError: a new coordinator key still waits for signatures.
    """
    require_in_force(trust, now())
    _require_settled_key(home, trust)
    log = recover(home, trust)
    verdicts = []
    for arrival in sorted(home.incoming.iterdir()):
        # a transport is still writing it, or a file manager looked in
        if arrival.name.startswith(".") or is_junk(arrival.name):
            continue
        if arrival.name in later or only not in (None, arrival.name):
            continue
        try:
            log, admitted = _take(home, trust, log, arrival, advance)
        except RefusedError as error:
            _set_aside(home, trust, arrival, error)
            drop_unreferenced(home, log)
            verdicts.append(Verdict(printable(arrival.name), None, error))
            continue
        _clear(home, arrival)
        verdicts.append(Verdict(arrival.name, admitted, None))
    return Taken(verdicts, Known(trust, log))


def recover(home: CoordinatorFolder, trust: Trust) -> OwnLog:
    """Returns the log after finishing what a kill may have interrupted in any earlier command."""
    for folder in (home.log, home.published, home.receipts, *home.evidence.glob("*/")):
        sweep_parts(folder, older_than_s=0)  # only who holds the lock writes there
    log = read_book(home, trust.chain)
    publish_log(home, log)
    drop_unreferenced(home, log)
    shutil.rmtree(_cleared(home), ignore_errors=True)
    noted = set()
    last_refusal = None
    for event in journal.events(home):
        if event["event"] == "admitted":
            noted.add(event["submission_sha256"])
        last_refusal = event if event["event"] == "refused" else None
    for entry in log.receipts():
        if entry.submission_sha256 not in noted:
            _note_admission(home, trust, _admitted(home, entry))
    if last_refusal is not None:  # written before the arrival was moved
        kept = home.refused / str(last_refusal["kept_as"])
        for arrival in list(home.incoming.iterdir()):
            if printable(arrival.name) == last_refusal["arrival"] and not os.path.lexists(kept):
                with suppress(OSError):
                    arrival.rename(kept)
    return log


def begin(home: CoordinatorFolder) -> Known:
    """Returns plan, rosters and log, each verified once, after finishing what a kill interrupted.

    Raises:
        StateError: nothing is published yet, or the folder was damaged.
        RefusedError: a document does not hold.
    """
    trust = home.trust()
    return Known(trust, recover(home, trust))


def recover_if_published(home: CoordinatorFolder) -> None:
    """Finishes what a kill interrupted, if there is a plan and so anything to finish."""
    if (home.published / PLAN_FILE).exists():
        begin(home)


def _require_settled_key(home: CoordinatorFolder, trust: Trust) -> None:
    waiting = pending_roster(home)
    if waiting is not None and waiting.coordinator_key != trust.roster.coordinator_key:
        raise StateError(
            f"roster {waiting.version} changes the coordinator's key and still waits for "
            "signatures; what the old key admits now would not count",
            hint="finish it with `ddm-coord roster merge`, or drop it with `ddm-coord roster "
            "discard`",
        )


def _take(
    home: CoordinatorFolder, trust: Trust, log: OwnLog, arrival: Path, advance: Advance
) -> tuple[OwnLog, Admitted]:
    held = quarantine(arrival)
    payload_sha256 = sha256_hex(peek_payload(held.envelope, IN_TOTO_PAYLOAD, what=held.what))
    entry = log.find(payload_sha256)
    if entry is None:
        try:
            bundle = verify(home, trust, log, held, advance=advance)
        except EquivocationError:
            _keep_evidence(home, log, held, payload_sha256, trust)
            raise
        log = admit(home, trust, log, bundle)
        entry = log.entries[-1]
        admitted = Admitted(entry, bundle.submission, bundle.envelope, bundle.sha256)
        _note_admission(home, trust, admitted)
    else:  # delivered twice: the first receipt stands
        admitted = _admitted(home, entry)
    publish_log(home, log, since=entry.index)
    return log, admitted


def _cleared(home: CoordinatorFolder) -> Path:
    return home.refused / f"{PART_PREFIX}admitted"


def _clear(home: CoordinatorFolder, arrival: Path) -> None:
    """Deletes what was admitted from the inbox; a kill leaves none of it there, or all."""
    gone = _cleared(home)
    try:
        arrival.rename(gone)
    except OSError:  # withdrawn, or may not be moved
        gone = arrival
    # Whoever can write here may be at it still; what stays is found admitted the next time.
    shutil.rmtree(gone, ignore_errors=True)


def _note_admission(home: CoordinatorFolder, trust: Trust, item: Admitted) -> None:
    receipt, units = item.entry.receipt, None
    if receipt is None:
        return
    digest = item.sha256[ROUTER_FILE]
    # under another plan its integers mean something else; it may also be deleted by now
    if receipt.plan_sha256 == trust.plan_sha256 and home.blobs.path(digest).exists():
        units = released_units(home, trust, item.submission, digest)[0]
    journal.record(
        home,
        "admitted",
        site=receipt.site,
        sequence=receipt.sequence,
        submission_sha256=item.payload_sha256,
        log_index=item.entry.index,
        units=None if units is None else str(round(units)),
        unit=trust.plan.privacy.unit,
    )


def _keep_evidence(
    home: CoordinatorFolder, log: Log, held: Quarantined, payload_sha256: str, trust: Trust
) -> None:
    statement, _ = read_submission(held.envelope, trust.chain, log.size, what=held.what)
    site, sequence = statement.predicate.site, statement.predicate.sequence
    folder = home.evidence / f"{site}-{sequence}"
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"{payload_sha256}.dsse.json", held.envelope)
    for entry, receipt in log.counted(site):
        if receipt.sequence == sequence:
            admitted = read_bounded(home.manifest(entry.submission_sha256), MAX_DOCUMENT_BYTES)
            write_atomically(folder / f"{entry.submission_sha256}.dsse.json", admitted)
    forget_evidence(home, site, folder)


def _set_aside(home: CoordinatorFolder, trust: Trust, arrival: Path, error: RefusedError) -> None:
    moment = now()
    name = re.sub(r"[^A-Za-z0-9._-]", "_", arrival.name)[:64]
    target = home.refused / f"{moment:%Y%m%dT%H%M%SZ}-{name}"
    attempt = 1
    while target.exists() or target.is_symlink():
        attempt += 1
        target = target.with_name(f"{moment:%Y%m%dT%H%M%SZ}-{attempt}-{name}")
    claim = claim_of(arrival, trust.chain)
    journal.record(
        home,
        "refused",
        arrival=printable(arrival.name),
        claimed_site=claim.site if claim else None,
        claim_signed=claim is not None and claim.signed,
        kept_as=target.name,
        code=error.code,
        message=error.message,
        hint=error.hint,
    )
    with suppress(OSError):  # it was withdrawn, or may not be moved: it is looked at again
        arrival.rename(target)
        forget_refused(home, trust, target)

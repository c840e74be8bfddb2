"""From what arrived to what may be assembled.

A bundle in `inbox/incoming` is copied into the private store while it is verified; what is
admitted is the copy. Whoever can write to the inbox can change a bundle at any time and gains
nothing. Every step can be killed: the store's folder gets its name in one step, last.
"""

import json
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from coordinator.folder import CoordinatorFolder
from ddm_fed.bundle import ENVELOPE_FILE, VerifiedBundle, verify_bundle
from ddm_fed.errors import RefusedError, ReplayError, printable
from ddm_fed.files import (
    PART_PREFIX,
    Advance,
    append_durably,
    new_folder,
    read_bounded,
    write_atomically,
)
from ddm_fed.receipts import read_receipt, sign_receipt
from ddm_fed.records import (
    IN_TOTO_PAYLOAD,
    MAX_DOCUMENT_BYTES,
    Receipt,
    Statement,
    Submission,
    canonical_json,
    now,
    sha256_hex,
)
from ddm_fed.signing import Trust, peek_payload, require_in_force

BUNDLE_FOLDER = "bundle"
RECEIPT_FILE = "receipt.dsse.json"


@dataclass(frozen=True)
class Admitted:
    """A bundle in the store, as the store's own signed documents describe it."""

    folder: Path
    submission: Submission
    payload_sha256: str
    receipt: Receipt

    @property
    def bundle(self) -> Path:
        """Folder of the bundle's files."""
        return self.folder / BUNDLE_FOLDER

    @property
    def receipt_file(self) -> Path:
        """The signed receipt."""
        return self.folder / RECEIPT_FILE


@dataclass(frozen=True)
class Verdict:
    """What became of one arrival: admitted, or refused with the reason."""

    name: str
    admitted: Admitted | None
    error: RefusedError | None


def admitted_bundles(home: CoordinatorFolder, trust: Trust) -> list[Admitted]:
    """Returns everything in the store, oldest sequence first."""
    found = []
    for folder in sorted(home.store.iterdir()):
        if folder.name.startswith("."):
            continue
        what = f"store/{folder.name[:16]}"
        envelope = read_bounded(folder / BUNDLE_FOLDER / ENVELOPE_FILE, MAX_DOCUMENT_BYTES)
        payload = peek_payload(envelope, IN_TOTO_PAYLOAD, what=what)
        # Our own receipt vouches for the payload, also for a site that has left the roster since.
        data = read_bounded(folder / RECEIPT_FILE, MAX_DOCUMENT_BYTES)
        receipt = read_receipt(data, sha256_hex(payload), trust, what=what)
        submission = Statement[Submission].from_json(payload, what=what).predicate
        found.append(Admitted(folder, submission, sha256_hex(payload), receipt))
    return sorted(found, key=lambda item: (item.submission.site, item.submission.sequence))


def current_members(home: CoordinatorFolder, trust: Trust) -> dict[str, Admitted]:
    """Returns the newest admitted submission of every site of the roster, under the plan."""
    return {
        item.submission.site: item
        for item in admitted_bundles(home, trust)
        if item.submission.plan_sha256 == trust.plan_sha256
        and trust.roster.site(item.submission.site) is not None
    }


def admit_arrivals(
    home: CoordinatorFolder,
    trust: Trust,
    *,
    advance: Advance = lambda _: None,
) -> list[Verdict]:
    """Verifies everything in the inbox; admits it, or moves it to `refused` with the reason.

    Args:
        home: The coordinator.
        trust: The published plan and rosters.
        advance: Told the bytes that were hashed.

    Raises:
        ExpiredError: the published plan or roster is no longer in force.
    """
    require_in_force(trust, now())
    for leftover in home.store.glob(f"{PART_PREFIX}*"):
        shutil.rmtree(leftover)
    verdicts = []
    for arrival in sorted(home.incoming.iterdir()):
        if arrival.name.startswith("."):  # a mover is still writing it
            continue
        try:
            admitted = _admit(home, trust, arrival, advance)
        except RefusedError as error:
            _set_aside(home, arrival, error)
            verdicts.append(Verdict(printable(arrival.name), None, error))
            continue
        _publish_receipt(home, admitted)
        # Whoever can write here may be at it still; what stays is found admitted the next time.
        shutil.rmtree(arrival, ignore_errors=True)
        verdicts.append(Verdict(arrival.name, admitted, None))
    for admitted in admitted_bundles(home, trust):
        _publish_receipt(home, admitted)  # a kill may have come before it
    return verdicts


def _admit(home: CoordinatorFolder, trust: Trust, arrival: Path, advance: Advance) -> Admitted:
    store = {item.payload_sha256: item for item in admitted_bundles(home, trust)}
    receiving = home.store / ".receiving"
    if receiving.exists():
        shutil.rmtree(receiving)
    with new_folder(receiving) as folder:
        (folder / BUNDLE_FOLDER).mkdir()
        bundle = verify_bundle(
            arrival, trust, now(), keep_in=folder / BUNDLE_FOLDER, advance=advance
        )
        if bundle.payload_sha256 not in store:
            _require_progress(bundle, list(store.values()))
        receipt = Receipt(
            federation=trust.plan.federation,
            site=bundle.site,
            sequence=bundle.submission.sequence,
            admitted_at=now(),
        )
        signed = sign_receipt(receipt, bundle.payload_sha256, home.key())
        write_atomically(folder / RECEIPT_FILE, signed)
        for file in (folder / BUNDLE_FOLDER).iterdir():
            file.chmod(0o440)
    if bundle.payload_sha256 in store:  # delivered twice: the first receipt stands
        shutil.rmtree(receiving)
        return store[bundle.payload_sha256]
    target = home.store / bundle.payload_sha256
    receiving.rename(target)
    return Admitted(target, bundle.submission, bundle.payload_sha256, receipt)


def _require_progress(bundle: VerifiedBundle, store: list[Admitted]) -> None:
    sequence = bundle.submission.sequence
    last = max(
        (item.submission.sequence for item in store if item.submission.site == bundle.site),
        default=0,
    )
    if sequence <= last:
        raise ReplayError(
            f"the submission of `{bundle.site}` has sequence number {sequence}, {last} was "
            "admitted already",
            hint="an older bundle was sent again, or the site was restored from a backup; the "
            "site has to sign a new one",
        )


def _publish_receipt(home: CoordinatorFolder, admitted: Admitted) -> None:
    target = home.receipts / f"{admitted.payload_sha256}.dsse.json"
    if not target.exists():
        write_atomically(target, admitted.receipt_file.read_bytes())


def _set_aside(home: CoordinatorFolder, arrival: Path, error: RefusedError) -> None:
    moment = now()
    name = re.sub(r"[^A-Za-z0-9._-]", "_", arrival.name)[:64]
    target = home.refused / f"{moment:%Y%m%dT%H%M%SZ}-{name}"
    attempt = 1
    while target.exists() or target.is_symlink():
        attempt += 1
        target = target.with_name(f"{moment:%Y%m%dT%H%M%SZ}-{attempt}-{name}")
    record = {
        "at": f"{moment:%Y-%m-%dT%H:%M:%SZ}",
        "arrival": printable(arrival.name),
        "kept_as": target.name,
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
    }
    append_durably(home.refused / "refusals.jsonl", canonical_json(record))
    with suppress(
        OSError
    ):  # it was withdrawn meanwhile, or may not be moved: it is looked at again
        arrival.rename(target)


def refusals(home: CoordinatorFolder) -> list[dict[str, str]]:
    """Returns every refusal, oldest first."""
    file = home.refused / "refusals.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_bytes().splitlines()]

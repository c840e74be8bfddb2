"""The way out: draft, reviewed, released, submitted, receipted. Each step needs the one before."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from ddm_fed.bundle import (
    ENVELOPE_FILE,
    TENSOR_FILES,
    VerifiedBundle,
    read_submission,
    verify_bundle,
)
from ddm_fed.errors import StateError
from ddm_fed.files import Advance, check_file, new_folder, read_bounded, write_atomically
from ddm_fed.models import expert_tensors
from ddm_fed.receipts import read_receipt
from ddm_fed.records import MAX_DOCUMENT_BYTES, Receipt, Statement, Submission, canonical_json, now
from ddm_fed.router import release_tensors
from ddm_fed.signing import Trust
from sites.folder import SiteFolder


@dataclass(frozen=True)
class Review:
    """What would leave with a bundle, and what it costs."""

    bundle: VerifiedBundle
    record: dict[str, object]


def find_bundles(folder: Path) -> list[Path]:
    """Returns the bundle folders in `folder`, oldest first; unfinished ones are not bundles."""
    found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted(found, key=_signed_at)


def _signed_at(bundle: Path) -> int:
    envelope = bundle / ENVELOPE_FILE
    return (envelope if envelope.exists() else bundle).stat().st_mtime_ns


def newest_draft(site: SiteFolder) -> Path:
    """Returns the draft to review or release.

    Raises:
        StateError: there is none.
    """
    drafts = find_bundles(site.drafts)
    if not drafts:
        released = find_bundles(site.released)
        raise StateError(
            "there is no draft to review",
            hint="it is released already; send it with `ddm-site submit`"
            if released
            else "make one with `ddm-site train`",
        )
    return drafts[-1]


def review(site: SiteFolder, trust: Trust) -> Review:
    """Returns and records what the newest draft would disclose. The record stays at the site.

    Raises:
        StateError: there is no draft.
        RefusedError: the draft was altered since it was signed.
    """
    bundle = verify_bundle(newest_draft(site), trust, now())
    submission = bundle.submission
    tables = {
        TENSOR_FILES[0]: expert_tensors(trust.plan),
        TENSOR_FILES[1]: release_tensors(trust.plan),
    }
    record: dict[str, object] = {
        "submission_sha256": bundle.payload_sha256,
        "federation": submission.federation,
        "plan_sha256": submission.plan_sha256,
        "site": submission.site,
        "sequence": submission.sequence,
        "reviewed_at": f"{now():%Y-%m-%dT%H:%M:%SZ}",
        "files": [
            {
                "name": file.name,
                "size_bytes": file.size_bytes,
                "sha256": bundle.sha256[file.name],
                "tensors": len(tables[file.name]),
            }
            for file in submission.files
        ],
        "expert": {
            "architecture": trust.plan.expert.architecture,
            "private": submission.privacy.expert_is_private,
        },
        "privacy": {
            "releases_epsilon": submission.privacy.releases_epsilon,
            "delta": format(submission.privacy.delta, "f"),
            "ledger": [
                {"purpose": entry.purpose, "event": entry.event.model_dump(mode="json")}
                for entry in submission.privacy.ledger
            ],
        },
    }
    write_atomically(site.reviews / f"{bundle.payload_sha256}.json", canonical_json(record))
    return Review(bundle, record)


def release(site: SiteFolder, trust: Trust) -> Path:
    """Moves the newest draft, if it was reviewed, to where movers may read. Returns its folder.

    Raises:
        StateError: nobody reviewed this very draft.
        RefusedError: it was altered since it was signed.
    """
    draft = newest_draft(site)
    bundle = verify_bundle(draft, trust, now())
    if not (site.reviews / f"{bundle.payload_sha256}.json").exists():
        raise StateError(
            f"the draft {bundle.payload_sha256[:16]}… was not reviewed",
            hint="run `ddm-site review` and read what would leave",
        )
    target = site.released / bundle.payload_sha256
    draft.rename(target)
    return target


def submit(
    site: SiteFolder, trust: Trust, inbox: Path, *, advance: Advance = lambda _: None
) -> list[tuple[str, str]]:
    """Copies released bundles into the coordinator's `inbox` and collects receipts.

    Idempotent: what is there already is not copied again, what has a receipt is done. The site
    keeps its own copy. A kill leaves no bundle half-copied under its final name.

    Args:
        site: The sender.
        trust: Whose receipts are believed.
        inbox: A folder both sides can reach; `incoming` and `receipts` are inside it.
        advance: Told the bytes copied.

    Returns:
        For each released bundle its digest and `admitted`, `waiting`, `sent`, `earlier plan` or
        `expired`; the last two are not sent, because they would be refused.

    Raises:
        StateError: nothing is released, or `inbox` does not exist.
        DigestError: a copy does not match what was signed.
    """
    released = find_bundles(site.released)
    if not released:
        raise StateError("nothing is released", hint="run `ddm-site release` first")
    if not inbox.is_dir():
        raise StateError(
            f"the inbox {inbox} does not exist",
            hint="mount the share or the stick; a coordinator's inbox has a folder `incoming`",
        )
    (inbox / "incoming").mkdir(exist_ok=True)
    states = []
    for bundle in released:
        digest = bundle.name
        if _collect_receipt(site, trust, inbox, digest) is not None:
            states.append((digest, "admitted"))
        elif (inbox / "incoming" / digest).exists():
            states.append((digest, "waiting"))
        else:
            states.append((digest, _send(trust, bundle, inbox / "incoming" / digest, advance)))
    return states


def _collect_receipt(site: SiteFolder, trust: Trust, inbox: Path, digest: str) -> Receipt | None:
    kept = site.receipts / f"{digest}.dsse.json"
    offered = inbox / "receipts" / f"{digest}.dsse.json"
    source = kept if kept.exists() else offered
    if not source.exists():
        return None
    data = read_bounded(source, MAX_DOCUMENT_BYTES)
    receipt = read_receipt(data, digest, trust, what=f"the receipt {digest[:16]}…")
    if not kept.exists():
        write_atomically(kept, data)
    return receipt


def signed_statement(bundle: Path, trust: Trust) -> Statement[Submission]:
    """Returns what a bundle says of itself, its signature verified."""
    envelope = read_bounded(bundle / ENVELOPE_FILE, MAX_DOCUMENT_BYTES)
    statement, _ = read_submission(envelope, trust, what=f"the bundle {bundle.name[:16]}")
    return statement


def _send(trust: Trust, bundle: Path, target: Path, advance: Advance) -> str:
    submission = signed_statement(bundle, trust).predicate
    if submission.plan_sha256 != trust.plan_sha256:
        return "earlier plan"
    if now() >= submission.expires_at:
        return "expired"
    verified = verify_bundle(bundle, trust, now())
    with new_folder(target) as folder:
        for name in TENSOR_FILES:
            check_file(
                bundle / name,
                sha256=verified.sha256[name],
                size_bytes=verified.submission.size_of(name) or 0,
                what=f"`{name}`",
                copy_to=folder / name,
                advance=advance,
            )
        shutil.copyfile(bundle / ENVELOPE_FILE, folder / ENVELOPE_FILE)
    return "sent"


def sequence_for_next(site: SiteFolder) -> int:
    """Returns one more than the highest sequence number this site ever signed."""
    counter = site.path / "private" / "sequence"
    last = int(counter.read_text()) if counter.exists() else 0
    write_atomically(counter, str(last + 1).encode())
    return last + 1

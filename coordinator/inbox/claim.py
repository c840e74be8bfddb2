"""Whose a bundle says it is, before anything of it is believed; and whose files were admitted."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from coordinator.workspace import CoordinatorFolder
from ddm_fed.bundle.submission import open_as_site
from ddm_fed.bundle.verify import ENVELOPE_FILE, EXPERT_FILE, HEAD_FILE, ROUTER_FILE
from ddm_fed.errors import RefusedError, ReplayError, StateError
from ddm_fed.records import (
    IN_TOTO_PAYLOAD,
    MAX_DOCUMENT_BYTES,
    Plan,
    PriorRouterSpec,
    Statement,
    Submission,
    sha256_hex,
)
from ddm_fed.signing import peek_payload
from ddm_fed.storage.files import read_bounded
from ddm_fed.trust import RosterChain
from ddm_fed.trust.log import Log


@dataclass(frozen=True)
class Claim:
    """The site that a manifest names, and whether a key of that site signed the manifest."""

    site: str
    signed: bool


def claim_of(arrival: Path, chain: RosterChain) -> Claim | None:
    """Returns what the manifest in `arrival` claims; None where it cannot be told.

    Anybody who can write to the inbox can claim any site. A claim decides about nothing, and is
    shown as proven only if it is signed.
    """
    what = "the bundle"
    try:
        if arrival.is_symlink():
            return None
        envelope = read_bounded(arrival / ENVELOPE_FILE, MAX_DOCUMENT_BYTES)
    except (RefusedError, OSError):
        return None
    with suppress(RefusedError):
        return Claim(open_as_site(envelope, chain, what=what)[1].predicate.site, signed=True)
    with suppress(RefusedError):
        payload = peek_payload(envelope, IN_TOTO_PAYLOAD, what=what)
        claimed = Statement[Submission].from_json(payload, what=what)
        return Claim(claimed.predicate.site, signed=False)
    return None


def admitted_digests(home: CoordinatorFolder, submission_sha256: str) -> Mapping[str, str]:
    """Returns the digests of the files of an admitted submission, by name, from its manifest.

    Raises:
        StateError: the store has another manifest in its place.
    """
    return _digests(home.manifest(submission_sha256), submission_sha256)


@lru_cache(maxsize=1 << 14)  # the digest says all there is to say about the file
def _digests(file: Path, submission_sha256: str) -> Mapping[str, str]:
    return _files(read_admitted(file, submission_sha256)[1])


@lru_cache(maxsize=1 << 14)
def _claimed(file: Path, submission_sha256: str) -> Mapping[str, str]:
    return _all_digests(read_admitted(file, submission_sha256)[1])


def _files(statement: Statement[Submission]) -> dict[str, str]:
    """Returns the digests of its files: what the store holds of it."""
    return {item.name: item.digest.sha256 for item in statement.subject}


def _all_digests(statement: Statement[Submission]) -> dict[str, str]:
    """Returns the digests of its files, and of an expert that stays at its site."""
    found = _files(statement)
    held = statement.predicate.held_expert
    return found if held is None else found | {EXPERT_FILE: held}


def read_admitted(file: Path, submission_sha256: str) -> tuple[bytes, Statement[Submission]]:
    """Returns the envelope in `file` of the store and its manifest; the log vouches for its digest.

    Raises:
        StateError: it is another manifest.
    """
    envelope = read_bounded(file, MAX_DOCUMENT_BYTES)
    payload = peek_payload(envelope, IN_TOTO_PAYLOAD, what=file.name)
    if sha256_hex(payload) != submission_sha256:
        raise StateError(
            f"{file} is not the manifest that was admitted",
            hint="the store was damaged: restore it from backup",
        )
    return envelope, Statement[Submission].from_json(payload, what=file.name)


def require_own_files(
    home: CoordinatorFolder, log: Log, statement: Statement[Submission], plan: Plan, what: str
) -> None:
    """Refuses a submission of an expert, a head or a release that was admitted for another site.

    Digests are public, and so are the files of ensembles; no two trainings end in the same bits.
    Neither do the releases of a mixture, which is an expert by itself and would count twice among
    the others. Those of a `prior` router are a few noisy counts, which can be equal by chance.

    Raises:
        ReplayError: naming the file, and the site it was admitted for.
    """
    site = statement.predicate.site
    own = {EXPERT_FILE, HEAD_FILE}
    if not isinstance(plan.router, PriorRouterSpec):
        own.add(ROUTER_FILE)
    offered = {sha256: name for name, sha256 in _all_digests(statement).items() if name in own}
    for entry in log.receipts():
        if entry.receipt is None or entry.receipt.site == site:
            continue
        admitted = _claimed(home.manifest(entry.submission_sha256), entry.submission_sha256)
        for sha256 in admitted.values():
            if sha256 in offered:
                raise ReplayError(
                    f"{what} has as `{offered[sha256]}` the file {sha256[:16]}… that was admitted "
                    f"for `{entry.receipt.site}` as entry {entry.index} of the log",
                    hint="a site brings what it trained itself: ask the people of both, and let "
                    "this one train again",
                )

"""Whose a bundle says it is, before anything of it is believed: for people who look at a status."""

from dataclasses import dataclass
from pathlib import Path

from ddm_fed.bundle import ENVELOPE_FILE
from ddm_fed.errors import RefusedError
from ddm_fed.files import read_bounded
from ddm_fed.records import IN_TOTO_PAYLOAD, MAX_DOCUMENT_BYTES, Statement, Submission
from ddm_fed.signing import RosterChain, peek_payload
from ddm_fed.submission import open_as_site


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
        payload = peek_payload(envelope, IN_TOTO_PAYLOAD, what=what)
        site = Statement[Submission].from_json(payload, what=what).predicate.site
    except (RefusedError, OSError):
        return None
    try:
        open_as_site(envelope, chain, what=what)
    except RefusedError:
        return Claim(site, signed=False)
    return Claim(site, signed=True)

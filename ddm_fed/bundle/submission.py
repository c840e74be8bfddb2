"""The manifest of a bundle: whose it is, and whether everybody signed who had to.

A submission is read only after its signatures hold, but for its claim of a site: that is looked at
to pick the keys, and believed after one of them did sign.
"""

from typing import NamedTuple

from ddm_fed.errors import (
    CountersignatureError,
    PlanMismatchError,
    RevokedKeyError,
    UnknownSignerError,
)
from ddm_fed.records import (
    IN_TOTO_PAYLOAD,
    SUBMISSION_PREDICATE,
    RangedKey,
    Require,
    RosterSite,
    Statement,
    Submission,
)
from ddm_fed.signing import SignedPayload, VerifyKey, open_envelope, peek_payload
from ddm_fed.trust import RosterChain

# A site's numbers follow the log, with room for bundles it signed and never sent. Without a bound,
# one submission of a thief could use up all numbers there are, and end the name for ever.
MOST_UNSENT = 1000


class Manifest(NamedTuple):
    """A manifest that everybody has signed who had to, and the digest of its payload."""

    statement: Statement[Submission]
    payload_sha256: str


def read_submission(
    envelope: bytes,
    chain: RosterChain,
    position: int | None = None,
    *,
    what: str,
    require: Require | None = None,
) -> Manifest:
    """Returns the manifest in `envelope` and its digest, signed as its site asks (2 to 6).

    Args:
        envelope: The bytes of the envelope.
        chain: The verified rosters.
        position: Its place in the log, which decides about keys and policy; None is the next one.
        what: Its name, for messages.
        require: Whose signatures it needs, in place of the site's policy: a draft has no other
            than the site's own yet.

    Raises:
        RefusedError: form, signature, or a signer who is not the claimed site, may not sign at
            this place of the log, or is missing.
    """
    signed, statement = open_as_site(envelope, chain, what=what)
    site = chain.site(statement.predicate.site)
    if statement.predicate_type != SUBMISSION_PREDICATE or site is None:
        raise PlanMismatchError(
            f"{what} is a statement of type `{statement.predicate_type}`, expected "
            f"`{SUBMISSION_PREDICATE}`",
            hint="one signed document was put in the place of another; ask for the right file",
        )
    require_signers(signed, site, position, require or site.require_at(position), what=what)
    return Manifest(statement, signed.sha256)


def open_as_site(
    envelope: bytes, chain: RosterChain, *, what: str
) -> tuple[SignedPayload, Statement[Submission]]:
    """Returns a submission as it was signed and as it was read, by the keys of the site it claims.

    All keys the site ever had are tried, so that the message can say why one does not count; who
    signed is for `require_signers` to judge.

    Raises:
        RefusedError: form, signature, or no signer of the claimed site.
    """
    payload = peek_payload(envelope, IN_TOTO_PAYLOAD, what=what)
    statement = Statement[Submission].from_json(payload, what=what)
    claimed = statement.predicate.site
    site = chain.site(claimed)
    if site is None:
        raise UnknownSignerError(
            f"{what} claims to come from `{claimed}`, which is not in roster "
            f"{chain.current.version}",
            hint="enrol the site first, or refuse it for good; the roster lists "
            + ", ".join(member.name for member in chain.current.sites),
        )
    # Only the claimed site's keys are tried: another member's valid signature is impersonation.
    keys = [VerifyKey.from_hex(key.public_key) for key in site.keys]
    # It verifies the payload of the same bytes, so what was read above is what was signed.
    return open_envelope(envelope, IN_TOTO_PAYLOAD, keys, what=what), statement


def require_signers(
    signed: SignedPayload, site: RosterSite, position: int | None, require: Require, *, what: str
) -> None:
    """Refuses `signed` unless every role in `require` has signed it.

    A roster lists no key twice, so nobody can sign for two roles.

    Raises:
        RevokedKeyError: a needed signature is there, but by a key that may not sign here.
        CountersignatureError: a needed signature is missing.
        UnknownSignerError: the site itself has not signed.
    """
    place = "now" if position is None else f"at position {position} of the log"
    signers = {key.hex for key in signed.signers}
    for role in require:
        own = [key for key in site.keys if key.role == role and key.public_key in signers]
        if any(key.may_sign_at(position) for key in own):
            continue
        owner = "the site" if role == "site" else "its data-protection officer"
        if own:
            key = own[0]
            raise RevokedKeyError(
                f"{what} is signed for {owner} of `{site.name}` by the key "
                f"{key.public_key[:16]}…, which may sign from position {key.from_log_size} to "
                f"before {_end_of(key)}, not {place}",
                hint="sign again with the current key: `ddm-site train` makes a new draft",
            )
        if role == "site":
            raise UnknownSignerError(
                f"{what} is not signed by `{site.name}` itself",
                hint="the site has to sign before its data-protection officer does",
            )
        raise CountersignatureError(
            f"{what} lacks the signature of {owner}, which the policy of `{site.name}` asks for",
            hint="`ddm-site approve` adds it, also later and on another machine",
        )


def _end_of(key: RangedKey) -> int | str:
    ends = (key.revoked_at_log_size, key.compromised_since_log_size)
    return min((end for end in ends if end is not None), default="its revocation")

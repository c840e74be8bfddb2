"""Whether an ensemble that verifies may still be used, judged by newer rosters and a newer log.

An ensemble proves its own past. What happened later, a removal, a stolen key, only newer documents
can tell; they must continue the ones inside the ensemble, or one of the two is a fork.
"""

from dataclasses import dataclass

from ddm_fed.bundle.submission import read_submission
from ddm_fed.ensemble.folder import VerifiedEnsemble
from ddm_fed.errors import RefusedError
from ddm_fed.trust import RosterChain
from ddm_fed.trust.log import Log
from ddm_fed.trust.published import require_newer


@dataclass(frozen=True)
class Staleness:
    """Reasons not to use an ensemble any more, and what is newer than it."""

    stale: tuple[str, ...]
    newer: tuple[str, ...]


def find_staleness(verified: VerifiedEnsemble, chain: RosterChain, log: Log) -> Staleness:
    """Returns what `chain` and `log`, newer than the ensemble, say against it.

    Args:
        verified: The ensemble.
        chain: The newest rosters at hand.
        log: The newest log at hand.

    Raises:
        RefusedError: they do not continue the ensemble's own; one of the two is a fork, or older.
    """
    own = (verified.trust.chain, verified.log)
    require_newer((chain, log), own, what="the newer rosters and log")
    stale, newer = [], []
    size = verified.log.size
    signers = {key.hex for key in verified.signers}
    if not any(
        key.may_sign_at(size) or (key.is_revoked_at(size) and not key.is_compromised_at(size))
        for key in chain.current.coordinator
        if key.public_key in signers
    ):
        stale.append("it is signed by a coordinator key that may not sign at its place of the log")
    for bundle, member in zip(verified.bundles, verified.record.members, strict=True):
        stale.extend(
            f"`{member.site}` was removed on {entry.removal.removed_at:%Y-%m-%d}: "
            f"{entry.removal.reason}"
            for entry in log.entries[member.log_index :]
            if entry.removal is not None and entry.removal.site == member.site
        )
        try:
            what = f"the submission of `{member.site}`"
            read_submission(bundle.envelope, chain, member.log_index, what=what)
        except RefusedError as error:
            stale.append(error.message)
        newest = log.current(verified.record.plan_sha256).get(member.site)
        if newest is not None and newest.index > member.log_index:
            newer.append(f"`{member.site}` has a newer submission, at entry {newest.index}")
    return Staleness(tuple(stale), tuple(newer))

"""Whether what verifies may still be used, judged by newer rosters and a newer log.

An ensemble proves its own past, and so does a student. What happened later, a removal, a stolen
key, only newer documents can tell; they must continue the ones inside the folder, or one of the two
is a fork.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ddm_fed.bundle.submission import read_submission
from ddm_fed.errors import RefusedError, StateError
from ddm_fed.records import EnsembleRecord, StudentRecord
from ddm_fed.signing import VerifyKey
from ddm_fed.trust import RosterChain, Trust
from ddm_fed.trust.log import Log
from ddm_fed.trust.published import require_newer


class OfMembers(Protocol):
    """A verified folder that was made of members' submissions: an ensemble, or a student."""

    @property
    def trust(self) -> Trust:
        """What it was made under."""
        ...

    @property
    def log(self) -> Log:
        """The log at the time."""
        ...

    @property
    def signers(self) -> frozenset[VerifyKey]:
        """Who signed it."""
        ...

    @property
    def record(self) -> EnsembleRecord | StudentRecord:
        """Names its members."""
        ...

    @property
    def envelopes(self) -> Sequence[bytes]:
        """The signed manifest of every member."""
        ...


@dataclass(frozen=True)
class Staleness:
    """Reasons not to use an ensemble or a student any more, and what is newer than it."""

    stale: tuple[str, ...]
    newer: tuple[str, ...]


def find_staleness(verified: OfMembers, chain: RosterChain, log: Log) -> Staleness:
    """Returns what `chain` and `log`, newer than the ensemble or student, say against it.

    Args:
        verified: The ensemble, or the student.
        chain: The newest rosters at hand.
        log: The newest log at hand.

    Raises:
        RefusedError: they do not continue its own; one of the two is a fork, or older.
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
    for envelope, member in zip(verified.envelopes, verified.record.members, strict=True):
        stale.extend(
            f"`{member.site}` was removed on {entry.removal.removed_at:%Y-%m-%d}: "
            f"{entry.removal.reason}"
            for entry in log.entries[member.log_index :]
            if entry.removal is not None and entry.removal.site == member.site
        )
        try:
            what = f"the submission of `{member.site}`"
            read_submission(envelope, chain, member.log_index, what=what)
        except RefusedError as error:
            stale.append(error.message)
        newest = log.current(verified.record.plan_sha256).get(member.site)
        if newest is not None and newest.index > member.log_index:
            newer.append(f"`{member.site}` has a newer submission, at entry {newest.index}")
    return Staleness(tuple(stale), tuple(newer))


def require_not_stale(folder: Path, found: Staleness, remedy: str) -> None:
    """Refuses what newer documents say must not be used any more.

    Args:
        folder: What was verified.
        found: What is known against it.
        remedy: How to get a newer one.

    Raises:
        StateError: it is stale.
    """
    if found.stale:
        raise StateError(
            f"{folder} is stale, and whatever is made from it would be stale too: "
            + "; ".join(found.stale),
            hint=f"use a newer one: {remedy}",
        )

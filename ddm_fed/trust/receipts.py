"""The coordinator's signed words about a submission: admitted, at this place of the log; removed.

Each is a leaf of the transparency log as well, so it cannot be said to one and denied to another.
"""

from collections.abc import Mapping

from ddm_fed.errors import PlanMismatchError
from ddm_fed.records import (
    IN_TOTO_PAYLOAD,
    RECEIPT_PREDICATE,
    REMOVAL_PREDICATE,
    Receipt,
    Removal,
    Statement,
    subjects,
)
from ddm_fed.signing import SigningKey, peek_payload, seal
from ddm_fed.trust import RosterChain
from ddm_fed.trust.log import SUBMISSION_FILE, LogEntry, read_entry


def sign_receipt(receipt: Receipt, payload_sha256: str, key: SigningKey) -> bytes:
    """Returns the envelope of `receipt` for the submission `payload_sha256`."""
    statement = Statement[Receipt](
        subject=subjects({SUBMISSION_FILE: payload_sha256}),
        predicateType=RECEIPT_PREDICATE,
        predicate=receipt,
    )
    return seal(statement.to_json(), IN_TOTO_PAYLOAD, [key])


def sign_removal(removal: Removal, submissions: Mapping[int, str], key: SigningKey) -> bytes:
    """Returns the envelope of `removal` of `submissions`, payload digests by sequence number."""
    named = {f"submissions/{sequence}.dsse.json": sha for sequence, sha in submissions.items()}
    statement = Statement[Removal](
        subject=subjects(named), predicateType=REMOVAL_PREDICATE, predicate=removal
    )
    return seal(statement.to_json(), IN_TOTO_PAYLOAD, [key])


def read_receipt(data: bytes, payload_sha256: str, chain: RosterChain, *, what: str) -> LogEntry:
    """Returns the coordinator's receipt for the submission `payload_sha256`.

    Raises:
        RefusedError: not signed by the coordinator, or for another submission.
    """
    # The place it claims decides which keys are tried, and is believed once one of them holds.
    payload = peek_payload(data, IN_TOTO_PAYLOAD, what=what)
    claimed = Statement[Receipt].from_json(payload, what=what)
    index = claimed.predicate.log_index
    entry = read_entry(data, index, chain, chain.coordinator_keys(index), what=what)
    if entry.receipt is None or entry.submission_sha256 != payload_sha256:
        raise PlanMismatchError(
            f"{what} is not a receipt for the submission {payload_sha256[:16]}…",
            hint="receipts were mixed up; fetch the one named after this submission",
        )
    return entry

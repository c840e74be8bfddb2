"""The coordinator's signed answer: this submission was admitted, at this moment."""

from ddm_fed.bundle import ENVELOPE_FILE
from ddm_fed.errors import PlanMismatchError
from ddm_fed.records import (
    IN_TOTO_PAYLOAD,
    RECEIPT_PREDICATE,
    Receipt,
    Statement,
    subjects,
)
from ddm_fed.signing import SigningKey, Trust, open_envelope, seal


def sign_receipt(receipt: Receipt, payload_sha256: str, key: SigningKey) -> bytes:
    """Returns the envelope of `receipt` for the submission `payload_sha256`."""
    statement = Statement[Receipt](
        subject=subjects({ENVELOPE_FILE: payload_sha256}),
        predicateType=RECEIPT_PREDICATE,
        predicate=receipt,
    )
    return seal(statement.to_json(), IN_TOTO_PAYLOAD, [key])


def read_receipt(data: bytes, payload_sha256: str, trust: Trust, *, what: str) -> Receipt:
    """Returns the coordinator's receipt for the submission `payload_sha256`.

    Raises:
        RefusedError: not signed by the coordinator, or for another submission.
    """
    signed = open_envelope(data, IN_TOTO_PAYLOAD, [trust.coordinator_key], what=what)
    statement = Statement[Receipt].from_json(signed.payload, what=what)
    if (
        statement.predicate_type != RECEIPT_PREDICATE
        or statement.digest_of(ENVELOPE_FILE) != payload_sha256
    ):
        raise PlanMismatchError(
            f"{what} is not a receipt for the submission {payload_sha256[:16]}…",
            hint="receipts were mixed up; fetch the one named after this submission",
        )
    return statement.predicate

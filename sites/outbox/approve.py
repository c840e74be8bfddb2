"""An officer's signature: on what would leave, and on the request that names the officer."""

from pathlib import Path

from ddm_fed.errors import StateError, UnknownSignerError
from ddm_fed.records import (
    IN_TOTO_PAYLOAD,
    MAX_DOCUMENT_BYTES,
    EgressRecord,
    EnrolmentRequest,
)
from ddm_fed.signing import (
    ENROLMENT_PAYLOAD,
    SigningKey,
    VerifyKey,
    add_signature,
    peek_payload,
)
from ddm_fed.storage.files import read_bounded, write_atomically
from ddm_fed.trust.log import SUBMISSION_FILE
from sites.outbox.review import REVIEW_FILE, ReviewFolder, read_review


def open_for_approval(folder: Path, key: VerifyKey) -> ReviewFolder:
    """Returns the review in `folder`, if it names `key` as that of an officer who may approve it.

    Raises:
        RefusedError: the documents do not belong together.
        StateError: the site names no officer.
        UnknownSignerError: it names others.
    """
    found = read_review(folder)
    egress = found.egress
    if not egress.officers:
        raise StateError(
            f"`{egress.site}` names no data-protection officer: there is nothing to approve",
            hint="the site releases it alone; it names an officer with `ddm-site rotate --dpo`",
        )
    if key.hex not in egress.officers:
        named = ", ".join(VerifyKey.from_hex(item).keyid for item in egress.officers)
        raise UnknownSignerError(
            f"the key {key.keyid} is not the one `{egress.site}` names as its data-protection "
            f"officer's, {named}",
            hint="give the officer's own key file; a new officer is named with `ddm-site rotate "
            "--dpo` first, and the site runs `ddm-site review` again",
        )
    return found


def approve_review(
    folder: Path, key: SigningKey, shown: EgressRecord | None = None
) -> EgressRecord:
    """Adds the signature of `key` to the review and to the manifest; returns what it approves.

    Both payloads stay as they are. Works on any machine, also long after the review.

    Args:
        folder: The review's folder.
        key: The officer's.
        shown: What the officer saw; anything else is not signed.

    Raises:
        RefusedError: the documents do not belong together, or name another officer.
        StateError: it is not what was shown, or there is no officer.
    """
    found = open_for_approval(folder, key.public)
    if shown is not None and found.egress != shown:
        raise StateError(
            f"the review {folder.name[:16]}… was changed since it was shown",
            hint="find out who writes to this folder, then look at it again",
        )
    for name, data in ((REVIEW_FILE, found.review), (SUBMISSION_FILE, found.submission)):
        write_atomically(folder / name, add_signature(data, IN_TOTO_PAYLOAD, key, what=name))
    return found.egress


def open_request(file: Path, key: VerifyKey) -> EnrolmentRequest:
    """Returns the request in `file`, if it brings `key`.

    Raises:
        UnknownSignerError: it does not.
    """
    data = read_bounded(file, MAX_DOCUMENT_BYTES)
    payload = peek_payload(data, ENROLMENT_PAYLOAD, what=file.name)
    request = EnrolmentRequest.from_json(payload, what=file.name)
    if key.hex not in {item.public_key for item in request.keys}:
        raise UnknownSignerError(
            f"{file.name} does not bring the key {key.keyid[:24]}…",
            hint="the site has to name your .pub file first: `ddm-site init --dpo`, or `rotate "
            "--dpo`",
        )
    return request


def approve_request(
    file: Path, key: SigningKey, shown: EnrolmentRequest | None = None
) -> EnrolmentRequest:
    """Adds the signature of `key` to the request that brings it; returns the request.

    Args:
        file: The request.
        key: The officer's.
        shown: What the officer saw; anything else is not signed.

    Raises:
        UnknownSignerError: the request does not bring this key.
        StateError: it is not what was shown.
    """
    request = open_request(file, key.public)
    if shown is not None and request != shown:
        raise StateError(
            f"{file.name} was changed since it was shown",
            hint="find out who writes to it, then look at it again",
        )
    data = read_bounded(file, MAX_DOCUMENT_BYTES)
    write_atomically(file, add_signature(data, ENROLMENT_PAYLOAD, key, what=file.name))
    return request

"""DSSE: signatures around bytes, bound to the type of those bytes.

The message that is signed is `PAE(type, payload)`, over the payload exactly as it travels. It is
parsed only after a signature holds, and from the very bytes that were verified.

Source: secure-systems-lab/dsse `protocol.md` 1.0.2.
"""

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from ddm_fed.errors import MalformedError, SignatureError, UnknownSignerError
from ddm_fed.records import Record, sha256_hex
from ddm_fed.signing.keys import SigningKey, VerifyKey

ROSTER_PAYLOAD = "application/vnd.ddm-fed.roster.v1+json"
PLAN_PAYLOAD = "application/vnd.ddm-fed.plan.v1+json"
ENROLMENT_PAYLOAD = "application/vnd.ddm-fed.enrolment.v1+json"
MAX_SIGNATURES = 16


class _Signature(Record):
    keyid: str = ""
    sig: str


class _Envelope(Record):
    payload: str
    payload_type: Annotated[str, Field(alias="payloadType")]
    signatures: Annotated[tuple[_Signature, ...], Field(min_length=1, max_length=MAX_SIGNATURES)]


@dataclass(frozen=True)
class SignedPayload:
    """Payload bytes over which every key of `signers` has signed, as `payload_type`."""

    payload: bytes
    payload_type: str
    signers: frozenset[VerifyKey]

    @property
    def sha256(self) -> str:
        """The digest of the payload: a document's identity, however many have signed it."""
        return sha256_hex(self.payload)


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Returns the bytes that are signed: `DSSEv1 len(type) type len(payload) payload`."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(payload: bytes, payload_type: str, keys: Iterable[SigningKey]) -> bytes:
    """Returns the envelope of `payload`, signed with each of `keys`, as JSON bytes."""
    message = pre_authentication_encoding(payload_type, payload)
    signatures = tuple(
        _Signature(keyid=key.public.keyid, sig=_base64(key.sign(message))) for key in keys
    )
    return _Envelope(
        payload=_base64(payload), payload_type=payload_type, signatures=signatures
    ).to_json()


def open_envelope(
    data: bytes, payload_type: str, keys: Iterable[VerifyKey], *, what: str
) -> SignedPayload:
    """Returns the payload of the envelope in `data`, verified with `keys`.

    The key ids inside the envelope are hints and decide nothing: every signature is tried with
    every key. A signature that names one of `keys` and does not hold refuses the whole envelope;
    one by an unknown key is ignored.

    Raises:
        MalformedError: not an envelope, or one of another payload type.
        SignatureError: a signature that claims a known key does not hold.
        UnknownSignerError: none of `keys` has signed.
    """
    envelope = _Envelope.from_json(data, what=what)
    if envelope.payload_type != payload_type:
        raise MalformedError(
            f"{what} is of type `{envelope.payload_type}`, expected `{payload_type}`",
            hint="one signed document was put in the place of another; ask for the right file",
        )
    payload = _unbase64(envelope.payload, what)
    message = pre_authentication_encoding(payload_type, payload)
    candidates = {key.keyid: key for key in keys}
    signers = set()
    for signature in envelope.signatures:
        raw = _unbase64(signature.sig, what)
        signer = next((key for key in candidates.values() if key.accepts(raw, message)), None)
        if signer is not None:
            signers.add(signer)
        elif signature.keyid in candidates:
            raise SignatureError(
                f"{what} carries a signature of {signature.keyid[:24]}… that does not hold",
                hint="the file was altered after signing, or damaged on its way; fetch it again "
                "from its sender",
            )
    if not signers:
        named = ", ".join(item.keyid[:24] + "…" for item in envelope.signatures)
        raise UnknownSignerError(
            f"{what} is signed by {named}, none of which may sign it",
            hint="compare with the roster: is the signer enrolled, and is this its current key?",
        )
    return SignedPayload(payload, payload_type, frozenset(signers))


def peek_payload(data: bytes, payload_type: str, *, what: str) -> bytes:
    """Returns the payload without verifying it, only to learn which key to verify it with.

    The caller must pass the same `data` to `open_envelope` before believing any of it.
    """
    envelope = _Envelope.from_json(data, what=what)
    if envelope.payload_type != payload_type:
        raise MalformedError(
            f"{what} is of type `{envelope.payload_type}`, expected `{payload_type}`",
            hint="one signed document was put in the place of another; ask for the right file",
        )
    return _unbase64(envelope.payload, what)


def add_signature(data: bytes, payload_type: str, key: SigningKey, *, what: str) -> bytes:
    """Returns the envelope `data` with the signature of `key` added; the payload stays as it is.

    Raises:
        MalformedError: not an envelope of this type, or full.
    """
    payload = peek_payload(data, payload_type, what=what)
    return merge_signatures(data, seal(payload, payload_type, [key]), payload_type, what=what)


def merge_signatures(data: bytes, other: bytes, payload_type: str, *, what: str) -> bytes:
    """Returns one envelope with the signatures of both; equal signatures are kept once.

    Nothing is verified: whoever opens the result verifies every signature in it.

    Raises:
        MalformedError: not envelopes of this type, of different payloads, or too many signatures.
    """
    payload = peek_payload(data, payload_type, what=what)
    if peek_payload(other, payload_type, what=what) != payload:
        raise MalformedError(
            f"the signatures are over another document than {what}",
            hint="sign the very file that was sent; a signature over another version is of no use",
        )
    signatures = {
        _unbase64(item.sig, what): item
        for envelope in (data, other)
        for item in _Envelope.from_json(envelope, what=what).signatures
    }
    if len(signatures) > MAX_SIGNATURES:
        raise MalformedError(
            f"{what} would have {len(signatures)} signatures, at most {MAX_SIGNATURES} fit",
            hint="keep only the signatures that its policy asks for",
        )
    return _Envelope(
        payload=_base64(payload), payload_type=payload_type, signatures=tuple(signatures.values())
    ).to_json()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unbase64(text: str, what: str) -> bytes:
    # DSSE: verifiers accept the standard and the URL-safe alphabet, but not a mixture with junk.
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        raise MalformedError(
            f"{what} holds text that is not base64",
            hint="the file was damaged or edited; fetch it again from its sender",
        ) from None

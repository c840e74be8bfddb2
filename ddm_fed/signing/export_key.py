"""ECDSA P-256 keys, only for signatures that programs of other people verify.

Our own documents are signed with Ed25519. OpenSSF Model Signing knows no Ed25519, so an export
needs a second key. It vouches for nothing inside a federation.

A public key is written as PEM for other programs, and for our records as the 130 hex digits of its
uncompressed point (SEC 1 section 2.3.3): one key, one spelling.
"""

import re
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from ddm_fed.errors import KeyFileError, MalformedError, SignatureError
from ddm_fed.signing.keys import read_private_pem, write_private_pem

_POINT = re.compile(r"04[0-9a-f]{128}")


class ExportKey:
    """A private P-256 key. It signs, names its public half, and never shows itself."""

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        self._private = private

    def __repr__(self) -> str:
        return f"ExportKey({self.public_hex[2:18]}…)"

    @classmethod
    def generate(cls) -> Self:
        """Returns a new key from the operating system's randomness."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @property
    def public_pem(self) -> bytes:
        """The public key as SubjectPublicKeyInfo PEM, as other programs read it."""
        return self._private.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def public_hex(self) -> str:
        """The public key as 130 hex digits, `04` first."""
        point = self._private.public_key().public_bytes(
            Encoding.X962, PublicFormat.UncompressedPoint
        )
        return point.hex()

    def sign(self, message: bytes) -> bytes:
        """Returns the DER signature of `message` (ECDSA with SHA-256). Each call gives another."""
        return self._private.sign(message, ec.ECDSA(SHA256()))

    def write(self, path: Path) -> None:
        """Writes PKCS#8 PEM with mode 0600, encrypted if there is a passphrase.

        Raises:
            KeyFileError: `path` exists; a key is never overwritten.
        """
        write_private_pem(path, self._private)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Returns the key in the PEM file `path`.

        Raises:
            KeyFileError: the file is missing, others can read it, it cannot be decrypted, or it
                holds a key of another kind.
        """
        private = read_private_pem(path)
        if not isinstance(private, ec.EllipticCurvePrivateKey) or not _is_p256(private.curve):
            raise KeyFileError(
                f"the key file {path} does not hold an ECDSA P-256 key",
                hint="exports are signed with a key of their own; give the path of that one",
            )
        return cls(private)


def verify_export_signature(
    public: bytes | str, signature: bytes, message: bytes, *, what: str = "the message"
) -> None:
    """Refuses `signature` unless the key `public` made it over `message`.

    Args:
        public: the key, as PEM bytes or as 130 hex digits.
        signature: DER, ECDSA with SHA-256.
        message: the bytes signed.
        what: what the message is, for the error.

    Raises:
        MalformedError: `public` is not a P-256 key.
        SignatureError: the signature does not hold.
    """
    key = _read_point(public) if isinstance(public, str) else _read_pem(public)
    try:
        key.verify(signature, message, ec.ECDSA(SHA256()))
    except InvalidSignature:
        raise SignatureError(
            f"the signature of {what} does not hold under the given P-256 key",
            hint="it was made with another key, or altered after signing; compare the key with its "
            "owner, then fetch the file again",
        ) from None


def _read_point(text: str) -> ec.EllipticCurvePublicKey:
    if _POINT.fullmatch(text) is None:
        raise _not_a_key("it is not `04` and 128 lower-case hex digits")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), bytes.fromhex(text))
    except ValueError:
        raise _not_a_key("it is not a point of the curve") from None


def _read_pem(pem: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise _not_a_key("it is not a public key in PEM") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not _is_p256(key.curve):
        raise _not_a_key("it is a key of another kind")
    return key


def _is_p256(curve: ec.EllipticCurve) -> bool:
    return isinstance(curve, ec.SECP256R1)


def _not_a_key(reason: str) -> MalformedError:
    return MalformedError(
        f"the public key of the export is refused: {reason}",
        hint="ask the signer for the public half of its ECDSA P-256 key, as PEM",
    )

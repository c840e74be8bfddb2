"""Who is at the other end of a connection: P-256 keys with a self-signed certificate.

TLS needs a certificate, and gRPC's TLS knows no Ed25519. There is no certificate authority: a
certificate counts because the roster lists it, byte for byte. It says who is connected, never who
signed something.

A certificate is refused unless it is the one this module would have made for its key and name, so
that nothing a TLS library may read out of it differs from what was checked here. It names its key
(the two key identifiers), because a library that finds two certificates of one name, as during a
rotation, may otherwise try the wrong one only. Source: RFC 5280 section 4.2.
"""

import base64
import binascii
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ddm_fed.errors import (
    ExpiredError,
    KeyFileError,
    MalformedError,
    PlanMismatchError,
    WeakKeyError,
)
from ddm_fed.records import MAX_CERTIFICATE_CHARACTERS, Roster, now
from ddm_fed.signing.keyfiles import key_files, next_file
from ddm_fed.signing.keys import read_private_pem, write_private_pem
from ddm_fed.storage.files import write_atomically

TlsRole = Literal["coordinator", "site"]
COORDINATOR_NAME = "coordinator.ddm-fed"
_SITE_SUFFIX = ".site.ddm-fed"
_KEY_NAME = "tls"
_VALID_FOR = timedelta(days=3653)
_CLOCK_ERROR = timedelta(days=1)
# Either connects to the other: a site that answers for its expert listens. Certificates of earlier
# versions serve one direction, and hold as long as nobody asks more of them.
_USAGE = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_EARLIER_USAGE = {"coordinator": _USAGE[:1], "site": _USAGE[1:]}
_HINT = "make one with `init` or `ddm-site rotate --certificate`; other programs' are not taken"
# what `cryptography` raises while it reads a certificate, some of it only when a field is asked for
_UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


def site_dns_name(site: str) -> str:
    """Returns the name in the certificate of a site. No such host needs to exist."""
    return site + _SITE_SUFFIX


@dataclass(frozen=True)
class CertificateDetails:
    """What a checked certificate says. Only `check_certificate` makes one.

    Attributes:
        role: Whose it is.
        name: Its one DNS name.
        fingerprint: `sha256:` and the SHA-256 of the DER bytes.
        public_key: The uncompressed point of its key, as 130 hex digits.
        not_before: When it begins.
        not_after: When it ends.
        both_ways: Whether it serves and connects; those of earlier versions do one of the two.
    """

    role: TlsRole
    name: str
    fingerprint: str
    public_key: str
    not_before: datetime
    not_after: datetime
    both_ways: bool


class TlsKey:
    """A private key and its certificate. It names its public half, and never shows itself."""

    def __init__(
        self, private: ec.EllipticCurvePrivateKey, certificate: str, details: CertificateDetails
    ) -> None:
        self._private = private
        self.certificate = certificate
        """Base64 of the DER bytes, as rosters hold it."""
        self.details = details

    def __repr__(self) -> str:
        return f"TlsKey({self.fingerprint[:23]}…)"

    @classmethod
    def for_coordinator(cls) -> Self:
        """Returns a new key with which the coordinator serves."""
        return cls._generate(COORDINATOR_NAME)

    @classmethod
    def for_site(cls, site: str) -> Self:
        """Returns a new key with which the site called `site` connects."""
        return cls._generate(site_dns_name(site))

    @classmethod
    def _generate(cls, name: str) -> Self:
        private = ec.generate_private_key(ec.SECP256R1())
        issued_at = now()
        builder = x509.CertificateBuilder(
            issuer_name=_subject(name),
            subject_name=_subject(name),
            public_key=private.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=issued_at - _CLOCK_ERROR,
            not_valid_after=issued_at + _VALID_FOR,
        )
        for extension in _extensions(_USAGE, name, private.public_key()):
            builder = builder.add_extension(extension.value, extension.critical)
        der = builder.sign(private, SHA256()).public_bytes(Encoding.DER)
        certificate = base64.b64encode(der).decode()
        return cls(private, certificate, check_certificate(certificate, what="the certificate"))

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as PEM, as TLS libraries read it."""
        return certificate_pem_of(self.certificate)

    @property
    def private_pem(self) -> bytes:
        """The private key as PKCS#8 PEM, not encrypted: for TLS credentials in memory only."""
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def fingerprint(self) -> str:
        """`sha256:` and the SHA-256 of the certificate's DER bytes."""
        return self.details.fingerprint

    def write(self, folder: Path) -> Path:
        """Writes `tls.pem` (mode 0600, encrypted if there is a passphrase) and `tls.crt`.

        Later ones are `tls-2.pem` and so on. Returns the private file.
        """
        file = next_file(folder, _KEY_NAME)
        # first: where there is a key, it has a certificate
        write_atomically(file.with_suffix(".crt"), self.certificate_pem)
        write_private_pem(file, self._private)
        return file

    @classmethod
    def read(cls, file: Path) -> Self:
        """Returns the key in the PEM file `file`, with the certificate beside it.

        Raises:
            KeyFileError: a file is missing, others can read the key, it cannot be decrypted, or the
                two do not belong together.
            RefusedError: the certificate is not of our form.
        """
        certificate = _read_certificate(file)
        private = read_private_pem(file)
        checked = check_certificate(certificate, what=f"the certificate beside {file}")
        if (
            not isinstance(private, ec.EllipticCurvePrivateKey)
            or _point(private.public_key()).hex() != checked.public_key
        ):
            raise KeyFileError(
                f"the key file {file} and the certificate beside it do not belong together",
                hint="restore both from backup; a site gets a new pair with `ddm-site rotate "
                "--certificate`",
            )
        return cls(private, certificate, checked)


def newest_tls_key(folder: Path) -> TlsKey | None:
    """Returns the TLS key in `folder` that was made last, listed or not; None if there is none."""
    files = key_files(folder, _KEY_NAME)
    return TlsKey.read(files[-1]) if files else None


def find_tls_key(
    folder: Path, certificates: Collection[str], *, newest: bool = True
) -> TlsKey | None:
    """Returns the newest TLS key in `folder` whose certificate is one of `certificates`.

    Or the oldest, if not `newest`; None if there is none.
    """
    for file in key_files(folder, _KEY_NAME)[:: -1 if newest else 1]:
        if _read_certificate(file) in certificates:
            return TlsKey.read(file)
    return None


def _read_certificate(file: Path) -> str:
    """Returns the base64 of the certificate beside the private key file `file`."""
    path = file.with_suffix(".crt")
    try:
        with path.open("rb") as source:
            pem = source.read(2 * MAX_CERTIFICATE_CHARACTERS)
        return base64.b64encode(
            x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
        ).decode()
    except OSError as error:
        reason = str(error.strerror)
    except _UNREADABLE:
        reason = "it is not a certificate in PEM"
    raise KeyFileError(
        f"the certificate {path} cannot be read: {reason}",
        hint="restore it from backup, beside its key; or move both away and make new ones",
    )


def check_certificate(text: str, *, what: str) -> CertificateDetails:
    """Returns what the certificate `text` says, if it is exactly what `TlsKey` would have made.

    That is: P-256, signed by itself, no authority, one name, one role, nothing else. Whether it is
    valid at some time is not judged here: see `check_site_certificate`.

    Args:
        text: Base64 of the DER bytes, as records hold it.
        what: Its name, for messages.

    Raises:
        MalformedError: it has another form, or did not sign itself.
        WeakKeyError: its key is not a P-256 key.
    """
    try:
        return _check(_der_of(text, what), what)
    except _UNREADABLE:
        raise _refused(what, "it is not an X.509 certificate") from None


def check_site_certificate(
    text: str, site: str, *, what: str, moment: datetime
) -> CertificateDetails:
    """Returns what the certificate `text` says, if `site` may connect with it at `moment`.

    Raises:
        MalformedError, WeakKeyError: see `check_certificate`.
        PlanMismatchError: it is another site's, or the coordinator's.
        ExpiredError: it is not valid at `moment`.
    """
    checked = check_certificate(text, what=what)
    if (checked.role, checked.name) != ("site", site_dns_name(site)):
        raise PlanMismatchError(
            f"{what} is made out to `{checked.name}`, expected `{site_dns_name(site)}`",
            hint="every site makes its own with `ddm-site init` or `ddm-site rotate --certificate`",
        )
    if not checked.not_before <= moment < checked.not_after:
        raise ExpiredError(
            f"{what} is valid from {checked.not_before:%Y-%m-%d} to {checked.not_after:%Y-%m-%d}, "
            f"not on {moment:%Y-%m-%d}",
            hint="make a new one with `ddm-site rotate --certificate`; if it is new, one of the "
            "two clocks is wrong",
        )
    return checked


def certificate_pem_of(text: str) -> bytes:
    """Returns the certificate that a record holds as PEM."""
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return "\n".join(
        ["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""]
    ).encode()


def certificate_fingerprint(text: str) -> str:
    """Returns `sha256:` and the SHA-256 of the certificate that a record holds."""
    return f"sha256:{hashlib.sha256(base64.b64decode(text)).hexdigest()}"


def who_is(roster: Roster, certificate_der: bytes) -> str | None:
    """Returns the active site that `roster` lists with exactly this certificate, or None.

    Args:
        roster: The current one: ask on every call, since a revoked site's connection stays open.
        certificate_der: What the other end of a TLS connection showed.
    """
    text = base64.b64encode(certificate_der).decode()
    return next(
        (site.name for site in roster.sites if site.is_active and text in site.certificates), None
    )


def site_certificates_pem(roster: Roster) -> bytes:
    """Returns the certificates of all active sites as PEM: whom a TLS handshake lets through."""
    return b"".join(
        certificate_pem_of(text)
        for site in roster.sites
        if site.is_active
        for text in site.certificates
    )


def server_certificates_pem(roster: Roster) -> bytes:
    """Returns the coordinator's certificates as PEM: the only servers a site talks to."""
    return b"".join(certificate_pem_of(text) for text in roster.server_certificates)


def _der_of(text: str, what: str) -> bytes:
    if len(text) > MAX_CERTIFICATE_CHARACTERS:
        raise _refused(
            what, f"it has {len(text)} characters, at most {MAX_CERTIFICATE_CHARACTERS} are read"
        )
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _refused(what, "it is not base64") from None


def _check(der: bytes, what: str) -> CertificateDetails:
    found = x509.load_der_x509_certificate(der)
    # of the bits of the signature none may be unused, which `cryptography` does not ask
    if found.public_bytes(Encoding.DER) != der or not der.endswith(b"\0" + found.signature):
        raise _refused(what, "it is not the one encoding of what it says")
    key = found.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise WeakKeyError(f"{what} is refused: its key is not a P-256 key", hint=_HINT)
    role, name = _role_and_name(found, what)
    if found.subject != _subject(name) or found.issuer != found.subject:
        raise _refused(what, "its subject and issuer are not the name it is made out to")
    listed = [(item.oid, item.critical, item.value) for item in found.extensions]
    usages = [
        usage
        for usage in (_USAGE, _EARLIER_USAGE[role])
        if listed
        == [(item.oid, item.critical, item.value) for item in _extensions(usage, name, key)]
    ]
    if not usages:
        raise _refused(what, "its extensions are not those of a certificate of this program")
    try:
        found.verify_directly_issued_by(found)
    except (InvalidSignature, ValueError, TypeError):
        raise _refused(what, "it is not signed by its own key") from None
    if not isinstance(found.signature_hash_algorithm, SHA256):
        raise _refused(what, "it is not signed with SHA-256")
    return CertificateDetails(
        role=role,
        name=name,
        fingerprint=f"sha256:{hashlib.sha256(der).hexdigest()}",
        public_key=_point(key).hex(),
        not_before=found.not_valid_before_utc.astimezone(UTC),
        not_after=found.not_valid_after_utc.astimezone(UTC),
        both_ways=usages[0] == _USAGE,
    )


def _role_and_name(found: x509.Certificate, what: str) -> tuple[TlsRole, str]:
    try:
        basic = found.extensions.get_extension_for_class(x509.BasicConstraints).value
        named = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise _refused(what, "it does not say that it is no authority, or has no name") from None
    if basic.ca:
        raise _refused(what, "it is an authority's: whoever it signs would be somebody")
    names = named.get_values_for_type(x509.DNSName)
    if names == [COORDINATOR_NAME]:
        return "coordinator", COORDINATOR_NAME
    if len(names) == 1 and names[0].endswith(_SITE_SUFFIX):
        return "site", names[0]
    raise _refused(what, "it is made out to neither the coordinator nor one site")


def _subject(name: str) -> x509.Name:
    # a common name has at most 64 characters, the name of a site 63
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name.partition(".")[0])])


def _extensions(
    usages: Sequence[x509.ObjectIdentifier], name: str, key: ec.EllipticCurvePublicKey
) -> list[x509.Extension[x509.ExtensionType]]:
    """Returns every extension of the certificate of `key`, in order."""
    identifier = x509.SubjectKeyIdentifier.from_public_key(key)
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    values: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (usage, True),
        (x509.ExtendedKeyUsage(usages), False),
        (x509.SubjectAlternativeName([x509.DNSName(name)]), False),
        (identifier, False),
        (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False),
    ]
    return [x509.Extension(value.oid, critical, value) for value, critical in values]


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _refused(what: str, reason: str) -> MalformedError:
    return MalformedError(f"{what} is refused: {reason}", hint=_HINT)

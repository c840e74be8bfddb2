"""Who is connected: certificates of another form are nobody's, rosters say whose the others are."""

import base64
import json
from collections.abc import Callable, Iterable
from concurrent import futures
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA256, SHA512
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from federation import Federation, Json, create_federation, forge

from coordinator.roster import changes, proposals
from ddm_fed.errors import (
    DdmFedError,
    ExpiredError,
    KeyFileError,
    MalformedError,
    PlanMismatchError,
    StateError,
    UnknownSignerError,
    WeakKeyError,
)
from ddm_fed.records import MAX_CERTIFICATE_CHARACTERS, Roster, now
from ddm_fed.signing import (
    COORDINATOR_NAME,
    ENROLMENT_PAYLOAD,
    ROSTER_PAYLOAD,
    SigningKey,
    TlsKey,
    certificate_fingerprint,
    certificate_pem_of,
    check_certificate,
    check_site_certificate,
    find_tls_key,
    newest_tls_key,
    server_certificates_pem,
    site_certificates_pem,
    who_is,
    write_key,
)
from sites import rotation
from sites.outbox.approve import approve_request
from sites.workspace import ENROLMENT_FILE, SiteFolder

A, B, C = "hospital-a", "hospital-b", "hospital-c"
DAY = timedelta(days=1)
MALLORY = SigningKey.from_seed(bytes([10] * 32))
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


SERVER_AUTH, CLIENT_AUTH = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


def der_of(text: str) -> bytes:
    return base64.b64decode(text)


def text_of(certificate: x509.Certificate) -> str:
    return base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()


# Certificates other programs could make


def usage(**bits: bool) -> x509.KeyUsage:
    names = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
        *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**(dict.fromkeys(names, False) | {"digital_signature": True} | bits))


def common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def no_authority(ca: bool = False) -> x509.BasicConstraints:
    return x509.BasicConstraints(ca=ca, path_length=None)


def craft(
    site: str = A,
    *,
    key: Any = None,
    signer: Any = None,
    subject: str | None = None,
    issuer: str | None = None,
    not_before: datetime = datetime(2026, 1, 1, tzinfo=UTC),
    not_after: datetime = datetime(2036, 1, 1, tzinfo=UTC),
    constraints: x509.BasicConstraints | None = None,
    bits: x509.KeyUsage | None = None,
    purposes: tuple[x509.ObjectIdentifier, ...] = (SERVER_AUTH, CLIENT_AUTH),
    names: tuple[x509.GeneralName, ...] | None = None,
    without: tuple[type, ...] = (),
    more: tuple[x509.ExtensionType, ...] = (),
    digest: Any = SHA256,
) -> str:
    """Returns a certificate as `TlsKey.for_site(site)` makes it, with parts replaced."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    extensions = [
        (constraints or no_authority(), True),
        (bits or usage(), True),
        (x509.ExtendedKeyUsage(purposes), False),
        (
            x509.SubjectAlternativeName(names or (x509.DNSName(f"{site}.site.ddm-fed"),)),
            False,
        ),
        (identifier, False),
        (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False),
        *((extension, False) for extension in more),
    ]
    builder = x509.CertificateBuilder(
        issuer_name=common_name(issuer or site),
        subject_name=common_name(subject or site),
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=not_before,
        not_valid_after=not_after,
    )
    for extension, critical in extensions:
        if not isinstance(extension, without):
            builder = builder.add_extension(extension, critical)
    return text_of(builder.sign(signer or key, digest and digest()))


def check(text: str) -> object:
    return check_certificate(text, what="the certificate")


def test_recipe_of_these_tests_is_accepted_as_it_stands():
    assert check_certificate(craft(), what="x").name == "hospital-a.site.ddm-fed"


DNS_A = x509.DNSName("hospital-a.site.ddm-fed")
STRANGER = ec.generate_private_key(ec.SECP256R1())
MALFORMED: dict[str, tuple[Json, str]] = {
    "authority": ({"constraints": no_authority(True)}, "it is an authority's"),
    "authority-with-its-usage": (
        {"constraints": no_authority(True), "bits": usage(key_cert_sign=True)},
        "it is an authority's",
    ),
    "silent-about-authority": ({"without": (x509.BasicConstraints,)}, "does not say"),
    "may-sign-certificates": ({"bits": usage(key_cert_sign=True)}, "its extensions"),
    "no-key-usage": ({"without": (x509.KeyUsage,)}, "its extensions"),
    "purposes-in-another-order": (
        {"purposes": (CLIENT_AUTH, SERVER_AUTH)},
        "its extensions",
    ),
    "site-that-serves": ({"purposes": (SERVER_AUTH,)}, "its extensions"),
    "no-purpose": ({"without": (x509.ExtendedKeyUsage,)}, "its extensions"),
    "no-name": ({"without": (x509.SubjectAlternativeName,)}, "has no name"),
    "foreign-name": ({"names": (x509.DNSName("hospital-a.example"),)}, "neither"),
    "two-names": ({"names": (DNS_A, x509.DNSName("coordinator.ddm-fed"))}, "neither"),
    "name-and-address": ({"names": (DNS_A, x509.RFC822Name("a@b.org"))}, "its extensions"),
    "no-key-identifier": ({"without": (x509.SubjectKeyIdentifier,)}, "its extensions"),
    "one-more-extension": ({"more": (x509.OCSPNoCheck(),)}, "its extensions"),
    "subject-of-another": ({"subject": B, "issuer": B}, "its subject and issuer"),
    "issued-by-another-name": ({"issuer": "root"}, "its subject and issuer"),
    "signed-by-another-key": ({"signer": STRANGER}, "not signed by its own key"),
    "signed-with-another-digest": ({"digest": SHA512}, "not signed with SHA-256"),
}


@pytest.mark.parametrize(("parts", "problem"), MALFORMED.values(), ids=MALFORMED)
def test_certificate_of_another_form_is_refused(parts: Json, problem: str):
    with pytest.raises(MalformedError, match=f"the certificate is refused: .*{problem}"):
        check(craft(**parts))


WEAK: dict[str, Json] = {
    "P-384": {"key": ec.generate_private_key(ec.SECP384R1())},
    "secp256k1": {"key": ec.generate_private_key(ec.SECP256K1())},
    "RSA": {"key": rsa.generate_private_key(65537, 1024)},
    "Ed25519": {"key": ed25519.Ed25519PrivateKey.generate(), "digest": None},
}


@pytest.mark.parametrize("parts", WEAK.values(), ids=WEAK)
def test_certificate_of_another_kind_of_key_is_refused(parts: Json):
    with pytest.raises(WeakKeyError, match="its key is not a P-256 key"):
        check(craft(**parts))


def test_certificate_longer_than_any_honest_one_is_refused_before_it_is_parsed():
    text = "A" * (MAX_CERTIFICATE_CHARACTERS + 4)
    with pytest.raises(MalformedError, match="it has 1372 characters, at most 1368 are read"):
        check(text)


@pytest.mark.parametrize(
    "text", ["", "AAAA", "MIIB", "not base64!", "=" * 8], ids=["empty", "zeros", "cut", "text", "="]
)
def test_bytes_that_are_no_certificate_are_refused(text: str):
    with pytest.raises(MalformedError, match="the certificate is refused"):
        check(text)


def test_certificate_with_any_bit_flipped_is_refused():
    der = bytearray(der_of(TlsKey.for_site(A).certificate))
    accepted = []
    for position in range(len(der)):
        der[position] ^= 1
        try:
            check(base64.b64encode(der).decode())
            accepted.append(position)
        except (MalformedError, WeakKeyError):
            pass
        der[position] ^= 1
    assert accepted == []


def test_certificate_with_bytes_behind_it_is_refused():
    der = der_of(TlsKey.for_site(A).certificate)
    with pytest.raises(MalformedError, match=r"not an X\.509 certificate"):
        check(base64.b64encode(der + b"\0").decode())


# Keys


def test_certificate_of_an_earlier_version_holds_and_serves_one_direction_only():
    assert not check(craft(purposes=(CLIENT_AUTH,))).both_ways
    assert check(craft()).both_ways
    assert TlsKey.for_site(A).details.both_ways
    assert TlsKey.for_coordinator().details.both_ways


def test_new_keys_are_what_they_say():
    site, server = TlsKey.for_site(A), TlsKey.for_coordinator()
    assert (site.details.role, site.details.name) == ("site", "hospital-a.site.ddm-fed")
    assert (server.details.role, server.details.name) == ("coordinator", "coordinator.ddm-fed")
    assert site.details.not_before <= now() - timedelta(hours=23)
    assert site.details.not_after >= now() + timedelta(days=3600)
    assert site.fingerprint == certificate_fingerprint(site.certificate)
    assert len(site.certificate) < MAX_CERTIFICATE_CHARACTERS / 2


def test_longest_name_of_a_site_fits():
    assert TlsKey.for_site("a" * 63).details.name == "a" * 63 + ".site.ddm-fed"


def test_key_written_and_read_is_the_same(tmp_path: Path):
    key = TlsKey.for_site(A)
    file = key.write(tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600
    again = TlsKey.read(file)
    assert (again.certificate, again.private_pem) == (key.certificate, key.private_pem)
    assert (tmp_path / "tls.crt").read_bytes() == key.certificate_pem
    assert key.certificate_pem == certificate_pem_of(key.certificate)
    assert x509.load_pem_x509_certificate(key.certificate_pem).public_bytes(Encoding.DER) == der_of(
        key.certificate
    )


def test_key_file_is_encrypted_if_there_is_a_passphrase(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("DDM_FED_PASSPHRASE", "correct horse")
    key = TlsKey.for_site(A)
    file = key.write(tmp_path)
    assert b"ENCRYPTED" in file.read_bytes()
    assert b"ENCRYPTED" not in key.private_pem
    assert TlsKey.read(file).certificate == key.certificate
    monkeypatch.delenv("DDM_FED_PASSPHRASE")
    with pytest.raises(KeyFileError, match=r"tls\.pem cannot be opened"):
        TlsKey.read(file)


def test_later_keys_are_numbered_and_the_newest_listed_one_is_found(tmp_path: Path):
    keys = [TlsKey.for_site(A) for _ in range(3)]
    assert [key.write(tmp_path).name for key in keys] == ["tls.pem", "tls-2.pem", "tls-3.pem"]
    newest = newest_tls_key(tmp_path)
    assert newest is not None
    assert newest.certificate == keys[2].certificate
    found = find_tls_key(tmp_path, [keys[1].certificate, keys[0].certificate])
    assert found is not None
    assert found.certificate == keys[1].certificate
    assert find_tls_key(tmp_path, [TlsKey.for_site(A).certificate]) is None
    (tmp_path / "tls.pem").unlink()
    assert TlsKey.for_site(A).write(tmp_path).name == "tls-4.pem"


def test_certificate_beside_another_key_is_refused(tmp_path: Path):
    TlsKey.for_site(A).write(tmp_path)
    (tmp_path / "tls.crt").write_bytes(TlsKey.for_site(A).certificate_pem)
    with pytest.raises(KeyFileError, match="do not belong together"):
        newest_tls_key(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"a letter"], ids=["missing", "empty", "letter"])
def test_key_without_its_certificate_is_refused(tmp_path: Path, content: bytes | None):
    TlsKey.for_site(A).write(tmp_path)
    (tmp_path / "tls.crt").unlink()
    if content is not None:
        (tmp_path / "tls.crt").write_bytes(content)
    with pytest.raises(KeyFileError, match=r"tls\.crt cannot be read"):
        newest_tls_key(tmp_path)


def test_key_others_can_read_is_refused(tmp_path: Path):
    file = TlsKey.for_site(A).write(tmp_path)
    file.chmod(0o644)
    with pytest.raises(KeyFileError, match="others on this machine can read it"):
        TlsKey.read(file)


def test_key_killed_between_its_two_files_is_made_anew(tmp_path: Path):
    (tmp_path / "tls.crt").write_bytes(TlsKey.for_site(A).certificate_pem)
    assert newest_tls_key(tmp_path) is None
    key = TlsKey.for_site(A)
    assert TlsKey.read(key.write(tmp_path)).certificate == key.certificate


def test_key_shows_nothing_private():
    key = TlsKey.for_site(A)
    assert repr(key) == f"TlsKey({key.fingerprint[:23]}…)"


# Whose it is, and when


@pytest.mark.parametrize("site", [B, "hospital", "hospital-a.site"])
def test_certificate_of_another_site_is_refused(site: str):
    key = TlsKey.for_site(A)
    with pytest.raises(PlanMismatchError, match=r"made out to `hospital-a\.site\.ddm-fed`"):
        check_site_certificate(key.certificate, site, what="the certificate", moment=now())


def test_certificate_of_the_coordinator_is_no_sites():
    key = TlsKey.for_coordinator()
    with pytest.raises(PlanMismatchError, match=r"made out to `coordinator\.ddm-fed`"):
        check_site_certificate(key.certificate, "coordinator", what="x", moment=now())


@pytest.mark.parametrize(
    ("moment", "valid"),
    [
        (datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC), False),
        (datetime(2026, 1, 1, tzinfo=UTC), True),
        (datetime(2035, 12, 31, tzinfo=UTC), True),
        (datetime(2036, 1, 1, tzinfo=UTC), False),
    ],
)
def test_certificate_is_valid_from_its_beginning_to_before_its_end(moment: datetime, valid: bool):
    text = craft()
    if valid:
        assert check_site_certificate(text, A, what="x", moment=moment).role == "site"
        return
    with pytest.raises(ExpiredError, match="the certificate is valid from 2026-01-01 to 2036-01"):
        check_site_certificate(text, A, what="the certificate", moment=moment)


# Rosters


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Federation:
    """A federation of two sites. Never changed."""
    return create_federation(tmp_path_factory.mktemp("small"), sites=(A, B))


@pytest.fixture
def fed(small: Federation, scratch: Path) -> Federation:
    return small.copy(scratch / "fed", "consortium", A, B)


def roster(fed: Federation) -> Roster:
    return fed.home.chain().current


def certificates(fed: Federation, name: str) -> tuple[str, ...]:
    site = roster(fed).site(name)
    assert site is not None
    return site.certificates


def tls(fed: Federation, name: str) -> TlsKey:
    member = roster(fed).site(name)
    assert member is not None
    return fed.site(name).tls(member)


def test_init_and_enrolment_put_certificates_into_the_roster(fed: Federation):
    first = fed.home.chain().rosters[0]
    assert first.server_certificates == (fed.home.tls(fed.home.chain()).certificate,)
    for name in (A, B):
        key = tls(fed, name)
        assert certificates(fed, name) == (key.certificate,)
        assert who_is(roster(fed), der_of(key.certificate)) == name
    assert server_certificates_pem(roster(fed)) == fed.home.tls(fed.home.chain()).certificate_pem
    assert site_certificates_pem(roster(fed)) == b"".join(
        tls(fed, name).certificate_pem for name in (A, B)
    )


def test_stranger_and_coordinator_are_no_site(fed: Federation):
    assert who_is(roster(fed), der_of(TlsKey.for_site(A).certificate)) is None
    assert who_is(roster(fed), der_of(roster(fed).server_certificates[0])) is None
    assert who_is(roster(fed), b"") is None


def tagged(tag: int, content: bytes) -> bytes:
    length = len(content)
    return (
        bytes([tag, length] if length < 128 else [tag, 0x82, length >> 8, length & 255]) + content
    )


def twin_of(der: bytes) -> bytes:
    """Returns the certificate with the other signature ECDSA accepts: (r, n - s)."""
    found = x509.load_der_x509_certificate(der)
    r, s = decode_dss_signature(found.signature)
    twin = encode_dss_signature(r, P256_ORDER - s)
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256
    return tagged(0x30, found.tbs_certificate_bytes + algorithm + tagged(3, b"\0" + twin))


def test_twin_that_anybody_can_make_of_a_certificate_is_nobody(fed: Federation):
    der = der_of(certificates(fed, A)[0])
    assert check_certificate(base64.b64encode(twin_of(der)).decode(), what="x").role == "site"
    assert twin_of(twin_of(der)) == der
    assert who_is(roster(fed), der) == A
    assert who_is(roster(fed), twin_of(der)) is None


def strip(fields: Json) -> None:
    """Makes a roster as it was before there were certificates."""
    fields.pop("server_certificates", None)
    for site in fields["sites"]:
        site.pop("certificates", None)


def make_old(fed: Federation) -> Federation:
    """Turns a federation into one whose rosters and homes know no certificates."""
    published, pin = fed.home.published, fed.root
    previous = None
    for file in sorted(published.glob("roster-*")):

        def edit(fields: Json, previous: str | None = previous) -> None:
            strip(fields)
            fields["previous_sha256"] = previous

        previous = forge(file, edit, fed.root_key(), kind=ROSTER_PAYLOAD)
        if file.name.startswith("roster-0001"):
            settings = fed.home.path / "coordinator.toml"
            new_pin = f"sha256:{previous}"
    for file in (settings, *(fed.path / name / "site.toml" for name in (A, B))):
        file.write_text(file.read_text().replace(pin, new_pin))
    for keys in (fed.home.keys, *(fed.site(name).keys for name in (A, B))):
        for file in keys.glob("tls*"):
            file.unlink()
    for name in (A, B):
        for file in fed.site(name).seen.iterdir():
            file.unlink()
    (fed.home.path / "requests").rmdir()
    (fed.home.log / "checkpoint").unlink()  # its name is the pin's
    proposals.refresh_published(fed.home)
    return fed


def test_rosters_signed_before_there_were_certificates_hold(fed: Federation):
    old = make_old(fed)
    for file in old.home.published.glob("roster-*"):
        payload = json.loads(base64.b64decode(json.loads(file.read_bytes())["payload"]))
        assert "server_certificates" not in payload
        assert all("certificates" not in site for site in payload["sites"])
    assert list(roster(old).certificates()) == []
    assert site_certificates_pem(roster(old)) == b""
    assert old.look(A).trust.roster == roster(old)
    assert changes.renew(old.home).published


def test_home_without_certificates_says_how_to_get_one_and_gets_it(fed: Federation):
    old = make_old(fed)
    with pytest.raises(StateError, match="none of the 0 server certificates") as caught:
        old.home.tls(old.home.chain())
    assert "roster rotate --server-certificate" in caught.value.hint
    with pytest.raises(StateError, match="none of the 0 certificates") as caught:
        tls(old, A)
    assert "ddm-site rotate --certificate" in caught.value.hint
    assert changes.rotate_server_certificate(old.home).published
    assert changes.rotate_site(old.home, rotation.add_certificate(old.site(A), old.trust)).published
    assert who_is(roster(old), der_of(tls(old, A).certificate)) == A
    assert old.home.tls(old.home.chain()).details.role == "coordinator"


@pytest.mark.parametrize("place", ["same-site", "two-sites", "site-and-server"])
def test_certificate_listed_twice_in_a_roster_is_refused(fed: Federation, place: str):
    text = certificates(fed, A)[0]

    def edit(fields: Json) -> None:
        match place:
            case "same-site":
                fields["sites"][0]["certificates"] = [text, text]
            case "two-sites":
                fields["sites"][1]["certificates"] = [text]
            case "site-and-server":
                fields["server_certificates"] = [text]

    last = max(fed.home.published.glob("roster-*"))
    forge(last, edit, fed.root_key(), kind=ROSTER_PAYLOAD)
    with pytest.raises(MalformedError, match="a certificate is listed twice"):
        fed.home.chain()


def test_fifth_certificate_of_a_site_is_refused(fed: Federation):
    def edit(fields: Json) -> None:
        fields["sites"][0]["certificates"] = [TlsKey.for_site(A).certificate for _ in range(5)]

    last = max(fed.home.published.glob("roster-*"))
    forge(last, edit, fed.root_key(), kind=ROSTER_PAYLOAD)
    with pytest.raises(MalformedError, match="at most 4 items"):
        fed.home.chain()


# Enrolment


def make_site(fed: Federation, name: str = "hospital-c") -> SiteFolder:
    settings = fed.site(A).settings.model_copy(update={"name": name})
    return SiteFolder.create(fed.path / name, settings)


def enrol_with(fed: Federation, certificate: str | None) -> object:
    site = make_site(fed)
    request = site.path / ENROLMENT_FILE
    forge(
        request,
        lambda fields: fields.update(certificate=certificate),
        site.newest_key(),
        kind=ENROLMENT_PAYLOAD,
    )
    return changes.add(fed.home, [request])


YESTERDAY = datetime(2026, 1, 2, tzinfo=UTC)
ENROLMENT: dict[str, tuple[Callable[[], str], type[DdmFedError]]] = {
    "authority": (lambda: craft(C, constraints=no_authority(True)), MalformedError),
    "Ed25519": (lambda: craft(C, **WEAK["Ed25519"]), WeakKeyError),
    "P-384": (lambda: craft(C, **WEAK["P-384"]), WeakKeyError),
    "expired": (lambda: craft(C, not_after=YESTERDAY), ExpiredError),
    "from-the-future": (lambda: craft(C, not_before=now() + DAY), ExpiredError),
    "foreign-signature": (lambda: craft(C, signer=STRANGER), MalformedError),
    "made-out-to-another": (lambda: TlsKey.for_site(A).certificate, PlanMismatchError),
    "the-servers": (lambda: TlsKey.for_coordinator().certificate, PlanMismatchError),
}


@pytest.mark.parametrize(("make", "error"), ENROLMENT.values(), ids=ENROLMENT)
def test_enrolment_with_a_bad_certificate_is_refused(
    fed: Federation, make: Callable[[], str], error: type[DdmFedError]
):
    before = fed.home.chain()
    with pytest.raises(error, match="the certificate of `hospital-c`"):
        enrol_with(fed, make())
    assert fed.home.chain() == before


def test_enrolment_with_the_certificate_of_a_member_is_refused(fed: Federation):
    with pytest.raises(PlanMismatchError, match="made out to `hospital-a"):
        enrol_with(fed, certificates(fed, A)[0])


def test_enrolment_without_a_certificate_is_accepted(fed: Federation):
    assert enrol_with(fed, None) is not None
    assert certificates(fed, "hospital-c") == ()


def test_enrolment_whose_certificate_was_exchanged_on_its_way_is_refused(fed: Federation):
    request = make_site(fed).path / ENROLMENT_FILE
    envelope = json.loads(request.read_bytes())
    payload = json.loads(base64.b64decode(envelope["payload"]))
    payload["certificate"] = TlsKey.for_site("hospital-c").certificate
    envelope["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    request.write_text(json.dumps(envelope))
    with pytest.raises(DdmFedError, match="signature"):
        changes.add(fed.home, [request])


def test_site_made_again_after_a_kill_under_another_name_gets_its_own_certificate(fed: Federation):
    (fed.path / "hospital-c" / "keys").mkdir(parents=True)
    TlsKey.for_site("hospital-z").write(fed.path / "hospital-c" / "keys")
    site = make_site(fed)
    assert changes.add(fed.home, [site.path / ENROLMENT_FILE]) is not None
    assert tls(fed, "hospital-c").details.name == "hospital-c.site.ddm-fed"


# Rotation and revocation


def new_certificate(fed: Federation, name: str = A) -> str:
    """Lets the site ask for a new certificate and the coordinator list it; returns it."""
    file = rotation.add_certificate(fed.site(name), fed.trust)
    assert changes.rotate_site(fed.home, file).published
    return certificates(fed, name)[-1]


def test_new_certificate_stands_beside_the_last_one_until_the_next(fed: Federation):
    first = certificates(fed, A)[0]
    keys = roster(fed).site(A).keys
    second = new_certificate(fed)
    assert certificates(fed, A) == (first, second)
    assert tls(fed, A).certificate == second
    assert who_is(roster(fed), der_of(first)) == who_is(roster(fed), der_of(second)) == A
    third = new_certificate(fed)
    assert certificates(fed, A) == (second, third)
    assert who_is(roster(fed), der_of(first)) is None
    assert roster(fed).site(A).keys == keys


def test_site_whose_request_was_not_answered_asks_again_with_the_same_certificate(fed: Federation):
    for _ in range(2):
        rotation.add_certificate(fed.site(A), fed.trust)
    assert sorted(file.name for file in fed.site(A).keys.glob("tls*.pem")) == [
        "tls-2.pem",
        "tls.pem",
    ]


def test_site_goes_on_with_its_old_certificate_until_the_roster_lists_the_new(fed: Federation):
    rotation.add_certificate(fed.site(A), fed.trust)
    assert tls(fed, A).certificate == certificates(fed, A)[0]


def test_request_for_a_certificate_signed_by_a_stranger_is_refused(fed: Federation):
    file = rotation.add_certificate(fed.site(A), fed.trust)
    forge(file, lambda _: None, MALLORY, kind=ENROLMENT_PAYLOAD)
    with pytest.raises(UnknownSignerError):
        changes.rotate_site(fed.home, file, lost=True)


def test_request_for_a_certificate_signed_by_another_site_is_refused(fed: Federation):
    file = rotation.add_certificate(fed.site(A), fed.trust)
    forge(file, lambda _: None, fed.key(B), kind=ENROLMENT_PAYLOAD)
    with pytest.raises(UnknownSignerError):
        changes.rotate_site(fed.home, file)


def test_request_for_a_certificate_cannot_change_whose_signatures_count(fed: Federation):
    file = rotation.add_certificate(fed.site(A), fed.trust)
    forge(
        file,
        lambda fields: fields.update(require=["site", "dpo"]),
        fed.key(A),
        kind=ENROLMENT_PAYLOAD,
    )
    with pytest.raises(StateError, match="only adds a certificate, but asks for the signatures"):
        changes.rotate_site(fed.home, file)


def test_site_with_an_officer_asks_for_a_certificate_alone_and_the_officer_cannot(
    fed: Federation,
):
    officer = write_key(fed.path / "officer.pem")
    settings = fed.site(A).settings.model_copy(update={"name": C, "dpo_key": officer.public.hex})
    site = SiteFolder.create(fed.path / C, settings)
    approve_request(site.path / ENROLMENT_FILE, officer)
    changes.add(fed.home, [site.path / ENROLMENT_FILE])
    before = roster(fed).site(C)
    file = rotation.add_certificate(site, fed.trust)
    good = file.read_bytes()
    forge(file, lambda _: None, officer, kind=ENROLMENT_PAYLOAD)
    with pytest.raises(UnknownSignerError):
        changes.rotate_site(fed.home, file)
    file.write_bytes(good)
    assert changes.rotate_site(fed.home, file).published
    after = roster(fed).site(C)
    assert (after.keys, after.policies) == (before.keys, before.policies)
    assert len(after.certificates) == 2


def test_request_for_a_certificate_offered_as_an_enrolment_is_refused(fed: Federation):
    file = rotation.add_certificate(fed.site(A), fed.trust)
    with pytest.raises(StateError, match="does not enrol"):
        changes.add(fed.home, [file])


def test_certificate_that_was_dropped_does_not_come_back_with_its_old_request(fed: Federation):
    file = rotation.add_certificate(fed.site(A), fed.trust)
    replayed = file.read_bytes()
    assert changes.rotate_site(fed.home, file).published
    assert changes.revoke_certificates(fed.home, A).published
    file.write_bytes(replayed)
    with pytest.raises(StateError, match="was in a roster before"):
        changes.rotate_site(fed.home, file)
    enrolment = fed.site(A).path / ENROLMENT_FILE
    assert changes.add(fed.home, [enrolment]) is None
    assert certificates(fed, A) == ()


def test_site_whose_certificates_were_dropped_gets_a_new_one(fed: Federation):
    old = certificates(fed, A)[0]
    assert changes.revoke_certificates(fed.home, A).published
    assert who_is(roster(fed), der_of(old)) is None
    assert roster(fed).site(A).is_active
    with pytest.raises(StateError, match="lists no certificate of `hospital-a`"):
        changes.revoke_certificates(fed.home, A)
    assert new_certificate(fed) != old


def test_revoked_site_is_nobody(fed: Federation):
    old = certificates(fed, A)[0]
    assert changes.revoke(fed.home, A).published
    assert certificates(fed, A) == ()
    assert who_is(roster(fed), der_of(old)) is None
    assert certificate_pem_of(old) not in site_certificates_pem(roster(fed))


def test_site_whose_one_key_was_revoked_by_name_is_nobody_though_listed(fed: Federation):
    old = certificates(fed, A)[0]
    assert changes.revoke(fed.home, A, keyid=fed.key(A).public.keyid).published
    assert certificates(fed, A) == (old,)
    assert who_is(roster(fed), der_of(old)) is None
    assert site_certificates_pem(roster(fed)) == certificate_pem_of(certificates(fed, B)[0])


def test_new_key_alone_keeps_the_certificates(fed: Federation):
    before = certificates(fed, A)
    file = rotation.replace_site_key(fed.site(A), fed.trust, lost=False)
    assert changes.rotate_site(fed.home, file).published
    assert certificates(fed, A) == before


def test_new_key_in_place_of_a_lost_one_comes_with_a_new_certificate(fed: Federation):
    before = certificates(fed, A)
    file = rotation.replace_site_key(fed.site(A), fed.trust, lost=True)
    assert changes.rotate_site(fed.home, file, lost=True).published
    assert certificates(fed, A)[:1] == before
    assert len(certificates(fed, A)) == 2


def test_compromised_keys_take_the_certificates_with_them(fed: Federation):
    before = certificates(fed, A)[0]
    file = rotation.replace_site_key(fed.site(A), fed.trust, lost=True)
    assert changes.rotate_site(fed.home, file, lost=True, compromised_since=0).published
    assert before not in certificates(fed, A)
    assert len(certificates(fed, A)) == 1


def test_new_server_certificate_is_announced_by_one_roster_before_it_serves(fed: Federation):
    seen = [roster(fed).server_certificates]
    for _ in range(3):
        assert changes.rotate_server_certificate(fed.home).published
        served = fed.home.tls(fed.home.chain()).certificate
        assert served in seen[-1]  # a site with the roster before still gets through
        assert roster(fed).server_certificates[0] == served
        seen.append(roster(fed).server_certificates)
    assert [len(listed) for listed in seen] == [1, 2, 2, 2]
    assert seen[2][0] == seen[1][1]
    assert len({text for listed in seen for text in listed}) == 4


def test_coordinator_whose_old_key_is_gone_serves_with_the_new_one(fed: Federation):
    assert changes.rotate_server_certificate(fed.home).published
    for file in ("tls.pem", "tls.crt"):
        (fed.home.keys / file).unlink()
    served = fed.home.tls(fed.home.chain()).certificate
    assert served == roster(fed).server_certificates[1]


# What TLS makes of them


class Echo(grpc.GenericRpcHandler):
    """Answers every call with the certificate of the caller."""

    def service(self, _details: object) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(
            lambda _request, context: context.auth_context()["x509_pem_cert"][0]
        )


def connect(
    server: TlsKey, client: TlsKey, sites_pem: bytes, servers_pem: bytes
) -> bytes | grpc.StatusCode:
    """Returns the certificate that the server saw, or the status of a call that failed."""
    serving = grpc.server(futures.ThreadPoolExecutor(1), handlers=[Echo()])
    port = serving.add_secure_port(
        "127.0.0.1:0",
        grpc.ssl_server_credentials(
            [(server.private_pem, server.certificate_pem)], sites_pem, require_client_auth=True
        ),
    )
    serving.start()
    credentials = grpc.ssl_channel_credentials(
        servers_pem, client.private_pem, client.certificate_pem
    )
    options = [("grpc.ssl_target_name_override", COORDINATOR_NAME)]
    try:
        with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
            answer: bytes = channel.unary_unary("/test/Echo")(b"", timeout=5)
            return answer
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    finally:
        serving.stop(None).wait()


def pem(keys: Iterable[TlsKey]) -> bytes:
    return b"".join(key.certificate_pem for key in keys)


def test_both_certificates_of_a_rotation_connect_and_a_third_of_the_name_does_not():
    servers = [TlsKey.for_coordinator() for _ in range(2)]
    old, new, other = (TlsKey.for_site(A) for _ in range(3))
    beside = TlsKey.for_site(B)
    listed, served = pem([old, new, beside]), pem(servers)
    for server in servers:
        for client in (old, new, beside):
            assert connect(server, client, listed, served) == client.certificate_pem
    assert connect(servers[0], other, listed, served) is grpc.StatusCode.UNAVAILABLE
    assert connect(TlsKey.for_coordinator(), old, listed, served) is grpc.StatusCode.UNAVAILABLE


def test_site_that_poses_as_the_coordinator_is_not_believed():
    site, server = TlsKey.for_site(A), TlsKey.for_coordinator()
    served = pem([server, site])  # even if somebody had listed it there
    assert connect(site, site, pem([site]), served) is grpc.StatusCode.UNAVAILABLE

"""Ed25519 keys and DSSE envelopes: published vectors, foreign verifiers, and every trick."""

import base64
import json
import re
import shutil
import stat
import subprocess
from pathlib import Path

import keyring
import keyring.backends.fail
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

from ddm_fed.errors import (
    KeyFileError,
    MalformedError,
    RefusedError,
    SignatureError,
    UnknownSignerError,
    WeakKeyError,
)
from ddm_fed.records import MAX_DOCUMENT_BYTES
from ddm_fed.signing import (
    PASSPHRASE_VARIABLE,
    PLAN_PAYLOAD,
    ROSTER_PAYLOAD,
    SigningKey,
    VerifyKey,
    open_envelope,
    peek_payload,
    pre_authentication_encoding,
    seal,
)

VECTORS = Path(__file__).parents[4] / "shared" / "vectors"
needs_vectors = pytest.mark.skipif(
    not VECTORS.is_dir(), reason=f"the published test vectors are not at {VECTORS}"
)
SEED = bytes(range(32))
HELLO = "http://example.com/HelloWorld"
P = 2**255 - 19

KEY = SigningKey.from_seed(SEED)
OTHER = SigningKey.from_seed(bytes(32))
THIRD = SigningKey.from_seed(bytes([7] * 32))


def envelope(data: bytes) -> dict:
    return json.loads(data)


def as_bytes(document: dict) -> bytes:
    return json.dumps(document).encode()


def sealed(*keys: SigningKey, payload: bytes = b'{"a":1}', kind: str = PLAN_PAYLOAD) -> dict:
    return envelope(seal(payload, kind, keys or (KEY,)))


def opened(document: dict | bytes, *keys: VerifyKey, kind: str = PLAN_PAYLOAD):
    data = document if isinstance(document, bytes) else as_bytes(document)
    return open_envelope(data, kind, keys or (KEY.public,), what="the plan")


def with_flipped_base64(text: str, index: int) -> str:
    raw = bytearray(base64.b64decode(text))
    raw[index] ^= 1
    return base64.b64encode(raw).decode()


# Published vectors


def test_public_key_of_the_published_seed_is_the_published_key():
    assert KEY.public.hex == "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"


def test_pre_authentication_encoding_is_that_of_the_dsse_protocol():
    found = pre_authentication_encoding(HELLO, b"hello world")
    assert found == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_pre_authentication_encoding_counts_bytes_not_characters():
    assert pre_authentication_encoding("ä", "€".encode()) == "DSSEv1 2 ä 3 €".encode()


def test_seal_makes_the_published_signature():
    found = envelope(seal(b"hello world", HELLO, [KEY]))["signatures"][0]["sig"]
    assert found == (
        "FDBuhhGZHrQaLnHA+xYDozNBKtORTT3EFhGJXczChh8PCqB471sDESzy2zguMGQOk8D+Ij2hb/eoUkqxc/qgCg=="
    )


@needs_vectors
def test_wycheproof_verdicts_are_ours():
    suite = json.loads((VECTORS / "wycheproof_ed25519.json").read_bytes())
    seen, wrong = 0, []
    for group in suite["testGroups"]:
        key = VerifyKey.from_hex(group["publicKey"]["pk"])
        for case in group["tests"]:
            seen += 1
            accepted = key.accepts(bytes.fromhex(case["sig"]), bytes.fromhex(case["msg"]))
            if accepted != (case["result"] == "valid"):
                wrong.append(case["tcId"])
    assert (seen, wrong) == (151, [])


@needs_vectors
def test_speccheck_cases_are_all_refused_at_the_key_or_at_the_signature():
    cases = json.loads((VECTORS / "ed25519_speccheck.json").read_bytes())
    refused_keys, refused_signatures = [], []
    for index, case in enumerate(cases):
        try:
            key = VerifyKey.from_hex(case["pub_key"])
        except WeakKeyError:
            refused_keys.append(index)
            continue
        if not key.accepts(bytes.fromhex(case["signature"]), bytes.fromhex(case["message"])):
            refused_signatures.append(index)
    # 6 and 7 have honest keys, and S at least the group order
    assert (refused_keys, refused_signatures) == ([0, 1, 2, 3, 4, 5, 8, 9, 10, 11], [6, 7])


@needs_vectors
def test_speccheck_cases_are_needed_because_the_library_accepts_some():
    cases = json.loads((VECTORS / "ed25519_speccheck.json").read_bytes())
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(cases[0]["pub_key"]))
    key.verify(bytes.fromhex(cases[0]["signature"]), bytes.fromhex(cases[0]["message"]))


# Foreign verifiers


def test_securesystemslib_verifies_our_envelope_with_two_signatures():
    keys = [
        SSlibKey(key.public.keyid, "ed25519", "ed25519", {"public": key.public.hex})
        for key in (KEY, OTHER)
    ]
    verified = Envelope.from_dict(sealed(KEY, OTHER)).verify(keys, threshold=2)
    assert set(verified) == {KEY.public.keyid, OTHER.public.keyid}


def test_our_code_opens_an_envelope_that_securesystemslib_wrote():
    theirs = Envelope.from_dict(sealed(KEY, payload=b'{"b":2}')).to_dict()
    assert opened(theirs).payload == b'{"b":2}'


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_verifies_our_signature(tmp_path: Path):
    document = sealed(KEY)
    payload = base64.b64decode(document["payload"])
    (tmp_path / "message").write_bytes(pre_authentication_encoding(PLAN_PAYLOAD, payload))
    (tmp_path / "sig").write_bytes(base64.b64decode(document["signatures"][0]["sig"]))
    # SubjectPublicKeyInfo of an Ed25519 key is this prefix and its 32 bytes (RFC 8410)
    (tmp_path / "key.der").write_bytes(bytes.fromhex("302a300506032b6570032100") + KEY.public.raw)
    command = "openssl pkeyutl -verify -rawin -pubin -keyform DER -inkey key.der -sigfile sig"
    done = subprocess.run(
        [*command.split(), "-in", "message"], cwd=tmp_path, capture_output=True, check=True
    )
    assert done.stdout.strip() == b"Signature Verified Successfully"


# Public keys that prove nothing

SMALL_ORDER = {
    "order-1": "0100000000000000000000000000000000000000000000000000000000000000",
    "order-2": "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "order-4": "0000000000000000000000000000000000000000000000000000000000000000",
    "order-4-negative": "0000000000000000000000000000000000000000000000000000000000000080",
    "order-8": "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "order-8-negative": "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "order-8-other": "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "order-8-other-negative": "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
}


@pytest.mark.parametrize("text", SMALL_ORDER.values(), ids=SMALL_ORDER)
def test_verify_key_refuses_point_of_small_order_each_time(text: str):
    refused = f"{text[:16]}… is refused: its point has small order"
    for _ in range(2):
        with pytest.raises(WeakKeyError, match=refused):
            VerifyKey.from_hex(text)


def test_verify_key_refuses_every_non_canonical_y():
    accepted = []
    for y in range(P, 2**255):
        for sign in (0, 1):
            raw = (y | sign << 255).to_bytes(32, "little")
            with pytest.raises(WeakKeyError, match="not the canonical encoding"):
                accepted.append(VerifyKey(raw))
    assert accepted == []


@pytest.mark.parametrize("y", [1, P - 1])
def test_verify_key_refuses_zero_x_with_a_sign(y: int):
    raw = (y | 1 << 255).to_bytes(32, "little")
    with pytest.raises(WeakKeyError, match="not the canonical encoding"):
        VerifyKey(raw)


def test_verify_key_refuses_y_that_is_on_no_point():
    with pytest.raises(WeakKeyError, match="0200000000000000… is refused: it is not the canonical"):
        VerifyKey((2).to_bytes(32, "little"))


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_verify_key_refuses_wrong_length(length: int):
    with pytest.raises(WeakKeyError, match=f"it has {length} bytes, not 32"):
        VerifyKey(b"\x05" * length)


def test_verify_key_accepts_fifty_honest_keys():
    for index in range(50):
        honest = Ed25519PrivateKey.from_private_bytes(bytes([index] * 32)).public_key()
        assert VerifyKey(honest.public_bytes_raw()).raw == honest.public_bytes_raw()


@pytest.mark.parametrize("length", [0, 1, 63, 65, 128])
def test_accepts_signature_of_wrong_length_is_false(length: int):
    assert not KEY.public.accepts(b"\x01" * length, b"message")


# Key files


def test_key_file_is_written_with_mode_0600(tmp_path: Path):
    KEY.write(tmp_path / "key.pem")
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600


def test_key_file_read_back_is_the_same_key(tmp_path: Path):
    KEY.write(tmp_path / "key.pem")
    assert SigningKey.read(tmp_path / "key.pem").public == KEY.public


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o611])
def test_key_file_others_can_use_is_refused(tmp_path: Path, mode: int):
    KEY.write(tmp_path / "key.pem")
    (tmp_path / "key.pem").chmod(mode)
    with pytest.raises(KeyFileError, match=rf"key\.pem has mode {mode:04o}") as caught:
        SigningKey.read(tmp_path / "key.pem")
    assert caught.value.hint == f"chmod 600 {tmp_path / 'key.pem'}"


def test_key_file_is_never_overwritten(tmp_path: Path):
    KEY.write(tmp_path / "key.pem")
    before = (tmp_path / "key.pem").read_bytes()
    with pytest.raises(KeyFileError, match=r"key\.pem exists already"):
        OTHER.write(tmp_path / "key.pem")
    assert (tmp_path / "key.pem").read_bytes() == before


def test_key_file_that_is_a_folder_is_refused_as_one(tmp_path: Path):
    with pytest.raises(KeyFileError, match="is a folder"):
        KEY.write(tmp_path)


def test_key_file_in_a_folder_that_is_missing_names_the_folder(tmp_path: Path):
    with pytest.raises(KeyFileError, match=r"no folder .*keys for the key file key\.pem"):
        KEY.write(tmp_path / "keys" / "key.pem")


def test_key_file_missing_is_refused_by_name(tmp_path: Path):
    with pytest.raises(KeyFileError, match=r"there is no key file .*nokey\.pem"):
        SigningKey.read(tmp_path / "nokey.pem")


def test_key_file_with_other_content_is_refused_by_name(tmp_path: Path):
    (tmp_path / "key.pem").write_text("not a key")
    (tmp_path / "key.pem").chmod(0o600)
    with pytest.raises(KeyFileError, match=r"key\.pem cannot be opened"):
        SigningKey.read(tmp_path / "key.pem")


def test_encrypted_key_file_opens_with_its_passphrase(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "correct horse")
    KEY.write(tmp_path / "key.pem")
    assert b"ENCRYPTED" in (tmp_path / "key.pem").read_bytes()
    assert SigningKey.read(tmp_path / "key.pem").public == KEY.public


@pytest.mark.parametrize("passphrase", [None, "", "wrong"])
def test_encrypted_key_file_does_not_open_without_its_passphrase(
    tmp_path: Path, monkeypatch, passphrase: str | None
):
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "correct horse")
    KEY.write(tmp_path / "key.pem")
    if passphrase is None:
        monkeypatch.delenv(PASSPHRASE_VARIABLE)
    else:
        monkeypatch.setenv(PASSPHRASE_VARIABLE, passphrase)
    with pytest.raises(KeyFileError, match=r"key\.pem cannot be opened") as caught:
        SigningKey.read(tmp_path / "key.pem")
    assert "correct horse" not in str(caught.value)


class DeskKeyring(KeyringBackend):
    """A keyring that holds one passphrase, or is locked."""

    priority = 1

    def __init__(self, passphrase: str | None, *, locked: bool = False) -> None:
        super().__init__()
        self.held, self.locked = {("ddm-fed", "keys"): passphrase}, locked

    def get_password(self, service: str, username: str) -> str | None:
        if self.locked:
            raise KeyringLocked("the collection is locked")
        return self.held.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.held[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.held[service, username]


@pytest.fixture
def use_keyring(monkeypatch):
    before = keyring.get_keyring()
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    yield keyring.set_keyring
    keyring.set_keyring(before)


def test_key_file_is_encrypted_and_opened_with_the_passphrase_of_the_keyring(
    tmp_path: Path, use_keyring
):
    use_keyring(DeskKeyring("correct horse"))
    KEY.write(tmp_path / "key.pem")
    assert b"ENCRYPTED" in (tmp_path / "key.pem").read_bytes()
    assert SigningKey.read(tmp_path / "key.pem").public == KEY.public
    use_keyring(DeskKeyring("another"))
    with pytest.raises(KeyFileError, match=r"key\.pem cannot be opened"):
        SigningKey.read(tmp_path / "key.pem")


def test_environment_comes_before_the_keyring(tmp_path: Path, monkeypatch, use_keyring):
    use_keyring(DeskKeyring("of the keyring", locked=True))
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "of the environment")
    KEY.write(tmp_path / "key.pem")
    assert SigningKey.read(tmp_path / "key.pem").public == KEY.public


@pytest.fixture
def secret(tmp_path: Path, monkeypatch, use_keyring) -> Path:
    """A file that holds a passphrase, as services are given one; the keyring would not answer."""
    use_keyring(DeskKeyring("of the keyring", locked=True))
    (file := tmp_path / "passphrase").write_text("of the file\n")
    monkeypatch.setenv("DDM_FED_PASSPHRASE_FILE", str(file))
    return file


@pytest.mark.parametrize("ending", ["", "\n", "\r\n", "\nmore\n"])
def test_key_file_opens_with_the_first_line_of_the_file_of_the_passphrase(
    tmp_path: Path, monkeypatch, secret: Path, ending: str
):
    secret.write_bytes(b"of the file" + ending.encode())
    KEY.write(tmp_path / "key.pem")
    monkeypatch.delenv("DDM_FED_PASSPHRASE_FILE")
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "of the file")
    assert SigningKey.read(tmp_path / "key.pem").public == KEY.public


def test_environment_comes_before_the_file(tmp_path: Path, monkeypatch, secret: Path):
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "of the environment")
    KEY.write(tmp_path / "key.pem")
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    with pytest.raises(KeyFileError, match=r"key\.pem cannot be opened"):
        SigningKey.read(tmp_path / "key.pem")


@pytest.mark.parametrize("held", [None, b"", b"\nof the second line"])
def test_file_without_a_passphrase_writes_no_key_in_the_clear(tmp_path: Path, secret: Path, held):
    if held is None:
        secret.unlink()
    else:
        secret.write_bytes(held)
    with pytest.raises(KeyFileError, match=r"passphrase (cannot be read|is empty)") as caught:
        KEY.write(tmp_path / "key.pem")
    assert "DDM_FED_PASSPHRASE_FILE" in caught.value.hint
    assert not (tmp_path / "key.pem").exists()


def test_locked_keyring_writes_no_key_in_the_clear(tmp_path: Path, use_keyring):
    use_keyring(DeskKeyring("correct horse", locked=True))
    with pytest.raises(KeyFileError, match="the collection is locked") as caught:
        KEY.write(tmp_path / "key.pem")
    assert "unlock it" in caught.value.hint
    assert not (tmp_path / "key.pem").exists()


@pytest.mark.parametrize("backend", [DeskKeyring(None), keyring.backends.fail.Keyring()])
def test_machine_whose_keyring_holds_nothing_makes_plain_keys(tmp_path: Path, use_keyring, backend):
    use_keyring(backend)
    KEY.write(tmp_path / "key.pem")
    assert b"ENCRYPTED" not in (tmp_path / "key.pem").read_bytes()
    assert SigningKey.read(tmp_path / "key.pem").public == KEY.public


def test_signing_key_repr_shows_no_secret():
    shown = repr(KEY)
    assert shown == f"SigningKey({KEY.public.keyid[:20]}…)"
    assert SEED.hex()[:8] not in shown


# Envelopes


def test_envelope_of_two_signers_names_both():
    found = opened(sealed(KEY, OTHER), KEY.public, OTHER.public)
    assert found.signers == {KEY.public, OTHER.public}


def test_envelope_with_same_signature_twice_has_one_signer():
    document = sealed(KEY)
    document["signatures"] *= 2
    assert opened(document, KEY.public, OTHER.public).signers == {KEY.public}


@pytest.mark.parametrize("index", [0, 3, -1])
def test_envelope_with_flipped_payload_byte_is_refused(index: int):
    document = sealed(KEY)
    document["payload"] = with_flipped_base64(document["payload"], index)
    with pytest.raises(SignatureError, match="the plan carries a signature of ed25519:"):
        opened(document)


@pytest.mark.parametrize("index", [0, 31, 32, 63])
def test_envelope_with_flipped_signature_byte_is_refused(index: int):
    document = sealed(KEY)
    signature = document["signatures"][0]
    signature["sig"] = with_flipped_base64(signature["sig"], index)
    with pytest.raises(SignatureError, match="the plan carries a signature of ed25519:"):
        opened(document)


def test_envelope_with_relabelled_type_is_refused():
    document = sealed(KEY, kind=ROSTER_PAYLOAD)
    document["payloadType"] = PLAN_PAYLOAD
    with pytest.raises(SignatureError, match="the plan"):
        opened(document)


def test_envelope_of_another_type_is_refused():
    with pytest.raises(MalformedError, match=re.escape(f"the plan is of type `{ROSTER_PAYLOAD}`")):
        opened(sealed(KEY, kind=ROSTER_PAYLOAD))


def test_peek_refuses_another_type():
    with pytest.raises(MalformedError, match=re.escape(f"the plan is of type `{ROSTER_PAYLOAD}`")):
        peek_payload(seal(b"{}", ROSTER_PAYLOAD, [KEY]), PLAN_PAYLOAD, what="the plan")


def test_envelope_of_unknown_signer_is_refused_and_named():
    with pytest.raises(
        UnknownSignerError, match=f"the plan is signed by {OTHER.public.keyid[:24]}"
    ):
        opened(sealed(OTHER))


def test_envelope_verified_with_no_keys_is_refused():
    with pytest.raises(UnknownSignerError, match="the plan"):
        open_envelope(seal(b"{}", PLAN_PAYLOAD, [KEY]), PLAN_PAYLOAD, [], what="the plan")


def test_envelope_with_bad_signature_of_known_key_is_refused_despite_a_valid_one():
    document = sealed(KEY, OTHER)
    bad = document["signatures"][1]
    bad["sig"] = with_flipped_base64(bad["sig"], 5)
    with pytest.raises(SignatureError, match=OTHER.public.keyid[:24]):
        opened(document, KEY.public, OTHER.public)


def test_envelope_with_valid_signature_beside_that_of_an_unknown_key_is_accepted():
    found = opened(sealed(THIRD, KEY))
    assert found.signers == {KEY.public}


def test_keyid_of_known_key_on_signature_of_unknown_key_is_refused():
    document = sealed(OTHER)
    document["signatures"][0]["keyid"] = KEY.public.keyid
    with pytest.raises(SignatureError, match=KEY.public.keyid[:24]):
        opened(document)


@pytest.mark.parametrize("keyid", ["", "nonsense", OTHER.public.keyid])
def test_keyid_alone_decides_nothing_about_a_valid_signature(keyid: str):
    document = sealed(KEY)
    document["signatures"][0]["keyid"] = keyid
    assert opened(document, KEY.public).signers == {KEY.public}


def test_url_safe_base64_is_accepted():
    document = sealed(KEY, payload=b'{"a":"\xc3\xbf\xc3\xbe>>>???"}')
    for holder, field in ((document, "payload"), (document["signatures"][0], "sig")):
        holder[field] = holder[field].replace("+", "-").replace("/", "_")
    assert "-" in document["payload"] + document["signatures"][0]["sig"]
    assert opened(document).signers == {KEY.public}


@pytest.mark.parametrize(
    "junk", ["@@@@", "e30", "e3 0=", "e30=\n", "e30=e30=", "====", "é30=", "e30=\x00", " e30="]
)
@pytest.mark.parametrize("field", ["payload", "sig"])
def test_junk_base64_is_refused(field: str, junk: str):
    document = sealed(KEY)
    holder = document if field == "payload" else document["signatures"][0]
    holder[field] = junk
    with pytest.raises(MalformedError, match="the plan holds text that is not base64"):
        opened(document)


@pytest.mark.parametrize(("count", "problem"), [(0, "at least 1 item"), (17, "at most 16 items")])
def test_envelope_with_none_or_too_many_signatures_is_refused(count: int, problem: str):
    document = sealed(KEY)
    document["signatures"] *= count
    with pytest.raises(MalformedError, match=f"the plan .*`signatures`.*{problem}"):
        opened(document)


def test_envelope_with_sixteen_signatures_is_accepted():
    document = sealed(KEY)
    document["signatures"] *= 16
    assert opened(document).signers == {KEY.public}


@pytest.mark.parametrize("field", ["alg", "publicKey", "cert"])
def test_envelope_signature_with_another_field_is_refused(field: str):
    document = sealed(KEY)
    document["signatures"][0][field] = "none"
    with pytest.raises(MalformedError, match=rf"`signatures\.0\.{field}`: unknown key"):
        opened(document)


def test_envelope_over_one_mebibyte_is_refused():
    data = seal(b"{}", PLAN_PAYLOAD, [KEY])
    padded = data + b" " * (MAX_DOCUMENT_BYTES + 1 - len(data))
    with pytest.raises(MalformedError, match=f"the plan has {MAX_DOCUMENT_BYTES + 1} bytes"):
        opened(padded)


def test_envelope_of_exactly_one_mebibyte_is_accepted():
    data = seal(b"{}", PLAN_PAYLOAD, [KEY])
    assert opened(data + b" " * (MAX_DOCUMENT_BYTES - len(data))).payload == b"{}"


def _in_envelope(text: str) -> bytes:
    whole = seal(b"{}", PLAN_PAYLOAD, [KEY]).decode()
    return whole.replace('"payloadType"', f'{text},"payloadType"', 1).encode()


AMBIGUOUS = {
    "duplicate-key": (_in_envelope('"payload":"e30="'), "the key `payload` appears twice"),
    "nan": (_in_envelope('"x":NaN'), "the number NaN"),
    "infinity": (_in_envelope('"x":-Infinity'), "the number -Infinity"),
    "float": (_in_envelope('"x":1.5'), "the float 1.5"),
    "exponent": (_in_envelope('"x":1e400'), "the float 1e400"),
    "huge-integer": (_in_envelope('"x":9007199254740992'), "an integer beyond"),
    "huge-negative-integer": (_in_envelope('"x":-9007199254740992'), "an integer beyond"),
    "endless-integer": (_in_envelope('"x":' + "9" * 5000), "an integer beyond"),
    "deep-nesting": (b"[" * 500_000 + b"]" * 500_000, "nested too deeply"),
    "deep-objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    "bom": (b"\xef\xbb\xbf" + seal(b"{}", PLAN_PAYLOAD, [KEY]), "BOM"),
    "invalid-utf8": (_in_envelope('"x":"@"').replace(b"@", b"\xff"), "not UTF-8 at byte"),
    "overlong-utf8": (_in_envelope('"x":"@"').replace(b"@", b"\xc0\xaf"), "not UTF-8 at byte"),
    "utf16": (seal(b"{}", PLAN_PAYLOAD, [KEY]).decode().encode("utf-16"), "not UTF-8 at byte 0"),
    "trailing-text": (seal(b"{}", PLAN_PAYLOAD, [KEY]) + b"x", "not JSON: Extra data"),
    "empty": (b"", "not JSON"),
    "raw-control-character": (_in_envelope('"x":"\x01"'), "not JSON: Invalid control character"),
}


@pytest.mark.parametrize(("data", "problem"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_envelope_of_ambiguous_json_is_refused(data: bytes, problem: str):
    with pytest.raises(MalformedError, match=f"the plan cannot be read: .*{problem}"):
        opened(data)


@pytest.mark.parametrize("data", [b"null", b"[]", b'"text"', b"1", b"{}", b'{"payload":1}'])
def test_envelope_of_another_json_type_is_refused(data: bytes):
    with pytest.raises(MalformedError, match="the plan is not a valid"):
        opened(data)


@given(position=st.integers(min_value=0), mask=st.integers(min_value=1, max_value=255))
def test_flipped_byte_anywhere_in_an_envelope_never_yields_another_payload(
    position: int, mask: int
):
    data = bytearray(seal(b'{"a":1}', PLAN_PAYLOAD, [KEY, OTHER]))
    data[position % len(data)] ^= mask
    try:
        found = opened(bytes(data), KEY.public, OTHER.public)
    except RefusedError:
        return
    # what is left: a changed keyid, and unused bits of base64; neither is believed
    assert found.payload == b'{"a":1}'

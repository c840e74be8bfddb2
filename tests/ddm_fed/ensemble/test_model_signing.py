"""Folders signed for foreign verifiers: the published format, those verifiers, and every trick."""

import base64
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from ddm_fed.ensemble.model_signing import SIGNATURE_FILE, sign_folder, verify_folder
from ddm_fed.errors import (
    DigestError,
    FileSetError,
    KeyFileError,
    MalformedError,
    RefusedError,
    SignatureError,
)
from ddm_fed.records import MAX_DOCUMENT_BYTES
from ddm_fed.signing import (
    PASSPHRASE_VARIABLE,
    ExportKey,
    SigningKey,
    verify_export_signature,
)

KEY = ExportKey.generate()
OTHER = ExportKey.generate()
FILES = {
    "expert.safetensors": bytes(range(256)) * 9000,  # more than two blocks
    "submission.dsse.json": b"{}",
    "a/b.json": b"[]",
    "a.json": b"",
    "Bild Nr. 1 é.txt": b"text",
}
# The two files and the digest of the whole in the key example of the published test vectors
PUBLISHED_DIGESTS = (
    "bc9a717db6064a32cbe9eae6fc40651dd6d36ef1757183f590eff2b1765d7ebc",
    "32dcb1f8e1ae52d5963e56a6ba06ab58b424c15ed2a6b70d2feca1d089370028",
)
PUBLISHED_ROOT = "92745110b1ab4368471cbe31664e10174e954b113a3df333db860317b2c6dec4"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "Expert 3"
    for name, data in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.fixture
def signed(folder: Path) -> Path:
    sign_folder(folder, KEY)
    return folder


def bundle_of(folder: Path) -> dict:
    return json.loads((folder / SIGNATURE_FILE).read_bytes())


def statement_of(folder: Path) -> dict:
    return json.loads(base64.b64decode(bundle_of(folder)["dsseEnvelope"]["payload"]))


def write_bundle(folder: Path, bundle: dict) -> None:
    (folder / SIGNATURE_FILE).write_text(json.dumps(bundle))


def pae(payload: bytes) -> bytes:
    return b"DSSEv1 28 application/vnd.in-toto+json %d " % len(payload) + payload


def sign_again(folder: Path, statement: dict | bytes, key: ExportKey = KEY) -> None:
    """Puts a statement of the attacker's choice under a signature that holds."""
    payload = statement if isinstance(statement, bytes) else json.dumps(statement).encode()
    bundle = bundle_of(folder)
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    signature = base64.b64encode(key.sign(pae(payload))).decode()
    bundle["dsseEnvelope"]["signatures"] = [{"sig": signature, "keyid": ""}]
    write_bundle(folder, bundle)


def root_of(digests) -> str:
    return hashlib.sha256(bytes.fromhex("".join(digests))).hexdigest()


def with_root(statement: dict) -> dict:
    """Returns the statement with the digest of the whole that its files now have."""
    resources = statement["predicate"]["resources"]
    statement["subject"][0]["digest"] = {"sha256": root_of(item["digest"] for item in resources)}
    return statement


def verified(folder: Path, key: ExportKey = KEY) -> tuple[str, ...]:
    return verify_folder(folder, key.public_pem)


# Signing and verifying


def test_signed_folder_verifies_and_names_every_file(signed: Path):
    assert verified(signed) == tuple(sorted(FILES))


def test_signing_again_replaces_the_signature(signed: Path):
    (signed / "a.json").write_bytes(b"new")
    sign_folder(signed, OTHER)
    assert verified(signed, OTHER) == tuple(sorted(FILES))


def test_signing_after_a_killed_attempt_leaves_only_the_signature(folder: Path):
    (folder / f".part-{SIGNATURE_FILE}").write_bytes(b"half of it")
    sign_folder(folder, KEY)
    assert verified(folder) == tuple(sorted(FILES))


def test_signed_folder_verifies_under_another_name(signed: Path):
    assert verified(signed.rename(signed.with_name("elsewhere"))) == tuple(sorted(FILES))


def test_every_byte_read_is_reported_in_small_steps(folder: Path):
    signing: list[int] = []
    verifying: list[int] = []
    sign_folder(folder, KEY, advance=signing.append)
    verify_folder(folder, KEY.public_pem, advance=verifying.append)
    assert sum(signing) == sum(verifying) == sum(map(len, FILES.values()))
    assert max(signing + verifying) <= 1 << 20


def test_empty_folder_is_not_signed(tmp_path: Path):
    with pytest.raises(FileSetError, match="it holds no file"):
        sign_folder(tmp_path, KEY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [".git/config", ".gitignore", ".gitattributes", ".github/x"])
def test_folder_with_files_that_verifiers_skip_is_not_signed(folder: Path, name: str):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(FileSetError, match=f"would skip `{re.escape(name)}`"):
        sign_folder(folder, KEY)
    assert not (folder / SIGNATURE_FILE).exists()


def test_folder_with_a_name_that_is_not_utf8_is_not_signed(folder: Path):
    (folder / os.fsdecode(b"\xff.bin")).write_bytes(b"")
    with pytest.raises(FileSetError, match="is not UTF-8"):
        sign_folder(folder, KEY)


def test_folder_with_a_link_is_not_signed(folder: Path):
    (folder / "link").symlink_to("a.json")
    with pytest.raises(FileSetError, match="`link` is a symbolic link"):
        sign_folder(folder, KEY)


def test_folder_with_a_pipe_is_not_signed(folder: Path):
    os.mkfifo(folder / "pipe")
    with pytest.raises(FileSetError, match="`pipe` is not a regular file"):
        sign_folder(folder, KEY)


@pytest.mark.slow
def test_folder_with_more_files_than_a_document_holds_is_not_signed(tmp_path: Path):
    for index in range(2500):
        (tmp_path / f"{index:04d}{'x' * 240}").touch()
    with pytest.raises(FileSetError, match="it holds 2500 files, too many"):
        sign_folder(tmp_path, KEY)
    assert not (tmp_path / SIGNATURE_FILE).exists()


# The published format


def require_fields(value: dict, required: set[str], optional: frozenset[str] = frozenset()):
    assert isinstance(value, dict)
    assert required <= set(value) <= required | optional


def test_bundle_has_exactly_the_published_fields(signed: Path):
    bundle = bundle_of(signed)
    require_fields(bundle, {"mediaType", "verificationMaterial", "dsseEnvelope"})
    assert bundle["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    material = bundle["verificationMaterial"]
    require_fields(material, {"publicKey", "tlogEntries"})
    assert material["tlogEntries"] == []
    require_fields(material["publicKey"], {"hint"})
    assert material["publicKey"]["hint"] == hashlib.sha256(KEY.public_pem).hexdigest()


def test_envelope_has_exactly_the_published_fields(signed: Path):
    envelope = bundle_of(signed)["dsseEnvelope"]
    require_fields(envelope, {"payload", "payloadType", "signatures"})
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    (signature,) = envelope["signatures"]
    require_fields(signature, {"sig"}, frozenset({"keyid"}))
    assert signature["keyid"] == ""
    decode_dss_signature(base64.b64decode(signature["sig"], validate=True))
    assert base64.b64decode(envelope["payload"], validate=True)


def test_statement_has_exactly_the_published_fields(signed: Path):
    statement = statement_of(signed)
    require_fields(statement, {"_type", "subject", "predicateType", "predicate"})
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://model_signing/signature/v1.0"
    (subject,) = statement["subject"]
    require_fields(subject, {"name", "digest"})
    assert subject["name"] == "Expert 3"
    digests = [item["digest"] for item in statement["predicate"]["resources"]]
    assert subject["digest"] == {"sha256": root_of(digests)}


def test_predicate_has_exactly_the_published_fields(signed: Path):
    predicate = statement_of(signed)["predicate"]
    require_fields(predicate, {"resources", "serialization"})
    for item in predicate["resources"]:
        require_fields(item, {"name", "digest", "algorithm"})
        assert item["digest"] == hashlib.sha256(FILES[item["name"]]).hexdigest()
        assert item["algorithm"] == "sha256"
    serialization = predicate["serialization"]
    require_fields(serialization, {"method", "hash_type", "allow_symlinks", "ignore_paths"})
    assert serialization["method"] == "files"
    assert serialization["hash_type"] == "sha256"
    assert serialization["allow_symlinks"] is False
    skipped = [".git", ".gitattributes", ".github", ".gitignore", "model.sig"]
    assert serialization["ignore_paths"] == skipped


def test_files_stand_in_the_order_of_their_code_points(signed: Path):
    names = [item["name"] for item in statement_of(signed)["predicate"]["resources"]]
    # `.` before `/`, upper case before lower: by the name, not by its parts
    assert names == [
        "Bild Nr. 1 é.txt",
        "a.json",
        "a/b.json",
        "expert.safetensors",
        "submission.dsse.json",
    ]


def test_digest_of_the_whole_in_these_tests_is_the_published_one():
    assert root_of(PUBLISHED_DIGESTS) == PUBLISHED_ROOT


def test_name_of_the_model_can_be_given(folder: Path):
    sign_folder(folder, KEY, name="digits")
    assert statement_of(folder)["subject"][0]["name"] == "digits"


def test_name_of_the_model_is_found_for_the_current_folder(folder: Path, monkeypatch):
    monkeypatch.chdir(folder)
    sign_folder(Path(), KEY)
    assert statement_of(folder)["subject"][0]["name"] == "Expert 3"


# What others may write and we must read


def test_reader_accepts_files_in_another_order(signed: Path):
    statement = statement_of(signed)
    statement["predicate"]["resources"].reverse()
    sign_again(signed, with_root(statement))
    assert verified(signed) == tuple(sorted(FILES))


def test_reader_accepts_absent_ignore_paths(signed: Path):
    statement = statement_of(signed)
    del statement["predicate"]["serialization"]["ignore_paths"]
    sign_again(signed, statement)
    assert verified(signed) == tuple(sorted(FILES))


@pytest.mark.parametrize("keyid", [None, "", "any"])
def test_reader_accepts_any_keyid(signed: Path, keyid: str | None):
    bundle = bundle_of(signed)
    bundle["dsseEnvelope"]["signatures"][0]["keyid"] = keyid
    write_bundle(signed, bundle)
    assert verified(signed) == tuple(sorted(FILES))


def test_reader_accepts_an_absent_keyid(signed: Path):
    bundle = bundle_of(signed)
    del bundle["dsseEnvelope"]["signatures"][0]["keyid"]
    write_bundle(signed, bundle)
    assert verified(signed) == tuple(sorted(FILES))


MATERIAL = {
    "no-log": {"publicKey": {"hint": "00"}},
    "empty-log": {"publicKey": {"hint": "00"}, "tlogEntries": []},
    "older": {"publicKey": {"rawBytes": "AA==", "keyDetails": "PKIX_ECDSA_P256_SHA_256"}},
    "timestamps": {"publicKey": {"hint": "00"}, "timestampVerificationData": {}},
    "further-key-field": {"publicKey": {"hint": "00", "validFor": {}}},
}


@pytest.mark.parametrize("material", MATERIAL.values(), ids=MATERIAL)
def test_reader_accepts_every_published_form_of_the_key(signed: Path, material: dict):
    write_bundle(signed, bundle_of(signed) | {"verificationMaterial": material})
    assert verified(signed) == tuple(sorted(FILES))


def test_reader_accepts_further_fields_where_the_schema_leaves_room(signed: Path):
    statement = statement_of(signed)
    statement["predicate"]["resources"][0]["annotations"] = {"size": 1}
    statement["subject"][0]["uri"] = "https://example.org/"
    statement["subject"][0]["digest"]["sha512"] = "00"
    sign_again(signed, statement)
    assert verified(signed) == tuple(sorted(FILES))


# Attacks on the files


@pytest.mark.parametrize("index", [0, 1 << 20, -1])
def test_flipped_byte_is_refused(signed: Path, index: int):
    data = bytearray(FILES["expert.safetensors"])
    data[index] ^= 1
    (signed / "expert.safetensors").write_bytes(data)
    with pytest.raises(DigestError, match=r"`expert\.safetensors` is not what was signed"):
        verified(signed)


@pytest.mark.parametrize("name", sorted(FILES))
def test_appended_byte_is_refused(signed: Path, name: str):
    with (signed / name).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DigestError, match=re.escape(f"`{name}` is not what was signed")):
        verified(signed)


def test_renamed_file_is_refused(signed: Path):
    (signed / "a.json").rename(signed / "b.json")
    with pytest.raises(FileSetError, match=r"`a\.json` is missing, `b\.json` does not belong"):
        verified(signed)


def test_swapped_names_are_refused(signed: Path):
    (signed / "a.json").rename(signed / "x")
    (signed / "submission.dsse.json").rename(signed / "a.json")
    (signed / "x").rename(signed / "submission.dsse.json")
    with pytest.raises(DigestError, match="is not what was signed"):
        verified(signed)


@pytest.mark.parametrize(
    "name", ["evil.safetensors", ".git/evil", ".gitignore", "a/model.sig", ".part-model.sig"]
)
def test_added_file_is_refused(signed: Path, name: str):
    (signed / name).parent.mkdir(exist_ok=True)
    (signed / name).write_bytes(b"")
    with pytest.raises(FileSetError, match=f"`{re.escape(name)}` does not belong there"):
        verified(signed)


def test_removed_file_is_refused(signed: Path):
    (signed / "a/b.json").unlink()
    with pytest.raises(FileSetError, match=r"`a/b\.json` is missing"):
        verified(signed)


def test_removed_signature_is_refused(signed: Path):
    (signed / SIGNATURE_FILE).unlink()
    with pytest.raises(FileSetError, match=r"model\.sig cannot be opened"):
        verified(signed)


def test_missing_folder_is_refused(tmp_path: Path):
    with pytest.raises(FileSetError, match=r"model\.sig cannot be opened"):
        verified(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["a.json", SIGNATURE_FILE])
def test_link_to_the_very_file_that_was_signed_is_refused(signed: Path, name: str):
    (signed / name).rename(signed.parent / "aside")
    (signed / name).symlink_to(signed.parent / "aside")
    with pytest.raises(FileSetError, match=re.escape(name)):
        verified(signed)


def test_link_to_the_signed_folder_is_refused(signed: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(signed)
    with pytest.raises(FileSetError, match="a symbolic link"):
        verified(tmp_path / "link")


# Attacks on the signature


def test_signature_of_another_key_is_refused(signed: Path):
    with pytest.raises(SignatureError, match=r"model\.sig .*does not hold under the given P-256"):
        verified(signed, OTHER)


def test_signature_of_another_key_is_refused_although_it_names_ours(signed: Path):
    sign_again(signed, statement_of(signed), OTHER)
    with pytest.raises(SignatureError, match="does not hold"):
        verified(signed)


def test_statement_is_not_parsed_before_the_signature_holds(signed: Path):
    sign_again(signed, b"{not json", OTHER)
    with pytest.raises(SignatureError, match="does not hold"):
        verified(signed)


def test_changed_payload_is_refused(signed: Path):
    bundle = bundle_of(signed)
    statement = statement_of(signed)
    statement["subject"][0]["name"] = "Expert 4"
    payload = base64.b64encode(json.dumps(statement).encode()).decode()
    bundle["dsseEnvelope"]["payload"] = payload
    write_bundle(signed, bundle)
    with pytest.raises(SignatureError, match="does not hold"):
        verified(signed)


@pytest.mark.parametrize("sig", ["", "AAAA", base64.b64encode(bytes(64)).decode()])
def test_signature_that_is_none_is_refused(signed: Path, sig: str):
    bundle = bundle_of(signed)
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = sig
    write_bundle(signed, bundle)
    with pytest.raises(SignatureError, match="does not hold"):
        verified(signed)


@pytest.mark.parametrize("count", [0, 2])
def test_bundle_without_exactly_one_signature_is_refused(signed: Path, count: int):
    bundle = bundle_of(signed)
    bundle["dsseEnvelope"]["signatures"] *= count
    write_bundle(signed, bundle)
    with pytest.raises(MalformedError, match="signatures"):
        verified(signed)


def test_signature_over_the_bare_payload_is_refused(signed: Path):
    bundle = bundle_of(signed)
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    signature = base64.b64encode(KEY.sign(payload)).decode()
    bundle["dsseEnvelope"]["signatures"] = [{"sig": signature}]
    write_bundle(signed, bundle)
    with pytest.raises(SignatureError, match="does not hold"):
        verified(signed)


def test_key_on_another_curve_is_refused_although_the_format_allows_it(signed: Path):
    key = ec.generate_private_key(ec.SECP384R1())
    bundle = bundle_of(signed)
    message = pae(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    signature = base64.b64encode(key.sign(message, ec.ECDSA(SHA384()))).decode()
    bundle["dsseEnvelope"]["signatures"] = [{"sig": signature}]
    write_bundle(signed, bundle)
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(MalformedError, match="it is a key of another kind"):
        verify_folder(signed, pem)


@pytest.mark.parametrize("pem", [b"", b"not a key", KEY.public_pem[:60]])
def test_key_that_is_none_is_refused(signed: Path, pem: bytes):
    with pytest.raises(MalformedError, match="it is not a public key in PEM"):
        verify_folder(signed, pem)


@pytest.mark.slow
@given(position=st.integers(min_value=0), mask=st.integers(min_value=1, max_value=255))
def test_flipped_byte_anywhere_in_a_bundle_never_changes_what_is_covered(
    tmp_path_factory: pytest.TempPathFactory, position: int, mask: int
):
    folder = tmp_path_factory.getbasetemp() / "flipped"
    folder.mkdir(exist_ok=True)
    (folder / "a").write_bytes(b"1")
    sign_folder(folder, KEY)
    data = bytearray((folder / SIGNATURE_FILE).read_bytes())
    data[position % len(data)] ^= mask
    (folder / SIGNATURE_FILE).write_bytes(data)
    try:
        found = verified(folder)
    except RefusedError:
        return
    # what is left: a changed keyid or hint, and unused bits of base64; none is believed
    assert found == ("a",)


# Signed nonsense: the signature holds, and the statement is refused


def _set(*path, value):
    def change(statement: dict) -> None:
        *inner, last = path
        for step in inner:
            statement = statement[step]
        statement[last] = value

    return change


def _drop(*path):
    def change(statement: dict) -> None:
        *inner, last = path
        for step in inner:
            statement = statement[step]
        del statement[last]

    return change


def _repeat_first(statement: dict) -> None:
    resources = statement["predicate"]["resources"]
    resources.append(dict(resources[0]))


def _repeat_first_with_another_digest(statement: dict) -> None:
    _repeat_first(statement)
    statement["predicate"]["resources"][-1]["digest"] = "0" * 64


def _name(name: str):
    return _set("predicate", "resources", 1, "name", value=name)


SERIALIZATION = ("predicate", "serialization")
FIRST = ("predicate", "resources", 0)
NONSENSE = {
    "statement-type": (_set("_type", value="https://in-toto.io/Statement/v0.1"), "`_type`"),
    "predicate-type": (
        _set("predicateType", value="https://model_signing/Digests/v0.1"),
        "`predicateType`",
    ),
    "no-predicate": (_drop("predicate"), "`predicate`"),
    "no-serialization": (_drop("predicate", "serialization"), "serialization"),
    "no-files": (_set("predicate", "resources", value=[]), "names no file"),
    "duplicate": (_repeat_first, "twice"),
    "duplicate-other-digest": (_repeat_first_with_another_digest, "twice"),
    "shards": (_set(*SERIALIZATION, "method", value="shards"), "method"),
    "shard-size": (_set(*SERIALIZATION, "shard_size", value=1000), "shard_size"),
    "blake3": (_set(*SERIALIZATION, "hash_type", value="blake3"), "hash_type"),
    "blake3-of-one": (_set(*FIRST, "algorithm", value="blake3"), "algorithm"),
    "links": (_set(*SERIALIZATION, "allow_symlinks", value=True), "allow_symlinks"),
    "links-as-text": (_set(*SERIALIZATION, "allow_symlinks", value="false"), "allow_symlinks"),
    "no-links-field": (_drop(*SERIALIZATION, "allow_symlinks"), "allow_symlinks"),
    "ignore-paths-text": (_set(*SERIALIZATION, "ignore_paths", value="a"), "ignore_paths"),
    "extra-in-statement": (_set("x", value=1), "`x`: unknown key"),
    "extra-in-predicate": (_set("predicate", "x", value=1), "x`: unknown key"),
    "extra-in-serialization": (_set(*SERIALIZATION, "x", value=1), "x`: unknown key"),
    "float": (_set(*FIRST, "x", value=1.5), "the float 1.5"),
    "no-digest": (_drop(*FIRST, "digest"), "digest"),
    "short-digest": (_set(*FIRST, "digest", value="00" * 31), "is not a SHA-256"),
    "long-digest": (_set(*FIRST, "digest", value="00" * 33), "is not a SHA-256"),
    "upper-case-digest": (_set(*FIRST, "digest", value="AB" * 32), "is not a SHA-256"),
    "no-subject": (_set("subject", value=[]), "subject"),
    "nameless-subject": (_set("subject", 0, "name", value=""), "no name itself"),
    "subject-digest": (_set("subject", 0, "digest", value={}), "digest of the whole"),
    "subject-other": (_set("subject", 0, "digest", "sha256", value="00"), "digest of the whole"),
    "absolute": (_name("/etc/passwd"), "not a plain path"),
    "parent": (_name("../a.json"), "not a plain path"),
    "parent-inside": (_name("a/../a.json"), "not a plain path"),
    "dot": (_name("./a.json"), "not a plain path"),
    "doubled-slash": (_name("a//b"), "not a plain path"),
    "folder": (_name("a/"), "not a plain path"),
    "empty-name": (_name(""), "not a plain path"),
    "itself": (_name("."), "not a plain path"),
}


@pytest.mark.parametrize(("change", "problem"), NONSENSE.values(), ids=NONSENSE)
def test_signed_nonsense_is_refused(signed: Path, change, problem: str):
    statement = statement_of(signed)
    change(statement)
    sign_again(signed, statement)
    with pytest.raises(MalformedError, match=rf"model\.sig of .*{problem}"):
        verified(signed)


def test_two_subjects_are_refused(signed: Path):
    statement = statement_of(signed)
    statement["subject"] *= 2
    sign_again(signed, statement)
    with pytest.raises(MalformedError, match="subject"):
        verified(signed)


def test_digests_under_each_others_names_are_refused(signed: Path):
    statement = statement_of(signed)
    first, second, *_ = statement["predicate"]["resources"]
    first["name"], second["name"] = second["name"], first["name"]
    sign_again(signed, statement)  # the digest of the whole knows no names and stays the same
    with pytest.raises(DigestError, match="is not what was signed"):
        verified(signed)


def test_file_that_the_statement_only_ignores_is_refused(signed: Path):
    (signed / "cache").write_bytes(b"")
    statement = statement_of(signed)
    statement["predicate"]["serialization"]["ignore_paths"].append("cache")
    sign_again(signed, statement)
    with pytest.raises(FileSetError, match="`cache` does not belong there"):
        verified(signed)


def test_signature_file_that_covers_itself_is_refused(signed: Path):
    statement = statement_of(signed)
    statement["predicate"]["resources"].append(
        {"name": SIGNATURE_FILE, "digest": "0" * 64, "algorithm": "sha256"}
    )
    sign_again(signed, with_root(statement))
    with pytest.raises(DigestError, match=r"`model\.sig` is not what was signed"):
        verified(signed)


@pytest.mark.parametrize("payload", [b"", b"null", b"[]", b"{}", b'{"_type":1,"_type":1}'])
def test_signed_payload_that_is_no_statement_is_refused(signed: Path, payload: bytes):
    sign_again(signed, payload)
    with pytest.raises(MalformedError, match=r"model\.sig of "):
        verified(signed)


# Bundles that are none


def _rename(old: str, new: str):
    def change(document: dict) -> None:
        document[new] = document.pop(old)

    return change


BROKEN = {
    "media-type": (_set("mediaType", value="application/json"), "mediaType"),
    "older-media-type": (
        _set("mediaType", value="application/vnd.dev.sigstore.bundle+json;version=0.2"),
        "mediaType",
    ),
    "payload-type": (_set("dsseEnvelope", "payloadType", value="text/plain"), "payloadType"),
    "no-envelope": (_drop("dsseEnvelope"), "dsseEnvelope"),
    "no-material": (_drop("verificationMaterial"), "verificationMaterial"),
    "no-key": (_set("verificationMaterial", value={}), "publicKey"),
    "certificate": (_set("verificationMaterial", value={"certificate": {}}), "publicKey"),
    "empty-key": (_set("verificationMaterial", "publicKey", value={}), "which key"),
    "extra-in-bundle": (_set("x", value=1), "`x`: unknown key"),
    "extra-in-envelope": (_set("dsseEnvelope", "x", value=1), "x`: unknown key"),
    "extra-in-signature": (_set("dsseEnvelope", "signatures", 0, "x", value=1), "unknown key"),
    "second-spelling": (_rename("mediaType", "media_type"), "`media_type`: unknown key"),
    "message-signature": (_set("messageSignature", value={}), "unknown key"),
    "junk-payload": (_set("dsseEnvelope", "payload", value="e3 0="), "not base64"),
    "junk-signature": (_set("dsseEnvelope", "signatures", 0, "sig", value="é30="), "not base64"),
}


@pytest.mark.parametrize(("change", "problem"), BROKEN.values(), ids=BROKEN)
def test_bundle_of_another_shape_is_refused(signed: Path, change, problem: str):
    bundle = bundle_of(signed)
    change(bundle)
    write_bundle(signed, bundle)
    with pytest.raises(MalformedError, match=rf"model\.sig of .*{problem}"):
        verified(signed)


@pytest.mark.parametrize("data", [b"", b"null", b"\xff", b'{"a":1,"a":1}'])
def test_signature_file_that_is_no_bundle_is_refused(signed: Path, data: bytes):
    (signed / SIGNATURE_FILE).write_bytes(data)
    with pytest.raises(MalformedError, match=r"model\.sig of "):
        verified(signed)


def test_signature_file_over_one_mebibyte_is_refused(signed: Path):
    with (signed / SIGNATURE_FILE).open("ab") as file:
        file.write(b" " * MAX_DOCUMENT_BYTES)
    with pytest.raises(MalformedError, match=f"has {MAX_DOCUMENT_BYTES + 1} bytes"):
        verified(signed)


# Keys

# RFC 6979 appendix A.2.5: the key, and its signature of "sample" with SHA-256
RFC_6979_KEY = (
    "0460fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6"
    "7903fe1008b8bc99a41ae9e95628bc64f2f1b20c2d7e9f5177a3c294d4462299"
)
RFC_6979_SIGNATURE = encode_dss_signature(
    0xEFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716,
    0xF7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8,
)


def test_published_signature_holds():
    verify_export_signature(RFC_6979_KEY, RFC_6979_SIGNATURE, b"sample")


def test_published_signature_does_not_hold_for_another_message():
    with pytest.raises(SignatureError, match="the signature of the enrolment does not hold"):
        verify_export_signature(RFC_6979_KEY, RFC_6979_SIGNATURE, b"Sample", what="the enrolment")


@pytest.mark.parametrize("public", [KEY.public_hex, KEY.public_pem])
def test_signature_holds_under_either_form_of_the_key(public: str | bytes):
    verify_export_signature(public, KEY.sign(b"message"), b"message")


def test_public_key_is_130_hex_digits():
    assert re.fullmatch("04[0-9a-f]{128}", KEY.public_hex)


BAD_POINTS = {
    "empty": "",
    "compressed": "02" + KEY.public_hex[2:66],
    "hybrid": "06" + KEY.public_hex[2:],
    "infinity": "00",
    "upper-case": KEY.public_hex.upper(),
    "spaced": KEY.public_hex + "\n",
    "off-curve": "04" + "00" * 63 + "01",
    "beyond-the-field": "04" + "ff" * 64,
}


@pytest.mark.parametrize("text", BAD_POINTS.values(), ids=BAD_POINTS)
def test_public_key_that_is_no_point_is_refused(text: str):
    with pytest.raises(MalformedError, match="the public key of the export is refused"):
        verify_export_signature(text, KEY.sign(b"message"), b"message")


def test_key_file_is_written_with_mode_0600_and_read_back(tmp_path: Path):
    KEY.write(tmp_path / "export.pem")
    assert stat.S_IMODE((tmp_path / "export.pem").stat().st_mode) == 0o600
    assert ExportKey.read(tmp_path / "export.pem").public_hex == KEY.public_hex


def test_key_file_is_never_overwritten(tmp_path: Path):
    KEY.write(tmp_path / "export.pem")
    with pytest.raises(KeyFileError, match=r"export\.pem exists already"):
        OTHER.write(tmp_path / "export.pem")
    assert ExportKey.read(tmp_path / "export.pem").public_hex == KEY.public_hex


def test_key_file_is_encrypted_with_the_passphrase(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "correct horse")
    KEY.write(tmp_path / "export.pem")
    assert ExportKey.read(tmp_path / "export.pem").public_hex == KEY.public_hex
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    with pytest.raises(KeyFileError, match=r"export\.pem cannot be opened"):
        ExportKey.read(tmp_path / "export.pem")


def test_key_file_others_can_read_is_refused(tmp_path: Path):
    KEY.write(tmp_path / "export.pem")
    (tmp_path / "export.pem").chmod(0o644)
    with pytest.raises(KeyFileError, match=r"export\.pem has mode 0644"):
        ExportKey.read(tmp_path / "export.pem")


def test_key_file_missing_is_refused(tmp_path: Path):
    with pytest.raises(KeyFileError, match="there is no key file"):
        ExportKey.read(tmp_path / "export.pem")


def test_key_file_of_our_own_signatures_is_refused(tmp_path: Path):
    SigningKey.generate().write(tmp_path / "site.pem")
    with pytest.raises(KeyFileError, match=r"site\.pem does not hold an ECDSA P-256 key"):
        ExportKey.read(tmp_path / "site.pem")


def test_key_file_of_an_export_is_refused_for_our_own_signatures(tmp_path: Path):
    KEY.write(tmp_path / "export.pem")
    with pytest.raises(KeyFileError, match=r"export\.pem does not hold an Ed25519 key"):
        SigningKey.read(tmp_path / "export.pem")


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP256K1()], ids=lambda curve: curve.name)
def test_key_file_on_another_curve_is_refused(tmp_path: Path, curve: ec.EllipticCurve):
    pem = ec.generate_private_key(curve).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    (tmp_path / "export.pem").write_bytes(pem)
    (tmp_path / "export.pem").chmod(0o600)
    with pytest.raises(KeyFileError, match=r"export\.pem does not hold an ECDSA P-256 key"):
        ExportKey.read(tmp_path / "export.pem")


def test_export_key_repr_shows_no_secret():
    assert repr(KEY) == f"ExportKey({KEY.public_hex[2:18]}…)"


# Foreign verifiers


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_verifies_our_signature(signed: Path, tmp_path: Path):
    envelope = bundle_of(signed)["dsseEnvelope"]
    (tmp_path / "message").write_bytes(pae(base64.b64decode(envelope["payload"])))
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    (tmp_path / "key.pem").write_bytes(KEY.public_pem)
    command = "openssl dgst -sha256 -verify key.pem -signature sig message"
    done = subprocess.run(command.split(), cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout.strip() == b"Verified OK"


REFERENCE = Path(sys.executable).with_name("model_signing")


def reference(*arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run([REFERENCE, *arguments], capture_output=True, text=True, check=False)


def reference_verifies(folder: Path, key: ExportKey = KEY) -> bool:
    pem = folder.with_name("public.pem")
    pem.write_bytes(key.public_pem)
    where = ["--signature", folder / SIGNATURE_FILE, "--public_key", pem]
    done = reference("verify", "key", folder, *where)
    if done.returncode == 0:
        assert "Verification succeeded" in done.stdout
        return True
    assert "Verification failed" in done.stderr
    return False


@pytest.mark.slow
def test_reference_program_verifies_our_signature(signed: Path):
    assert reference_verifies(signed)


@pytest.mark.slow
def test_reference_program_refuses_what_we_refuse(signed: Path):
    (signed / "a.json").write_bytes(b"x")
    assert not reference_verifies(signed)
    (signed / "a.json").write_bytes(FILES["a.json"])
    assert not reference_verifies(signed, OTHER)
    (signed / "added").write_bytes(b"x")
    assert not reference_verifies(signed)


@pytest.mark.slow
def test_we_verify_the_signature_of_the_reference_program(folder: Path, tmp_path: Path):
    KEY.write(tmp_path / "export.pem")
    where = ["--signature", folder / SIGNATURE_FILE, "--private_key", tmp_path / "export.pem"]
    done = reference("sign", "key", folder, *where)
    assert "Signing succeeded" in done.stdout
    assert verified(folder) == tuple(sorted(FILES))
    (folder / "a.json").write_bytes(b"x")
    with pytest.raises(DigestError, match=r"`a\.json` is not what was signed"):
        verified(folder)

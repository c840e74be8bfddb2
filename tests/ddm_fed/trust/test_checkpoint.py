"""Signed checkpoints and proofs as texts: published ones, round trips, and every alteration."""

import base64
import contextlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ddm_fed.errors import (
    LogError,
    MalformedError,
    RefusedError,
    SignatureError,
    UnknownSignerError,
)
from ddm_fed.signing import SigningKey, VerifyKey
from ddm_fed.trust import (
    Checkpoint,
    InclusionProof,
    MerkleTree,
    checkpoint,
    leaf_hash,
    open_checkpoint,
    read_proof,
    sign_checkpoint,
    verify_inclusion,
    write_proof,
)

ORIGIN = "coordinator.example/federation-1"
KEY = SigningKey.from_seed(bytes(range(32)))
OTHER = SigningKey.from_seed(bytes(32))
LEAVES = [leaf_hash(b"entry %d" % number) for number in range(11)]
ROOT = MerkleTree(LEAVES).root()
HEAD = Checkpoint(origin=ORIGIN, size=len(LEAVES), root=ROOT.hex())
SIGNED = sign_checkpoint(HEAD, KEY)
PROOF = InclusionProof(6, MerkleTree(LEAVES).inclusion_path(6), SIGNED)
LIMIT = 64 << 10


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def opened(data: bytes, *keys: VerifyKey, origin: str = ORIGIN) -> tuple[Checkpoint, VerifyKey]:
    return open_checkpoint(data, origin, keys or (KEY.public,), what="the checkpoint")


def read(data: bytes) -> InclusionProof:
    return read_proof(data, what="the proof")


def line(signature: bytes, *, name: str = ORIGIN, key_id: bytes | None = None) -> str:
    named = checkpoint._key_id(name, KEY.public) if key_id is None else key_id
    return f"— {name} {encoded(named + signature)}\n"


def signed(text: str, key: SigningKey = KEY) -> bytes:
    """Returns `text` with a good signature, whatever it says: only its form can be refused."""
    return f"{text}\n".encode() + line(key.sign(text.encode())).encode()


def respelt(text: str) -> str:
    """Returns base64 with an unused bit set: other text for the same bytes."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    head = text.rstrip("=")
    other = head[:-1] + alphabet[alphabet.index(head[-1]) | 1] + "=" * (len(text) - len(head))
    assert base64.b64decode(other) == base64.b64decode(text)
    assert other != text
    return other


# Published examples: https://c2sp.org/tlog-checkpoint, and the log of Go's modules, whose key every
# copy of Go holds. The example of C2SP is that log's, under another name.

GO_NAME = "sum.golang.org"
GO_KEY = "Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
C2SP_EXAMPLE = (
    "example.com/behind-the-sofa\n"
    "20852163\n"
    "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    "\n"
    "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/"
    "Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
).encode()


def go_key() -> VerifyKey:
    return VerifyKey(base64.b64decode(GO_KEY)[1:])


def test_key_id_of_the_go_checksum_log_is_the_published_one():
    assert checkpoint._key_id(GO_NAME, go_key()).hex() == "033de0ae"


def test_signature_of_the_go_checksum_log_holds_over_the_text_as_we_cut_it():
    text = C2SP_EXAMPLE.decode().partition("\n\n")[0] + "\n"
    text = text.replace("example.com/behind-the-sofa", "go.sum database tree")
    signature = base64.b64decode(C2SP_EXAMPLE.split()[-1])
    assert signature[:4].hex() == "033de0ae"
    assert go_key().accepts(signature[4:], text.encode())


def test_checkpoint_of_the_c2sp_page_has_the_form_we_read():
    with pytest.raises(UnknownSignerError, match=r"is signed by example\.com/.*\+033de0ae"):
        opened(C2SP_EXAMPLE, go_key(), origin="example.com/behind-the-sofa")


def test_checkpoint_of_the_c2sp_page_has_the_form_we_write():
    root = base64.b64decode("CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=").hex()
    found = sign_checkpoint(
        Checkpoint(origin="example.com/behind-the-sofa", size=20852163, root=root), KEY
    )
    assert found.split(b" ")[:2] == C2SP_EXAMPLE.split(b" ")[:2]
    assert len(found) == len(C2SP_EXAMPLE)


def test_signed_checkpoint_is_the_text_of_the_definition():
    text = f"{ORIGIN}\n{len(LEAVES)}\n{encoded(ROOT)}\n"
    expected = text + "\n" + line(KEY.sign(text.encode()))
    assert expected.encode() == SIGNED


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_verifies_our_checkpoint(tmp_path: Path):
    text, _, notes = SIGNED.decode().partition("\n\n")
    (tmp_path / "message").write_text(text + "\n")
    (tmp_path / "sig").write_bytes(base64.b64decode(notes.split()[-1])[4:])
    # SubjectPublicKeyInfo of an Ed25519 key is this prefix and its 32 bytes (RFC 8410)
    (tmp_path / "key.der").write_bytes(bytes.fromhex("302a300506032b6570032100") + KEY.public.raw)
    command = "openssl pkeyutl -verify -rawin -pubin -keyform DER -inkey key.der -sigfile sig"
    done = subprocess.run(
        [*command.split(), "-in", "message"], cwd=tmp_path, capture_output=True, check=True
    )
    assert done.stdout.strip() == b"Signature Verified Successfully"


# What a checkpoint may say


@pytest.mark.parametrize("size", [0, 1, 9, 10, 2**53 - 1])
@pytest.mark.parametrize("origin", ["a", "x" * 200, "spital.example/zürich", "—", "日本"])
def test_checkpoint_opens_as_it_was_signed(origin: str, size: int):
    head = Checkpoint(origin=origin, size=size, root="0f" * 32)
    assert opened(sign_checkpoint(head, KEY), origin=origin) == (head, KEY.public)


BAD_ORIGINS = {
    "empty": "", "long": "x" * 201, "space": "a b", "no-break-space": "a\u00a0b", "plus": "a+b",
    "newline": "a\n", "nul": "a\0", "delete": "a\x7f", "c1-control": "a\x9b",
    "wide-space": "\u3000", "line-separator": "a\u2028b",
}  # fmt: skip


@pytest.mark.parametrize("origin", BAD_ORIGINS.values(), ids=BAD_ORIGINS)
def test_checkpoint_with_bad_origin_cannot_be_made(origin: str):
    with pytest.raises(ValidationError, match="`origin` needs 1 to 200 characters"):
        Checkpoint(origin=origin, size=1, root="00" * 32)


@pytest.mark.parametrize("origin", BAD_ORIGINS.values(), ids=BAD_ORIGINS)
def test_checkpoint_with_bad_origin_is_refused_although_signed(origin: str):
    with pytest.raises(MalformedError, match="the checkpoint cannot be read"):
        opened(signed(f"{origin}\n1\n{encoded(ROOT)}\n"), origin=origin)


@pytest.mark.parametrize("size", [-1, 2**53])
def test_checkpoint_of_impossible_size_cannot_be_made(size: int):
    with pytest.raises(ValidationError, match="`size` must lie between 0 and 9007199254740991"):
        Checkpoint(origin=ORIGIN, size=size, root="00" * 32)


@pytest.mark.parametrize("size", [True, 1.0, "1"])
def test_checkpoint_with_size_of_another_type_cannot_be_made(size):
    with pytest.raises(ValidationError, match="size"):
        Checkpoint(origin=ORIGIN, size=size, root="00" * 32)


def test_checkpoint_as_json_is_refused_by_the_name_of_its_field():
    data = json.dumps({"origin": "a b", "size": 1, "root": "00" * 32}).encode()
    with pytest.raises(MalformedError, match="`origin` needs 1 to 200 characters"):
        Checkpoint.from_json(data, what="the checkpoint")


# Alterations

TEXT = f"{ORIGIN}\n{len(LEAVES)}\n{encoded(ROOT)}\n"

BAD_TEXTS = {
    "size-with-leading-zero": TEXT.replace("\n11\n", "\n011\n"),
    "size-of-two-zeros": TEXT.replace("\n11\n", "\n00\n"),
    "size-with-sign": TEXT.replace("\n11\n", "\n+11\n"),
    "negative-size": TEXT.replace("\n11\n", "\n-11\n"),
    "size-with-space": TEXT.replace("\n11\n", "\n11 \n"),
    "size-with-underscore": TEXT.replace("\n11\n", "\n1_1\n"),
    "size-in-hex": TEXT.replace("\n11\n", "\n0xb\n"),
    "size-in-other-digits": TEXT.replace("\n11\n", "\n\u0661\u0661\n"),
    "size-beyond-2^53": TEXT.replace("\n11\n", f"\n{2**53}\n"),
    "endless-size": TEXT.replace("\n11\n", "\n" + "9" * 20_000 + "\n"),
    "no-size": TEXT.replace("\n11\n", "\n"),
    "extension-line": TEXT + "extension\n",
    "lines-swapped": "\n".join(TEXT.split("\n")[1::-1] + TEXT.split("\n")[2:]),
    "short-root": TEXT.replace(encoded(ROOT), encoded(ROOT[1:])),
    "long-root": TEXT.replace(encoded(ROOT), encoded(ROOT + b"\0")),
    "empty-root": TEXT.replace(encoded(ROOT), " "),
    "root-in-hex": TEXT.replace(encoded(ROOT), ROOT.hex()),
    "url-safe-root": TEXT.replace(encoded(ROOT), encoded(b"\xfb" * 32).replace("+", "-")),
    "root-without-padding": TEXT.replace("=", ""),
    "root-with-more-padding": TEXT.replace("=", "=="),
    "root-with-unused-bits": TEXT.replace(encoded(ROOT), respelt(encoded(ROOT))),
    "root-with-junk": TEXT.replace("=", "=A==="),
    "windows-line-ends": TEXT.replace("\n", "\r\n"),
    "tab": TEXT.replace("\n11", "\t\n11"),
    "nul": TEXT.replace("11", "11\0"),
    "escape": "\x1b[2J" + TEXT,
    "c1-control": "\x9b" + TEXT,
    "empty": "\n",
    "blank-line-in-front": "\n" + TEXT,
    "blank-line-inside": TEXT.replace("\n11", "\n\n11"),
}


@pytest.mark.parametrize("text", BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_checkpoint_of_bad_form_is_refused_although_signed(text: str):
    assert text != TEXT
    with pytest.raises(MalformedError, match="the checkpoint cannot be read: it"):
        opened(signed(text))


BAD_SIGNATURES = {
    "none": "",
    "no-newline": line(b"s" * 64).rstrip("\n"),
    "hyphen": line(b"s" * 64).replace("—", "-"),
    "en-dash": line(b"s" * 64).replace("—", "\u2013"),
    "two-spaces": line(b"s" * 64).replace("— ", "—  "),
    "no-break-space": line(b"s" * 64).replace("— ", "—\u00a0"),
    "space-at-the-end": line(b"s" * 64).replace("\n", " \n"),
    "no-name": f"— {encoded(b's' * 68)}\n",
    "name-with-plus": line(b"s" * 64, name="a+b"),
    "name-with-wide-space": line(b"s" * 64, name="a\u3000b"),
    "no-signature": f"— {ORIGIN} \n",
    "key-id-alone": line(b""),
    "short-key-id": f"— {ORIGIN} {encoded(b'abc')}\n",
    "no-padding": line(b"s" * 64).replace("=", ""),
    "unused-bits": f"— {ORIGIN} {respelt(encoded(b's' * 68))}\n",
    "url-safe": line(b"\xfb" * 65).replace("+", "-").replace("/", "_"),
    "junk": f"— {ORIGIN} %%%%\n",
    "blank-line": "\n",
    "text": "and some more text\n",
    "windows-line-end": line(b"s" * 64).replace("\n", "\r\n"),
}


@pytest.mark.parametrize("notes", BAD_SIGNATURES.values(), ids=BAD_SIGNATURES)
def test_checkpoint_with_bad_signature_line_is_refused(notes: str):
    with pytest.raises(MalformedError, match="the checkpoint cannot be read: "):
        opened(f"{TEXT}\n{notes}".encode())


@pytest.mark.parametrize("notes", [text for text in BAD_SIGNATURES.values() if text])
def test_checkpoint_with_bad_line_after_a_good_one_is_refused(notes: str):
    with pytest.raises(MalformedError, match="the checkpoint cannot be read: "):
        opened(SIGNED + notes.encode())


@pytest.mark.parametrize("data", [b"", b"\n", b"\n\n", b"\n\n\n", TEXT.encode(), b"{}", b"\xff"])
def test_checkpoint_of_other_bytes_is_refused(data: bytes):
    with pytest.raises(MalformedError, match="the checkpoint cannot be read: it"):
        opened(data)


@pytest.mark.parametrize("junk", [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xe2\x80"])
def test_checkpoint_that_is_not_utf8_is_refused(junk: bytes):
    with pytest.raises(MalformedError, match="it is not UTF-8 at byte 4"):
        opened(SIGNED[:4] + junk + SIGNED[4:])


def test_checkpoint_of_another_log_is_refused_although_signed_by_our_key():
    head = Checkpoint(origin="coordinator.example/federation-2", size=11, root=ROOT.hex())
    with pytest.raises(LogError, match=r"is of the log `coordinator\.example/federation-2`, exp"):
        opened(sign_checkpoint(head, KEY))


def test_checkpoint_with_byte_order_mark_is_of_another_log():
    with pytest.raises(LogError, match="expected `coordinator"):
        opened(b"\xef\xbb\xbf" + SIGNED)


@pytest.mark.parametrize("other", [{"size": 12}, {"size": 10}, {"size": 1}, {"root": "00" * 32}])
def test_checkpoint_with_changed_text_is_refused(other: dict):
    changed = sign_checkpoint(HEAD.model_copy(update=other), OTHER).partition(b"\n\n")[0]
    with pytest.raises(SignatureError, match=r"a signature of ed25519:.* does not hold"):
        opened(changed + b"\n\n" + SIGNED.partition(b"\n\n")[2])


@pytest.mark.parametrize("length", [1, 63, 65, 72, 128])
def test_checkpoint_with_signature_of_another_length_is_refused(length: int):
    good = KEY.sign(TEXT.encode()) * 2
    with pytest.raises(SignatureError, match="does not hold"):
        opened(f"{TEXT}\n{line(good[:length])}".encode())


@pytest.mark.parametrize("message", [TEXT + "\n", TEXT.rstrip("\n"), TEXT + "\n— "])
def test_checkpoint_signed_over_more_or_less_than_its_text_is_refused(message: str):
    with pytest.raises(SignatureError, match="does not hold"):
        opened(f"{TEXT}\n{line(KEY.sign(message.encode()))}".encode())


def test_every_flipped_bit_of_a_checkpoint_is_refused():
    for position in range(len(SIGNED)):
        for bit in range(8):
            data = bytearray(SIGNED)
            data[position] ^= 1 << bit
            with pytest.raises(RefusedError):
                opened(bytes(data))


def test_every_shortened_checkpoint_is_refused():
    for length in range(len(SIGNED)):
        with pytest.raises(RefusedError):
            opened(SIGNED[:length])


# Who signed


def test_checkpoint_of_another_key_is_refused_and_both_are_named():
    expected = f"{ORIGIN}+{checkpoint._key_id(ORIGIN, OTHER.public).hex()}"
    with pytest.raises(UnknownSignerError, match=re.escape(f"expected {expected}")) as caught:
        opened(SIGNED, OTHER.public)
    assert f"{ORIGIN}+{checkpoint._key_id(ORIGIN, KEY.public).hex()}" in caught.value.message


def test_checkpoint_opened_with_no_keys_is_refused():
    with pytest.raises(UnknownSignerError, match="expected no key at all"):
        open_checkpoint(SIGNED, ORIGIN, [], what="the checkpoint")


@pytest.mark.parametrize("keys", [(KEY, OTHER), (OTHER, KEY)])
def test_checkpoint_names_the_key_that_signed(keys: tuple):
    given_once = (key.public for key in keys)
    assert open_checkpoint(SIGNED, ORIGIN, given_once, what="it") == (HEAD, KEY.public)


def test_checkpoint_signed_with_old_and_new_key_opens_with_either():
    both = SIGNED + sign_checkpoint(HEAD, OTHER).partition(b"\n\n")[2]
    assert opened(both, KEY.public)[1] == KEY.public
    assert opened(both, OTHER.public)[1] == OTHER.public
    assert opened(both, OTHER.public, KEY.public)[1] == KEY.public


def test_checkpoint_with_bad_signature_of_known_key_is_refused_despite_a_good_one():
    bad = line(b"s" * 64, key_id=checkpoint._key_id(ORIGIN, OTHER.public))
    for notes in (SIGNED + bad.encode(), SIGNED.replace(b"\n\n", b"\n\n" + bad.encode())):
        with pytest.raises(SignatureError, match=OTHER.public.keyid[:24]):
            opened(notes, KEY.public, OTHER.public)


WITNESSES = {
    "cosignature": line(b"t" * 72, name="witness.example", key_id=b"\x01\x02\x03\x04"),
    "our-name-with-another-id": line(b"t" * 64, key_id=b"\x01\x02\x03\x04"),
    "another-name-with-our-id": line(
        b"t" * 64, name="witness.example", key_id=checkpoint._key_id(ORIGIN, KEY.public)
    ),
    "post-quantum": line(b"t" * 4627, name="witness.example", key_id=b"\x06\x02\x03\x04"),
    "one-byte": line(b"t", name="witness.example", key_id=b"\x01\x02\x03\x04"),
}


@pytest.mark.parametrize("witness", WITNESSES.values(), ids=WITNESSES)
def test_signature_line_of_a_witness_is_ignored(witness: str):
    assert opened(SIGNED + witness.encode()) == (HEAD, KEY.public)
    assert opened(SIGNED.replace(b"\n\n", b"\n\n" + witness.encode())) == (HEAD, KEY.public)


@pytest.mark.parametrize("witness", WITNESSES.values(), ids=WITNESSES)
def test_signature_line_of_a_witness_alone_is_refused(witness: str):
    with pytest.raises(UnknownSignerError, match="the checkpoint is signed by"):
        opened(f"{TEXT}\n{witness}".encode())


def test_good_signature_under_another_name_is_refused():
    text = line(KEY.sign(TEXT.encode()), name="witness.example")
    with pytest.raises(UnknownSignerError, match=r"is signed by witness\.example"):
        opened(f"{TEXT}\n{text}".encode())


def test_key_id_shared_by_two_keys_is_tried_with_both(monkeypatch):
    # a second key with the same four bytes takes 2^32 attempts, which a test cannot make
    monkeypatch.setattr(checkpoint, "_key_id", lambda name, key: b"same")
    data = sign_checkpoint(HEAD, KEY)
    assert opened(data, OTHER.public, KEY.public) == (HEAD, KEY.public)
    with pytest.raises(SignatureError, match="does not hold"):
        opened(data, OTHER.public)


def test_checkpoint_with_sixteen_signatures_is_opened():
    assert opened(SIGNED + WITNESSES["cosignature"].encode() * 15) == (HEAD, KEY.public)


def test_checkpoint_with_seventeen_signatures_is_refused():
    with pytest.raises(MalformedError, match="it has 17 signatures, at most 16 are read"):
        opened(SIGNED + WITNESSES["cosignature"].encode() * 16)


def padded(data: bytes, length: int) -> bytes:
    """Returns `data` with a witness of so long a name that all has `length` bytes."""
    shortest = line(b"t", name="x", key_id=b"1234").encode()
    return data + shortest.replace(b"x", b"x" * (length - len(data) - len(shortest) + 1), 1)


def test_checkpoint_of_exactly_64_kib_is_opened():
    data = padded(SIGNED, LIMIT)
    assert len(data) == LIMIT
    assert opened(data) == (HEAD, KEY.public)


def test_checkpoint_over_64_kib_is_refused():
    with pytest.raises(MalformedError, match="it has 65537 bytes, at most 65536 are read"):
        opened(padded(SIGNED, LIMIT + 1))


# Proofs


def proven(data: bytes) -> InclusionProof:
    """Goes the whole way of a verifier that holds entry 6."""
    proof = read(data)
    head, _ = opened(proof.checkpoint)
    root = bytes.fromhex(head.root)
    verify_inclusion(LEAVES[6], proof.index, head.size, proof.path, root, what="the proof")
    return proof


def test_written_proof_is_the_text_of_the_definition():
    hashes = "".join(encoded(item) + "\n" for item in PROOF.path)
    expected = f"c2sp.org/tlog-proof@v1\nindex 6\n{hashes}\n".encode() + SIGNED
    assert write_proof(PROOF) == expected


@pytest.mark.parametrize("index", range(len(LEAVES)))
def test_proof_read_back_is_the_same_and_verifies(index: int):
    proof = InclusionProof(index, MerkleTree(LEAVES).inclusion_path(index), SIGNED)
    assert read(write_proof(proof)) == proof
    verify_inclusion(LEAVES[index], index, len(LEAVES), proof.path, ROOT, what="the proof")


def test_proof_without_path_is_read():
    proof = InclusionProof(0, (), SIGNED)
    assert write_proof(proof).startswith(b"c2sp.org/tlog-proof@v1\nindex 0\n\n" + SIGNED[:9])
    assert read(write_proof(proof)) == proof


WRITTEN = write_proof(PROOF).decode()


@pytest.mark.parametrize(
    "extra", ["YWdl", "YWdlLXYxLjIuMS1kYXJ3aW4tYXJtNjQudGFyLmd6", "any", "ä b"]
)
def test_extra_line_is_ignored(extra: str):
    assert proven(WRITTEN.replace("\nindex", f"\nextra {extra}\nindex").encode()) == PROOF


FIRST_HASH = encoded(PROOF.path[0])

BAD_PROOFS = {
    "another-version": WRITTEN.replace("@v1", "@v2"),
    "no-header": WRITTEN.partition("\n")[2],
    "header-with-space": WRITTEN.replace("@v1", "@v1 "),
    "blank-line-in-front": "\n" + WRITTEN,
    "byte-order-mark": "\ufeff" + WRITTEN,
    "no-index": WRITTEN.replace("index 6\n", ""),
    "two-indices": WRITTEN.replace("index 6\n", "index 6\nindex 6\n"),
    "index-after-path": WRITTEN.replace(f"index 6\n{FIRST_HASH}\n", f"{FIRST_HASH}\nindex 6\n"),
    "index-in-capitals": WRITTEN.replace("index", "Index"),
    "index-with-tab": WRITTEN.replace("index ", "index\t"),
    "index-with-two-spaces": WRITTEN.replace("index ", "index  "),
    "index-without-number": WRITTEN.replace("index 6", "index "),
    "index-with-leading-zero": WRITTEN.replace("index 6", "index 06"),
    "negative-index": WRITTEN.replace("index 6", "index -6"),
    "index-with-sign": WRITTEN.replace("index 6", "index +6"),
    "index-in-other-digits": WRITTEN.replace("index 6", "index \u0666"),
    "index-beyond-2^53": WRITTEN.replace("index 6", f"index {2**53}"),
    "endless-index": WRITTEN.replace("index 6", "index " + "6" * 20_000),
    "two-extra-lines": WRITTEN.replace("\nindex", "\nextra YQ==\nextra YQ==\nindex"),
    "extra-after-index": WRITTEN.replace("index 6\n", "index 6\nextra YQ==\n"),
    "extra-without-space": WRITTEN.replace("\nindex", "\nextra\nindex"),
    "extra-with-control": WRITTEN.replace("\nindex", "\nextra a\x1b\nindex"),
    "hash-without-padding": WRITTEN.replace(FIRST_HASH, FIRST_HASH.rstrip("=")),
    "hash-with-unused-bits": WRITTEN.replace(FIRST_HASH, respelt(FIRST_HASH)),
    "hash-with-space": WRITTEN.replace(FIRST_HASH, FIRST_HASH + " "),
    "hash-in-hex": WRITTEN.replace(FIRST_HASH, PROOF.path[0].hex()),
    "url-safe-hash": WRITTEN.replace(FIRST_HASH, encoded(b"\xfb" * 32).replace("+", "-")),
    "short-hash": WRITTEN.replace(FIRST_HASH, encoded(PROOF.path[0][1:])),
    "two-hashes-in-a-line": WRITTEN.replace(FIRST_HASH, encoded(b"".join(PROOF.path[:2]))),
    "windows-line-ends": WRITTEN.replace("\n", "\r\n"),
    "no-checkpoint": WRITTEN.partition("\n\n")[0] + "\n\n",
    "no-blank-line": WRITTEN.partition("\n\n")[0] + "\n",
    "blank-line-removed": WRITTEN.replace("\n\n", "\n"),
    "header-alone": "c2sp.org/tlog-proof@v1",
    "header-and-extra-alone": "c2sp.org/tlog-proof@v1\nextra YQ==",
    "empty": "",
    "json": "{}",
}


@pytest.mark.parametrize("text", BAD_PROOFS.values(), ids=BAD_PROOFS)
def test_proof_of_bad_form_is_refused(text: str):
    assert text != WRITTEN
    with pytest.raises(MalformedError, match="the proof cannot be read: it"):
        read(text.encode())


@pytest.mark.parametrize("junk", [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80"])
def test_proof_that_is_not_utf8_is_refused(junk: bytes):
    with pytest.raises(MalformedError, match="it is not UTF-8 at byte 3"):
        read(WRITTEN.encode()[:3] + junk)


def test_proof_of_exactly_64_kib_is_read():
    data = padded(WRITTEN.encode(), LIMIT)
    assert len(data) == LIMIT
    assert proven(data).index == 6


def test_proof_over_64_kib_is_refused():
    with pytest.raises(MalformedError, match="it has 65537 bytes, at most 65536 are read"):
        read(padded(WRITTEN.encode(), LIMIT + 1))


@pytest.mark.parametrize("index", [0, 5, 7, 10, 11, 2**53 - 1])
def test_proof_moved_to_another_index_is_refused(index: int):
    with pytest.raises(LogError, match="the proof"):
        proven(WRITTEN.replace("index 6", f"index {index}").encode())


def test_proof_with_the_checkpoint_of_a_fork_is_refused():
    forked = MerkleTree([*LEAVES[:6], leaf_hash(b"another entry"), *LEAVES[7:]]).root()
    head = Checkpoint(origin=ORIGIN, size=len(LEAVES), root=forked.hex())
    proof = InclusionProof(6, PROOF.path, sign_checkpoint(head, KEY))
    with pytest.raises(LogError, match="leads to the root"):
        proven(write_proof(proof))


def test_every_flipped_bit_of_a_proof_is_refused():
    whole = WRITTEN.encode()
    for position in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[position] ^= 1 << bit
            with pytest.raises(RefusedError):
                proven(bytes(data))


# Mutations

PIECES = st.one_of(
    st.binary(max_size=8),
    st.sampled_from(
        ["\n", "\n\n", "— ", " ", "=", "+", "0", "index 6\n", "extra a\n", TEXT, SIGNED]
    ),
).map(lambda piece: piece.encode() if isinstance(piece, str) else piece)
EDITS = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 40), PIECES), max_size=4)


def edited(data: bytes, edits) -> bytes:
    """Returns `data` with each piece put in the place of some bytes."""
    for position, length, piece in edits:
        start = position % (len(data) + 1)
        data = data[:start] + piece + data[start + length :]
    return data


@given(edits=EDITS)
def test_edited_checkpoint_is_refused_or_says_the_same(edits):
    data = edited(SIGNED, edits)
    try:
        found = opened(data)
    except RefusedError:
        return
    assert found == (HEAD, KEY.public)
    assert data.startswith(TEXT.encode() + b"\n")


@given(edits=EDITS)
def test_edited_proof_is_refused_or_says_the_same(edits):
    try:
        found = proven(edited(write_proof(PROOF), edits))
    except RefusedError:
        return
    assert (found.index, found.path) == (PROOF.index, PROOF.path)
    assert found.checkpoint.startswith(TEXT.encode() + b"\n")


@given(data=st.binary(max_size=300))
def test_random_bytes_are_no_checkpoint_and_no_proof(data: bytes):
    for reader in (opened, read):
        with pytest.raises(MalformedError):
            reader(data)


@given(
    lines=st.lists(
        st.sampled_from(
            [*TEXT.split("\n"), *WRITTEN.split("\n"), "extra a", "index 0", "—", "— a YWFhYWE="]
        ),
        max_size=12,
    ),
    end=st.sampled_from(["", "\n"]),
)
def test_shuffled_lines_never_verify_another_text(lines: list[str], end: str):
    data = ("\n".join(lines) + end).encode()
    with contextlib.suppress(RefusedError):
        assert opened(data) == (HEAD, KEY.public)
    with contextlib.suppress(RefusedError):
        assert proven(data).path == PROOF.path


@given(
    origin=st.from_regex(r"[^\s+\x00-\x1f\x7f-\x9f]{1,200}", fullmatch=True),
    size=st.integers(0, 2**53 - 1),
    root=st.binary(min_size=32, max_size=32),
)
def test_any_checkpoint_opens_as_it_was_signed(origin: str, size: int, root: bytes):
    head = Checkpoint(origin=origin, size=size, root=root.hex())
    assert opened(sign_checkpoint(head, KEY), origin=origin) == (head, KEY.public)

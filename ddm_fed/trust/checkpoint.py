"""What a log publishes: checkpoints, which it signs, and proofs that an entry is in it.

Both are short texts that other programs read too. Nothing of a checkpoint is returned before its
signature holds. A proof is only read here: its checkpoint is then opened with `open_checkpoint`,
and its path checked with `verify_inclusion`.

Source: C2SP `signed-note`, `tlog-checkpoint` and `tlog-proof`. Stricter than these: an origin has
no spaces, is the name of the log's key, and a checkpoint has no extension lines.
"""

import base64
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ddm_fed.errors import LogError, MalformedError, SignatureError, UnknownSignerError
from ddm_fed.records import Record, Sha256
from ddm_fed.signing import SigningKey, VerifyKey
from ddm_fed.signing.envelope import MAX_SIGNATURES
from ddm_fed.trust.merkle import HASH_BYTES

MAX_LOG_TEXT_BYTES = 64 << 10
MAX_LOG_SIZE = 2**53 - 1
PROOF_HEADER = "c2sp.org/tlog-proof@v1"

_ED25519 = b"\x01"
_KEY_ID_BYTES = 4
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
_ORIGIN = re.compile(r"[^\s+\x00-\x1f\x7f-\x9f]{1,200}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,15}")
_SIGNATURE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/=]+)")


class Checkpoint(Record):
    """The state of a log: after `size` entries its Merkle tree has the root `root`, as hex."""

    origin: str
    size: int
    root: Sha256

    def model_post_init(self, _context: Any, /) -> None:
        """Refuses what a checkpoint's text cannot carry."""
        if not _ORIGIN.fullmatch(self.origin):
            raise ValueError(
                "`origin` needs 1 to 200 characters, no space, plus or control character"
            )
        if not 0 <= self.size <= MAX_LOG_SIZE:
            raise ValueError(f"`size` must lie between 0 and {MAX_LOG_SIZE}")


@dataclass(frozen=True)
class InclusionProof:
    """That an entry stands at `index`: the path to the root in a signed checkpoint. Unverified."""

    index: int
    path: tuple[bytes, ...]
    checkpoint: bytes


@dataclass(frozen=True)
class _SignatureLine:
    name: str
    key_id: bytes
    signature: bytes


def sign_checkpoint(checkpoint: Checkpoint, key: SigningKey) -> bytes:
    """Returns the signed text of `checkpoint`, with the origin as the name of `key`."""
    root = _base64(bytes.fromhex(checkpoint.root))
    text = f"{checkpoint.origin}\n{checkpoint.size}\n{root}\n".encode()
    signature = _key_id(checkpoint.origin, key.public) + key.sign(text)
    return text + f"\n— {checkpoint.origin} {_base64(signature)}\n".encode()


def open_checkpoint(
    data: bytes, origin: str, keys: Iterable[VerifyKey], *, what: str
) -> tuple[Checkpoint, VerifyKey]:
    """Returns the checkpoint in `data` and the key of `keys` that signed it.

    Lines with another name or key id are ignored: witnesses sign the same text with theirs.

    Raises:
        MalformedError: not a checkpoint.
        LogError: the checkpoint of another log than `origin`.
        SignatureError: a line with the name and id of one of `keys` does not hold.
        UnknownSignerError: none of `keys` has signed.
    """
    text, _, notes = _decode(data, what).partition("\n\n")
    lines = _read_signatures(notes, what)
    checkpoint = _read_text(text, what)
    if checkpoint.origin != origin:
        raise LogError(
            f"{what} is of the log `{checkpoint.origin}`, expected `{origin}`",
            hint="the checkpoint of another log was put in its place; ask for the right one",
        )
    message = f"{text}\n".encode()
    return checkpoint, _require_signer(lines, message, origin, keys, what)


def write_proof(proof: InclusionProof) -> bytes:
    """Returns `proof` as a text that stands alone."""
    hashes = [_base64(item) for item in proof.path]
    lines = [PROOF_HEADER, f"index {proof.index}", *hashes, "", ""]
    return "\n".join(lines).encode() + proof.checkpoint


def read_proof(data: bytes, *, what: str) -> InclusionProof:
    """Returns the proof in `data`, of which nothing is verified yet.

    Raises:
        MalformedError: not a proof.
    """
    head, _, checkpoint = _decode(data, what).partition("\n\n")
    first, *lines = head.split("\n")
    if first != PROOF_HEADER:
        raise _malformed(what, f"its first line is `{first[:60]}`, expected `{PROOF_HEADER}`")
    if lines and lines[0].startswith("extra "):
        del lines[0]  # for other programs: nobody signs it, so nothing here may depend on it
    label, _, number = lines.pop(0).partition(" ") if lines else ("", "", "")
    if label != "index":
        raise _malformed(what, f"it holds `{label[:60]}` where `index` is expected")
    index = _read_number(number, what)
    path = tuple(_read_hash(line, what) for line in lines)
    if not checkpoint:
        raise _malformed(what, "it has no blank line followed by a checkpoint")
    return InclusionProof(index, path, checkpoint.encode())


def _key_id(name: str, key: VerifyKey) -> bytes:
    """Returns the first 4 bytes of the digest of name and key: a hint, which decides nothing."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + key.raw).digest()[:_KEY_ID_BYTES]


def _require_signer(
    lines: Iterable[_SignatureLine],
    message: bytes,
    name: str,
    keys: Iterable[VerifyKey],
    what: str,
) -> VerifyKey:
    """Returns the first of `keys` that has signed, unless any line in its name does not hold."""
    known = [(_key_id(name, key), key) for key in keys]
    signers = []
    for line in lines:
        named = [key for key_id, key in known if (line.name, line.key_id) == (name, key_id)]
        signer = next((key for key in named if key.accepts(line.signature, message)), None)
        if signer is not None:
            signers.append(signer)
        elif named:
            raise SignatureError(
                f"{what} carries a signature of {named[0].keyid[:24]}… that does not hold",
                hint="the checkpoint was altered after signing, or damaged on its way; fetch it "
                "again",
            )
    if not signers:
        found = ", ".join(f"{line.name}+{line.key_id.hex()}" for line in lines)
        expected = ", ".join(f"{name}+{key_id.hex()}" for key_id, _ in known) or "no key at all"
        raise UnknownSignerError(
            f"{what} is signed by {found}, expected {expected}",
            hint="compare with the roster: is this the log's current key?",
        )
    return signers[0]


def _read_text(text: str, what: str) -> Checkpoint:
    """Returns the checkpoint in `text`, what stands before the blank line."""
    lines = text.split("\n")
    if len(lines) != 3:
        raise _malformed(what, f"its text has {len(lines)} lines, expected origin, size and root")
    size, root = _read_number(lines[1], what), _read_hash(lines[2], what)
    try:
        return Checkpoint(origin=lines[0], size=size, root=root.hex())
    except ValueError:
        raise _malformed(
            what,
            f"its origin is `{lines[0][:60]}`, expected at most 200 characters, no space or plus",
        ) from None


def _read_signatures(text: str, what: str) -> list[_SignatureLine]:
    if not text.endswith("\n"):
        raise _malformed(what, "it does not end with a blank line and whole signature lines")
    lines = text.removesuffix("\n").split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise _malformed(what, f"it has {len(lines)} signatures, at most {MAX_SIGNATURES} are read")
    return [_read_signature(line, what) for line in lines]


def _read_signature(line: str, what: str) -> _SignatureLine:
    match = _SIGNATURE.fullmatch(line)
    if match is None:
        raise _malformed(what, f"it holds `{line[:60]}`, expected a dash, a name and a signature")
    raw = _unbase64(match[2], what)
    if len(raw) <= _KEY_ID_BYTES:
        raise _malformed(what, f"it has a signature of {len(raw)} bytes, key id included")
    return _SignatureLine(match[1], raw[:_KEY_ID_BYTES], raw[_KEY_ID_BYTES:])


def _read_number(text: str, what: str) -> int:
    if not _NUMBER.fullmatch(text) or int(text) > MAX_LOG_SIZE:
        raise _malformed(
            what,
            f"it holds `{text[:60]}`, expected a number up to {MAX_LOG_SIZE} without zeros "
            "in front",
        )
    return int(text)


def _read_hash(text: str, what: str) -> bytes:
    raw = _unbase64(text, what)
    if len(raw) != HASH_BYTES:
        raise _malformed(what, f"it holds a hash of {len(raw)} bytes, expected {HASH_BYTES}")
    return raw


def _decode(data: bytes, what: str) -> str:
    """Returns the text of `data`, which holds no control character but the newline."""
    if len(data) > MAX_LOG_TEXT_BYTES:
        raise _malformed(what, f"it has {len(data)} bytes, at most {MAX_LOG_TEXT_BYTES} are read")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise _malformed(what, f"it is not UTF-8 at byte {error.start}") from None
    control = _CONTROL.search(text)
    if control is not None:
        raise _malformed(what, f"it holds the control character {ord(control[0]):#04x}")
    return text


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unbase64(text: str, what: str) -> bytes:
    """Returns the bytes of `text`, which must be their one spelling: unused bits are zero."""
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        raw = b""
    if not raw or _base64(raw) != text:
        raise _malformed(what, f"it holds `{text[:60]}`, expected standard base64 with padding")
    return raw


def _malformed(what: str, reason: str) -> MalformedError:
    return MalformedError(
        f"{what} cannot be read: {reason}",
        hint="fetch it again from its sender; do not repair it by hand, the signature would no "
        "longer hold",
    )

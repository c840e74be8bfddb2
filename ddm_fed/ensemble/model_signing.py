"""A folder signed in the OpenSSF Model Signing format, for verifiers that know nothing of us.

    any folder
      model.sig     a Sigstore bundle: a DSSE envelope around an in-toto statement, ECDSA P-256,
                    that covers every other file with its SHA-256

It proves only that the holder of one key saw these bytes under these names. Who trained what under
which plan stands in our own documents, which are among the files it covers.

Of the format we write and read one corner: a public key known beforehand, whole files, SHA-256, no
links, one signature. Unlike the format's own rule, no file may lie in the folder unsigned, not even
below `.git`: `ignore_paths` is written for other verifiers and excuses nothing here.

Source: ossf/model-signing-spec `spec/v1.0.md` and `schemas/v1.0`. Its published schemas close some
objects to unknown fields and leave others open; the records below do the same.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ddm_fed.errors import DigestError, FileSetError, MalformedError
from ddm_fed.progress import Advance
from ddm_fed.records import (
    IN_TOTO_PAYLOAD,
    MAX_DOCUMENT_BYTES,
    Record,
    canonical_json,
    sha256_hex,
)
from ddm_fed.signing import ExportKey, pre_authentication_encoding, verify_export_signature
from ddm_fed.storage.files import (
    BLOCK_BYTES,
    list_regular_files,
    open_regular,
    read_bounded,
    require_file_set,
    sweep_parts,
    write_atomically,
)

SIGNATURE_FILE = "model.sig"
OMS_PREDICATE = "https://model_signing/signature/v1.0"
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
# The format's verifiers skip these at the top of a folder, so a signature over them would fail.
_SKIPPED = (".git", ".gitattributes", ".github", ".gitignore")

_JSON_NAMES = {
    "media_type": "mediaType",
    "verification_material": "verificationMaterial",
    "public_key": "publicKey",
    "raw_bytes": "rawBytes",
    "dsse_envelope": "dsseEnvelope",
    "payload_type": "payloadType",
    "type_": "_type",
    "predicate_type": "predicateType",
}


def _json_name(name: str) -> str:
    return _JSON_NAMES.get(name, name)


class _Closed(Record, alias_generator=_json_name, populate_by_name=False):
    """An object of the format that may hold no field but these."""


class _Open(_Closed, extra="ignore"):
    """An object of the format that may hold more fields, which mean nothing to us."""


class _PublicKey(_Open):
    hint: str = ""
    raw_bytes: str = ""  # instead of the hint, before version 1.1 of the reference program


class _VerificationMaterial(_Open):
    public_key: _PublicKey


class _Signature(_Closed):
    sig: str
    keyid: str | None = None


class _Envelope(_Closed):
    payload: str
    payload_type: Literal["application/vnd.in-toto+json"]
    signatures: tuple[_Signature]


class _Bundle(_Closed):
    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]
    verification_material: _VerificationMaterial
    dsse_envelope: _Envelope


class _Resource(_Open):
    name: str
    digest: str
    algorithm: Literal["sha256"]


class _Serialization(_Closed):
    method: Literal["files"]
    hash_type: Literal["sha256"]
    allow_symlinks: Literal[False]
    ignore_paths: tuple[str, ...] = ()


class _Predicate(_Closed):
    resources: tuple[_Resource, ...]
    serialization: _Serialization


class _Subject(_Open):
    name: str
    digest: dict[str, str]


class _Statement(_Closed):
    type_: Literal["https://in-toto.io/Statement/v1"]
    subject: tuple[_Subject]
    predicate_type: Literal["https://model_signing/signature/v1.0"]
    predicate: _Predicate


def sign_folder(
    folder: Path, key: ExportKey, *, name: str | None = None, advance: Advance = lambda _: None
) -> None:
    """Writes `model.sig` over every other file in `folder`, in place of an earlier one.

    Args:
        folder: what is signed. Nothing may be written to it meanwhile or afterwards.
        key: the key that signs.
        name: what the model is called, for people; by default as the folder is called.
        advance: called with the number of bytes just read.

    Raises:
        FileSetError: the folder is empty or holds what the format cannot cover: a link, a name
            that is not UTF-8, git's own files at its top, or thousands of files.
    """
    sweep_parts(folder, older_than_s=0)  # what a killed attempt left behind
    names = list_regular_files(folder, what=f"the folder {folder}") - {SIGNATURE_FILE}
    title = name or folder.resolve().name
    _refuse_what_cannot_be_signed(names, title, folder)
    # the format's order: by the code points of the whole name, as Python sorts
    digests = {file: _sha256_of(folder / file, advance) for file in sorted(names)}
    bundle = _seal(canonical_json(_statement(title, digests)), key)
    if len(bundle) > MAX_DOCUMENT_BYTES:
        raise FileSetError(
            f"the folder {folder} is not signed: it holds {len(names)} files, too many for one "
            f"{SIGNATURE_FILE} of at most {MAX_DOCUMENT_BYTES} bytes",
            hint="sign a folder with fewer files",
        )
    write_atomically(folder / SIGNATURE_FILE, bundle)


def verify_folder(
    folder: Path, public_pem: bytes, *, advance: Advance = lambda _: None
) -> tuple[str, ...]:
    """Returns the files in `folder` that `model.sig` covers: all others, every byte of them.

    Nothing of the signed statement is parsed before the signature holds.

    Args:
        folder: holds `model.sig` and the files.
        public_pem: the signer's P-256 key, known beforehand; what `model.sig` says of its key is
            not believed.
        advance: called with the number of bytes just read.

    Raises:
        MalformedError: `model.sig` is not of the format, or of a corner of it that is not read
            here; or `public_pem` is not a P-256 key.
        SignatureError: the key did not sign it.
        FileSetError: a file is missing, too many, a link, or cannot be opened.
        DigestError: a file is not what was signed.
    """
    what = f"{SIGNATURE_FILE} of {folder}"
    data = read_bounded(folder / SIGNATURE_FILE, MAX_DOCUMENT_BYTES)
    statement = _Statement.from_json(_open(data, public_pem, what), what=what)
    digests = _read_digests(statement, what)
    require_file_set(folder, {*digests, SIGNATURE_FILE}, what=f"the folder {folder}")
    for name, signed in digests.items():
        found = _sha256_of(folder / name, advance)
        if found != signed:
            raise DigestError(
                f"`{name}` is not what was signed: found {found}, signed {signed}",
                hint="it was altered or damaged after signing; fetch it again from its sender",
            )
    return tuple(sorted(digests))


def _refuse_what_cannot_be_signed(names: set[str], title: str, folder: Path) -> None:
    problem = None
    if not names:
        problem = "it holds no file"
    for name in sorted(names):
        if name.partition("/")[0] in _SKIPPED:
            problem = f"verifiers of this format would skip `{name}`"
    for text in (title, *sorted(names)):
        if not _is_utf8(text):
            problem = f"the name `{text}` is not UTF-8"
    if problem is not None:
        raise FileSetError(
            f"the folder {folder} is not signed: {problem}",
            hint="move what does not belong there out of the folder, or rename it, and sign again",
        )


def _is_utf8(text: str) -> bool:
    # Python shows bytes of a file name that are not UTF-8 as lone surrogates
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _statement(title: str, digests: dict[str, str]) -> dict[str, Any]:
    """Returns the in-toto statement about files, in the order of `digests`."""
    return {
        "_type": _STATEMENT_TYPE,
        "subject": [{"name": title, "digest": {"sha256": _root(digests.values())}}],
        "predicateType": OMS_PREDICATE,
        "predicate": {
            "resources": [
                {"name": name, "digest": digest, "algorithm": "sha256"}
                for name, digest in digests.items()
            ],
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [*_SKIPPED, SIGNATURE_FILE],
            },
        },
    }


def _root(digests: Iterable[str]) -> str:
    """Returns the format's digest of the whole: over the files' digests, without their names."""
    return sha256_hex(b"".join(bytes.fromhex(digest) for digest in digests))


def _seal(payload: bytes, key: ExportKey) -> bytes:
    """Returns the Sigstore bundle around `payload`, signed."""
    signature = key.sign(pre_authentication_encoding(IN_TOTO_PAYLOAD, payload))
    return canonical_json(
        {
            "mediaType": _MEDIA_TYPE,
            "verificationMaterial": {
                # the reference verifier compares this with the SHA-256 of the key's PEM
                "publicKey": {"hint": sha256_hex(key.public_pem)},
                "tlogEntries": [],
            },
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": IN_TOTO_PAYLOAD,
                "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
            },
        }
    )


def _open(data: bytes, public_pem: bytes, what: str) -> bytes:
    """Returns the payload of the bundle in `data` after its signature held."""
    bundle = _Bundle.from_json(data, what=what)
    key = bundle.verification_material.public_key
    if not (key.hint or key.raw_bytes):
        raise _not_of_the_format(what, "it does not say which key it was signed with")
    payload = _unbase64(bundle.dsse_envelope.payload, what)
    (signature,) = bundle.dsse_envelope.signatures
    message = pre_authentication_encoding(IN_TOTO_PAYLOAD, payload)
    verify_export_signature(public_pem, _unbase64(signature.sig, what), message, what=what)
    return payload


def _unbase64(text: str, what: str) -> bytes:
    # both alphabets are allowed, by DSSE as by the JSON form of Sigstore's messages
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        raise _not_of_the_format(what, "it holds text that is not base64") from None


def _read_digests(statement: _Statement, what: str) -> dict[str, str]:
    """Returns `{name: sha256}` of a signed statement that does not contradict itself.

    The order of the files is not checked: the reference program sorts by folder first.
    """
    digests: dict[str, str] = {}
    for resource in statement.predicate.resources:
        if not _is_plain_path(resource.name):
            raise _not_of_the_format(what, f"it names `{resource.name}`, which is not a plain path")
        if resource.name in digests:
            raise _not_of_the_format(what, f"it names `{resource.name}` twice")
        if not _is_sha256(resource.digest):
            raise _not_of_the_format(what, f"the digest of `{resource.name}` is not a SHA-256")
        digests[resource.name] = resource.digest
    (subject,) = statement.subject
    if not digests or not subject.name:
        raise _not_of_the_format(what, "it names no file, or has no name itself")
    if subject.digest.get("sha256") != _root(digests.values()):
        raise _not_of_the_format(what, "the digest of the whole is not that of its files")
    return digests


def _is_plain_path(name: str) -> bool:
    path = PurePosixPath(name)
    plain = path.parts and ".." not in path.parts and not path.is_absolute()
    return bool(plain) and path.as_posix() == name


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def _sha256_of(path: Path, advance: Advance) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


def _not_of_the_format(what: str, reason: str) -> MalformedError:
    return MalformedError(
        f"{what} is refused: {reason}",
        hint="it was not made by a program that keeps to the OpenSSF Model Signing format; ask its "
        "sender which one made it",
    )

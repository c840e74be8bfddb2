"""Files against the digests that were signed over them, read once and copied on the way."""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from ddm_fed.errors import DigestError, naming
from ddm_fed.progress import Advance
from ddm_fed.storage.files import BLOCK_BYTES, open_regular


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of the plain file `path`."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(
    path: Path,
    *,
    sha256: str,
    size_bytes: int,
    what: str,
    copy_to: Path | None = None,
    advance: Advance = lambda _: None,
) -> None:
    """Checks size, then SHA-256, reading in blocks; with `copy_to`, hashes what it copies.

    The copy is what was hashed, whatever happens to `path` meanwhile.

    Raises:
        DigestError: size or digest differ from what was signed. A failed copy is removed.
    """
    with open_regular(path) as source:
        found_size = os.fstat(source.fileno()).st_size
        if found_size != size_bytes:
            raise _not_what_was_signed(what, f"{found_size} bytes", f"{size_bytes} bytes")
        if copy_to is None:
            found = _read_and_hash(source, size_bytes, None, advance)
        else:
            with naming(copy_to), copy_to.open("xb") as target:
                found = _read_and_hash(source, size_bytes, target, advance)
                target.flush()
                os.fsync(target.fileno())
    if found != sha256:
        if copy_to is not None:
            copy_to.unlink()
        raise _not_what_was_signed(what, found, sha256)


def _read_and_hash(
    source: BinaryIO, size_bytes: int, target: BinaryIO | None, advance: Advance
) -> str:
    """Returns the SHA-256 of at most `size_bytes` of `source`, written to `target` on the way."""
    digest = hashlib.sha256()
    left = size_bytes
    while left and (block := source.read(min(left, BLOCK_BYTES))):
        digest.update(block)
        if target is not None:
            target.write(block)
        left -= len(block)
        advance(len(block))
    return digest.hexdigest()


def _not_what_was_signed(what: str, found: str, signed: str) -> DigestError:
    return DigestError(
        f"{what} is not what was signed: found {found}, signed {signed}",
        hint="it was altered or damaged after signing; fetch it again from its sender",
    )

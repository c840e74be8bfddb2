"""A private folder of files named by their SHA-256: what was verified is what is kept and loaded.

    blobs/SHA256        0440, in a folder of mode 0700

A file is hashed while it is copied in, under a temporary name, and gets its name only if that is
its digest: a name never stands for other bytes, and no refusal costs what was kept. Whoever
rewrites, renames or truncates the source meanwhile changes the copy's digest, and the copy is
refused; afterwards nobody reads the source again.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path

from ddm_fed.errors import StateError
from ddm_fed.progress import Advance
from ddm_fed.storage.digests import check_file
from ddm_fed.storage.files import PART_PREFIX, sync_folder


@dataclass(frozen=True)
class BlobStore:
    """The content-addressed store in `folder`, which exists and is private."""

    folder: Path

    def path(self, sha256: str) -> Path:
        """Returns where the file of this digest lies, or would lie."""
        return self.folder / sha256

    def add(
        self,
        source: Path,
        *,
        sha256: str,
        size_bytes: int,
        what: str,
        advance: Advance = lambda _: None,
    ) -> Path:
        """Returns the store's own copy of `source`, which has the signed size and digest.

        What arrived is hashed, also where the store has a file of that digest already: who knows a
        digest need not have the file. The new copy takes the place of the old one, which may be
        damaged.

        Raises:
            DigestError: size or digest are not what was signed; nothing is kept.
        """
        kept = self.path(sha256)
        part = self.folder / f"{PART_PREFIX}{sha256}.{secrets.token_hex(8)}"
        try:
            check_file(
                source,
                sha256=sha256,
                size_bytes=size_bytes,
                what=what,
                copy_to=part,
                advance=advance,
            )
            part.chmod(0o440)
            part.replace(kept)
        finally:
            part.unlink(missing_ok=True)
        sync_folder(self.folder)
        return kept

    def open(self, sha256: str) -> Path:
        """Returns the path of a file that must be there.

        Raises:
            StateError: it is not.
        """
        kept = self.path(sha256)
        if not kept.exists():
            raise StateError(
                f"the store has no file {sha256[:16]}…",
                hint="it was deleted on purpose, or the store was damaged: restore it from backup",
            )
        return kept

    def delete(self, sha256: str) -> None:
        """Deletes the file of this digest, durably; there may be none."""
        self.path(sha256).unlink(missing_ok=True)
        sync_folder(self.folder)

"""Ways for a released bundle to reach the coordinator, all behind one interface.

A transport sees a released bundle and reports bytes; it decides nothing. What it delivers is
verified at the coordinator, after arrival, whichever way it came.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ddm_fed.bundle.verify import ENVELOPE_FILE, VerifiedBundle, tensor_files
from ddm_fed.errors import StateError
from ddm_fed.progress import Advance
from ddm_fed.records import MAX_DOCUMENT_BYTES, BundleState
from ddm_fed.storage.digests import check_file
from ddm_fed.storage.files import new_folder, read_bounded
from ddm_fed.storage.output_folder import require_ours

INBOX_MARKS = ("incoming", "receipts")


@dataclass(frozen=True)
class Sent:
    """What became of a bundle on its way.

    Attributes:
        state: Sent, waiting for the coordinator, or admitted.
        receipt: The receipt's envelope, if it came at once. It is not verified yet.
    """

    state: BundleState
    receipt: bytes | None = None


class Transport(Protocol):
    """One way to the coordinator. Everything it does may be done again."""

    def collect(self, digest: str) -> bytes | None:
        """Returns the receipt for a bundle, if there is one to fetch. Nothing is verified."""

    def send(self, bundle: VerifiedBundle, folder: Path, advance: Advance) -> Sent:
        """Brings a bundle to the coordinator, from where an earlier attempt came to.

        Args:
            bundle: As it was just verified.
            folder: Where it lies, in `outbox/released`.
            advance: Told the bytes that arrived.

        Raises:
            DdmFedError: it cannot, just now or for good; the bundle stays.
        """


class FolderTransport:
    """A folder that both sides can reach: a share, or a removable medium that travels.

    Args:
        inbox: The coordinator's, or one like it; `incoming` and `receipts` are inside it.

    Raises:
        StateError: `inbox` does not exist, or holds other things than bundles and receipts.
    """

    def __init__(self, inbox: Path) -> None:
        if not inbox.is_dir():
            raise StateError(
                f"the inbox {inbox} "
                + ("is a file, not a folder" if inbox.exists() else "does not exist"),
                hint="mount the share or the medium; a coordinator's inbox has a folder `incoming`",
            )
        require_ours(
            inbox,
            INBOX_MARKS,
            hint="an inbox has a folder `incoming`: name the folder it is in, or make it there",
        )
        (inbox / "incoming").mkdir(exist_ok=True)
        self._inbox = inbox

    def collect(self, digest: str) -> bytes | None:
        """Returns the receipt in `receipts`, if there is one."""
        offered = self._inbox / "receipts" / f"{digest}.dsse.json"
        return read_bounded(offered, MAX_DOCUMENT_BYTES) if offered.exists() else None

    def send(self, bundle: VerifiedBundle, folder: Path, advance: Advance) -> Sent:
        """Copies the bundle; it appears in `incoming` as a whole or not at all.

        Raises:
            DigestError: a copy does not match what was signed.
        """
        target = self._inbox / "incoming" / bundle.payload_sha256
        if target.exists():
            return Sent(BundleState.WAITING)
        with new_folder(target) as part:
            for name in tensor_files(bundle.submission):
                check_file(
                    folder / name,
                    sha256=bundle.sha256[name],
                    size_bytes=bundle.submission.size_of(name) or 0,
                    what=f"`{name}`",
                    copy_to=part / name,
                    advance=advance,
                )
            shutil.copyfile(folder / ENVELOPE_FILE, part / ENVELOPE_FILE)
        return Sent(BundleState.SENT)

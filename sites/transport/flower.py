"""The way over Flower, as a site sees it: the coordinator fetches what is released."""

from pathlib import Path

from ddm_fed.bundle.verify import VerifiedBundle
from ddm_fed.errors import RefusedError, StateError
from ddm_fed.progress import Advance
from ddm_fed.records import MAX_DOCUMENT_BYTES, BundleState
from ddm_fed.storage.files import read_bounded
from ddm_fed.trust import Trust
from ddm_fed.trust.receipts import read_receipt
from sites.transport.base import Sent


class FlowerTransport:
    """Sends nothing, and collects the receipts that the SuperNode was given.

    Args:
        receipts: The folder of that name in the SuperNode's `--node-config`.
        trust: Whose receipts count: nobody trusts the process that wrote them.

    Raises:
        StateError: `receipts` does not exist.
    """

    def __init__(self, receipts: Path, trust: Trust) -> None:
        if not receipts.is_dir():
            raise StateError(
                f"there is no folder {receipts}",
                hint="name the folder that the SuperNode's --node-config calls `receipts`",
            )
        self._receipts, self._trust = receipts, trust

    def collect(self, digest: str) -> bytes | None:
        """Returns the receipt, if there is one. A false one is deleted: the true one follows.

        Raises:
            RefusedError: it is not the coordinator's.
        """
        file = self._receipts / f"{digest}.dsse.json"
        if not file.exists():
            return None
        data = read_bounded(file, MAX_DOCUMENT_BYTES)
        try:
            read_receipt(data, digest, self._trust.chain, what=f"the receipt {digest[:16]}…")
        except RefusedError:
            file.unlink()
            raise
        return data

    def send(self, bundle: VerifiedBundle, folder: Path, advance: Advance) -> Sent:  # noqa: ARG002
        """Waits: the coordinator's next run fetches it."""
        return Sent(BundleState.WAITING)

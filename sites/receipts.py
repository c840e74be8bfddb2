"""Receipts that a mover laid down somewhere: verified, then kept with the site's own."""

from pathlib import Path

from ddm_fed.errors import RefusedError, StateError
from ddm_fed.files import read_bounded, write_atomically
from ddm_fed.receipts import read_receipt
from ddm_fed.records import MAX_DOCUMENT_BYTES
from ddm_fed.signing import Trust
from sites.folder import SiteFolder


def collect_receipts(
    site: SiteFolder, trust: Trust, folder: Path
) -> list[tuple[str, RefusedError | None]]:
    """Takes over the coordinator's receipts in `folder` for what this site has released.

    The folder may be written by a process that nobody trusts: only what the coordinator signed for
    a released bundle is kept. A refused one is deleted there, so that the mover brings another.

    Args:
        site: Whose receipts they are.
        trust: Whose signatures count.
        folder: Where they were laid down.

    Returns:
        For every released bundle with a receipt its digest, and why the receipt was refused.

    Raises:
        StateError: there is no such folder.
    """
    if not folder.is_dir():
        raise StateError(
            f"there is no folder {folder}",
            hint="name the folder that the SuperNode's --node-config calls `receipts`",
        )
    found: list[tuple[str, RefusedError | None]] = []
    for bundle in sorted(site.released.iterdir()):
        digest = bundle.name
        offered, kept = (place / f"{digest}.dsse.json" for place in (folder, site.receipts))
        if kept.exists():
            found.append((digest, None))
        elif offered.exists():
            try:
                data = read_bounded(offered, MAX_DOCUMENT_BYTES)
                read_receipt(data, digest, trust.chain, what=f"the receipt {digest[:16]}…")
            except RefusedError as error:
                offered.unlink()
                found.append((digest, error))
                continue
            write_atomically(kept, data)
            found.append((digest, None))
    return found

"""What one sender makes the coordinator keep, and where that ends.

Refused bundles and proofs of two stories are kept for people to look at. Of every site the newest
few stay, and the oldest of the same site go first: nobody's refusals push out another's, or fill
the disk. What nobody has signed is counted as if it were of one more site.
"""

import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from coordinator.inbox.claim import Claim, admitted_digests, claim_of
from coordinator.workspace import CoordinatorFolder
from ddm_fed.bundle.verify import ENVELOPE_FILE
from ddm_fed.errors import QuotaError
from ddm_fed.records import MAX_DOCUMENT_BYTES
from ddm_fed.storage.files import size_below
from ddm_fed.trust import RosterChain, Trust
from ddm_fed.trust.log import Log

REFUSED_KEPT = 4  # whole bundles of one site; what is larger than a bundle keeps its manifest only
EVIDENCE_KEPT, PROOFS_KEPT = 8, 4  # sequence numbers of one site, manifests of one number
STAMP = len("20261128T090000Z")  # names in `refused` begin with the moment
MOST_WAITING = 8  # bundles of one site in the inbox


def owner_of(folder: Path, chain: RosterChain) -> str | None:
    """Returns the site that signed the manifest in `folder`; None where nobody did."""
    try:
        facts = (folder / ENVELOPE_FILE).lstat()
    except OSError:
        return None
    stamp = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
    claim = _claim(folder, stamp, _Rosters(chain))
    return claim.site if claim is not None and claim.signed else None


@dataclass(frozen=True)
class _Rosters:
    """Rosters, told apart by their digest."""

    chain: RosterChain

    def __hash__(self) -> int:
        return hash(self.chain.sha256[-1])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rosters) and self.chain.sha256 == other.chain.sha256


@lru_cache(maxsize=4096)
def _claim(folder: Path, stamp: tuple[int, ...], rosters: _Rosters) -> Claim | None:
    del stamp  # the same file was looked at before
    return claim_of(folder, rosters.chain)


def forget_refused(home: CoordinatorFolder, trust: Trust, newest: Path) -> None:
    """Deletes the oldest refused bundles of the sender of `newest`, if it has more than it may.

    `newest` itself stays; if it is larger than any bundle may be, only its manifest does.
    """
    if size_below(newest) > trust.plan.submission.max_bytes:
        _keep_manifest_only(newest)
    owner = owner_of(newest, trust.chain)
    mine = [path for path in _oldest_first(home) if owner_of(path, trust.chain) == owner]
    for path in mine[:-REFUSED_KEPT]:
        _delete(path)


def forget_evidence(home: CoordinatorFolder, site: str, newest: Path) -> None:
    """Deletes the oldest proofs that `site` told two stories, if there are more than it may have.

    Of one sequence number, the manifest that was admitted and the newest others stay.
    """
    named = re.compile(rf"{re.escape(site)}-\d+")
    found = [path for path in home.evidence.iterdir() if named.fullmatch(path.name)]
    for path in _by_age(found)[:-EVIDENCE_KEPT]:
        _delete(path)
    admitted = [path for path in newest.iterdir() if (home.manifests / path.name).exists()]
    others = [path for path in newest.iterdir() if path not in admitted]
    for path in _by_age(others)[:-PROOFS_KEPT]:
        _delete(path)


def make_room(home: CoordinatorFolder, chain: RosterChain, site: str, needed: int) -> int:
    """Returns the free bytes, after refused bundles of `site` or of nobody made room if need be.

    The newest of all stays: a command that was killed may have to finish with it.
    """
    for owner in (site, None):
        for path in _oldest_first(home)[:-1]:
            if shutil.disk_usage(home.path).free >= needed:
                break
            if owner_of(path, chain) == owner:
                _delete(path)
    return shutil.disk_usage(home.path).free


def require_share(
    home: CoordinatorFolder,
    chain: RosterChain,
    log: Log,
    site: str,
    size_bytes: int,
    reserve_bytes: int,
) -> None:
    """Refuses a further bundle of a site which has its share of the disk already.

    A share is what is free or taken up by bundles, divided by the members. So whatever one
    member sends, the others have room. Where a site has nothing yet, its bundle is taken as
    long as the disk has room.

    Args:
        home: The coordinator.
        chain: The rosters.
        log: What was admitted.
        site: Who sends.
        size_bytes: Of the bundle; it is needed twice, on its way and in the store.
        reserve_bytes: Of the disk, left free.

    Raises:
        QuotaError: it has, or too many of its bundles wait in the inbox.
    """
    waiting = [path for path in home.incoming.iterdir() if owner_of(path, chain) == site]
    if len(waiting) >= MOST_WAITING:
        raise QuotaError(
            f"{len(waiting)} bundles of `{site}` wait in the inbox, {MOST_WAITING} may",
            hint="the coordinator's people verify them with `ddm-coord admit`; send it again then",
        )
    kept = sum(map(size_below, waiting)) + sum(
        _admitted_bytes(home, entry.submission_sha256) for entry in log.receipts(site=site)
    )
    if not kept:
        return
    taken = sum(map(size_below, (home.incoming, home.blobs.folder, home.refused)))
    room = shutil.disk_usage(home.path).free + taken - reserve_bytes
    share = room // max(1, len(chain.current.sites))
    if kept + 2 * size_bytes > share:
        raise QuotaError(
            f"bundles of `{site}` take up {kept} bytes here, its share of the disk is {share}, "
            f"and {2 * size_bytes} more are needed",
            hint="the coordinator's people have to make room; run the same command again then",
        )


def _admitted_bytes(home: CoordinatorFolder, submission_sha256: str) -> int:
    total = 0
    for sha256 in admitted_digests(home, submission_sha256).values():
        with suppress(FileNotFoundError):  # deleted with its site
            total += home.blobs.path(sha256).stat().st_size
    return total


def _oldest_first(home: CoordinatorFolder) -> list[Path]:
    found = [path for path in home.refused.iterdir() if not path.name.startswith(".")]
    return sorted(found, key=lambda path: (path.name[:STAMP], path.lstat().st_ctime_ns))


def _by_age(found: list[Path]) -> list[Path]:
    return sorted(found, key=lambda path: (path.lstat().st_mtime_ns, path.name))


def _keep_manifest_only(arrival: Path) -> None:
    if arrival.is_symlink() or not arrival.is_dir():
        _delete(arrival)
        arrival.mkdir()
    for path in arrival.iterdir():
        if path.name != ENVELOPE_FILE or path.lstat().st_size > MAX_DOCUMENT_BYTES:
            _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()

"""What the coordinator showed this site before, so that it cannot show another history later.

The site keeps its own copy of the newest published folder. A newer one must continue it: an older
roster or plan, or a shorter log, is a rollback, another log is a fork, and the signed heads prove
it. So do the receipts it holds: each is a leaf of the log, with its place. The head it saw goes
into the site's next signed submission.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from ddm_fed.errors import LogError, RefusedError, RollbackError
from ddm_fed.records import MAX_DOCUMENT_BYTES
from ddm_fed.storage.files import PART_PREFIX, new_folder, read_bounded
from ddm_fed.trust import Trust
from ddm_fed.trust.log import CHECKPOINT_FILE, Log, read_log
from ddm_fed.trust.published import (
    PLAN_FILE,
    copy_published,
    read_published,
    read_seen,
    require_newer,
    require_newer_plan,
    require_plan,
)
from ddm_fed.trust.receipts import read_receipt
from sites.workspace import SiteFolder


@dataclass(frozen=True)
class Published:
    """What the published folder establishes, and continues what was seen before."""

    trust: Trust
    log: Log


def look(site: SiteFolder, folder: Path, *, newest: bool = False) -> Published:
    """Returns what is in the published `folder`, and remembers it. Needs the site's lock.

    It is copied first, so that what is checked is what is remembered.

    Args:
        site: Who looks.
        folder: What it looks at.
        newest: Whether the coordinator itself gave it just now.

    Raises:
        StateError: there is no plan in `folder`.
        RollbackError: it is older than what this site saw before, or, if it is the newest, than
            what this site has a receipt for.
        RefusedError: a document does not hold, or it is another history.
    """
    require_plan(folder)
    offered, old = site.path / ".offered", site.path / f"{PART_PREFIX}seen"
    for leftover in (offered, old):
        if leftover is old and not site.seen.exists() and old.exists():
            old.rename(site.seen)  # a kill came between the two renames below
        shutil.rmtree(leftover, ignore_errors=True)
    with new_folder(offered) as copy:
        copy_published(folder, copy)
    found = inspect(site, offered, newest=newest, what=f"the published folder {folder}")
    if site.seen.exists():
        site.seen.rename(old)
    offered.rename(site.seen)
    shutil.rmtree(old, ignore_errors=True)
    return found


def inspect(
    site: SiteFolder, folder: Path, *, newest: bool = False, what: str | None = None
) -> Published:
    """Returns what is in the published `folder`, as `look` does; remembers nothing.

    Args:
        site: Who looks.
        folder: What it looks at.
        newest: Whether the coordinator itself gave it just now.
        what: It is called, for messages.

    Raises:
        StateError, RollbackError, RefusedError: as `look`.
    """
    what = what or f"the published folder {folder}"
    trust = read_published(folder, site.settings.root)
    log = read_log(folder, trust.chain)
    if (site.seen / CHECKPOINT_FILE).exists():
        require_newer((trust.chain, log), read_seen(site.seen, site.settings.root), what=what)
        require_newer_plan(trust, read_published(site.seen, site.settings.root), what=what)
    _require_receipts(site, trust, log, newest=newest)
    return Published(trust, log)


def _require_receipts(site: SiteFolder, trust: Trust, log: Log, *, newest: bool) -> None:
    """Refuses a log that does not have what the coordinator gave this site a receipt for.

    So a coordinator that was restored from an old backup is noticed, though no head that this site
    has seen says so: the newest leaf it knows of is often its own.

    Raises:
        LogError: another leaf is at its place; the receipt and the signed head prove it.
        RollbackError: the log is too short to have it, and is the newest.
    """
    for file in sorted(site.receipts.glob("*.dsse.json")):
        digest = file.name.partition(".")[0]
        what = f"the receipt {digest[:16]}…"
        try:
            data = read_bounded(file, MAX_DOCUMENT_BYTES)
            held = read_receipt(data, digest, trust.chain, what=what)
        except RefusedError:  # it proves nothing; `submit` says so
            continue
        if held.index < log.size and log.entries[held.index].payload != held.payload:
            raise LogError(
                f"{what} is for place {held.index} of the log, which now shows another submission "
                f"there, under a signed head over {log.size} leaves",
                hint="keep receipt and published folder: together they prove two histories. "
                "If the coordinator was restored from an old backup, tell its people to stop",
            )
        if held.index >= log.size and newest:
            raise RollbackError(
                f"the coordinator's log has {log.size} leaves, {what} is for place {held.index}",
                hint="tell the coordinator's people: if they restored an old backup, your bundle "
                "and receipt bring the missing part back, before anything else is admitted",
            )


def known_trust(site: SiteFolder) -> Trust | None:
    """Returns what the site was shown last; None before the first time.

    Raises:
        RefusedError: what it remembers no longer holds.
    """
    if not (site.seen / PLAN_FILE).exists():
        return None
    return read_published(site.seen, site.settings.root)


def known_log(site: SiteFolder) -> Log | None:
    """Returns the log as the site saw it last; None before the first time.

    Raises:
        RefusedError: what it remembers no longer holds.
    """
    if not (site.seen / CHECKPOINT_FILE).exists():
        return None
    return read_seen(site.seen, site.settings.root)[1]


def entries_not_ours(site: SiteFolder, log: Log) -> list[str]:
    """Returns the submissions the log has in this site's name that it never released itself."""
    known = {path.name for path in site.released.iterdir()}
    known |= {path.name.partition(".")[0] for path in site.receipts.iterdir()}
    return [
        entry.submission_sha256
        for entry in log.receipts(site=site.settings.name)
        if entry.submission_sha256 not in known
    ]

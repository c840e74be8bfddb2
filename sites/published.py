"""What the coordinator showed this site before, so that it cannot show another history later.

The site keeps its own copy of the newest published folder. A newer one must continue it: an older
roster or plan, or a shorter log, is a rollback, another log is a fork, and the signed heads prove
it. The head it saw goes into the site's next signed submission.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from ddm_fed.storage.files import PART_PREFIX, new_folder
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
from sites.workspace import SiteFolder


@dataclass(frozen=True)
class Published:
    """What the published folder establishes, and continues what was seen before."""

    trust: Trust
    log: Log


def look(site: SiteFolder, folder: Path) -> Published:
    """Returns what is in the published `folder`, and remembers it. Needs the site's lock.

    It is copied first, so that what is checked is what is remembered.

    Raises:
        StateError: there is no plan in `folder`.
        RollbackError: it is older than what this site saw before.
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
    trust = read_published(offered, site.settings.root)
    log = read_log(offered, trust.chain)
    if (site.seen / CHECKPOINT_FILE).exists():
        seen, what = read_seen(site.seen, site.settings.root), f"the published folder {folder}"
        require_newer((trust.chain, log), seen, what=what)
        require_newer_plan(trust, read_published(site.seen, site.settings.root), what=what)
    if site.seen.exists():
        site.seen.rename(old)
    offered.rename(site.seen)
    shutil.rmtree(old, ignore_errors=True)
    return Published(trust, log)


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

"""Where the bundles of each site are: on their way, arrived, or refused.

Unfinished uploads lie in `inbox/partial/PAYLOAD_SHA256/`; `progress.json` there says whose they are
and how far they came. What has arrived is known by its manifest, and belongs to a site here only if
a key of that site signed it: whoever can write to the inbox could claim anybody.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from coordinator.inbox.claim import claim_of
from coordinator.workspace import CoordinatorFolder
from ddm_fed.errors import FileSetError, printable
from ddm_fed.storage.files import read_bounded
from ddm_fed.trust import RosterChain

PARTIAL = ("inbox", "partial")
PROGRESS_FILE = "progress.json"
MAX_PROGRESS_BYTES = 1 << 14
MAX_LOOKED_AT = 200  # arrivals and uploads; more than any plan's members send at once
MAX_CARRIER = 64
MOMENT = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class UploadRow:
    """An unfinished upload: who brings it, how far it came, and when it last moved."""

    carrier: str
    size_bytes: int
    committed_bytes: int
    percent: int
    updated_at: str


@dataclass(frozen=True)
class RefusalRow:
    """A refusal; `signed` says whether the site that the manifest names has signed it."""

    at: str
    code: str
    message: str
    signed: bool


@dataclass(frozen=True)
class OpenBundles:
    """What is known about the bundles of one site that are not admitted."""

    upload: UploadRow | None = None
    arrived_at: str | None = None
    refusal: RefusalRow | None = None

    @property
    def moments(self) -> tuple[str, ...]:
        """When something last happened, in no order."""
        found = (
            self.upload and self.upload.updated_at,
            self.arrived_at,
            self.refusal and self.refusal.at,
        )
        return tuple(moment for moment in found if moment)


def open_bundles(
    home: CoordinatorFolder, chain: RosterChain, events: Iterable[dict[str, Any]]
) -> dict[str, OpenBundles]:
    """Returns what is not admitted of every site of the roster.

    Args:
        home: The coordinator.
        chain: The published rosters.
        events: Every event of the audit log, oldest first.
    """
    uploads, arrived, refused = _uploads(home), _arrived(home, chain), _last_refusals(events)
    return {
        site.name: OpenBundles(
            uploads.get(site.name), arrived.get(site.name), refused.get(site.name)
        )
        for site in chain.current.sites
    }


def _uploads(home: CoordinatorFolder) -> dict[str, UploadRow]:
    """Returns the unfinished upload of every site; of several the one that moved last."""
    found: dict[str, UploadRow] = {}
    for folder in _entries(home.path.joinpath(*PARTIAL)):
        read = _progress(folder / PROGRESS_FILE)
        if read is None:
            continue
        site, upload = read
        if site not in found or found[site].updated_at < upload.updated_at:
            found[site] = upload
    return found


def _progress(file: Path) -> tuple[str, UploadRow] | None:
    """Returns site and progress of one upload; None where there is none, or nothing sensible."""
    try:
        text = read_bounded(file, MAX_PROGRESS_BYTES)
        values = json.loads(text)
        site, carrier = values["site"], values["carrier"]
        updated_at = datetime.strptime(values["updated_at"], MOMENT).replace(tzinfo=UTC)
        size, committed = values["size_bytes"], values["committed_bytes"]
    except (FileSetError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # just begun, just finished, or of a later version
    texts = isinstance(site, str) and isinstance(carrier, str)
    numbers = type(size) is int and type(committed) is int
    if not texts or not numbers or not 0 <= committed <= size:
        return None
    return site, UploadRow(
        carrier=printable(carrier[:MAX_CARRIER]),
        size_bytes=size,
        committed_bytes=committed,
        percent=100 * committed // size if size else 0,  # never 100 before all is there
        updated_at=f"{updated_at:{MOMENT}}",
    )


def _arrived(home: CoordinatorFolder, chain: RosterChain) -> dict[str, str]:
    """Returns when the newest unread bundle that a site signed arrived."""
    found: dict[str, str] = {}
    for arrival in _entries(home.incoming):
        claim = claim_of(arrival, chain)
        if claim is None or not claim.signed:
            continue
        with suppress(OSError):  # withdrawn or admitted meanwhile
            # the sender chooses the time of modification, not this one
            changed = datetime.fromtimestamp(arrival.lstat().st_ctime, UTC)
            moment = f"{changed:{MOMENT}}"
            found[claim.site] = max(moment, found.get(claim.site, ""))
    return found


def _entries(folder: Path) -> list[Path]:
    with suppress(FileNotFoundError):
        visible = (path for path in folder.iterdir() if not path.name.startswith("."))
        return list(islice(visible, MAX_LOOKED_AT))
    return []


def _last_refusals(events: Iterable[dict[str, Any]]) -> dict[str, RefusalRow]:
    """Returns the last refusal of every claimed site since it was last admitted or removed.

    One whose manifest the site signed is never hidden behind one that anybody could have sent.
    """
    found: dict[str, RefusalRow] = {}
    for event in events:
        if event["event"] in ("admitted", "removed"):
            found.pop(event["site"], None)
        site = event.get("claimed_site") if event["event"] == "refused" else None
        if site is None:
            continue
        signed = event["claim_signed"]
        if signed or site not in found or not found[site].signed:
            found[site] = RefusalRow(event["at"], event["code"], event["message"], signed)
    return found

"""The status as people read it: the same words on a terminal and on the web page."""

from datetime import UTC, datetime
from typing import Any

from coordinator.status.bundles import UploadRow
from coordinator.status.report import RequestRow, SiteRow

STALLED_S = 120  # without a byte for this long, an upload is worth a look
# narrow, so that dates and commands stay whole on a terminal of 80 columns
SITE_COLUMNS = (
    "site",
    "state",
    "last progress",
    "seq.",
    "router epsilon",
    "log",
    "waiting for",
)
REQUEST_COLUMNS = ("site", "keys", "certificate", "waiting for")
REFUSED_COLUMNS = ("when", "arrival", "claims to be", "code", "reason")
SHOWN_NAME = 16


def site_detail(row: SiteRow, now: datetime) -> str:
    """Returns what there is to say about a state: how far an upload came, why it was refused."""
    parts = []
    upload, refusal = row.upload, row.refusal
    if upload is not None:
        parts.append(f"{upload.percent} % of {shown_bytes(upload.size_bytes)} by {upload.carrier}")
        if is_stalled(upload, now):
            parts.append(f"no progress since {clock(upload.updated_at)}")
    if refusal is not None:
        signed = "" if refusal.signed else ", a claim nobody signed"
        parts.append(f"{refusal.code} at {clock(refusal.at)}{signed}")
    return "; ".join(parts)


def site_cells(row: SiteRow, now: datetime) -> list[str]:
    """Returns the cells of one site, in the order of `SITE_COLUMNS`."""
    detail = site_detail(row, now)
    return [
        row.site,
        f"{row.state}: {detail}" if detail else str(row.state),
        clock(row.last_progress),
        *map(str, (row.sequence, row.epsilon, row.log_index, row.waiting_for)),
    ]


def refused_cells(event: dict[str, Any]) -> list[str]:
    """Returns the cells of one refusal, in the order of `REFUSED_COLUMNS`."""
    site = event.get("claimed_site")  # entries of older versions name none
    signed = "" if site is None or event.get("claim_signed") else " (not signed)"
    return [
        event["at"],
        event["arrival"][:SHOWN_NAME],
        f"{site or ''}{signed}",
        event["code"],
        event["message"],
    ]


def request_cells(row: RequestRow) -> list[str]:
    """Returns the cells of a request, in the order of `REQUEST_COLUMNS`."""
    keys = "\n".join(row.keyids) or "no new one"
    return [row.site, keys, row.certificate or "none", row.waiting_for]


def is_stalled(upload: UploadRow, now: datetime) -> bool:
    """Returns whether nothing of an upload arrived for a while."""
    return (now - moment_of(upload.updated_at)).total_seconds() > STALLED_S


def moment_of(text: str) -> datetime:
    """Returns the time that `YYYY-MM-DDTHH:MM:SSZ` says; the epoch where it says none."""
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)


def clock(text: str) -> str:
    """Returns a time as people read it: `2026-11-28 09:00:00Z`."""
    return text.replace("T", " ")


def shown_bytes(count: int) -> str:
    """Returns a number of bytes in decimal units, as disks and links are measured."""
    value, units = float(count), ["kB", "MB", "GB", "TB"]
    if count < 1000:
        return f"{count} B"
    unit = ""
    while value >= 1000 and units:
        value, unit = value / 1000, units.pop(0)
    return f"{value:.1f} {unit}"

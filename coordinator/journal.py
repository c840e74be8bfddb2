"""What this coordinator did, one line an event: appended, never rewritten, chained by digest.

The transparency log says what was admitted, to everybody. This file also says what was refused and
why, and stays here.
"""

import json
import os
from typing import Any

from coordinator.workspace import CoordinatorFolder
from ddm_fed.errors import StateError
from ddm_fed.records import canonical_json, now, sha256_hex
from ddm_fed.storage.files import append_durably, drop_torn_line

TAIL_BYTES = 1 << 16  # more than the longest event: messages are capped


def record(home: CoordinatorFolder, event: str, **facts: Any) -> None:
    """Appends `event` with `facts` (JSON values) and the present time; on return it is on disk."""
    drop_torn_line(home.audit)
    last = _last_line(home)
    entry = {
        **facts,
        "index": json.loads(last)["index"] + 1 if last else 0,
        "previous_sha256": sha256_hex(last) if last else None,
        "at": f"{now():%Y-%m-%dT%H:%M:%SZ}",
        "event": event,
    }
    append_durably(home.audit, canonical_json(entry))


def events(home: CoordinatorFolder) -> list[dict[str, Any]]:
    """Returns every event, oldest first.

    Raises:
        StateError: the file was cut, reordered or edited.
    """
    found: list[dict[str, Any]] = []
    previous = None
    for index, line in enumerate(_lines(home)):
        entry: dict[str, Any] = {}
        try:
            entry = json.loads(line)
            chained = (entry["index"], entry["previous_sha256"]) == (index, previous)
        except (ValueError, KeyError, TypeError):
            chained = False
        if not chained:
            raise StateError(
                f"line {index + 1} of {home.audit} does not follow the one before it",
                hint="the audit log was cut, reordered or edited: restore it from backup",
            )
        found.append(entry)
        previous = sha256_hex(line)
    return found


def refusals(home: CoordinatorFolder) -> list[dict[str, Any]]:
    """Returns every refusal, oldest first."""
    return [event for event in events(home) if event["event"] == "refused"]


def _last_line(home: CoordinatorFolder) -> bytes:
    """Returns the last line without reading the rest: who is refused can make this file long."""
    if not home.audit.exists():
        return b""
    with home.audit.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - TAIL_BYTES))
        return file.read().rstrip(b"\n").rpartition(b"\n")[2]


def _lines(home: CoordinatorFolder) -> list[bytes]:
    if not home.audit.exists():
        return []
    *whole, _torn = home.audit.read_bytes().split(b"\n")
    return whole

"""What `doctor` looks at on either side, and how it is shown. It changes and spends nothing.

The checks are those that commands make before they work: what they would refuse is a line here that
fails, with the reason and the hint they would give.
"""

import os
import shutil
import stat
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ddm_fed import console
from ddm_fed.errors import DdmFedError
from ddm_fed.records import now
from ddm_fed.signing import ExportKey, SigningKey, TlsKey

Verdict = Literal["ok", "doubt", "fails"]
OTHERS = stat.S_IRWXG | stat.S_IRWXO
SOON = timedelta(days=30)
MEMORY_FACTS = Path("/proc/meminfo")


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        what: It is called.
        verdict: `fails` where a command would be refused or come to harm, `doubt` where a person
            has to judge.
        why: What was found.
        advice: What to do; empty where all is well.
    """

    what: str
    verdict: Verdict
    why: str
    advice: str = ""


def look(what: str, check: Callable[[], str | Finding]) -> Finding:
    """Returns what `check` finds: what it says is well, what it raises fails."""
    try:
        found = check()
    except DdmFedError as error:
        return Finding(what, "fails", error.message, error.hint)
    except OSError as error:
        advice = "correct the permissions, or restore it from backup"
        return Finding(what, "fails", f"the operating system refused: {error}", advice)
    return Finding(what, "ok", found) if isinstance(found, str) else found


def look_at_keys(folder: Path) -> list[Finding]:
    """Returns whether every private key in `folder` opens, and is closed to others."""
    files = sorted(folder.glob("*.pem"))
    if not files:
        advice = "restore the folder from backup, or run `init`"
        return [Finding("keys", "fails", f"{folder} holds no private key", advice)]
    looked = [look(f"key {file.name}", partial(_open_key, file)) for file in files]
    bad = [finding for finding in looked if finding.verdict != "ok"]
    return bad or [Finding("keys", "ok", f"{len(files)} private keys open, for you alone")]


def _open_key(file: Path) -> str:
    kind = {"tls": TlsKey, "export": ExportKey}.get(file.stem.partition("-")[0], SigningKey)
    kind.read(file)  # type: ignore[attr-defined]
    return "opens"


def look_at_folders(home: Path, private: Sequence[str]) -> list[Finding]:
    """Returns whether the folder is closed to others where it must be.

    Args:
        home: The folder of a site or of a coordinator.
        private: Folders in it which nobody else may read.
    """
    found = list[Finding]()
    if (mode := stat.S_IMODE(home.stat().st_mode)) & stat.S_IWOTH:
        why = f"{home} has mode {mode:04o}, so everybody on this machine can change it"
        found.append(Finding("folder", "fails", why, f"chmod o-w {home}"))
    for name in private:
        folder = home / name
        if not folder.is_dir():
            advice = "restore it from backup: a workspace has it from `init` on"
            found.append(Finding(f"folder {name}", "fails", f"there is no {folder}", advice))
        elif (mode := stat.S_IMODE(folder.stat().st_mode)) & OTHERS:
            why = f"{folder} has mode {mode:04o}, so others on this machine can enter it"
            found.append(Finding(f"folder {name}", "fails", why, f"chmod 700 {folder}"))
    closed = f"{', '.join(private)} are closed to others"
    return found or [Finding("private folders", "ok", closed)]


def look_at_clock(moments: Sequence[tuple[str, datetime]]) -> Finding:
    """Returns whether this clock is behind a moment that is past for certain.

    Args:
        moments: What happened, and when, as it was signed or written down.
    """
    moment = now()
    ahead = [(at, what) for what, at in moments if at > moment + timedelta(minutes=5)]
    if ahead:
        at, what = max(ahead)
        return Finding(
            "clock",
            "fails",
            f"it shows {moment:%Y-%m-%d %H:%M} UTC, and {what} is of {at:%Y-%m-%d %H:%M} UTC",
            "set this machine's clock: what it signs would be dated wrongly and refused",
        )
    return Finding("clock", "ok", f"{moment:%Y-%m-%d %H:%M} UTC, after all that was signed")


def look_at_end(what: str, ends: datetime, advice: str) -> Finding:
    """Returns whether something is in force, and for how long."""
    left, until = ends - now(), f"{ends:%Y-%m-%d %H:%M} UTC"
    if left <= timedelta(0):
        return Finding(what, "fails", f"it expired on {until}", advice)
    if left < SOON:
        return Finding(what, "doubt", f"it expires on {until}, in {left.days} days", advice)
    return Finding(what, "ok", f"in force until {until}")


def look_at_disk(home: Path, needed: int, *, wanted: int = 0, of: str) -> Finding:
    """Returns whether there is room on the disk of `home`.

    Args:
        home: A folder.
        needed: Bytes, without which work fails.
        wanted: Bytes that may be needed.
        of: What would need them.
    """
    free = shutil.disk_usage(home).free
    why = f"{gigabytes(free)} free; {of} {gigabytes(needed)}"
    if wanted > needed:
        why += f", at most {gigabytes(wanted)}"
    if free < needed:
        return Finding("disk", "fails", why, f"make room on the disk of {home}")
    if free < wanted:
        return Finding("disk", "doubt", why, f"make room on the disk of {home}, or watch it")
    return Finding("disk", "ok", why)


def available_memory() -> int:
    """Returns the bytes of memory that programs can still have; of all of it, where none says."""
    if MEMORY_FACTS.exists():
        for line in MEMORY_FACTS.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) << 10  # it counts in KiB
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def gigabytes(count: float) -> str:
    """Returns a number of bytes as people read it."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def show(title: str, findings: Sequence[Finding], facts: dict[str, Any], *, as_json: bool) -> bool:
    """Writes findings to stdout; returns whether none of them fails.

    Args:
        title: Above the table.
        findings: In their order.
        facts: More of them, for JSON.
        as_json: Whether a program reads it.
    """
    fails = sum(finding.verdict == "fails" for finding in findings)
    if as_json:
        rows = [finding._asdict() for finding in findings]
        console.show_json({"findings": rows, "fails": fails, **facts})
        return not fails
    console.show_table(title, ["looked at", "", "why", "what to do"], findings)
    doubts = sum(finding.verdict == "doubt" for finding in findings)
    console.say(f"{fails} fail, {doubts} are for a person to judge; nothing was changed or spent")
    return not fails

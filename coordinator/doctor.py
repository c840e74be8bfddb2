"""What `ddm-coord doctor` looks at: keys, folders, roster, plan, log, inbox, room, clock, backup.

It reads what is published, takes no lock and changes nothing, as `status` does.
"""

from contextlib import suppress
from datetime import datetime
from pathlib import Path

from coordinator.journal import events
from coordinator.status.report import StatusReport, settled_states
from coordinator.status.tables import moment_of
from coordinator.workspace import CoordinatorFolder
from ddm_fed.doctor import (
    Finding,
    gigabytes,
    look,
    look_at_clock,
    look_at_disk,
    look_at_end,
    look_at_folders,
    look_at_keys,
)
from ddm_fed.errors import DdmFedError, StateError
from ddm_fed.models import network_cost
from ddm_fed.records import Plan
from ddm_fed.storage.files import size_below
from ddm_fed.trust import RosterChain
from ddm_fed.trust.log import Log, read_log
from ddm_fed.trust.published import read_chain, require_newer

PRIVATE = ("keys", "store", "log")
RESERVE = 1 << 30  # what `serve` keeps free
TWICE = 2  # a bundle is on its way and in the store for a moment


def examine(home: CoordinatorFolder, backup: Path | None) -> list[Finding]:
    """Returns what was found.

    Args:
        home: The coordinator.
        backup: A copy of its folder; None if nobody named one.
    """
    found = [*look_at_keys(home.keys), *look_at_folders(home.path, PRIVATE)]
    try:
        chain = home.chain()
        log = read_log(home.published, chain)
    except DdmFedError as error:
        found.append(Finding("roster", "fails", error.message, error.hint))
        return [*found, look_at_clock(_moments(home, None, None))]
    found.append(look("roster", lambda: _roster(chain)))
    found.append(look("signing key", lambda: _signing_key(home, chain)))
    found.append(look("server certificate", lambda: _certificate(home, chain)))
    plan: Plan | None = None
    try:
        plan = home.trust().plan
        advice = "publish one with a later `expires_at`: `ddm-coord publish`"
        found.append(look_at_end("plan", plan.expires_at, advice))
    except StateError as error:
        found.append(Finding("plan", "doubt", error.message, error.hint))
    except DdmFedError as error:
        found.append(Finding("plan", "fails", error.message, error.hint))
    found.append(look("inbox", lambda: _inbox(home, settled_states(home))))
    found.append(look("disk", lambda: _disk(home, chain, plan)))
    found.append(look_at_clock(_moments(home, chain, log)))
    found.append(look("backup", lambda: _backup(home, backup, chain, log)))
    return found


def _roster(chain: RosterChain) -> Finding:
    roster = chain.current
    active = [site.name for site in roster.sites if site.is_active]
    seen = look_at_end("roster", roster.expires_at, "run `ddm-coord roster renew`")
    said = f"roster {roster.version} with {len(active)} active sites; "
    if seen.verdict == "ok" and not active:
        why = f"{said}nobody can take part"
        return Finding("roster", "doubt", why, "run `ddm-coord roster add REQUEST`")
    return seen._replace(why=said + seen.why)


def _signing_key(home: CoordinatorFolder, chain: RosterChain) -> str:
    return f"{home.key(chain).public.keyid[:24]}… is here and the one the roster names"


def _certificate(home: CoordinatorFolder, chain: RosterChain) -> Finding:
    details = home.tls(chain).details
    advice = "run `ddm-coord roster rotate --server-certificate`"
    begins = look_at_clock([("the certificate that `serve` shows", details.not_before)])
    if begins.verdict == "fails":
        return begins._replace(what="server certificate")
    return look_at_end("server certificate", details.not_after, advice)


def _inbox(home: CoordinatorFolder, report: StatusReport) -> str | Finding:
    held = size_below(home.incoming) + size_below(home.refused)
    said = (
        f"{len(report.arrivals)} bundles wait, {len(report.requests)} requests; arrived and "
        f"refused bundles take {gigabytes(held)}"
    )
    if report.arrivals:
        return Finding("inbox", "doubt", said, "run `ddm-coord admit`, or `ddm-coord serve`")
    if report.requests or report.pending_roster:
        return Finding("inbox", "doubt", said, "`ddm-coord status` says what waits for whom")
    return said


def _disk(home: CoordinatorFolder, chain: RosterChain, plan: Plan | None) -> Finding:
    if plan is None:
        return look_at_disk(home.path, RESERVE, of="`serve` keeps free")
    data, sites = plan.data, sum(site.is_active for site in chain.current.sites)
    weights = max(
        network_cost(name, data.shape, len(data.classes), data.text).weights_bytes
        for name in plan.expert.architecture
    )
    most = plan.submission.max_bytes
    return look_at_disk(
        home.path,
        RESERVE + TWICE * sites * min(weights, most),
        wanted=RESERVE + TWICE * sites * most,
        of=f"a bundle of each of {sites} sites needs",
    )


def _moments(
    home: CoordinatorFolder, chain: RosterChain | None, log: Log | None
) -> list[tuple[str, datetime]]:
    """Returns what is past for certain."""
    found = list[tuple[str, datetime]]()
    if chain is not None:
        found.append((f"roster {chain.current.version}", chain.current.issued_at))
    for entry in [] if log is None else log.entries:
        if entry.receipt is not None:
            found.append((f"leaf {entry.index} of the log", entry.receipt.admitted_at))
    with suppress(StateError):  # `status` says that the journal was cut
        happened = events(home)[-1:]
        found += [("the last line of audit.jsonl", moment_of(line["at"])) for line in happened]
    return found


def _backup(
    home: CoordinatorFolder, copy: Path | None, chain: RosterChain, log: Log
) -> str | Finding:
    """Compares a copy: it must be of this federation, hold the keys, and be continued by us."""
    if copy is None:
        why = "nobody named a copy, and the folder itself knows of none"
        return Finding("backup", "doubt", why, "give --backup; docs/operations.md says how")
    if copy.resolve() == home.path.resolve():
        why = f"{copy} is the folder itself, and no copy of it"
        return Finding("backup", "fails", why, "name where the backup lies, on another disk")
    held = CoordinatorFolder.open(copy)
    if held.settings.root != home.settings.root:
        why = f"{copy} is of another federation, `{held.settings.federation}`"
        return Finding("backup", "fails", why, "name the copy of this folder")
    kept = read_chain(held.published, home.settings.root)
    kept_log = read_log(held.published, kept)
    require_newer((chain, log), (kept, kept_log), what=f"this folder, beside the copy {copy}")
    held.key(chain)
    for finding in (*look_at_keys(held.keys), *look_at_folders(held.path, PRIVATE)):
        if finding.verdict == "fails":
            return finding._replace(what="backup")
    missing = len(log.entries) - len(kept_log.entries)
    older = chain.current.version - kept.current.version
    if missing or older:
        why = f"the copy lacks {missing} leaves of the log and {older} rosters"
        return Finding("backup", "doubt", why, "make a new one; docs/operations.md says how")
    return "the copy holds the keys, every roster and every leaf of the log"

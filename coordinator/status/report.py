"""Who is where on the way from enrolled to admitted, and what each waits for."""

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from time import sleep
from typing import Any

from coordinator.ensembles.assemble import removed_sites
from coordinator.inbox.admission import Admitted, current_members
from coordinator.journal import events
from coordinator.roster.proposals import pending_roster
from coordinator.roster.waiting import waiting_requests
from coordinator.status.bundles import Journey, journeys
from coordinator.workspace import CoordinatorFolder
from ddm_fed.bundle.reference import reference_sha256
from ddm_fed.errors import RefusedError, StateError, printable
from ddm_fed.records import Roster, RosterSite
from ddm_fed.signing import VerifyKey
from ddm_fed.storage.junk import is_junk
from ddm_fed.trust import Trust
from ddm_fed.trust.log import Log, read_log
from ddm_fed.trust.published import PLAN_FILE, roster_files

STATES = ("in the roster", "uploading", "arrived", "refused", "admitted", "removed", "revoked")
ATTEMPTS, PAUSE_S = 10, 0.1


def _after_admission(
    home: CoordinatorFolder, trust: Trust | None, item: Admitted, ensemble: str | None
) -> str:
    """Returns what an admitted site waits for: under a plan with heads, first for its own."""
    if ensemble is not None:
        return f"nothing; it is in the ensemble {printable(Path(ensemble).name)}"
    if trust is None or trust.plan.router.kind != "heads":
        return "`ddm-coord assemble`"
    published = reference_sha256(home.published, trust)
    if published is None:
        return "`ddm-coord reference`"
    if item.submission.reference_sha256 != published:
        return "its head: `ddm-site head` there, then `ddm-coord admit`"
    return "`ddm-coord assemble`"


def _before_admission(
    trust: Trust | None, site: RosterSite, journey: Journey, *, removed: bool
) -> tuple[str, str]:
    """Returns the state of a site that is no member, and what it waits for."""
    if not site.is_active:
        if removed:
            return "removed", "nothing; a new bundle would bring it back"
        return "revoked", "new keys, with `ddm-coord roster rotate`"
    if journey.arrived_at is not None:
        return "arrived", "`ddm-coord admit`"
    if journey.upload is not None:
        return "uploading", "the rest of its bundle, then `ddm-coord admit`"
    if journey.refusal is not None:
        return "refused", "a bundle that holds, then `ddm-coord admit`"
    if removed:
        return "removed", "nothing; a new bundle would bring it back"
    if trust is None:
        return "in the roster", "`ddm-coord publish PLAN.toml`"
    return "in the roster", "its bundle, then `ddm-coord admit`"


def _ensembles(happened: Iterable[dict[str, Any]], stale: Collection[str]) -> dict[str, str]:
    """Returns the folder of the newest ensemble that has the newest bundle of a site, by site."""
    found: dict[str, str] = {}
    for event in happened:
        if event["event"] == "admitted":
            found.pop(event["site"], None)
        elif event["event"] == "assembled" and event["ensemble_sha256"] not in stale:
            found |= dict.fromkeys(event["members"], event["folder"])
    return found


def _last_progress(site: RosterSite, journey: Journey, log: Log | None) -> str:
    """Returns when the site, or we for it, last got further."""
    newest = log.newest(site.name) if log is not None else None
    moments = [site.enrolled_at]
    if newest is not None and newest.receipt is not None:
        moments.append(newest.receipt.admitted_at)
    return max(*(f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in moments), "", *journey.moments)


def _requests(home: CoordinatorFolder, proposed: Roster | None) -> list[dict[str, Any]]:
    """Returns the requests that wait, each with what people have to do about it."""
    found = waiting_requests(home)
    several = {name for name, count in Counter(item.site for item in found).items() if count > 1}
    rows = []
    for item in found:
        name = item.name if item.site in several else item.site
        entry = proposed.site(item.site) if proposed is not None else None
        if item.is_member:
            waiting = f"its people confirm it; then `ddm-coord roster rotate {name}`"
        elif entry is not None and set(item.keyids) == {
            VerifyKey.from_hex(key.public_key).keyid for key in entry.keys
        }:
            waiting = "signatures of the root keys: `ddm-coord roster merge`"
        else:
            waiting = (  # the key is not filled in: it has to come from people, not from the file
                f"its people read the key aloud; then `ddm-coord roster add {name} --key …`, else "
                f"`ddm-coord roster refuse {name}`"
            )
        rows.append(
            {
                "request": item.name,
                "site": item.site,
                "keyids": list(item.keyids),
                "certificate": item.certificate,
                "member": item.is_member,
                "waiting_for": waiting,
            }
        )
    return rows


def site_states(home: CoordinatorFolder) -> dict[str, Any]:
    """Returns the state of every site, requests, the log's head, unread arrivals and all refusals.

    It reads what is published, so it can be asked while another command is at work.

    Every row of `sites` has `site`, `state` (one of `STATES`), `sequence`, `epsilon`, `log_index`,
    `waiting_for`, `last_progress`, and, or None, `upload` and `refusal`. A refusal belongs to the
    site that its manifest claims; `signed` says whether a key of that site signed the claim. Rows
    of `requests` have `request`, `site`, `keyids`, `certificate`, `member` and `waiting_for`.
    """
    chain = home.chain() if roster_files(home.published) else None
    trust = home.trust() if (home.published / PLAN_FILE).exists() else None
    log = read_log(home.published, chain) if chain is not None else None
    members = current_members(home, trust, log) if trust is not None and log is not None else {}
    removed = removed_sites(log) if log is not None else set()
    happened = events(home)
    stale = _stale(log) if log else []
    assembled = _ensembles(happened, stale)
    travelling = journeys(home, chain, happened) if chain is not None else {}
    rows = []
    for site in chain.current.sites if chain is not None else ():
        item, journey = members.get(site.name), travelling[site.name]
        if item is not None:
            after = _after_admission(home, trust, item, assembled.get(site.name))
            state, waiting = "admitted", after
            if not site.is_active:  # it signs nothing more, and what it did sign is still used
                state, waiting = "revoked", "`ddm-coord remove`, to end the use of its expert"
            elif journey.arrived_at is not None:
                waiting = "`ddm-coord admit`, for its newer bundle"
        else:
            state, waiting = _before_admission(trust, site, journey, removed=site.name in removed)
        rows.append(
            {
                "site": site.name,
                "state": state,
                "sequence": item.submission.sequence if item else "",
                "epsilon": item.submission.privacy.releases_epsilon if item else "",
                "log_index": item.entry.index if item else "",
                "waiting_for": waiting,
                "upload": journey.upload,
                "refusal": journey.refusal,
                "last_progress": _last_progress(site, journey, log),
            }
        )
    pending = pending_roster(home)
    expiry = chain.current.expires_at if chain else None
    return {
        "federation": home.settings.federation,
        "root": home.settings.root,
        "plan_sha256": trust.plan_sha256 if trust else None,
        "roster": chain.current.version if chain else None,
        "roster_expires_at": f"{expiry:%Y-%m-%dT%H:%M:%SZ}" if expiry else None,
        "pending_roster": pending.version if pending else None,
        "log": log.head.model_dump() if log else None,
        "admissions": sum(1 for _ in log.receipts()) if log else 0,
        "stale_ensembles": stale,
        "sites": rows,
        "requests": _requests(home, pending) if chain is not None else [],
        "arrivals": sorted(
            printable(path.name)
            for path in home.incoming.iterdir()
            if path.name[0] != "." and not is_junk(path.name)
        ),
        "refused": [event for event in happened if event["event"] == "refused"],
    }


def _stale(log: Log) -> list[str]:
    """Returns the ensembles that a removal made stale."""
    removals = [entry.removal for entry in log.entries if entry.removal is not None]
    return sorted({digest for removal in removals for digest in removal.stale_ensembles})


def settled_states(home: CoordinatorFolder) -> dict[str, Any]:
    """Returns `site_states`, patiently: another command may be between two of its files.

    Raises:
        RefusedError: what is published does not hold, and still did not after a second.
        StateError: the folder was damaged.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return site_states(home)
        except (RefusedError, StateError):
            sleep(PAUSE_S)
    return site_states(home)

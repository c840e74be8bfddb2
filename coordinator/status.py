"""Who is where on the way from enrolled to admitted, and what each waits for."""

from collections import Counter
from typing import Any

from coordinator.admission import Admitted, current_members
from coordinator.assemble import removed_sites
from coordinator.audit import refusals
from coordinator.folder import CoordinatorFolder
from coordinator.requests import waiting_requests
from coordinator.rosters import pending_roster
from ddm_fed.errors import printable
from ddm_fed.log import read_log
from ddm_fed.published import PLAN_FILE, roster_files
from ddm_fed.records import Roster
from ddm_fed.reference import reference_sha256
from ddm_fed.signing import Trust, VerifyKey


def _after_admission(home: CoordinatorFolder, trust: Trust | None, item: Admitted) -> str:
    """Returns what an admitted site waits for: under a plan with heads, first for its own."""
    if trust is None or trust.plan.router.kind != "heads":
        return "`ddm-coord assemble`"
    published = reference_sha256(home.published, trust)
    if published is None:
        return "`ddm-coord reference`"
    if item.submission.reference_sha256 != published:
        return "its head: `ddm-site head` there, then `ddm-coord verify`"
    return "`ddm-coord assemble`"


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

    Every row of `sites` has `site`, `state`, `sequence`, `epsilon`, `log_index` and `waiting_for`;
    of `requests`: `request`, `site`, `keyids`, `certificate`, `member` and `waiting_for`.
    """
    chain = home.chain() if roster_files(home.published) else None
    trust = home.trust() if (home.published / PLAN_FILE).exists() else None
    log = read_log(home.published, chain) if chain is not None else None
    members = current_members(home, trust, log) if trust is not None and log is not None else {}
    removed = removed_sites(log) if log is not None else set()
    rows = []
    for site in chain.current.sites if chain is not None else ():
        item = members.get(site.name)
        if item is not None:
            state, waiting = "admitted", _after_admission(home, trust, item)
        elif site.name in removed:
            state, waiting = "removed", "nothing; a new bundle would bring it back"
        elif not site.is_active:
            state, waiting = "revoked", "new keys, with `ddm-coord roster rotate`"
        elif trust is not None:
            state, waiting = "in the roster", "its bundle, then `ddm-coord verify`"
        else:
            state, waiting = "in the roster", "`ddm-coord publish PLAN.toml`"
        rows.append(
            {
                "site": site.name,
                "state": state,
                "sequence": item.submission.sequence if item else "",
                "epsilon": item.submission.privacy.releases_epsilon if item else "",
                "log_index": item.entry.index if item else "",
                "waiting_for": waiting,
            }
        )
    pending = pending_roster(home)
    return {
        "federation": home.settings.federation,
        "root": home.settings.root,
        "plan_sha256": trust.plan_sha256 if trust else None,
        "roster": chain.current.version if chain else None,
        "pending_roster": pending.version if pending else None,
        "log": log.head.model_dump() if log else None,
        "sites": rows,
        "requests": _requests(home, pending) if chain is not None else [],
        "arrivals": sorted(
            printable(path.name) for path in home.incoming.iterdir() if path.name[0] != "."
        ),
        "refused": refusals(home),
    }

"""Who is where on the way from enrolled to admitted, and what each waits for."""

from typing import Any

from coordinator.admission import current_members, refusals
from coordinator.folder import CoordinatorFolder
from coordinator.members import enrolled_sites
from ddm_fed.errors import printable
from ddm_fed.published import PLAN_FILE


def site_states(home: CoordinatorFolder) -> dict[str, Any]:
    """Returns the state of every enrolled site, the unread arrivals and all refusals.

    Every row of `sites` has `site`, `state`, `sequence`, `epsilon` and `waiting_for`.
    """
    published = (home.published / PLAN_FILE).exists()
    trust = home.trust() if published else None
    members = current_members(home, trust) if trust is not None else {}
    listed = {site.name for site in trust.roster.sites} if trust is not None else set()
    rows = []
    for site in enrolled_sites(home):
        item = members.get(site.name)
        if item is not None:
            state, waiting = "admitted", "`ddm-coord assemble`"
        elif site.name in listed:
            state, waiting = "in the roster", "its bundle, then `ddm-coord verify`"
        else:
            state, waiting = "enrolled", "`ddm-coord publish`"
        rows.append(
            {
                "site": site.name,
                "state": state,
                "sequence": item.submission.sequence if item else "",
                "epsilon": item.submission.privacy.releases_epsilon if item else "",
                "waiting_for": waiting,
            }
        )
    arrivals = sorted(
        printable(path.name) for path in home.incoming.iterdir() if path.name[0] != "."
    )
    return {
        "federation": home.settings.federation,
        "plan_sha256": trust.plan_sha256 if trust else None,
        "sites": rows,
        "arrivals": arrivals,
        "refused": refusals(home),
    }

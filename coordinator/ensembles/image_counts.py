"""How many images each member says it has, beside what it said before.

A count is a site's own word. What clipping and noise rule out is refused when a bundle is verified
(`ddm_fed.router.require_plausible`); a whole release of a larger site can be made up all the same,
and its share of the samples with it. So a count that jumps against the site's earlier bundle is
shown to a person, who takes it or leaves the site out; and a plan may cap what one site weighs.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from coordinator import journal
from coordinator.inbox.admission import Admitted
from coordinator.inbox.history import released_units
from coordinator.workspace import CoordinatorFolder
from ddm_fed.bundle.verify import ROUTER_FILE
from ddm_fed.errors import StateError
from ddm_fed.mixture import capped
from ddm_fed.trust import Trust
from ddm_fed.trust.log import Log

JUMP = 2.0  # times as many, or as few: a person looks at it
DEVIATIONS = 6.0  # of the noise in a count, which never makes a jump by itself


@dataclass(frozen=True)
class Counted:
    """What one member says it has.

    Attributes:
        site: The member.
        submission_sha256: Where it says so.
        units: The released, noisy number of images or patients.
        earlier: The one of its last bundle before; None if there is none.
        jumped: Whether the two are further apart than noise and `JUMP` explain.
        share: Its part of all that the members say they have.
        weighs: Its part after the plan's cap.
    """

    site: str
    submission_sha256: str
    units: float
    earlier: float | None
    jumped: bool
    share: float
    weighs: float


def count_members(
    home: CoordinatorFolder, trust: Trust, log: Log, members: Mapping[str, Admitted]
) -> list[Counted]:
    """Returns what every one of `members` says it has, by name.

    Raises:
        StateError: the store lacks what a member released.
    """
    if not members:
        return []
    names = sorted(members)
    found = [
        released_units(home, trust, members[name].submission, members[name].sha256[ROUTER_FILE])
        for name in names
    ]
    units = torch.tensor([count for count, _ in found], dtype=torch.float64)
    weighs = capped(trust.plan, units[:, None])[:, 0]
    rows = zip(names, found, units / units.sum(), weighs / weighs.sum(), strict=True)
    counted, said = [], _said(home, log)
    for name, (count, noise), share, weight in rows:
        digest = members[name].payload_sha256
        before = _earlier(said.get(name, []), digest, trust.plan.privacy.unit)
        least, most = sorted((count, count if before is None else before))
        jumped = most - JUMP * least > DEVIATIONS * math.hypot(1, JUMP) * noise
        counted.append(Counted(name, digest, count, before, jumped, float(share), float(weight)))
    return counted


def _said(home: CoordinatorFolder, log: Log) -> dict[str, list[dict[str, Any]]]:
    """Returns what every site's bundles that count said when they were admitted, oldest first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for event in journal.events(home):
        if event["event"] == "admitted":
            entry = log.find(event["submission_sha256"])
            if entry is not None and entry.receipt is not None and entry.index not in log.void:
                found.setdefault(entry.receipt.site, []).append(event)
    return found


def _earlier(said: list[dict[str, Any]], digest: str, unit: str) -> float | None:
    """Returns what a site's last bundle before `digest` said, of the same unit, or None."""
    found = None
    for event in said:
        if event["submission_sha256"] == digest:
            break
        if event.get("units") is not None and event.get("unit") == unit:
            found = float(event["units"])
    return found


def require_decided(
    home: CoordinatorFolder, counted: list[Counted], accept: Collection[str]
) -> None:
    """Refuses to go on while a count that jumped waits for a decision; notes those that are made.

    Raises:
        StateError: naming the sites and both counts.
    """
    known = {
        event["submission_sha256"]
        for event in journal.events(home)
        if event["event"] == "count-accepted"
    }
    waiting = [item for item in counted if item.jumped and item.submission_sha256 not in known]
    undecided = [item for item in waiting if item.site not in accept]
    if undecided:
        raise StateError(
            "; ".join(sentence(item) for item in undecided),
            hint="a count is the site's own word: ask its people. Then take it with "
            + " ".join(f"--accept {item.site}" for item in undecided)
            + ", or leave the site out with `--without`; `router.max_share` in a plan caps what "
            "one site weighs",
        )
    for item in waiting:
        journal.record(
            home,
            "count-accepted",
            site=item.site,
            submission_sha256=item.submission_sha256,
            units=str(round(item.units)),
        )


def sentence(item: Counted) -> str:
    """Returns what there is to know about one member's count."""
    said = f"`{item.site}` says it has {item.units:,.0f}, {item.share:.0%} of all"
    if item.jumped and item.earlier is not None:
        said += f"; its bundle before said {item.earlier:,.0f}"
    if item.weighs < item.share - 1e-9:
        said += f"; the plan's `router.max_share` lets it weigh {item.weighs:.0%}"
    return said

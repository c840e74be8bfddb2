"""Who is where on the way from enrolled to admitted, and what each waits for."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from time import sleep
from typing import Any

from coordinator.ensembles.remove import removed_sites
from coordinator.inbox.admission import Admitted, current_members
from coordinator.journal import events
from coordinator.roster.proposals import pending_roster
from coordinator.roster.waiting import waiting_requests
from coordinator.status.bundles import OpenBundles, RefusalRow, UploadRow, open_bundles
from coordinator.workspace import CoordinatorFolder
from ddm_fed.bundle.reference import reference_sha256
from ddm_fed.errors import RefusedError, StateError, printable
from ddm_fed.records import BundleState, LogHead, Roster, RosterSite
from ddm_fed.signing import VerifyKey
from ddm_fed.storage.junk import is_junk
from ddm_fed.trust import RosterChain, Trust
from ddm_fed.trust.log import Log, read_log
from ddm_fed.trust.published import PLAN_FILE, roster_files

ATTEMPTS, PAUSE_S = 10, 0.1


class SiteState(StrEnum):
    """What a site can be apart from what its bundle is."""

    IN_THE_ROSTER = "in the roster"
    REMOVED = "removed"
    REVOKED = "revoked"


STATES: tuple[BundleState | SiteState, ...] = (
    SiteState.IN_THE_ROSTER,
    BundleState.UPLOADING,
    BundleState.ARRIVED,
    BundleState.REFUSED,
    BundleState.ADMITTED,
    SiteState.REMOVED,
    SiteState.REVOKED,
)
"""In the order in which a site goes through them."""


@dataclass(frozen=True)
class SiteRow:
    """One site.

    Attributes:
        site: Its name.
        state: Of its newest bundle, or of the site itself; one of `STATES`.
        sequence: Of its admitted bundle; empty before it has one, as are the next two.
        epsilon: What the releases in it cost.
        log_index: Its place in the log.
        waiting_for: What has to happen next, and by which command.
        upload: An unfinished one.
        refusal: The last since it was admitted; of the site that the manifest claims.
        last_progress: When it last got further.
    """

    site: str
    state: BundleState | SiteState
    sequence: int | str
    epsilon: str
    log_index: int | str
    waiting_for: str
    upload: UploadRow | None
    refusal: RefusalRow | None
    last_progress: str


@dataclass(frozen=True)
class RequestRow:
    """A request to join, or for other keys, and what people have to do about it."""

    request: str
    site: str
    keyids: list[str]
    certificate: str | None
    member: bool
    waiting_for: str


@dataclass(frozen=True)
class StatusReport:
    """All that `ddm-coord status` says; moments are `YYYY-MM-DDTHH:MM:SSZ`.

    Attributes:
        federation: Its name.
        root: Its fingerprint.
        plan_sha256: Of the published plan.
        roster: Version of the published roster.
        roster_expires_at: When.
        pending_roster: Version of one that waits for signatures.
        log: The head of the published log.
        admissions: How many submissions were admitted.
        stale_ensembles: Digests of ensembles that a removal ended.
        sites: In the order of the roster.
        requests: What waits for people.
        arrivals: What lies in the inbox, as it may be shown.
        refused: Every refusal, as the audit log has it.
    """

    federation: str
    root: str
    plan_sha256: str | None
    roster: int | None
    roster_expires_at: str | None
    pending_roster: int | None
    log: LogHead | None
    admissions: int
    stale_ensembles: list[str]
    sites: list[SiteRow]
    requests: list[RequestRow]
    arrivals: list[str]
    refused: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """Returns it as JSON values, with the names of the attributes."""
        return asdict(self) | {"log": self.log.model_dump() if self.log else None}


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
    trust: Trust | None, site: RosterSite, found: OpenBundles, *, removed: bool
) -> tuple[BundleState | SiteState, str]:
    """Returns the state of a site that is no member, and what it waits for."""
    if not site.is_active:
        if removed:
            return SiteState.REMOVED, "nothing; a new bundle would bring it back"
        return SiteState.REVOKED, "new keys, with `ddm-coord roster rotate`"
    if found.arrived_at is not None:
        return BundleState.ARRIVED, "`ddm-coord admit`"
    if found.upload is not None:
        return BundleState.UPLOADING, "the rest of its bundle, then `ddm-coord admit`"
    if found.refusal is not None:
        return BundleState.REFUSED, "a bundle that holds, then `ddm-coord admit`"
    if removed:
        return SiteState.REMOVED, "nothing; a new bundle would bring it back"
    if trust is None:
        return SiteState.IN_THE_ROSTER, "`ddm-coord publish PLAN.toml`"
    return SiteState.IN_THE_ROSTER, "its bundle, then `ddm-coord admit`"


def _ensembles(happened: Iterable[dict[str, Any]], stale: Collection[str]) -> dict[str, str]:
    """Returns the folder of the newest ensemble that has the newest bundle of a site, by site."""
    found: dict[str, str] = {}
    for event in happened:
        if event["event"] == "admitted":
            found.pop(event["site"], None)
        elif event["event"] == "assembled" and event["ensemble_sha256"] not in stale:
            found |= dict.fromkeys(event["members"], event["folder"])
    return found


def _last_progress(site: RosterSite, found: OpenBundles, log: Log | None) -> str:
    """Returns when the site, or we for it, last got further."""
    newest = log.newest(site.name) if log is not None else None
    moments = [site.enrolled_at]
    if newest is not None and newest.receipt is not None:
        moments.append(newest.receipt.admitted_at)
    return max(*(f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in moments), "", *found.moments)


def _requests(home: CoordinatorFolder, proposed: Roster | None) -> list[RequestRow]:
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
            RequestRow(
                request=item.name,
                site=item.site,
                keyids=list(item.keyids),
                certificate=item.certificate,
                member=item.is_member,
                waiting_for=waiting,
            )
        )
    return rows


def site_states(home: CoordinatorFolder) -> StatusReport:
    """Returns the state of every site, requests, the log's head, unread arrivals and all refusals.

    It reads what is published, so it can be asked while another command is at work.
    """
    chain = home.chain() if roster_files(home.published) else None
    trust = home.trust() if (home.published / PLAN_FILE).exists() else None
    log = read_log(home.published, chain) if chain is not None else None
    members = current_members(home, trust, log) if trust is not None and log is not None else {}
    facts = _Facts.read(home, chain, trust, log)
    rows = [
        facts.row(site, members.get(site.name))
        for site in (chain.current.sites if chain is not None else ())
    ]
    pending = pending_roster(home)
    expiry = chain.current.expires_at if chain else None
    return StatusReport(
        federation=home.settings.federation,
        root=home.settings.root,
        plan_sha256=trust.plan_sha256 if trust else None,
        roster=chain.current.version if chain else None,
        roster_expires_at=f"{expiry:%Y-%m-%dT%H:%M:%SZ}" if expiry else None,
        pending_roster=pending.version if pending else None,
        log=log.head if log else None,
        admissions=sum(1 for _ in log.receipts()) if log else 0,
        stale_ensembles=_stale(log) if log else [],
        sites=rows,
        requests=_requests(home, pending) if chain is not None else [],
        arrivals=sorted(
            printable(path.name)
            for path in home.incoming.iterdir()
            if path.name[0] != "." and not is_junk(path.name)
        ),
        refused=[event for event in facts.events if event["event"] == "refused"],
    )


def site_row(home: CoordinatorFolder, trust: Trust, log: Log, name: str) -> SiteRow:
    """Returns the state of one member; of the manifests in the store only its own is read.

    Args:
        home: The coordinator.
        trust: The published plan and rosters.
        log: The published log.
        name: Of a site in the roster.

    Raises:
        StateError: there is no such site.
    """
    site = trust.chain.site(name)
    if site is None:
        raise StateError(
            f"roster {trust.roster.version} does not list `{name}`",
            hint="`ddm-coord roster show` says who is in it",
        )
    facts = _Facts.read(home, trust.chain, trust, log)
    return facts.row(site, current_members(home, trust, log, only=name).get(name))


@dataclass(frozen=True)
class _Facts:
    """What the rows of all sites are made of, read once."""

    home: CoordinatorFolder
    trust: Trust | None
    log: Log | None
    events: list[dict[str, Any]]
    removed: set[str]
    assembled: dict[str, str]
    waiting: dict[str, OpenBundles]

    @classmethod
    def read(
        cls,
        home: CoordinatorFolder,
        chain: RosterChain | None,
        trust: Trust | None,
        log: Log | None,
    ) -> "_Facts":
        happened = events(home)
        return cls(
            home,
            trust,
            log,
            happened,
            removed_sites(log) if log is not None else set(),
            _ensembles(happened, _stale(log) if log else []),
            open_bundles(home, chain, happened) if chain is not None else {},
        )

    def row(self, site: RosterSite, item: Admitted | None) -> SiteRow:
        """Returns the row of a site, of which `item` is the admitted bundle."""
        found = self.waiting[site.name]
        state: BundleState | SiteState
        if item is None:
            removed = site.name in self.removed
            state, waiting = _before_admission(self.trust, site, found, removed=removed)
        elif not site.is_active:  # it signs nothing more, and what it did sign is still used
            state, waiting = SiteState.REVOKED, "`ddm-coord remove`, to end the use of its expert"
        else:
            state = BundleState.ADMITTED
            waiting = "`ddm-coord admit`, for its newer bundle"
            if found.arrived_at is None:
                ensemble = self.assembled.get(site.name)
                waiting = _after_admission(self.home, self.trust, item, ensemble)
        return SiteRow(
            site=site.name,
            state=state,
            sequence=item.submission.sequence if item else "",
            epsilon=item.submission.privacy.releases_epsilon if item else "",
            log_index=item.entry.index if item else "",
            waiting_for=waiting,
            upload=found.upload,
            refusal=found.refusal,
            last_progress=_last_progress(site, found, self.log),
        )


def _stale(log: Log) -> list[str]:
    """Returns the ensembles that a removal made stale."""
    removals = [entry.removal for entry in log.entries if entry.removal is not None]
    return sorted({digest for removal in removals for digest in removal.stale_ensembles})


def settled_states(home: CoordinatorFolder) -> StatusReport:
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

"""From admitted bundles to a signed ensemble folder, and to one without a site that left."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from coordinator import journal
from coordinator.ensembles.image_counts import Counted, count_members, require_decided
from coordinator.inbox.admission import Admitted, Known, admitted_bundles, begin, current_members
from coordinator.log import append, publish_log
from coordinator.workspace import CoordinatorFolder
from ddm_fed.ensemble.folder import (
    BuiltRouterFile,
    Member,
    WrittenEnsemble,
    require_common_reference,
    write_ensemble,
)
from ddm_fed.errors import OptionError, StateError
from ddm_fed.progress import Advance
from ddm_fed.records import MAX_REASON, Removal, RouterName, is_plain, now
from ddm_fed.router import needs_heads
from ddm_fed.trust import Trust
from ddm_fed.trust.log import Log
from ddm_fed.trust.receipts import sign_removal


@dataclass(frozen=True)
class Removed:
    """What was removed, and the earlier ensembles it makes stale: digest to folder.

    `known` has the log after the removal.
    """

    site: str
    removal: Removal
    stale: Mapping[str, str]
    known: Known


@dataclass(frozen=True)
class Chosen:
    """The members of an ensemble to be, what each says it has, and what they were judged by."""

    known: Known
    members: Mapping[str, Admitted]
    counted: list[Counted]


def choose(home: CoordinatorFolder, known: Known, without: Collection[str]) -> Chosen:
    """Returns the members of the next ensemble, and what they say they have.

    Raises:
        StateError: a site has not been admitted and was not left out, or is not known.
    """
    trust, log = known
    members = choose_members(home, known, without)
    return Chosen(known, members, count_members(home, trust, log, members))


def choose_members(
    home: CoordinatorFolder, known: Known, without: Collection[str]
) -> dict[str, Admitted]:
    """Returns the admitted submission of every site of the roster that was not left out.

    Raises:
        StateError: a site has not been admitted and was not left out.
        OptionError: a site that is left out is not known, or none remains.
    """
    trust, log = known
    names = {site.name for site in trust.roster.sites}
    unknown = sorted(set(without) - names)
    if unknown:
        raise OptionError(
            f"--without {unknown[0]}: this site is not in the roster",
            hint="the roster lists " + ", ".join(sorted(names)),
        )
    members = {
        name: item
        for name, item in current_members(home, trust, log).items()
        if name not in without
    }
    # a site that was removed, or whose keys were revoked, is not waited for
    expected = {site.name for site in trust.roster.sites if site.is_active} - removed_sites(log)
    missing = sorted(expected - set(without) - members.keys())
    if missing:
        raise StateError(
            f"nothing is admitted yet from {', '.join(missing)}",
            hint="run `ddm-coord admit` when it has arrived, or leave it out on purpose: "
            + " ".join(f"--without {name}" for name in missing),
        )
    if not members:
        raise OptionError("--without: no site is left to assemble", hint="leave fewer sites out")
    return members


def removed_sites(log: Log) -> set[str]:
    """Returns the sites that were removed and have sent nothing since."""
    removed: set[str] = set()
    for entry in log.entries:
        if entry.index in log.void:
            continue
        if entry.removal is not None:
            removed.add(entry.removal.site)
        elif entry.receipt is not None:
            removed.discard(entry.receipt.site)
    return removed


def assemble(
    home: CoordinatorFolder,
    target: Path,
    *,
    router: RouterName | BuiltRouterFile | None,
    without: Collection[str],
    accept: Collection[str] = (),
    advance: Advance = lambda _: None,
) -> WrittenEnsemble:
    """Writes and signs the ensemble folder `target` of all sites but `without`.

    See `choose` and `write_chosen`, whose errors it raises.
    """
    require_free(target)
    chosen = choose(home, begin(home), without)
    return write_chosen(home, chosen, target, router=router, accept=accept, advance=advance)


def write_chosen(
    home: CoordinatorFolder,
    chosen: Chosen,
    target: Path,
    *,
    router: RouterName | BuiltRouterFile | None,
    accept: Collection[str] = (),
    advance: Advance = lambda _: None,
) -> WrittenEnsemble:
    """Writes and signs the ensemble folder `target`.

    Args:
        home: The coordinator.
        chosen: Its members.
        target: Must not exist.
        router: Which router; None is the plan's. One that was made from samples is refused unless
            its samples are of exactly the members' experts.
        accept: Sites whose count a person has looked at, though it jumped.
        advance: Told the bytes copied and verified.

    Raises:
        StateError: `target` exists, the router is of other experts, or a count jumped that nobody
            has decided about.
        PlanMismatchError: the router asks heads that do not compose.
    """
    require_free(target)
    (trust, log), admitted = chosen.known, chosen.members
    require_decided(home, chosen.counted, accept)
    members = {
        name: Member(
            item.envelope,
            item.entry,
            {file: home.blobs.open(digest) for file, digest in item.sha256.items()},
        )
        for name, item in admitted.items()
    }
    built = None
    if isinstance(router, BuiltRouterFile):
        _require_made_of(router, members)
        built, router = router, router.record.kind
    kind = router or trust.plan.router.kind
    if kind == "heads" or (built is not None and needs_heads(built.record)):
        require_common_reference({name: item.submission for name, item in admitted.items()})
    verified = write_ensemble(
        target,
        home.published,
        trust,
        log,
        members,
        kind,
        home.key(trust.chain),
        built=built,
        advance=advance,
    )
    journal.record(
        home,
        "assembled",
        ensemble_sha256=verified.sha256,
        folder=str(target.resolve()),
        members=sorted(members),
    )
    return verified


def _require_made_of(built: BuiltRouterFile, members: Mapping[str, Member]) -> None:
    """Refuses a router made from the samples of other experts than the members': it is stale."""
    wanted = tuple(members[site].entry.submission_sha256 for site in sorted(members))
    if built.record.submissions != wanted:
        raise StateError(
            f"the router in {built.file.parent} is stale: it was made from samples of "
            f"{len(built.record.submissions)} experts that are not these {len(wanted)}",
            hint="assemble without it, build it anew from that ensemble with `ddm-coord router "
            "build`, and assemble with the new one",
        )


def require_free(target: Path) -> None:
    """Refuses to write an ensemble where something is.

    Raises:
        StateError: `target` exists.
    """
    if target.exists():
        raise StateError(
            f"{target} exists already", hint="an ensemble is never changed; choose another folder"
        )


def remove(home: CoordinatorFolder, site: str, *, reason: str, delete_weights: bool) -> Removed:
    """Ends the use of everything `site` has sent: a signed removal, as a leaf of the log.

    Run again after a kill, it changes nothing that was done.

    Args:
        home: The coordinator.
        site: The site.
        reason: Why, for everybody who reads the log.
        delete_weights: Delete its files from the store too, unless another site sent the same.

    Raises:
        StateError: nothing of it is admitted, or the roster does not list it.
        OptionError: the reason cannot be signed.
    """
    if len(reason) > MAX_REASON or not is_plain(reason):
        raise OptionError(
            f"--reason has {len(reason)} characters, or some that cannot be seen",
            hint=f"it is signed and public: one line of at most {MAX_REASON} plain characters",
        )
    trust, log = begin(home)
    void = [entry for entry in log.receipts(site=site) if entry.index in log.void]
    counted = [entry for entry, _ in log.counted(site)]
    entries = void + counted  # of two with one number the one that counts is named
    if not entries:
        raise StateError(
            f"nothing of `{site}` was ever admitted",
            hint="`ddm-coord status` shows who is admitted; to take a site out of the roster use "
            "`ddm-coord roster revoke`",
        )
    stale = _ensembles_with(home, site)
    if site not in removed_sites(log):
        removal = Removal(
            federation=trust.plan.federation,
            site=site,
            through_sequence=max(
                e.receipt.sequence for e in counted or entries if e.receipt is not None
            ),
            log_index=log.size,
            reason=reason,
            stale_ensembles=tuple(stale),
            removed_at=now(),
        )
        submissions = {
            entry.receipt.sequence: entry.submission_sha256
            for entry in entries
            if entry.receipt is not None
        }
        envelope = sign_removal(removal, submissions, home.key(trust.chain))
        log = append(home, trust.chain, log, envelope)
        publish_log(home, log, since=removal.log_index)
        journal.record(home, "removed", site=site, log_index=removal.log_index)
    if delete_weights:
        _delete_weights(home, trust, log, site)
    found = [entry.removal for entry in log.entries if entry.removal is not None]
    removal = next(item for item in reversed(found) if item.site == site)
    return Removed(site, removal, stale, Known(trust, log))


def _ensembles_with(home: CoordinatorFolder, site: str) -> dict[str, str]:
    """Returns the ensembles assembled here that have `site` as a member: digest to folder."""
    return {
        str(event["ensemble_sha256"]): str(event["folder"])
        for event in journal.events(home)
        if event["event"] == "assembled" and site in event["members"]
    }


def _delete_weights(home: CoordinatorFolder, trust: Trust, log: Log, site: str) -> None:
    everything = admitted_bundles(home, trust, log)
    others = {
        digest
        for item in everything
        if item.submission.site != site
        for digest in item.sha256.values()
    }
    for item in everything:
        if item.submission.site == site:
            for digest in set(item.sha256.values()) - others:
                home.blobs.delete(digest)
    journal.record(home, "weights-deleted", site=site)

"""From admitted bundles to a signed ensemble folder, and to one without a site that left."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from coordinator import journal
from coordinator.ensembles.image_counts import Counted, count_members, require_decided
from coordinator.ensembles.remove import removed_sites
from coordinator.inbox.admission import Admitted, Known, begin, current_members
from coordinator.workspace import CoordinatorFolder
from ddm_fed.ensemble.folder import (
    BuiltRouterFile,
    Member,
    WrittenEnsemble,
    require_common_reference,
    write_ensemble,
)
from ddm_fed.errors import OptionError, StateError, guess
from ddm_fed.progress import Advance
from ddm_fed.records import RouterName
from ddm_fed.router import centroids_spec, needs_heads


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
            f"--without {unknown[0]}: this site is not in the roster{guess(unknown[0], names)}",
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
    if kind == "centroid":
        centroids_spec(trust.plan)
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

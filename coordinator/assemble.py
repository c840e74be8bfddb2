"""From admitted bundles to a signed ensemble folder."""

from collections.abc import Collection
from pathlib import Path

from coordinator.admission import Admitted, current_members
from coordinator.folder import CoordinatorFolder
from ddm_fed.assembly import write_ensemble
from ddm_fed.errors import StateError
from ddm_fed.files import Advance
from ddm_fed.router import RouterKind


def choose_members(home: CoordinatorFolder, without: Collection[str]) -> dict[str, Admitted]:
    """Returns the admitted submission of every site of the roster that was not left out.

    Raises:
        StateError: a site has not been admitted and was not left out, or is not known.
    """
    trust = home.trust()
    names = {site.name for site in trust.roster.sites}
    unknown = sorted(set(without) - names)
    if unknown:
        raise StateError(
            f"--without names `{unknown[0]}`, which is not in the roster",
            hint="the roster lists " + ", ".join(sorted(names)),
        )
    members = {
        name: item for name, item in current_members(home, trust).items() if name not in without
    }
    missing = sorted(names - set(without) - members.keys())
    if missing:
        raise StateError(
            f"nothing is admitted yet from {', '.join(missing)}",
            hint="run `ddm-coord verify` when it has arrived, or leave it out on purpose: "
            + " ".join(f"--without {name}" for name in missing),
        )
    if not members:
        raise StateError("no site is left to assemble", hint="leave fewer sites out")
    return members


def assemble(
    home: CoordinatorFolder,
    target: Path,
    *,
    router: RouterKind | None,
    without: Collection[str],
    advance: Advance = lambda _: None,
) -> dict[str, Admitted]:
    """Writes and signs the ensemble folder `target`; returns its members.

    Raises:
        StateError: `target` exists, or a site is missing.
    """
    if target.exists():
        raise StateError(
            f"{target} exists already", hint="an ensemble is never changed; choose another folder"
        )
    trust, members = home.trust(), choose_members(home, without)
    write_ensemble(
        target,
        home.published,
        trust,
        {name: (item.bundle, item.receipt_file) for name, item in members.items()},
        router or trust.plan.router.kind,
        home.key(),
        advance=advance,
    )
    return members

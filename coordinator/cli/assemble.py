"""`ddm-coord assemble`: the admitted experts as one signed folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from coordinator.cli.options import CoordinatorOption, RouterName
from ddm_fed import console
from ddm_fed.errors import OptionError
from ddm_fed.storage.files import size_below

if TYPE_CHECKING:
    from coordinator.inbox.admission import Known
    from coordinator.workspace import CoordinatorFolder
    from ddm_fed.ensemble.folder import BuiltRouterFile


def assemble(
    target: Annotated[Path, typer.Argument(help="Folder to make.")],
    coordinator: CoordinatorOption = Path(),
    router: Annotated[
        str | None,
        typer.Option(
            help="prior, mixture, centroid or heads, or a folder that `router build` made. By "
            "default what the plan says."
        ),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="Leave this site out. May be given several times.")
    ] = None,
    accept: Annotated[
        list[str] | None,
        typer.Option(
            help="Accept this site's count, although it is far from that of its earlier "
            "bundle. May be given several times."
        ),
    ] = None,
) -> None:
    """Put the admitted experts together as a signed folder anyone can verify and sample.

    Example: ddm-coord assemble ensemble
    """
    from coordinator.workspace import CoordinatorFolder

    home = CoordinatorFolder.open(coordinator)
    with home.changing():
        assemble_and_say(home, target, _chosen_router(router), without or [], accept or [])


def _chosen_router(router: str | None) -> "RouterName | BuiltRouterFile | None":
    if router is not None and Path(router).is_dir():
        from ddm_fed.ensemble.router_folder import read_built

        return read_built(Path(router))
    kind = _router_name(router)
    if kind in ("replay", "hybrid"):
        raise OptionError(
            f"--router {kind}: such a router is made of samples",
            hint=f"give the folder that `ddm-coord router build --kind {kind}` made",
        )
    return kind


def _router_name(name: str | None) -> RouterName | None:
    """Returns the router of that name; none stays none."""
    if name is None or name in get_args(RouterName):
        return cast(RouterName | None, name)
    raise OptionError(
        f"--router {name}: neither a router nor a folder",
        hint=f"give one of {', '.join(get_args(RouterName))}, or the folder of a built router",
    )


def assemble_and_say(
    home: "CoordinatorFolder",
    target: Path,
    router: "RouterName | BuiltRouterFile | None",
    without: list[str],
    accept: list[str],
    known: "Known | None" = None,
) -> None:
    """Assembles, and says what there is to know about the sites' counts and what comes next."""
    from coordinator.ensembles import assemble as assembling
    from coordinator.ensembles.image_counts import sentence
    from coordinator.inbox.admission import begin

    assembling.require_free(target)
    chosen = assembling.choose(home, known or begin(home), without)
    for item in chosen.counted:
        if item.jumped or item.weighs < item.share - 1e-9:
            console.say(f"WARNING: {sentence(item)}")
    total = 2 * sum(
        size_below(home.blobs.path(digest))
        for item in chosen.members.values()
        for digest in item.sha256.values()
    )
    with console.moving_bytes("assembling", total) as advance:
        verified = assembling.write_chosen(
            home, chosen, target, router=router, accept=accept, advance=advance
        )
    names = ", ".join(member.site for member in verified.record.members)
    console.say(f"{target} is a signed ensemble of {names}")
    root = home.settings.root
    console.next_step(
        console.typed("ddm-coord", "verify", target, "--root", root),
        console.typed("ddm-coord", "sample", target, "--root", root, "--out", "samples"),
    )

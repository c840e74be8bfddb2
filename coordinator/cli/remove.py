"""`ddm-coord remove`: the end of a site's expert, and an ensemble without it."""

from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.assemble import assemble_and_say
from coordinator.cli.options import CoordinatorOption
from ddm_fed import console


def remove(
    site: Annotated[str, typer.Argument(help="The site that leaves.")],
    out: Annotated[Path, typer.Option(help="Folder to make: the ensemble without the site.")],
    reason: Annotated[
        str, typer.Option(help="The reason. Everybody who reads the log can read it.")
    ],
    coordinator: CoordinatorOption = Path(),
    delete_weights: Annotated[
        bool,
        typer.Option(
            "--delete-weights", help="Also delete its weights here. This cannot be undone."
        ),
    ] = False,
) -> None:
    """End the use of a site's expert: a signed removal in the log, and an ensemble without it.

    Experts are trained in isolation and the routers hold one row for each site, so the new ensemble
    is, bit for bit, the one that would have been assembled without the site.

    Example: ddm-coord remove hospital-b --reason "consent withdrawn" --out ensemble-2
    """
    from coordinator.ensembles import remove as removing
    from coordinator.workspace import CoordinatorFolder

    home = CoordinatorFolder.open(coordinator)
    with home.changing():
        removed = removing.remove(home, site, reason=reason, delete_weights=delete_weights)
        console.say(
            f"`{site}` is removed: entry {removed.removal.log_index} of the log says so, signed"
        )
        for digest, folder in removed.stale.items():
            console.say(f"STALE: ensemble {digest[:16]}…, assembled in {folder}")
        for digest, folder in removed.students.items():
            console.say(f"STALE: student {digest[:16]}…, distilled in {folder}")
        if removed.stale:
            console.say(
                "whatever was made from these is stale as well: samples, students distilled from "
                "them, routers trained on their samples. Make it again from the new ensemble; "
                "`ddm-coord verify ENSEMBLE --published PUBLISHED` finds copies elsewhere"
            )
        assemble_and_say(home, out, None, [], [], removed.known)

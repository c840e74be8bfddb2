"""`ddm-site import`: what comes back from the coordinator on a removable medium."""

from pathlib import Path
from typing import Annotated

import typer

from ddm_fed import console
from ddm_fed.commands.options import JsonOption
from sites.cli.options import (
    SiteOption,
)


def import_(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder on the medium.", exists=True, file_okay=False),
    ],
    site: SiteOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Read from a medium what the coordinator wrote: signed receipts, and its published folder.

    Everything is verified before it is kept. The published folder becomes published/ of the site.

    Example: ddm-site import /media/usb/ddm --site hospital-a
    """
    from ddm_fed.records import BundleState
    from sites.transport import removable_medium
    from sites.workspace import SiteFolder

    home = SiteFolder.open(site)
    with home.changing():
        found = removable_medium.bring_back(home, folder)
    if as_json:
        states = dict.fromkeys(found.admitted, BundleState.ADMITTED)
        states |= dict.fromkeys(found.waiting, BundleState.WAITING)
        states |= dict.fromkeys(found.wrong, BundleState.BAD_RECEIPT)
        console.show_json(
            {
                "submissions": [
                    {"submission_sha256": digest, "state": state}
                    for digest, state in states.items()
                ],
                "published": str(found.published) if found.published else None,
                "published_is_older": found.older,
            }
        )
    else:
        for digest in found.admitted:
            console.say(f"{digest[:16]}… admitted; the signed receipt is in receipts/")
        for digest in found.waiting:
            console.say(f"{digest[:16]}… has no receipt on this medium")
    if found.older:
        console.say(
            "WARNING: published/ on the medium is older than what this site saw before; it was "
            "left alone"
        )
    elif found.published is None:
        console.say("there is no published/ on the medium: the last one seen verified the receipts")
    else:
        console.say(f"{found.published} is the coordinator's newest: use it with --plan")
    for error in found.wrong.values():
        console.show_error(error)
    if found.wrong:
        raise typer.Exit(1)

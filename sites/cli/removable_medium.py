"""`ddm-site export` and `import`: to the coordinator and back without any network."""

from pathlib import Path
from typing import Annotated

import typer

from ddm_fed import console
from ddm_fed.storage.files import size_below
from sites.cli.options import JsonOption, PlanOption, SiteOption, open_published
from sites.cli.submit import show_submitted


def export(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder on the medium; made if it is not there.", file_okay=False),
    ],
    plan: PlanOption,
    site: SiteOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Write released bundles to a removable medium, for a coordinator that no network leads to.

    Safe to run again at any time: it goes on from where it came to. Bundles of several sites may
    share a removable medium. They stay here in any case.

    Example: ddm-site export /media/usb/ddm --site hospital-a --plan published
    """
    from sites.transport import removable_medium

    home, published = open_published(site, plan)
    with home.changing():
        bar = console.moving_bytes(f"writing {home.settings.name}", size_below(home.released))
        with bar as advance:
            found = removable_medium.export(home, published.trust, folder, advance=advance)
    show_submitted(found, as_json)
    console.next_step(
        "unmount the medium, and take it to the coordinator",
        console.typed("ddm-coord", "import", folder),
        f"{console.typed('ddm-site', 'import', folder, '--site', site)}, when it is back",
    )


def import_(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder on the medium.", exists=True, file_okay=False),
    ],
    site: SiteOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Take from a medium what the coordinator wrote: signed receipts, and its published folder.

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
        console.say("there is no published/ on the medium: receipts were checked by the last one")
    else:
        console.say(f"{found.published} is the coordinator's newest: use it with --plan")
    for error in found.wrong.values():
        console.show_error(error)
    if found.wrong:
        raise typer.Exit(1)

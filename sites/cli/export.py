"""`ddm-site export`: to the coordinator on a removable medium, without any network."""

from pathlib import Path
from typing import Annotated

import typer

from ddm_fed import console
from ddm_fed.commands.options import JsonOption
from ddm_fed.storage.files import size_below
from sites.cli.options import (
    PlanOption,
    SiteOption,
    open_published,
)
from sites.cli.submit import show_submitted


def export(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder on the medium. It is made if it is missing.", file_okay=False),
    ],
    plan: PlanOption,
    site: SiteOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Write released bundles to a removable medium, for a coordinator without a network.

    Safe to run again at any time: it continues where it stopped. Several sites may share a medium.
    The bundles stay here in any case.

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

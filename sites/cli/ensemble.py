"""`ddm-site ensemble`: the newest ensemble, over a network."""

from pathlib import Path
from typing import Annotated

import typer

from ddm_fed import console
from sites.cli.options import (
    AddressOption,
    PlanOption,
    SiteOption,
    TimeoutOption,
    open_published,
)


def ensemble(
    plan: PlanOption,
    source: AddressOption,
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    site: SiteOption = Path(),
    timeout: TimeoutOption = 300.0,
) -> None:
    """Fetch the newest ensemble, and verify it. If it is cut off, run it again to continue.

    Example: ddm-site ensemble --plan published --from grpcs://consortium.example:8443 --out best
    """
    from sites.transport.address import Address
    from sites.transport.fetch import fetch_ensemble

    home, published = open_published(site, plan)
    address = Address.parse(source)
    with console.moving_bytes("fetching the ensemble", 0) as advance:
        found = fetch_ensemble(
            home, address, published.trust, out, timeout_s=timeout, advance=advance
        )
    members = ", ".join(member.site for member in found.record.members)
    console.say(f"{out} is a verified ensemble of {members}")
    words = (out, "--site", site, "--out", "samples")
    console.next_step(console.typed("ddm-site", "sample", *words))

"""`ddm-site rotate`: new keys, certificates or officers."""

from pathlib import Path
from typing import Annotated

import typer

from ddm_fed import console
from ddm_fed.errors import OptionError
from sites.cli.options import (
    PlanOption,
    SiteOption,
    open_published,
)


def rotate(
    plan: PlanOption,
    site: SiteOption = Path(),
    dpo: Annotated[
        Path | None,
        typer.Option(help="Public key file of a new data-protection officer.", dir_okay=False),
    ] = None,
    lost: Annotated[
        bool, typer.Option("--lost", help="The present key is lost; do not sign with it.")
    ] = False,
    certificate: Annotated[
        bool,
        typer.Option(
            "--certificate", help="Make only a new certificate for connections; keep the keys."
        ),
    ] = False,
) -> None:
    """Make a new key or certificate, or name a new officer, and write the request for it.

    Examples: ddm-site rotate --site hospital-a --plan published · ddm-site rotate --certificate
    --site hospital-a --plan published
    """
    from ddm_fed.signing import read_public
    from sites import rotation

    if certificate and (lost or dpo is not None):
        raise OptionError(
            "--certificate changes no key, so --lost and --dpo mean nothing with it",
            hint="leave them out, or leave --certificate out",
        )
    home, published = open_published(site, plan)
    with home.changing():
        if certificate:
            file = rotation.add_certificate(home, published.trust)
        elif dpo is None:
            file = rotation.replace_site_key(home, published.trust, lost=lost)
        else:
            file = rotation.replace_officer(home, published.trust, read_public(dpo))
    console.say(f"wrote {file}")
    if dpo is not None:
        console.say("the new officer signs it with `ddm-site approve` first")
    words = ("ddm-coord", "roster", "rotate", file.name, *(("--lost",) if lost else ()))
    console.next_step(f"the coordinator runs {console.typed(*words)}")

"""`ddm-site receipts`: take over what a mover brought back."""

from pathlib import Path
from typing import Annotated

import typer

from ddm_fed import console
from sites.options import JsonOption, PlanOption, SiteOption, open_published


def receipts(
    plan: PlanOption,
    source: Annotated[
        Path, typer.Option("--from", help="Where the SuperNode lays them down.", file_okay=False)
    ],
    site: SiteOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Verify the receipts that arrived over Flower, and keep them. Safe to run at any time.

    Example: ddm-site receipts --site hospital-a --plan published --from /srv/ddm-receipts
    """
    from sites.receipts import collect_receipts

    home, published = open_published(site, plan)
    with home.changing():
        found = collect_receipts(home, published.trust, source)
    refused = [error for _, error in found if error is not None]
    if as_json:
        facts = [
            {"submission_sha256": digest, "admitted": error is None} for digest, error in found
        ]
        console.show_json(facts)
    else:
        for digest, error in found:
            if error is None:
                console.say(f"{digest[:16]}… admitted; the signed receipt is in receipts/")
    for error in refused:
        console.show_error(error)
    if refused:
        raise typer.Exit(1)

"""`ddm-site submit`: released bundles to the coordinator, whichever way leads there."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddm_fed import console
from ddm_fed.commands.options import JsonOption
from ddm_fed.storage.files import size_below
from sites.cli.options import (
    PlanOption,
    SiteOption,
    TimeoutOption,
    open_published,
)

if TYPE_CHECKING:
    from sites.transport.submit import Submitted

MEANINGS = {
    "sent": "sent; run this again later to collect the receipt",
    "waiting": "is waiting for the coordinator",
    "admitted": "admitted; the signed receipt is in receipts/",
    "refused": "was refused; see the error below",
    "earlier plan": "is of an earlier plan and was never admitted; it is not sent",
    "earlier reference": "has a head for a reference that was replaced; it is not sent",
    "earlier key": "is signed with a key that was replaced; run `ddm-site train` again",
    "revoked key": "is signed with a key that was revoked and is not sent",
    "superseded": "is not sent: a newer one was admitted",
    "expired": "has expired and is not sent; run `ddm-site train` again to sign it anew",
    "from the future": "was signed while this machine's clock was ahead and is not sent; run "
    "`ddm-site train` again to sign it anew",
    "damaged": "is damaged here and is not sent; restore it from backup, or run `ddm-site train` "
    "again to sign it anew",
    "held back": "is not sent, because it would be refused; see the error below",
    "bad receipt": "has a receipt that does not verify; see the error below",
}


def submit(
    plan: PlanOption,
    to: Annotated[
        str,
        typer.Option(
            help="A folder (the coordinator's inbox, a share, a medium), a URL such as "
            "s3://… or sftp://…, or grpcs://HOST:PORT."
        ),
    ],
    site: SiteOption = Path(),
    timeout: TimeoutOption = 300.0,
    as_json: JsonOption = False,
) -> None:
    """Send released bundles and collect receipts. Safe to run again at any time.

    An upload that was cut off continues where it stopped. The bundle stays here in any case.

    Examples: ddm-site submit --plan published --to /mnt/share/inbox · ddm-site submit --plan
    published --to grpcs://consortium.example:8443
    """
    from sites.transport.opening import transport_to
    from sites.transport.submit import submit

    home, published = open_published(site, plan)
    with home.changing():
        transport = transport_to(to, home, published.trust, timeout_s=timeout)
        size = size_below(home.released)
        with console.moving_bytes(f"sending {home.settings.name}", size) as advance:
            found = submit(home, published.trust, transport, advance=advance)
    show_submitted(found, as_json)


def show_submitted(found: "list[Submitted]", as_json: bool) -> None:
    """Says where every released bundle stands; ends with exit status 1 if one needs attention."""
    if as_json:
        console.show_json(
            [
                {
                    "submission_sha256": item.digest,
                    "state": item.state,
                    "code": item.error.code if item.error else None,
                    "reason": item.error.message if item.error else None,
                }
                for item in found
            ]
        )
    else:
        for item in found:
            console.say(f"{item.digest[:16]}… {MEANINGS[item.state]}")
    wrong = [item.error for item in found if item.error is not None]
    for error in wrong:
        console.show_error(error)
    if wrong:
        raise typer.Exit(1)

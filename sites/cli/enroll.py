"""`ddm-site enroll`: the request to be enrolled, sent over a network."""

from pathlib import Path
from typing import Annotated

import typer

from ddm_fed import console
from sites.cli.options import (
    SiteOption,
    TimeoutOption,
)


def enroll(
    to: Annotated[
        str,
        typer.Option(
            help="Where the coordinator takes requests: grpcs://HOST:PORT#sha256:…, as "
            "printed by `ddm-coord serve --enroll`."
        ),
    ],
    site: SiteOption = Path(),
    request: Annotated[
        Path | None,
        typer.Option(
            help="A request to send instead of the site's enrolment, for example "
            "rotation.dsse.json."
        ),
    ] = None,
    timeout: TimeoutOption = 60.0,
) -> None:
    """Send the request to be enrolled, or to have keys replaced. The coordinator's people decide.

    Example: ddm-site enroll --site hospital-a --to grpcs://consortium.example:8444#sha256:9f0c…
    """
    from ddm_fed.records import MAX_DOCUMENT_BYTES
    from ddm_fed.storage.files import read_bounded
    from sites.transport.address import Address
    from sites.transport.grpc import enroll
    from sites.workspace import ENROLMENT_FILE, SiteFolder

    home, address = SiteFolder.open(site), Address.parse(to)
    data = read_bounded(request or home.path / ENROLMENT_FILE, MAX_DOCUMENT_BYTES)
    if enroll(address, data, timeout_s=timeout):
        console.say("its keys are in the roster already")
        return
    console.say("the coordinator's people have the request, and will decide")
    fetch = console.typed("ddm-site", "fetch", "--site", site, "--from")
    console.next_step(
        f"read this key aloud to them: {home.newest_key().public.keyid}",
        f"once they have agreed: {fetch} grpcs://HOST:PORT#sha256:…",
    )

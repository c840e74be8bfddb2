"""What a site does over a network beside sending: ask to be enrolled, fetch what is published."""

from pathlib import Path
from typing import Annotated

import typer

from ddm_fed import console
from sites.cli.options import PlanOption, SiteOption, TimeoutOption, open_published

AddressOption = Annotated[
    str,
    typer.Option(
        "--from",
        help="The coordinator: grpcs://HOST:PORT, before the first fetch with #sha256:… behind it.",
    ),
]


def enroll(
    to: Annotated[
        str,
        typer.Option(
            help="Where the coordinator takes requests: grpcs://HOST:PORT#sha256:…, as "
            "`ddm-coord serve --enroll` prints it."
        ),
    ],
    site: SiteOption = Path(),
    request: Annotated[
        Path | None,
        typer.Option(help="Another request than the site's enrolment, such as rotation.dsse.json."),
    ] = None,
    timeout: TimeoutOption = 60.0,
) -> None:
    """Send the request to be enrolled, or to have keys replaced. People decide about it.

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
    console.say("the coordinator's people have the request, and decide about it")
    fetch = console.typed("ddm-site", "fetch", "--site", site, "--from")
    console.next_step(
        f"read them this key aloud: {home.newest_key().public.keyid}",
        f"once they say so: {fetch} grpcs://HOST:PORT#sha256:…",
    )


def fetch(source: AddressOption, site: SiteOption = Path(), timeout: TimeoutOption = 60.0) -> None:
    """Fetch plan, rosters, log and reference into the site's published folder, verified.

    Example: ddm-site fetch --site hospital-a --from grpcs://consortium.example:8443
    """
    from sites.published import known_trust
    from sites.transport.address import Address
    from sites.transport.fetch import PUBLISHED, fetch_published
    from sites.workspace import SiteFolder

    home, address = SiteFolder.open(site), Address.parse(source)
    with home.changing():
        found = fetch_published(home, address, known_trust(home), timeout_s=timeout)
    console.say(
        f"plan {found.trust.plan_sha256[:16]}…, roster {found.trust.roster.version}, log of "
        f"{found.log.size} leaves: {home.path / PUBLISHED}"
    )
    words = ("--site", site, "--plan", home.path / PUBLISHED, "--data", "DATA")
    console.next_step(console.typed("ddm-site", "train", *words))


def ensemble(
    plan: PlanOption,
    source: AddressOption,
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    site: SiteOption = Path(),
    timeout: TimeoutOption = 300.0,
) -> None:
    """Fetch the newest ensemble, and verify it. Cut off, the same command goes on.

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
    words = (out, "--root", home.settings.root, "--out", "samples")
    console.next_step(console.typed("ddm-coord", "sample", *words))

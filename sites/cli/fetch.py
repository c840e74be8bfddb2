"""`ddm-site fetch`: what the coordinator published, over a network."""

from pathlib import Path

from ddm_fed import console
from sites.cli.options import (
    AddressOption,
    SiteOption,
    TimeoutOption,
)


def fetch(source: AddressOption, site: SiteOption = Path(), timeout: TimeoutOption = 60.0) -> None:
    """Fetch and verify plan, rosters, log and reference, into the site's published folder.

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

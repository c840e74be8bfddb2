"""`ddm-site review`: what would leave, shown before anything does."""

from pathlib import Path
from typing import TYPE_CHECKING

from ddm_fed import console
from ddm_fed.commands.options import JsonOption
from sites.cli.options import (
    PlanOption,
    SiteOption,
    open_published,
)

if TYPE_CHECKING:
    from ddm_fed.records import EgressRecord, PrivacyStatement


def review(plan: PlanOption, site: SiteOption = Path(), as_json: JsonOption = False) -> None:
    """Show exactly what would leave with the newest draft, and what it costs. Sends nothing.

    Example: ddm-site review --site hospital-a --plan published
    """
    from sites.outbox import stages
    from sites.outbox.review_page import PAGE_FILE
    from sites.privacy.ledger import open_ledger

    home, published = open_published(site, plan)
    trust = published.trust
    with home.changing():
        seen = stages.review(home, trust)
    if as_json:
        console.show_json(seen.egress.model_dump(mode="json"))
        return
    show_review(seen.egress, seen.bundle.submission.privacy)
    since = len(open_ledger(home).entries()) - seen.egress.ledger_entries
    if since:
        console.say(f"spent since it was signed, and not in it: {since} ledger entries more")
    console.say(f"the same as a page for people: {seen.folder / PAGE_FILE}")
    release = console.typed("ddm-site", "release", "--site", site, "--plan", plan)
    if "dpo" in seen.egress.require:
        approve = console.typed("ddm-site", "approve", seen.folder, "--key", "DPO.pem")
        console.next_step(f"the officer runs {approve}, here or elsewhere", release)
    else:
        console.next_step(release)


def show_review(egress: "EgressRecord", privacy: "PrivacyStatement") -> None:
    """Prints what would leave, what it costs and what no epsilon covers: for review and approve."""
    from ddm_fed.privacy import LEDGER_COLUMNS, describe_held, describe_privacy, ledger_rows

    console.show_table(
        f"Would leave {egress.site} (submission {egress.submission_sha256[:16]}…)",
        ["file", "bytes", "SHA-256"],
        [[file.name, f"{file.size_bytes:,}", file.sha256[:16] + "…"] for file in egress.files],
    )
    console.say(
        f"all that was ever released with noise: epsilon {egress.releases_epsilon} at delta "
        f"{egress.delta}, {egress.ledger_entries} ledger entries; needs the signatures of "
        f"{' and '.join(egress.require)}"
    )
    for line in describe_privacy(privacy):
        console.say(f"- {line}")
    if egress.held_expert is not None:
        console.say(f"- {describe_held(expert_is_private=egress.expert_is_private)}")
    console.show_table(
        f"Ledger of {egress.site}: what carries noise adds up to epsilon "
        f"{egress.releases_epsilon} at delta {egress.delta}",
        LEDGER_COLUMNS,
        ledger_rows(privacy.ledger),
    )

"""`ddm-site release`: the reviewed draft may leave."""

from pathlib import Path

from ddm_fed import console
from sites.cli.options import (
    PlanOption,
    SiteOption,
    open_published,
)


def release(plan: PlanOption, site: SiteOption = Path()) -> None:
    """Let the reviewed draft leave: move it to outbox/released, the only place that is ever sent.

    Example: ddm-site release --site hospital-a --plan published
    """
    from sites.outbox import stages

    home, published = open_published(site, plan)
    trust = published.trust
    with home.changing():
        target = stages.release(home, trust)
    console.say(f"released {target}")
    words = ("ddm-site", "submit", "--site", site, "--plan", plan, "--to", "INBOX")
    console.next_step(console.typed(*words))

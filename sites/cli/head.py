"""`ddm-site head`: the site's part of a router that sites learn apart."""

from pathlib import Path
from typing import Annotated

import typer

from ddm_fed import console
from sites.cli.options import (
    AutoencoderOption,
    DataOption,
    MaxBadOption,
    PlanOption,
    SiteOption,
    ValueRangeOption,
    YesOption,
    into_plan_space,
    open_plan_autoencoder,
    open_published,
    read_images,
    settle_doubts,
    show_data,
)


def head(
    plan: PlanOption,
    data: DataOption,
    site: SiteOption = Path(),
    value_range: ValueRangeOption = None,
    max_bad_fraction: MaxBadOption = 0.05,
    autoencoder: AutoencoderOption = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Makes experiments without noise reproducible. By default random and secret."
        ),
    ] = None,
    yes: YesOption = False,
) -> None:
    """Train the site's head of the router against the published reference, and sign it.

    For plans with router.kind = "heads", after `train` and the coordinator's `reference`. The new
    bundle holds the expert and the release again, and replaces the first one.

    Example: ddm-site head --plan published --data digits
    """
    from ddm_fed.bundle.reference import read_reference
    from ddm_fed.progress import Watch
    from ddm_fed.trust.published import published_folder
    from sites.outbox.stages import find_bundles
    from sites.train.head import run_head

    home, published = open_published(site, plan)
    trust, name = published.trust, home.settings.name
    reference = read_reference(published_folder(plan), trust)
    coder = open_plan_autoencoder(autoencoder, trust.plan)
    with home.changing():
        images, report = read_images(home, data, trust.plan, value_range, max_bad_fraction)
        show_data(name, report)
        settle_doubts(report, yes=yes)
        images = into_plan_space(home, images, coder)
        steps = trust.plan.router.head.steps if trust.plan.router.kind == "heads" else 0
        with console.counting(f"training the head of {name}", steps, "steps") as update:
            bundle = run_head(
                home,
                trust,
                published.log,
                reference,
                images,
                seed=seed,
                watch=Watch(lambda now: update(now.step, f"loss {now.loss:.4f}"), say=console.say),
            )
        drafts = find_bundles(home.drafts)
    console.say(f"{name}: signed bundle {bundle}")
    step = ("review",) if bundle in drafts else ("submit", "--to", "INBOX")
    console.next_step(console.typed("ddm-site", *step, "--site", site, "--plan", plan))

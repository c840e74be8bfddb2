"""`ddm-site plan`: a plan that a site proposes."""

from pathlib import Path
from typing import Annotated

import typer

from ddm_fed import console
from ddm_fed.commands.plan_new import (
    ChannelsOption,
    ClassesOption,
    EpsilonOption,
    FederationOption,
    HoursOption,
    MachineOption,
    OutOption,
    SitesOption,
    SizeOption,
    TextEncoderOption,
    UnitsOption,
    new_plan,
)
from sites.cli.options import SOURCES

app = typer.Typer(name="plan", no_args_is_help=True, help="Propose a plan to the coordinator.")


@app.callback()
def _group() -> None:
    """Propose a plan to the coordinator."""


@app.command()
def new(
    out: OutOption = Path("plan.toml"),
    data: Annotated[
        str | None,
        typer.Option(
            help=f"Take size and channels from these images, and nothing else of them. {SOURCES}"
        ),
    ] = None,
    federation: FederationOption = None,
    size: SizeOption = None,
    channels: ChannelsOption = None,
    classes: ClassesOption = None,
    text_encoder: TextEncoderOption = None,
    sites: SitesOption = None,
    epsilon: EpsilonOption = None,
    machine: MachineOption = None,
    hours: HoursOption = None,
    units: UnitsOption = 1000,
    site: Annotated[
        Path | None,
        typer.Option("--site", help="The site's folder, for the federation.", envvar="DDM_SITE"),
    ] = None,
) -> None:
    """Write a plan to propose, with comments, from five questions: by options or on a terminal.

    A plan is published, and no ledger counts what it tells. So of the data only their form is
    taken, never a count or a pixel: whatever follows from the images would be a release without
    noise.

    Example: ddm-site plan new --federation digits --data digits --classes none --sites 3
    --epsilon 8 --machine cpu --hours 8
    """
    from sites.data.form import form_of
    from sites.published import known_trust
    from sites.workspace import SiteFolder

    if federation is None and site is not None:
        trust = known_trust(SiteFolder.open(site))
        federation = None if trust is None else trust.plan.federation
    suggested = "none"
    if data is not None:
        form = form_of(data)
        size, channels = size or f"{form.height}x{form.width}", channels or str(form.channels)
        suggested = ",".join(form.folders) or suggested
        console.say(f"images become {size}, {'grey' if channels == '1' else 'colour'}")
        if form.folders and classes is None:
            console.say("classes are published: never names of patients")
    new_plan(
        out,
        federation=federation,
        size=size,
        channels=channels,
        classes=classes,
        text_encoder=text_encoder,
        sites=sites,
        epsilon=epsilon,
        machine=machine,
        hours=hours,
        units=units,
        suggested_classes=suggested,
    )
    console.next_step(f"send {out} to the coordinator: it is a proposal, which they publish")

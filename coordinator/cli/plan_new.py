"""`ddm-coord plan new`: a first plan from five questions."""

from pathlib import Path

from coordinator.cli.options import CoordinatorOption
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


def new(
    out: OutOption = Path("plan.toml"),
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
    coordinator: CoordinatorOption = Path(),
) -> None:
    """Write a first plan.toml, with comments, from five questions: by options or on a terminal.

    Example: ddm-coord plan new --federation digits --size 28 --channels 1 --classes none
    --sites 3 --epsilon 8 --machine cpu --hours 8
    """
    if federation is None and (coordinator / "coordinator.toml").exists():
        from coordinator.workspace import CoordinatorFolder

        federation = CoordinatorFolder.open(coordinator).settings.federation
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
    )
    show = console.typed("ddm-coord", "plan", "show", out)
    at = () if coordinator == Path() else ("--coordinator", coordinator)
    console.next_step(show, console.typed("ddm-coord", "publish", out, *at))

"""`ddm-site doctor`: whether all is in order, and what a run would take, before it is begun."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddm_fed import console
from ddm_fed.commands.options import JsonOption
from sites.cli.options import (
    SOURCES,
    MaxBadOption,
    SiteOption,
    TimeoutOption,
    ValueRangeOption,
)

if TYPE_CHECKING:
    from ddm_fed.privacy import ImageSet, Private
    from ddm_fed.records import Plan
    from sites.data import DataReport


def doctor(
    site: SiteOption = Path(),
    plan: Annotated[
        Path | None,
        typer.Option(
            help="The coordinator's published folder, or a plan.toml.",
            show_default="what the site was shown last",
            exists=True,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help=f"Also look at images, and measure a step of the run. {SOURCES}"),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option("--from", help="Also ask the coordinator's server: grpcs://HOST:PORT."),
    ] = None,
    value_range: ValueRangeOption = None,
    max_bad_fraction: MaxBadOption = 0.05,
    timeout: TimeoutOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Say what is in order and what is not, and why. Changes nothing and spends nothing.

    Keys, permissions, plan, roster, ledger, budget, clock, disk, memory, GPU. With --data it also
    says how long training would take here: by steps on made-up images. Ends with 1 if anything
    fails.

    Example: ddm-site doctor --site hospital-a --plan published --data images/
    """
    from ddm_fed.doctor import show
    from sites.data import load_images
    from sites.data.scratch import scratch_folder
    from sites.doctor import Examination
    from sites.transport.address import Address
    from sites.workspace import SiteFolder

    home = SiteFolder.open(site)

    def load(agreed: "Plan") -> "tuple[Private[ImageSet], DataReport]":
        # not into the site's own store: a doctor leaves nothing behind
        with scratch_folder() as store:
            return load_images(
                data or "",
                agreed.data,
                unit=agreed.privacy.unit,
                value_range=value_range,
                max_bad_fraction=max_bad_fraction,
                store=store,
                counting=console.counting,
            )

    looked = Examination(
        home,
        plan,
        None if server is None else Address.parse(server),
        None if data is None else load,
        timeout,
    )
    with console.waiting("looking"):
        looked.run()
    if not show(home.settings.name, looked.findings, looked.facts, as_json=as_json):
        raise typer.Exit(1)

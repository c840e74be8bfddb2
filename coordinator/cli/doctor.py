"""`ddm-coord doctor`: whether the coordinator is in order."""

from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.options import CoordinatorOption
from ddm_fed.commands.options import JsonOption


def doctor(
    coordinator: CoordinatorOption = Path(),
    backup: Annotated[
        Path | None,
        typer.Option(
            help="A copy of this folder, as a backup has it: also look at that.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is in order and what is not, and why. Changes nothing.

    Keys, permissions, roster, plan, log, inbox, room for what members may send, clock, the server's
    certificate, and a backup. Ends with 1 if anything fails.

    Example: ddm-coord doctor --coordinator consortium --backup /backup/consortium
    """
    from coordinator.doctor import examine
    from coordinator.workspace import CoordinatorFolder
    from ddm_fed.doctor import show

    home = CoordinatorFolder.open(coordinator)
    if not show(home.settings.federation, examine(home, backup), {}, as_json=as_json):
        raise typer.Exit(1)

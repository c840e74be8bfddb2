"""`ddm-coord export`: an ensemble in the forms that other programs load."""

from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.options import CoordinatorOption, RootOption
from ddm_fed import console
from ddm_fed.commands.sample import EnsembleOrStudent
from ddm_fed.storage.files import size_below

app = typer.Typer(
    name="export",
    no_args_is_help=True,
    help="Write an ensemble in a form that other programs load.",
)


@app.command()
def diffusers(
    ensemble: EnsembleOrStudent,
    out: Annotated[Path, typer.Option("--out", help="The folder to write; it must not exist.")],
    coordinator: CoordinatorOption = Path(),
    root: RootOption = None,
) -> None:
    """Write a folder that diffusers loads as a pipeline, around the signed folder as it is.

    The ensemble or the student is verified first; a stale one is refused. Whoever loads the folder
    needs diffusers and ddm-fed. Example: ddm-coord export diffusers ensemble --out pipeline
    """
    from coordinator.cli.open_ensemble import open_either
    from ddm_fed.export.diffusers_folder import write_diffusers_folder

    with console.moving_bytes(f"exporting {ensemble.name}", 2 * size_below(ensemble)) as advance:
        verified = open_either(ensemble, root, coordinator, advance=advance)
        own = write_diffusers_folder(out, verified, advance=advance)
    console.say(f"wrote {out}; its README.md says how to load it")
    if own:
        console.say(f"experts that diffusers loads by itself: {', '.join(own)}, in {out}/experts")

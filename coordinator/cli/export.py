"""`ddm-coord export`: an ensemble in the forms that other programs load."""

from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.options import CoordinatorOption, RootOption
from ddm_fed import console
from ddm_fed.commands.sample import EnsembleOrStudent
from ddm_fed.errors import OptionError
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


@app.command()
def onnx(
    ensemble: EnsembleOrStudent,
    out: Annotated[Path, typer.Option("--out", help="The file to write; it must not exist.")],
    site: Annotated[
        str | None, typer.Option("--site", help="Whose expert. A student has one network.")
    ] = None,
    coordinator: CoordinatorOption = Path(),
    root: RootOption = None,
) -> None:
    """Write the velocity of one expert as an ONNX file, compared with torch first.

    For one network without a mixture and without captions. Nobody signs the file; it names what it
    is of. Needs the extra `onnx` of ddm-fed.

    Example: ddm-coord export onnx ensemble --site hospital-a --out expert.onnx
    """
    from coordinator.cli.open_ensemble import open_either
    from ddm_fed.distillation.folder import VerifiedStudent
    from ddm_fed.distillation.sampling import student_expert
    from ddm_fed.ensemble.load import Mixtures, load_expert
    from ddm_fed.export.onnx_file import write_onnx

    with console.moving_bytes(f"verifying {ensemble.name}", size_below(ensemble)) as advance:
        verified = open_either(ensemble, root, coordinator, advance=advance)
    plan = verified.trust.plan
    notes = {"federation": plan.federation, "plan_sha256": verified.trust.plan_sha256}
    if isinstance(verified, VerifiedStudent):
        if site is not None:
            raise OptionError(
                f"--site {site}: a student is one network, of no site", hint="leave it out"
            )
        expert = student_expert(verified)
        notes |= {"student_sha256": verified.sha256, "weights_sha256": verified.weights_sha256}
    else:
        names = [bundle.site for bundle in verified.bundles]
        if site not in names:
            raise OptionError(
                f"--site {'is missing' if site is None else site}: one expert is exported",
                hint=f"give one of {', '.join(names)}",
            )
        place = names.index(site)
        expert = load_expert(verified, place, Mixtures(verified))
        bundle = verified.bundles[place]
        notes |= {"ensemble_sha256": verified.sha256, "site": site}
        notes |= {"submission_sha256": bundle.payload_sha256}
    with console.waiting("exporting"):
        off = write_onnx(out, expert, plan.data, notes)
    console.say(f"wrote {out}: at most {off:.1g} of the largest velocity from torch")

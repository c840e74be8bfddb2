"""`ddm-coord plan base`: a checkpoint of diffusers as what a plan's experts start from."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from coordinator.cli.open_plan import open_plan
from coordinator.cli.options import CoordinatorOption, RootOption
from ddm_fed import console
from ddm_fed.commands.options import JsonOption
from ddm_fed.errors import OptionError


def base(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder of a diffusers UNet2DModel or DiTTransformer2DModel, or of a pipeline.",
            exists=True,
            file_okay=False,
        ),
    ],
    plan: Annotated[
        Path,
        typer.Option(
            help="The plan.toml that it is for, or a folder with a signed plan.", exists=True
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="The safetensors file to write; it must not exist.")
    ],
    path: Annotated[
        Literal["linear", "cosine", "vp"] | None,
        typer.Option(help="The path it was trained on; by default what its scheduler says."),
    ] = None,
    prediction: Annotated[
        Literal["velocity", "noise", "image"] | None,
        typer.Option(help="What it predicts; by default what its scheduler says."),
    ] = None,
    coordinator: CoordinatorOption = Path(),
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a diffusers network as a base checkpoint, and print the lines that name it.

    Images and classes are the plan's; paste the lines into it. Every site needs the file. Example:
    ddm-coord plan base ddpm-cifar10-32 --plan plan.toml --out base.safetensors
    """
    from ddm_fed.export.base_file import Learned, write_base
    from ddm_fed.storage.tensors import Bounds

    if (path is None) != (prediction is None):
        raise OptionError(
            "--path and --prediction belong together",
            hint="give both, or leave out both where the folder has a scheduler",
        )
    if out.exists() or out.is_symlink():
        raise OptionError(f"--out {out} exists; nothing was written", hint="give a new file")
    agreed = open_plan(plan, coordinator, root)
    learned = None if path is None or prediction is None else Learned(path, prediction)
    with console.waiting("reading the checkpoint"):
        limits = agreed.submission
        bounds = Bounds(float(limits.max_absolute), float(limits.max_norm))
        written = write_base(folder, out, agreed.data, learned, bounds=bounds)
    for note in written.notes:
        console.say(f"WARNING: {note}")
    if as_json:
        facts = {"architecture": written.architecture, "sha256": written.sha256}
        kept = written.learned
        told = {"path": kept and kept.path, "prediction": kept and kept.prediction}
        console.show_json(facts | told | {"notes": list(written.notes)})
        return
    console.show_text(written.toml())
    console.say(
        f"Paste the lines into the plan, and give {out} to every site, which names it with --base. "
        "Experts of another path or prediction than the base draw its last layer anew."
    )

"""`ddm-coord sample`: images from an ensemble that verifies."""

from pathlib import Path
from time import monotonic
from typing import Annotated, Literal

import typer

from coordinator.cli.options import CoordinatorOption, RootOption, RouterName
from ddm_fed import console
from ddm_fed.commands.options import finite
from ddm_fed.errors import OptionError

SolverName = Literal["euler", "midpoint", "heun", "dpm++2m", "sde"]  # flows' own would load torch


def sample(
    ensemble: Annotated[Path, typer.Argument(help="The ensemble's folder.", file_okay=False)],
    out: Annotated[
        Path, typer.Option(help="Folder for images/, samples.npz, grid.png, samples.json.")
    ],
    coordinator: CoordinatorOption = Path(),
    root: RootOption = None,
    count: Annotated[int, typer.Option(help="Number of samples.", min=1)] = 64,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="sticky, by default: every image by one expert, each site by its share. Or "
            "sticky-then-routed[-T], per-step, full, threshold-W, top-K: these ask the router."
        ),
    ] = None,
    router: Annotated[
        RouterName | None, typer.Option(help="By default what it was assembled with.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Solver steps.", min=1)] = 50,
    solver: Annotated[SolverName, typer.Option(help="How a step is made.")] = "heun",
    guidance: Annotated[
        float,
        typer.Option(
            help="Strength of the class; 1 is as trained, more costs twice.", callback=finite
        ),
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Same seed, same images.")] = 0,
    label: Annotated[
        str | None,
        typer.Option(
            "--class",
            help="Draw this class only. By default every class, as often as the sites have it.",
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Images an expert is given at once.", min=1)
    ] = 256,
    in_flight: Annotated[
        int, typer.Option(help="Samples worked on together; a kill loses no more.", min=1)
    ] = 1024,
    resident: Annotated[
        int | None, typer.Option(help="Most experts in memory at once; all by default.", min=1)
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Of the arithmetic.")
    ] = "float32",
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="cpu, cuda or cuda:1; several take the experts in turn. By default the GPU, if "
            "there is one."
        ),
    ] = None,
    offload: Annotated[
        bool,
        typer.Option(
            "--offload", help="Keep experts that gave way to others in the processor's memory."
        ),
    ] = False,
    attribution: Annotated[
        bool,
        typer.Option("--attribution", help="Say which sites every sample came from, and how much."),
    ] = False,
    no_png: Annotated[
        bool, typer.Option("--no-png", help="Write no PNG of each sample into images/.")
    ] = False,
) -> None:
    """Verify an ensemble, then draw images from it. The same command continues a killed run.

    Where the coordinator's folder is at hand, an ensemble that became stale is refused.

    Example: ddm-coord sample ensemble --root sha256:3b6a… --count 100 --out samples
    """
    from coordinator.cli.open_ensemble import open_current
    from ddm_fed.ensemble.devices import chosen_devices
    from ddm_fed.ensemble.samples import DrawOptions, draw
    from ddm_fed.ensemble.velocity import Strategy

    try:
        chosen = None if strategy is None else Strategy.parse(strategy)
    except ValueError as error:
        raise OptionError(f"--strategy: {error}", hint="see `ddm-coord sample --help`") from None
    options = DrawOptions(
        count=count,
        strategy=chosen,
        router=router,
        steps=steps,
        solver=solver,
        seed=seed,
        label=label,
        batch_size=batch_size,
        guidance=guidance,
        in_flight=in_flight,
        resident=resident,
        precision=precision,
        png=not no_png,
        devices=chosen_devices(device),
        offload=offload,
        attribution=attribution,
    )
    verified = open_current(ensemble, root, coordinator)
    with console.counting("sampling", count, "samples") as show:
        started, before = monotonic(), -1

        def update(done: int) -> None:
            nonlocal started, before
            if before < 0:  # loading and what an earlier run finished are no part of the speed
                started, before = monotonic(), done
            show(done, f"{(done - before) / max(monotonic() - started, 1e-9):.1f} images/s")

        summary = draw(verified, out, options, update=update)
    console.say(f"{count} samples in {out}, for example {out / 'grid.png'}")
    if summary["site_counts"] is not None:
        drawn = (f"{site} {count}" for site, count in summary["site_counts"].items())
        console.say(f"drawn from {', '.join(drawn)}")
    for note in summary["notes"]:
        console.say(f"NOTE: {note}")
    if summary["attribution"] is not None:
        # which site is due a sample depends on its class
        intended = summary["intended_shares_of_labels"] or summary["intended_shares"]
        console.show_table(
            f"Which sites the {count} samples came from",
            ["site", "intended share", "mean part", "largest part in"],
            [
                [
                    site,
                    f"{intended[site]:.3f}",
                    f"{part['mean_part']:.3f}",
                    f"{part['largest_in']} samples",
                ]
                for site, part in summary["attribution"].items()
            ],
        )

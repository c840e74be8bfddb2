"""Sampling from the command line: the options, once for both programs, and what is shown."""

from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ddm_fed import console
from ddm_fed.commands.options import EmbedderOption, finite, part_of
from ddm_fed.errors import OptionError

if TYPE_CHECKING:
    from ddm_fed.distillation.opening import Sampled
    from ddm_fed.ensemble.pool import Elsewhere
    from ddm_fed.ensemble.sample_folder import SampleOptions

# as in `ddm_fed.records` and `ddm_fed.flows`, which would load pydantic and torch for --help
RouterName = Literal["prior", "mixture", "centroid", "heads", "replay", "hybrid"]
SolverName = Literal["euler", "midpoint", "heun", "dpm++2m", "sde"]
EnsembleArgument = Annotated[
    Path, typer.Argument(help="The ensemble's folder.", exists=True, file_okay=False)
]
EnsembleOrStudent = Annotated[
    Path,
    typer.Argument(
        metavar="ENSEMBLE",
        help="The folder of an ensemble, or of a student.",
        exists=True,
        file_okay=False,
    ),
]
SamplesOption = Annotated[
    Path,
    typer.Option("--out", help="Folder for images/, samples.npz, grid.png and samples.json."),
]


@dataclass(frozen=True)
class SampleFlags:
    """Every option of `sample` that both programs have."""

    count: Annotated[int, typer.Option(help="Number of samples.", min=1)] = 64
    strategy: Annotated[
        str | None,
        typer.Option(
            help="By default sticky: one expert makes the whole image, and sites are "
            "drawn by their share. sticky-then-routed[-T], per-step, full, "
            "threshold-W, nucleus-P, top-K and sample-K ask the router."
        ),
    ] = None
    router_temperature: Annotated[
        float,
        typer.Option(
            help="Above 1 the router decides more evenly, below 1 more sharply; shares are exact "
            "at 1 only.",
            min=0.01,
            max=100.0,
            callback=finite,
        ),
    ] = 1.0
    router: Annotated[
        RouterName | None,
        typer.Option(help="Which router; by default the one that the ensemble was assembled with."),
    ] = None
    steps: Annotated[int, typer.Option(help="Solver steps.", min=1)] = 50
    solver: Annotated[SolverName, typer.Option(help="Which solver.")] = "heun"
    guidance: Annotated[
        float,
        typer.Option(
            help="Strength of the class or prompt. 1 is as trained; any other value costs twice "
            "the time.",
            callback=finite,
        ),
    ] = 1.0
    seed: Annotated[int, typer.Option(help="Same seed, same images.")] = 0
    label: Annotated[
        str | None,
        typer.Option(
            "--class",
            help="Make images of this class only. By default every class, as often as the "
            "sites have it.",
        ),
    ] = None
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="What the images are to show, under a plan with captions. May be given several "
            "times; samples take the prompts in turn."
        ),
    ] = None
    prompts: Annotated[
        Path | None, typer.Option(help="A text file with a prompt on every line, in UTF-8.")
    ] = None
    text_encoder: Annotated[
        Path | None,
        typer.Option(help="The plan's text encoder: the file whose digest the plan names."),
    ] = None
    batch_size: Annotated[
        int, typer.Option(help="The most images an expert is given at once.", min=1)
    ] = 256
    in_flight: Annotated[
        int,
        typer.Option(
            help="Number of samples worked on together. A killed run loses no more than these.",
            min=1,
        ),
    ] = 1024
    resident: Annotated[
        int | None, typer.Option(help="The most experts in memory at once. By default all.", min=1)
    ] = None
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Precision of the arithmetic.")
    ] = "float32"
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="cpu, cuda or cuda:1. By default the GPU, if there is one. May be given "
            "several times; experts are spread over them."
        ),
    ] = None
    offload: Annotated[
        bool,
        typer.Option(
            "--offload",
            help="Keep experts that had to make room in the processor's memory.",
        ),
    ] = False
    attribution: Annotated[
        bool,
        typer.Option("--attribution", help="Say how much of every sample came from which site."),
    ] = False
    autoencoder: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the plan's autoencoder, which decodes samples. Needed where the plan "
            "has `data.latent`."
        ),
    ] = None
    latents: Annotated[
        bool,
        typer.Option(
            "--latents",
            help="Keep latents in samples.npz; without --autoencoder, in place of images.",
        ),
    ] = False
    embedder_weights: EmbedderOption = None
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Draw the I-th of N parts only, such as 3/8: one machine or job each. The same "
            "command without it then puts all parts together, in the folder that they share or "
            "into which .part-samples of all were copied.",
        ),
    ] = None
    no_png: Annotated[
        bool, typer.Option("--no-png", help="Do not write a PNG of each sample into images/.")
    ] = False


def options_of(flags: SampleFlags) -> "SampleOptions":
    """Returns what `draw` takes.

    Raises:
        OptionError: a value means nothing, or this machine has no such device.
    """
    from ddm_fed.ensemble.devices import chosen_devices
    from ddm_fed.ensemble.prompts import prompts_of
    from ddm_fed.ensemble.sample_options import SampleOptions
    from ddm_fed.ensemble.sampling import SamplingOptions
    from ddm_fed.ensemble.strategy import DEFAULT_STRATEGY, Strategy

    try:
        strategy = Strategy.parse(flags.strategy) if flags.strategy else DEFAULT_STRATEGY
    except ValueError as error:
        raise OptionError(f"--strategy: {error}", hint="`sample --help` explains them") from None
    return SampleOptions(
        count=flags.count,
        sampling=SamplingOptions(
            strategy=strategy,
            steps=flags.steps,
            solver=flags.solver,
            seed=flags.seed,
            guidance=flags.guidance,
            temperature=flags.router_temperature,
            batch_size=flags.batch_size,
            in_flight=flags.in_flight,
            attribution=flags.attribution,
        ),
        router=flags.router,
        label=flags.label,
        resident=flags.resident,
        precision=flags.precision,
        png=not flags.no_png,
        devices=chosen_devices(flags.device),
        offload=flags.offload,
        prompts=prompts_of(flags.prompt or (), flags.prompts),
        text_encoder=flags.text_encoder,
        autoencoder=flags.autoencoder,
        latents=flags.latents,
        embedder_weights=flags.embedder_weights,
        part=_part(flags),
    )


def _part(flags: SampleFlags) -> tuple[int, int] | None:
    """Returns which part is drawn, checked against the number of chunks there are."""
    part, chunks = part_of(flags.part), -(-flags.count // flags.in_flight)
    if part is not None and part[1] > chunks:
        least = -(-flags.count // part[1])
        raise OptionError(
            f"--part {flags.part}: {flags.count} samples are {chunks} chunks of --in-flight "
            f"{flags.in_flight}, which every machine draws as a whole",
            hint=f"give all of them --in-flight {least} or less",
        )
    return part


def _counted(options: "SampleOptions") -> int:
    """Returns how many samples this command draws."""
    if options.part is None:
        return options.count
    first, every = options.part
    chunks = options.sampling.chunks(options.count)
    return sum(map(len, chunks[first - 1 :: every]))


def draw_and_show(
    verified: "Sampled",
    out: Path,
    flags: SampleFlags,
    elsewhere: "Elsewhere | None" = None,
) -> None:
    """Draws images into `out`, and shows how far it is and where they came from."""
    from ddm_fed.distillation.folder import VerifiedStudent
    from ddm_fed.distillation.sampling import require_no_experts_asked, sample_student
    from ddm_fed.ensemble.sample_folder import draw

    if isinstance(verified, VerifiedStudent):
        require_no_experts_asked(
            {
                "--strategy": flags.strategy is not None,
                "--router": flags.router is not None,
                "--router-temperature": flags.router_temperature != 1,
                "--attribution": flags.attribution,
                "--embedder-weights": flags.embedder_weights is not None,
                "--resident": flags.resident is not None,
                "--offload": flags.offload,
            }
        )
    options = options_of(flags)
    count = _counted(options)
    with console.counting("sampling", count, "samples") as show:
        started, before, done = monotonic(), -1, 0

        def advance(more: int) -> None:
            nonlocal started, before, done
            done += more
            if before < 0:  # loading and what an earlier run finished are no part of the speed
                started, before = monotonic(), done
            show(done, f"{(done - before) / max(monotonic() - started, 1e-9):.1f} images/s")

        if isinstance(verified, VerifiedStudent):
            summary = sample_student(verified, out, options, advance=advance)
        else:
            summary = draw(verified, out, options, elsewhere=elsewhere, advance=advance)
    if options.part is not None and "chunks" not in summary:
        console.say(f"all {options.count} samples are in {out} already")
        return
    if options.part is not None:
        console.say(
            f"{summary['chunks']} of {summary['of']} chunks are in {out}. When those of all parts "
            "are there, run the same without --part"
        )
        return
    shown = out / ("grid.png" if summary.get("decoded", True) else "samples.npz")
    console.say(f"{count} samples in {out}, for example {shown}")
    if summary["site_counts"] is not None:
        drawn = (f"{site} {count}" for site, count in summary["site_counts"].items())
        console.say(f"drawn from {', '.join(drawn)}")
    for note in summary["notes"]:
        console.say(f"NOTE: {note}")
    if summary["attribution"] is not None:
        # which site is due a sample depends on its class, or on its prompt
        intended = summary["intended_shares_of_labels"] or summary.get(
            "intended_shares_of_prompts", summary["intended_shares"]
        )
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

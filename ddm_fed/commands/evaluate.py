"""`evaluate` of both programs: how good and how fair samples are, measured by real images."""

from pathlib import Path
from typing import Annotated

import typer

from ddm_fed import console
from ddm_fed.commands.options import JsonOption


def evaluate(
    samples: Annotated[Path, typer.Argument(help="Folder that `sample` wrote.", file_okay=False)],
    real: Annotated[
        Path,
        typer.Option(
            help=".npz of real images that no site trained on, under `test_images` or `images`."
        ),
    ],
    train: Annotated[
        Path | None,
        typer.Option(
            help=".npz of real training images, under `train_images` or `images`. Needed "
            "for a classifier, for comparisons and to search for copies. May be the "
            "same file as --real."
        ),
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            help="Features to measure by: classifier, which is trained here on --train; inception; "
            "clip; or timm:NETWORK, such as timm:vit_small_patch14_dinov2.lvd142m.",
        ),
    ] = "classifier",
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Weights of the network of --features, a safetensors file. They are never "
            "downloaded."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for evaluation.json and pictures.", file_okay=False)
    ] = Path("evaluation"),
    seed: Annotated[int, typer.Option(help="Same seed, same figures.", min=0)] = 0,
    training_steps: Annotated[
        int, typer.Option(help="About how many steps a classifier is trained for.", min=1)
    ] = 2000,
    as_json: JsonOption = False,
) -> None:
    """Measure samples: fidelity, coverage, usefulness, copies, and the shares of the sites.

    Test images only measure: nothing is chosen by them. What cannot be measured is named.
    Examples: ddm-site evaluate samples --real pneumonia.npz --train pneumonia.npz · ddm-coord
    evaluate samples --real pneumonia.npz --features inception --weights inception.safetensors ·
    ddm-coord evaluate samples --real public.npz --features clip --weights clip.safetensors
    """
    from ddm_fed.evaluation.report import EvaluateOptions, evaluate
    from ddm_fed.evaluation.table import COLUMNS, rows_of

    options = EvaluateOptions(
        features=features,
        weights=weights,
        seed=seed,
        steps=training_steps,
    )
    report = evaluate(samples, real, out, options, train=train, say=console.say)
    console.say(f"wrote {out / 'evaluation.json'}")
    for name, reason in report["left_out"].items():
        console.say(f"left out: {name}: {reason}")
    if "warning" in report["protocol"]:
        console.say(f"WARNING: {report['protocol']['warning']}")
    if as_json:
        console.show_json(report)
        return
    inputs = report["inputs"]
    console.show_table(
        f"{inputs['samples']['count']} samples by {inputs['real']['count']} real images",
        COLUMNS,
        rows_of(report["results"]),
    )

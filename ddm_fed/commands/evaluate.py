"""`evaluate` of both programs: how good and how fair samples are, measured by real images."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ddm_fed import console
from ddm_fed.commands.options import JsonOption

FIGURES: dict[str, Callable[[dict[str, Any]], str]] = {
    "FID": lambda row: f"{row['frechet']:.3f}",
    "KID": lambda row: f"{row['kernel']['mean']:.5f} ± {row['kernel']['deviation']:.5f}",
    "precision": lambda row: f"{row['manifold']['precision']:.3f}",
    "recall": lambda row: f"{row['manifold']['recall']:.3f}",
    "density": lambda row: f"{row['manifold']['density']:.3f}",
    "coverage": lambda row: f"{row['manifold']['coverage']:.3f}",
}


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
        ["figure", "samples", "for comparison", "of"],
        rows_of(report["results"]),
    )


def rows_of(results: dict[str, Any]) -> list[list[str]]:
    """Returns the table's rows: figure, of samples, of real images or chance instead, counts."""
    rows = []
    if "fidelity" in results:
        found, base = results["fidelity"], results.get("baseline")
        of = f"{found['drawn']} by {found['real']}"
        for name, show in FIGURES.items():
            rows.append([name, show(found), show(base) if base else "", of])
    if "class_mix" in results:
        row = results["class_mix"]
        rows.append(["class shares apart", f"{row['apart']:.3f}", "", "evened out above and below"])
    if "two_sample" in results:
        row = results["two_sample"]
        rows.append(
            ["told from real (C2ST)", _share(row["accuracy"]), "0.500", _count(row["accuracy"])]
        )
    if "agreement" in results:
        row = results["agreement"]
        real = _share(row["real"]) if "real" in row else ""
        rows.append(["class recognised", _share(row["samples"]), real, _count(row["samples"])])
    if "tstr" in results:
        row = results["tstr"]
        shown = [
            _share(row[name]["accuracy"]) if name in row else "" for name in ("samples", "real")
        ]
        rows.append(["accuracy of training (TSTR)", *shown, _count(row["samples"]["accuracy"])])
    for space, row in results.get("memorization", {}).items():
        chance = {"closer": "0.500", "near_copies": f"at most {row['near_by_chance']:.3f}"}
        for name, title in (("closer", "nearer to training"), ("near_copies", "near copies")):
            share = row[name]
            rows.append([f"{title}, {space}", _share(share), chance[name], _count(share)])
    if "shares" in results:
        row = results["shares"]
        limit = f"by chance to {row['chance_high']:.3f}"
        if row["guidance"] != 1.0:
            limit = f"not exact: guidance {row['guidance']:g}"
        rows.append(["site-share error", _interval(row["error"], row), limit, str(row["samples"])])
    return rows


def _interval(value: float, row: dict[str, Any]) -> str:
    return f"{value:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _share(row: dict[str, Any]) -> str:
    return _interval(row["value"], row)


def _count(row: dict[str, Any]) -> str:
    return f"{row['hits']} of {row['total']}"

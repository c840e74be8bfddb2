"""An evaluation's figures as the rows of a table, for the screen and for reports."""

from collections.abc import Callable
from typing import Any

COLUMNS = ("figure", "samples", "for comparison", "of")
FIGURES: dict[str, Callable[[dict[str, Any]], str]] = {
    "FID": lambda row: f"{row['frechet']:.3f}",
    "KID": lambda row: f"{row['kernel']['mean']:.5f} ± {row['kernel']['deviation']:.5f}",
    "precision": lambda row: f"{row['manifold']['precision']:.3f}",
    "recall": lambda row: f"{row['manifold']['recall']:.3f}",
    "density": lambda row: f"{row['manifold']['density']:.3f}",
    "coverage": lambda row: f"{row['manifold']['coverage']:.3f}",
}


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

"""Draws what the studies of this folder found: the picture of docs/paper.md.

Left: Frechet distance at equal training arithmetic by the number of islands, clusters of features
and random parts, one point for every seed. Right: what `full` and `top-1` make of exact and of
trained experts, with an exact and a learned router.

    python benchmarks/paper/plots.py --cells equal_arithmetic/cells.jsonl \
        --truth full_against_top1/cells.jsonl --out docs/paper.png
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

STYLES = {"feature": ("o", "-", "clusters of features"), "random": ("s", "--", "random parts")}
STRATEGIES = ("sticky", "full", "top-1")


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def draw_islands(axes: Any, rows: list[dict[str, Any]], steps: int) -> None:
    """Draws the FID of `sticky` without guidance over the number of islands."""
    found: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        kind, *cell = row["cell"]
        if (
            kind == "judged"
            and cell[2] == steps
            and cell[4:] == ["sticky", 1.0]
            and cell[0] in ("all", *STYLES)
        ):
            found.setdefault((cell[0], cell[1]), []).append(row["fid"])
    alone = found[("all", 1)]
    for division, (marker, line, name) in STYLES.items():
        points = {1: alone} | {k: seen for (d, k), seen in found.items() if d == division}
        counts = sorted(points)
        means = [sum(points[k]) / len(points[k]) for k in counts]
        axes.plot(counts, means, line, color="black", label=name, linewidth=1)
        for k in counts:
            axes.plot([k] * len(points[k]), points[k], marker, color="black", fillstyle="none")
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    axes.set_xlabel("islands (1: one network on all images)")
    axes.set_ylabel("Fréchet distance")
    axes.set_title("The same arithmetic for all")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def draw_truth(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Draws the FID of strategies where the truth is known."""
    found = {
        tuple(row["cell"][1:4]): row["fid"]
        for row in rows
        if row["cell"][0] == "sampled" and row["cell"][4:] == ["heun", 25]
    }
    pairs = [(e, r) for e, r, s in found if s == "full"]
    hatches = {"sticky": "", "full": "//", "top-1": "xx"}
    for place, (experts, router) in enumerate(pairs):
        for offset, strategy in enumerate(STRATEGIES):
            key = (experts, "exact" if strategy == "sticky" else router, strategy)
            if key in found:
                axes.bar(
                    place + 0.27 * (offset - 1),
                    found[key],
                    0.25,
                    color="white",
                    edgecolor="black",
                    hatch=hatches[strategy],
                    label=strategy if place == 0 else None,
                )
    chance = next(row["fid"] for row in rows if row["cell"] == ["chance"])
    axes.axhline(chance, color="black", linewidth=0.8, linestyle=":")
    axes.set_yscale("log")
    axes.set_yticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    axes.minorticks_off()
    axes.set_ylim(0.4, 30)
    told = {e: e if e == "exact" else e.removeprefix("network-") + " steps" for e, _ in pairs}
    names = [f"{told[e]},\n{r.split('-')[0]}" for e, r in pairs]
    axes.set_xticks(range(len(pairs)), names, fontsize=7)
    axes.set_xlabel("experts (exact, or a network of so many steps), router")
    axes.set_title("Where the truth is known (dotted: samples of it)")
    axes.legend(frameon=False, loc="upper left")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=Path, required=True)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000, help="of the training")
    parser.add_argument("--out", type=Path, default=Path("paper.png"))
    options = parser.parse_args()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    draw_islands(left, rows_of(options.cells), options.steps)
    draw_truth(right, rows_of(options.truth))
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()

"""Pictures of an evaluation. matplotlib is imported where it draws."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddm_fed.evaluation import nearest
from ddm_fed.evaluation.inputs import Pictures
from ddm_fed.pictures import write_grid


def write_counts(path: Path, results: dict[str, Any]) -> None:
    """Writes shares of sites and of classes as bars; nothing, where there are neither."""
    panels: dict[str, tuple[list[str], dict[str, list[float]]]] = {}
    if "shares" in results:
        rows = results["shares"]["sites"]
        count = results["shares"]["samples"]
        panels["share of each site"] = (
            list(rows),
            {
                "intended": [row["intended"] for row in rows.values()],
                "samples": [row["samples"] / count for row in rows.values()],
            },
        )
    if "classes" in results:
        counts = results["classes"]
        names = [str(index) for index in range(max(map(len, counts.values())))]
        panels["share of each class"] = (
            names,
            {name: [n / sum(each) for n in each] for name, each in counts.items()},
        )
    if not panels:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(panels), 3.5), layout="constrained")
    for axes, (title, (names, bars)) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        width = 0.8 / len(bars)
        for number, (label, heights) in enumerate(bars.items()):
            at = np.arange(len(names)) + (number - (len(bars) - 1) / 2) * width
            axes.bar(at, heights, width, label=label)
        axes.set_xticks(range(len(names)), names)
        axes.set_title(title)
        axes.legend()
    figure.savefig(path, dpi=120)


def write_neighbours(
    path: Path, chosen: NDArray[np.integer], drawn: Pictures, own: Pictures, held: Pictures
) -> None:
    """Writes samples, and below each the nearest training image and the nearest test image."""
    samples = drawn.rows()[chosen]
    strip = [
        drawn.images[chosen],
        *(each.images[nearest(samples, each.rows()).row] for each in (own, held)),
    ]
    write_grid(
        path, torch.from_numpy(np.concatenate(strip)).float() / 127.5 - 1, columns=len(chosen)
    )

"""Charts of a report as SVG, readable without colour. matplotlib is imported where it draws.

No clock, no setting of whoever draws: the same figures are the same bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING

from ddm_fed.router import TimeQuality

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, LINE = "#1d2327", "#59636b", "#d5d9dc"
COLOURS = ("#24557a", "#b5641b", "#4c7a4c", "#7a4c7a")
MARKS = ("o", "s", "^", "D")
DASHES = ("-", "--", ":", "-.")
STYLE = {
    "svg.hashsalt": "ddm-fed",
    "svg.fonttype": "path",  # the same letters on every machine
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "hatch.linewidth": 0.8,
    "text.parse_math": False,
}


def shares_chart(
    names: Sequence[str], intended: Sequence[float], obtained: Sequence[float]
) -> bytes:
    """Returns bars of intended and obtained shares, site by site, as SVG."""
    with _drawing(6.6, 0.9 + 0.52 * len(names)) as (figure, content):
        axes = figure.subplots()
        for offset, shares, label, fill, edge, hatch in (
            (-0.19, intended, "intended", "white", INK, ""),
            (0.19, obtained, "obtained", COLOURS[0], LINE, "///"),
        ):
            bars = axes.barh(
                [place + offset for place in range(len(names))],
                [100 * share for share in shares],
                0.36,
                label=label,
                color=fill,
                edgecolor=edge,
                hatch=hatch,
            )
            axes.bar_label(bars, [f"{100 * share:.1f}" for share in shares], padding=3, fontsize=8)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel("share of the samples, %")
        axes.margins(x=0.12)
        _legend_above(axes, 2)
        return _svg(figure, content)


def calibration_chart(curves: Mapping[str, Sequence[TimeQuality]]) -> bytes:
    """Returns how well routers know whose image they see, over time, as SVG."""
    with _drawing(6.6, 2.9) as (figure, content):
        left, right = figure.subplots(1, 2)
        for number, (name, found) in enumerate(curves.items()):
            times = [at.t for at in found]
            look = {
                "label": name,
                "color": COLOURS[number % len(COLOURS)],
                "marker": MARKS[number % len(MARKS)],
                "linestyle": DASHES[number % len(DASHES)],
                "markersize": 4,
            }
            left.errorbar(
                times, [at.nll for at in found], [at.nll_error for at in found], capsize=2, **look
            )
            right.plot(times, [100 * at.ece for at in found], **look)
        left.set_ylabel("surprise (NLL), nats")
        right.set_ylabel("calibration error, %")
        for axes in (left, right):
            axes.set_xlabel("t (0 image, 1 noise)")
            axes.set_ylim(bottom=0)
            axes.grid(color=LINE, linewidth=0.6)
            axes.set_axisbelow(True)
        _legend_above(left, 2)
        return _svg(figure, content)


@contextmanager
def _drawing(width: float, height: float) -> "Iterator[tuple[Figure, BytesIO]]":
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):
        yield Figure(figsize=(width, height), layout="constrained"), BytesIO()


def _legend_above(axes: "Axes", columns: int) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, frameon=False, borderaxespad=0.2
    )


def _svg(figure: "Figure", content: BytesIO) -> bytes:
    figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    return content.getvalue()

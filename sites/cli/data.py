"""`ddm-site data`: what training would see of the site's images, before anything is spent."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddm_fed import console
from ddm_fed.commands.options import JsonOption
from sites.cli.options import (
    SOURCES,
    MaxBadOption,
    ValueRangeOption,
    agreed_plan,
    show_data,
)

if TYPE_CHECKING:
    from ddm_fed.records import Plan
    from sites.data import DataReport
    from sites.data.check import Findings

app = typer.Typer(name="data", no_args_is_help=True, help="Look at images before training.")
SHOWN = 10  # names of a kind


@app.callback()
def _group() -> None:
    """Look at images before training."""


@app.command()
def check(
    source: Annotated[str, typer.Argument(help=f"The images: {SOURCES}")],
    plan: Annotated[
        Path,
        typer.Option(
            help="A plan.toml; or the coordinator's published folder, together with --site.",
            exists=True,
        ),
    ],
    site: Annotated[
        Path | None,
        typer.Option(
            help="The site's folder: what is decoded is kept there for training.",
            envvar="DDM_SITE",
            file_okay=False,
        ),
    ] = None,
    value_range: ValueRangeOption = None,
    max_bad_fraction: MaxBadOption = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Say what is in the data and what training would make of it. Trains and spends nothing.

    Counts, sizes, depths, classes, patients, copies and near copies, images of one shade, files
    that cannot be read, by name, and what is done to the rest. Nothing of it leaves this machine.

    Example: ddm-site data check images/ --plan published --site hospital-a
    """
    from sites.data import load_images, names_of
    from sites.data.check import check_images
    from sites.data.scratch import scratch_folder
    from sites.workspace import SiteFolder

    agreed, _ = agreed_plan(plan, site)
    # without a site the folder is gone once images are mapped from it: no kill leaves it after that
    with scratch_folder() if site is None else nullcontext(SiteFolder.open(site).images) as store:
        images, report = load_images(
            source,
            agreed.data,
            unit=agreed.privacy.unit,
            value_range=value_range,
            max_bad_fraction=max_bad_fraction,
            store=store,
            counting=console.counting,
        )
    with console.waiting("looking for copies"):
        found = check_images(images)
    rows = {row for group in (*found.copies, *found.near) for row in group}
    names = names_of(source, agreed.data, report, sorted(rows | set(found.constant)))
    if as_json:
        console.show_json(_facts(report, found, names))
    else:
        show_data("data", report)
        _show(agreed, report, found, names)


def _facts(report: "DataReport", found: "Findings", names: dict[int, str]) -> dict[str, Any]:
    return {
        "source": report.source,
        "images": report.count,
        "sizes": dict(report.sizes),
        "classes": report.classes,
        "values": report.values,
        "changes": report.notes,
        "left_out": report.left_out,
        "unreadable": report.skipped,
        "doubts": report.doubts,
        "copies": [[names[row] for row in rows] for rows in found.copies],
        "near_copies": [[names[row] for row in rows] for rows in found.near],
        "of_one_shade": [names[row] for row in found.constant],
        "across_units": found.across_units,
    }


def _show(plan: "Plan", report: "DataReport", found: "Findings", names: dict[int, str]) -> None:
    from sites.data.check import MOST_COMPARED

    channels, height, width = plan.data.pixel_shape
    console.say(f"training would see {report.count} images of {channels} x {height} x {width}")
    for size, count in report.sizes.most_common(SHOWN):
        console.say(f"  {count} are {size} in the files")
    if len(report.sizes) > SHOWN:
        console.say(f"  and {len(report.sizes) - SHOWN} other sizes")
    _list("are equal", [[names[row] for row in rows] for rows in found.copies])
    _list("are nearly equal", [[names[row] for row in rows] for rows in found.near])
    _list("are of one shade", [[names[row]] for row in found.constant])
    if found.across_units:
        unit = plan.privacy.unit
        console.say(
            f"  LOOK: {found.across_units} of these groups lie in several {unit}s. Epsilon "
            f"protects each {unit} by itself, so what lies in several is protected less."
        )
    if report.count > MOST_COMPARED:
        console.say(f"  near copies were looked for among the first {MOST_COMPARED:,} images")
    if not (found.copies or found.near or found.constant or report.skipped or report.doubts):
        console.say("nothing odd was found")


def _list(what: str, groups: list[list[str]]) -> None:
    if not groups:
        return
    things = "groups" if len(groups[0]) > 1 else "images"
    console.say(f"  {things} that {what}: {len(groups)}")
    for group in groups[:SHOWN]:
        more = f" and {len(group) - SHOWN} more" if len(group) > SHOWN else ""
        console.say(f"    {', '.join(group[:SHOWN])}{more}")
    if len(groups) > SHOWN:
        console.say(f"    and {len(groups) - SHOWN} more")

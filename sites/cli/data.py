"""`ddm-site data`: images before training: what it would see of them, and its longest reading."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddm_fed import console
from ddm_fed.commands.options import EmbedderOption, JsonOption, part_of
from sites.cli.options import (
    SOURCES,
    AutoencoderOption,
    MaxBadOption,
    SiteOption,
    ValueRangeOption,
    agreed_plan,
    into_plan_space,
    open_plan_autoencoder,
    read_images,
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


@app.command()
def prepare(
    source: Annotated[str, typer.Argument(help=f"The images: {SOURCES}")],
    plan: Annotated[
        Path,
        typer.Option(help="A plan.toml, or the coordinator's published folder.", exists=True),
    ],
    site: SiteOption,
    autoencoder: AutoencoderOption = None,
    embedder_weights: EmbedderOption = None,
    value_range: ValueRangeOption = None,
    max_bad_fraction: MaxBadOption = 0.05,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Encode and embed the I-th of N parts of the images only, such as 3/8: one "
            "machine or job each. The same command without it, or `train`, then checks the parts "
            "and puts them together.",
        ),
    ] = None,
) -> None:
    """Do the long part of reading before training: encode images, or embed them, as the plan asks.

    What is found is kept in the site's folder, where `train` finds it. It is as private as the
    images. Nothing is trained, spent or released. A kill loses some seconds.

    Example: ddm-site data prepare images/ --plan published --site hospital-a --autoencoder FOLDER
    """
    from ddm_fed.mixture import planned_directions
    from ddm_fed.records import read_plan_file
    from ddm_fed.trust.published import published_folder, read_published
    from sites.data import encode_part
    from sites.workspace import SiteFolder

    chosen, home = part_of(part), SiteFolder.open(site)
    if plan.suffix == ".toml":
        agreed = read_plan_file(plan)
    else:  # writes nothing beside the pieces, so that parts may start in the same moment
        agreed = read_published(published_folder(plan), home.settings.root).plan
    coder = open_plan_autoencoder(autoencoder, agreed)
    directions = planned_directions(agreed, embedder_weights)
    images, report = read_images(home, source, agreed, value_range, max_bad_fraction)
    name = home.settings.name
    show_data(name, report)
    if coder is None and directions is None:
        console.say(f"{name}: the plan has no latents and no centroids, so all is prepared")
        return
    own = report.count if chosen is None else -(-report.count // chosen[1])
    if directions is not None:
        with console.advancing(f"embedding the images of {name}", own, "images") as advance:
            if chosen is None:
                directions.keep(images.reveal(), home.directions, advance)
            else:
                own = directions.keep_part(images.reveal(), home.directions, chosen, advance)
    elif chosen is None:
        into_plan_space(home, images, coder)
    elif coder is not None:
        with console.advancing(f"encoding the images of {name}", own, "images") as advance:
            own = encode_part(images, coder, home.latents, chosen, advance)
    if chosen is not None:
        console.say(
            f"{name}: {own} of {report.count} images are done. When those of all parts are, run "
            "the same without --part, or train"
        )
    else:
        console.say(f"{name}: all {report.count} images are prepared")


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

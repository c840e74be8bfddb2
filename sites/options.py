"""Options that several commands of `ddm-site` share, and the way they open a site."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddm_fed import console

if TYPE_CHECKING:
    from sites.data import DataReport
    from sites.folder import SiteFolder
    from sites.seen import Published

SiteOption = Annotated[
    Path, typer.Option("--site", help="The site's folder.", envvar="DDM_SITE", file_okay=False)
]
PlanOption = Annotated[
    Path, typer.Option("--plan", help="The coordinator's published folder, or the plan in it.")
]
DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="`digits` (or digits:0-4), an .npz with images and labels, an .npy that is mapped "
        "into memory, or a folder of images.",
    ),
]
ValueRangeOption = Annotated[
    tuple[float, float] | None,
    typer.Option(
        "--value-range", help="Values that mean black and white, if the dtype does not say."
    ),
]
MaxBadOption = Annotated[
    float,
    typer.Option(
        "--max-bad-fraction",
        help="Most unreadable files in a folder, as a fraction.",
        min=0,
        max=1,
    ),
]
PatienceOption = Annotated[
    float,
    typer.Option(
        "--patience", help="Seconds without any progress after which a network is given up.", min=1
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")]


def open_published(site: Path, plan: Path) -> "tuple[SiteFolder, Published]":
    """Returns the site and what the published folder establishes, which it remembers."""
    from ddm_fed.published import published_folder
    from sites import seen
    from sites.folder import SiteFolder

    home = SiteFolder.open(site)
    with home.changing():
        published = seen.look(home, published_folder(plan))
    for digest in seen.entries_not_ours(home, published.log):
        console.say(
            f"WARNING: the log has the submission {digest[:16]}… in this site's name, which is not "
            "in its outbox. If nobody here released it, its key is stolen: have it revoked."
        )
    return home, published


def show_data(name: str, report: "DataReport") -> None:
    """Says what was found in the site's data, and what could not be read."""
    console.say(f"{name}: {report.count} images from {report.source}")
    for note in report.notes:
        console.say(f"  {note}")
    if report.skipped:
        console.say(f"  {len(report.skipped)} files could not be read and were left out:")
        for line in report.skipped:
            console.say(f"    {line}")

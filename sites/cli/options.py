"""Options that several commands of `ddm-site` share, and the way they open a site."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddm_fed import console
from ddm_fed.commands.options import finite

if TYPE_CHECKING:
    from ddm_fed.autoencoders import Autoencoder
    from ddm_fed.privacy import ImageSet, Private
    from ddm_fed.records import Plan
    from sites.data import DataReport
    from sites.published import Published
    from sites.workspace import SiteFolder

SiteOption = Annotated[
    Path, typer.Option("--site", help="The site's folder.", envvar="DDM_SITE", file_okay=False)
]
PlanOption = Annotated[
    Path, typer.Option("--plan", help="The coordinator's published folder, or the plan in it.")
]
SOURCES = (
    "`digits` (or digits:0-4), an .npz or .npy, a folder of images or DICOM files, a table of "
    "files (.csv, .jsonl), WebDataset shards (`shards-{000..099}.tar`) or .parquet files; "
    "dicom:FOLDER and the like where a folder holds several kinds."
)
DataOption = Annotated[str, typer.Option("--data", help=SOURCES)]
ValueRangeOption = Annotated[
    tuple[float, float] | None,
    typer.Option(
        "--value-range", help="The values of black and white, if the dtype does not tell."
    ),
]
MaxBadOption = Annotated[
    float,
    typer.Option(
        "--max-bad-fraction",
        help="The largest fraction of files in a folder that may be unreadable.",
        min=0,
        max=1,
        callback=finite,
    ),
]
TextEncoderOption = Annotated[
    Path | None,
    typer.Option(
        "--text-encoder",
        help="The plan's text encoder on this machine, where the plan has captions.",
    ),
]
AutoencoderOption = Annotated[
    Path | None,
    typer.Option(
        "--autoencoder",
        help="Folder of the autoencoder that the plan's `data.latent` names. Images are encoded "
        "once and kept in private/.",
    ),
]
YesOption = Annotated[
    bool,
    typer.Option(
        "--yes", help="Go on without asking if something about the data looks like a mistake."
    ),
]
TimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout",
        help="Give up after this many seconds without progress.",
        min=1,
        callback=finite,
    ),
]
AddressOption = Annotated[
    str,
    typer.Option(
        "--from",
        help="The coordinator: grpcs://HOST:PORT. Before the first fetch, add #sha256:….",
    ),
]


def open_published(site: Path, plan: Path) -> "tuple[SiteFolder, Published]":
    """Returns the site and what the published folder establishes, which it remembers."""
    from ddm_fed.trust.published import published_folder
    from sites import published as seen
    from sites.workspace import SiteFolder

    home = SiteFolder.open(site)
    with home.changing():
        published = seen.look(home, published_folder(plan))
    for digest in seen.entries_not_ours(home, published.log):
        console.say(
            f"WARNING: the log has the submission {digest[:16]}… in this site's name, which is not "
            "in its outbox. If nobody here released it, the site's key is stolen: have it revoked."
        )
    return home, published


def agreed_plan(plan: Path, site: Path | None) -> "tuple[Plan, str | None]":
    """Returns the plan of a plan.toml or a published folder, and its digest if it is published.

    Raises:
        OptionError: a published folder is given, and no site that verifies it.
        PlanError: the file is no plan.
    """
    from ddm_fed.errors import OptionError
    from ddm_fed.records import read_plan_file

    if plan.suffix == ".toml":
        return read_plan_file(plan), None
    if site is None:
        raise OptionError(
            "--site is missing: a published folder is verified for a site",
            hint="give --site as well",
        )
    _, published = open_published(site, plan)
    return published.trust.plan, published.trust.plan_sha256


def read_images(
    site: "SiteFolder",
    source: str,
    plan: "Plan",
    value_range: tuple[float, float] | None,
    max_bad_fraction: float,
) -> "tuple[Private[ImageSet], DataReport]":
    """Returns the images at `source` as the plan wants them, and what is to be said about them."""
    from sites.data import load_images

    return load_images(
        source,
        plan.data,
        unit=plan.privacy.unit,
        value_range=value_range,
        max_bad_fraction=max_bad_fraction,
        store=site.images,
        counting=console.counting,
    )


def open_plan_autoencoder(folder: Path | None, plan: "Plan") -> "Autoencoder | None":
    """Returns the plan's autoencoder, on the GPU if there is one; None where it has pixels."""
    from ddm_fed.autoencoders import open_autoencoder
    from ddm_fed.ensemble.devices import chosen_devices

    return open_autoencoder(folder, plan.data, chosen_devices(None)[0])


def into_plan_space(
    home: "SiteFolder", images: "Private[ImageSet]", autoencoder: "Autoencoder | None"
) -> "Private[ImageSet]":
    """Returns the images as the plan trains them: encoded, where it has an autoencoder."""
    if autoencoder is None:
        return images
    from sites.data import encode_images

    name, count = home.settings.name, len(images.reveal())
    with console.advancing(f"encoding the images of {name}", count, "images") as advance:
        latents = encode_images(images, autoencoder, home.latents, advance)
    console.say(f"{name}: {count} latents of {' x '.join(map(str, autoencoder.data.shape))}")
    return latents


def show_data(name: str, report: "DataReport") -> None:
    """Says what was found in the site's data, what was changed, and what was left out and why."""
    console.say(f"{name}: {report.count} images from {report.source}")
    if report.classes:
        shares = ", ".join(f"{of} {count}" for of, count in report.classes.items())
        console.say(f"  of the classes: {shares}")
    for line in (*report.values, *report.notes):
        console.say(f"  {line}")
    if report.seen:
        console.say(
            f"  of {report.seen} files seen {report.count} were taken, "
            f"{report.seen - report.count} left out"
        )
    for line in report.left_out_lines():
        console.say(f"    {line}")
    if report.skipped:
        console.say(f"    {len(report.skipped)} files could not be read:")
        for line in report.skipped:
            console.say(f"      {line}")
    for line in report.doubts:
        console.say(f"  LOOK: {line}.")


def settle_doubts(report: "DataReport", *, yes: bool) -> None:
    """Asks a person whether to go on, if the data look like a mistake; call it before spending.

    Raises:
        DataError: nobody can be asked, and nobody said yes beforehand.
        typer.Abort: the answer is no.
    """
    from ddm_fed.errors import DataError

    if not report.doubts or yes:
        return
    if not sys.stdin.isatty():
        raise DataError(
            f"the data look like a mistake, and nobody can be asked: {'; '.join(report.doubts)}",
            hint="correct the data, or say --yes if they are meant so; nothing was spent",
        )
    typer.confirm("Is that meant so? Go on, and spend privacy on it?", abort=True, err=True)

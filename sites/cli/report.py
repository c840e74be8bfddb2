"""`ddm-site report`: what would leave and what it tells, on one page for the officer."""

from pathlib import Path
from typing import Annotated

import typer

from ddm_fed import console
from ddm_fed.commands.options import PdfOption
from sites.cli.options import (
    SOURCES,
    MaxBadOption,
    PlanOption,
    SiteOption,
    ValueRangeOption,
    open_published,
    read_images,
    show_data,
)


def report(
    plan: PlanOption,
    site: SiteOption = Path(),
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="The images that were trained on, to show those that samples are nearest to: "
            + SOURCES,
        ),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            help="With --data: samples of the ensemble to look at, in place of new ones of the "
            "site's own expert.",
            file_okay=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The page to write, one HTML file. By default report.html in the site's private "
            "folder of the plan.",
            dir_okay=False,
        ),
    ] = None,
    value_range: ValueRangeOption = None,
    max_bad_fraction: MaxBadOption = 0.05,
    pdf: PdfOption = None,
) -> None:
    """Write what would leave, what it tells and what attacks found, as one page to decide from.

    With --data it shows private images, so the page must not leave: only you can read the file.
    It signs nothing and spends nothing.

    Example: ddm-site report --site hospital-a --plan published --data images/
    """
    from ddm_fed.errors import OptionError
    from ddm_fed.report.files import require_replaceable, write_report
    from ddm_fed.report.printing import find_browser, printed
    from ddm_fed.trust.published import published_folder
    from sites.report.facts import gather
    from sites.report.page import require_stays, site_page

    if samples is not None and data is None:
        raise OptionError("--samples belongs to --data", hint="give --data as well")
    home, published = open_published(site, plan)
    target = out or home.work(published.trust.plan_sha256) / "report.html"
    for option, path in (("--out", target), ("--pdf", pdf)):
        if path is not None:
            require_stays(home, published_folder(plan), path, option)
            require_replaceable(path, option)
    browser = None if pdf is None else find_browser()
    with home.changing():
        images = None
        if data is not None:
            images, found = read_images(
                home, data, published.trust.plan, value_range, max_bad_fraction
            )
            show_data(home.settings.name, found)
        facts = gather(home, published, images, samples)
    page = site_page(facts)
    write_report(target, page, private=True)
    console.say(f"{target} is the report: open it in a browser here. It must not leave this site")
    if pdf is not None and browser is not None:
        write_report(pdf, printed(page, browser), private=True)
        console.say(f"{pdf} is the same as a PDF. It must not leave this site either")
    for item in facts.unknown:
        console.say(f"not known: {item.what}. It is found by: {item.command}")

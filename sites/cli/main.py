"""`ddm-site`: what a data owner runs. Heavy libraries are imported inside commands only."""

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # before anything can import flwr
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer
import typer.core

from ddm_fed import __version__, console
from ddm_fed.commands.options import JsonOption, options_error
from sites.cli import (
    head,
    keys,
    network,
    privacy,
    removable_medium,
    submit,
    train,
)
from sites.cli.options import PlanOption, SiteOption, open_published

app = typer.Typer(
    name="ddm-site",
    no_args_is_help=True,
    rich_markup_mode="rich",
    suggest_commands=False,  # click does, since 8.5
    pretty_exceptions_enable=False,
    help="""Train an expert on your own images and decide what leaves.

Nothing is sent anywhere by itself: training needs no network, and what is to leave passes
review and release first.""",
    epilog="""Example: ddm-site init hospital-a --name hospital-a --root sha256:…, then
ddm-site train --site hospital-a --plan published --data images/""",
)
SETUP, WORK, PRIVACY, LEAVE = "Set up", "Work", "What it costs", "What leaves"
USE = "Use an ensemble"
app.command(rich_help_panel=SETUP)(keys.keygen)
app.command(rich_help_panel=SETUP)(keys.rotate)
app.command(rich_help_panel=SETUP)(network.enroll)
app.command(rich_help_panel=SETUP)(network.fetch)
app.command(rich_help_panel=WORK)(train.train)
app.command(rich_help_panel=WORK)(head.head)
app.command(rich_help_panel=PRIVACY)(privacy.budget)
app.command(rich_help_panel=PRIVACY)(privacy.ledger)
app.command(rich_help_panel=PRIVACY)(privacy.audit)
app.command(rich_help_panel=LEAVE)(keys.approve)
app.command(rich_help_panel=LEAVE)(submit.submit)
app.command(rich_help_panel=LEAVE)(removable_medium.export)
app.command("import", rich_help_panel=LEAVE)(removable_medium.import_)
app.command(rich_help_panel=USE)(network.ensemble)


class PrivatePartName(StrEnum):
    """Choices of `--must-be-private`."""

    ROUTER = "router"
    EXPERT = "expert"
    HEAD = "head"


def main() -> None:
    """Runs `ddm-site`; errors end with exit status 1, wrong usage with 2."""
    typer.core.HAS_RICH = console.has_room_for_tables()
    console.run(app)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"ddm-site {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command(rich_help_panel=SETUP)
def init(
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    name: Annotated[str, typer.Option(help="Name of the site, for example hospital-a.")],
    root: Annotated[
        str,
        typer.Option(
            help="Fingerprint of the federation, sha256:…, learnt from a person: by telephone or "
            "on paper, not from the files you are about to check with it."
        ),
    ],
    max_epsilon: Annotated[
        str, typer.Option(help="Most epsilon this site spends, whatever plans allow.")
    ] = "10",
    must_be_private: Annotated[
        list[PrivatePartName] | None,
        typer.Option(help="What this site only trains or releases with noise; several times."),
    ] = None,
    unit: Annotated[
        Literal["image", "patient"], typer.Option(help="What epsilon has to protect at least.")
    ] = "image",
    dpo: Annotated[
        Path | None,
        typer.Option(
            help="Public key file of the data-protection officer, without whose signature nothing "
            "may leave.",
            dir_okay=False,
        ),
    ] = None,
) -> None:
    """Make a site: its folder, its key, and its request to be enrolled.

    Example: ddm-site init hospital-a --name hospital-a --root sha256:3b6a…
    """
    from pydantic import ValidationError

    from ddm_fed.records import canonical_json
    from ddm_fed.signing import PASSPHRASE_VARIABLE, is_encrypted, key_files, read_public
    from sites.workspace import ENROLMENT_FILE, SiteFolder, SiteSettings

    parts = ["router", *(part.value for part in must_be_private or [])]
    facts: dict[str, object] = {
        "name": name,
        "root": root,
        "max_epsilon": max_epsilon,
        "must_be_private": list(dict.fromkeys(parts)),
        "unit": unit,
    }
    if dpo is not None:
        facts["dpo_key"] = read_public(dpo).hex
    try:
        settings = SiteSettings.model_validate_json(canonical_json(facts))
    except ValidationError as error:
        raise options_error(error, SiteSettings, "see `ddm-site init --help`") from None
    site = SiteFolder.create(folder, settings)
    console.say(f"{folder} is the site `{name}`; its key is {site.newest_key().public.keyid}")
    if not is_encrypted(key_files(site.keys, "site")[0]):
        console.say(f"the key file is not encrypted: set {PASSPHRASE_VARIABLE} before `init`")
    request = folder / ENROLMENT_FILE
    approve = console.typed("ddm-site", "approve", request, "--key", "DPO.pem")
    steps = [] if dpo is None else [f"the officer runs {approve}"]
    console.next_step(*steps, f"send {request} to the coordinator, and read the key to them aloud")


@app.command(rich_help_panel=LEAVE)
def review(plan: PlanOption, site: SiteOption = Path(), as_json: JsonOption = False) -> None:
    """Show exactly what would leave with the newest draft, and what it costs. Sends nothing.

    Example: ddm-site review --site hospital-a --plan published
    """
    from sites.outbox import stages
    from sites.outbox.review_page import PAGE_FILE
    from sites.privacy.ledger import open_ledger

    home, published = open_published(site, plan)
    trust = published.trust
    with home.changing():
        seen = stages.review(home, trust)
    if as_json:
        console.show_json(seen.egress.model_dump(mode="json"))
        return
    keys.show_review(seen.egress, seen.bundle.submission.privacy)
    since = len(open_ledger(home).entries()) - seen.egress.ledger_entries
    if since:
        console.say(f"spent since it was signed, and not in it: {since} ledger entries more")
    console.say(f"the same as a page for people: {seen.folder / PAGE_FILE}")
    release = console.typed("ddm-site", "release", "--site", site, "--plan", plan)
    if "dpo" in seen.egress.require:
        approve = console.typed("ddm-site", "approve", seen.folder, "--key", "DPO.pem")
        console.next_step(f"the officer runs {approve}, here or elsewhere", release)
    else:
        console.next_step(release)


@app.command(rich_help_panel=LEAVE)
def release(plan: PlanOption, site: SiteOption = Path()) -> None:
    """Let the reviewed draft leave: move it to outbox/released, the only place that is ever sent.

    Example: ddm-site release --site hospital-a --plan published
    """
    from sites.outbox import stages

    home, published = open_published(site, plan)
    trust = published.trust
    with home.changing():
        target = stages.release(home, trust)
    console.say(f"released {target}")
    words = ("ddm-site", "submit", "--site", site, "--plan", plan, "--to", "INBOX")
    console.next_step(console.typed(*words))

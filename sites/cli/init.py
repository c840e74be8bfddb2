"""`ddm-site init`: a site's folder, its key, and its request to be enrolled."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from ddm_fed import console
from ddm_fed.commands.options import options_error


class PrivatePartName(StrEnum):
    """Choices of `--must-be-private`."""

    ROUTER = "router"
    EXPERT = "expert"
    HEAD = "head"


def init(
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    name: Annotated[str, typer.Option(help="Name of the site, for example hospital-a.")],
    root: Annotated[
        str,
        typer.Option(
            help="Fingerprint of the federation, sha256:…. Get it from a person, by "
            "telephone or on paper, not from the files that you are going to verify "
            "with it."
        ),
    ],
    max_epsilon: Annotated[
        str, typer.Option(help="The most epsilon that this site spends, whatever plans allow.")
    ] = "10",
    must_be_private: Annotated[
        list[PrivatePartName] | None,
        typer.Option(
            help="What this site only trains or releases with noise. May be given several times."
        ),
    ] = None,
    unit: Annotated[
        Literal["image", "patient"], typer.Option(help="What epsilon has to protect, at least.")
    ] = "image",
    keep_weights: Annotated[
        bool,
        typer.Option(
            "--keep-weights",
            help="Trained weights never leave this site; `ddm-site serve-expert` answers for them.",
        ),
    ] = False,
    dpo: Annotated[
        Path | None,
        typer.Option(
            help="Public key file of the data-protection officer. Nothing may leave "
            "without their signature.",
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
        "keep_weights": keep_weights,
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

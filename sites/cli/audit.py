"""`ddm-site audit`: attacks on the site's own training and releases."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddm_fed import console
from ddm_fed.commands.options import EmbedderOption, JsonOption
from sites.cli.options import (
    AutoencoderOption,
    DataOption,
    MaxBadOption,
    PlanOption,
    SiteOption,
    TextEncoderOption,
    ValueRangeOption,
    into_plan_space,
    open_plan_autoencoder,
    open_published,
    read_images,
    show_data,
)

if TYPE_CHECKING:
    from ddm_fed.privacy import ImageSet, Private
    from sites.train.audit import AuditResult


def audit(
    plan: PlanOption,
    data: DataOption,
    site: SiteOption = Path(),
    controls: Annotated[
        str | None,
        typer.Option(
            help="Images of the same kind that were held back from training, chosen at random, in "
            "the form of --data. With them, the finished expert is attacked as well."
        ),
    ] = None,
    canaries: Annotated[
        int,
        typer.Option(
            help="Number of canaries. Fewer may not notice that half of the noise is missing.",
            min=2,
        ),
    ] = 200_000,
    training_steps: Annotated[
        int | None,
        typer.Option(
            help="The most training steps the canaries go through; by default the plan's.", min=1
        ),
    ] = None,
    text_encoder: TextEncoderOption = None,
    value_range: ValueRangeOption = None,
    max_bad_fraction: MaxBadOption = 0.05,
    autoencoder: AutoencoderOption = None,
    embedder_weights: EmbedderOption = None,
    seed: Annotated[int, typer.Option(help="Decides times, noise and samples.", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Attack the site's own training and releases. Spends nothing; what it finds stays here.

    Ends with 1 if a guarantee does not hold.

    Example: ddm-site audit --plan published --data images/ --controls held-out/
    """
    from sites.train.audit import AuditOptions, run_audit
    from sites.train.captions import FOLDER, encode_captions

    home, published = open_published(site, plan)
    trust = published.trust
    coder = open_plan_autoencoder(autoencoder, trust.plan)

    def load(source: str) -> "Private[ImageSet]":
        images, report = read_images(home, source, trust.plan, value_range, max_bad_fraction)
        show_data(home.settings.name, report)
        return into_plan_space(home, images, coder)

    def told(images: "Private[ImageSet]", folder: str) -> "Private[ImageSet]":
        if controls is None:  # nothing asks an expert about images
            return images
        work = home.work(trust.plan_sha256)
        return encode_captions(work, trust.plan, images, text_encoder, console.say, folder=folder)

    with home.changing():
        options = AuditOptions(
            canaries=canaries,
            most_steps=training_steps,
            controls=None if controls is None else told(load(controls), f"{FOLDER}-controls"),
            seed=seed,
            embedder_weights=embedder_weights,
        )
        images = load(data)
        total = min(training_steps or trust.plan.training.steps, trust.plan.training.steps)
        with console.advancing("canaries", total, "steps") as advance:
            found = run_audit(home, trust, told(images, FOLDER), options, advance)
    if as_json:
        console.show_json(found.facts())
    else:
        _show_audit(found)
    if found.violates:
        raise typer.Exit(1)


def _show_audit(found: "AuditResult") -> None:
    console.show_table(
        "Tests of the mechanism and of what was released",
        ["test", "", "found", "expected"],
        [
            [test.name, "passed" if test.passed else "FAILED", test.found, test.expected]
            for test in (*found.mechanism, *found.releases)
        ],
    )
    for sentence in found.sentences():
        console.say(sentence)
    for note in found.notes:
        console.say(f"- {note}")
    if found.violates:
        console.say("A guarantee does not hold. Release nothing before this is explained.")

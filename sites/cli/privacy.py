"""`ddm-site budget | ledger | audit`: what a plan will cost, what all has cost, attacks on it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddm_fed import console
from ddm_fed.commands.options import JsonOption
from ddm_fed.errors import OptionError
from sites.cli.options import (
    DataOption,
    MaxBadOption,
    PlanOption,
    SiteOption,
    ValueRangeOption,
    open_published,
    show_data,
)

if TYPE_CHECKING:
    from ddm_fed.privacy import ImageSet, Private
    from ddm_fed.records import Event, LedgerEntry, Plan
    from ddm_fed.training.budget import Outlook
    from sites.train.audit import AuditResult
    from sites.workspace import SiteFolder


def budget(
    plan: Annotated[
        Path,
        typer.Option(
            "--plan", help="A plan.toml, or the coordinator's published folder.", exists=True
        ),
    ],
    site: Annotated[
        Path | None,
        typer.Option(
            "--site",
            help="The site's folder: counts what it has spent. Needed with a published folder.",
            envvar="DDM_SITE",
            file_okay=False,
        ),
    ] = None,
    units: Annotated[
        int | None,
        typer.Option(
            help="How many images (or patients) you have; by default what the plan assumes. Only "
            "used here, and written nowhere.",
            min=1,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a plan would cost and how much noise its training gets. Spends and reads nothing.

    Example: ddm-site budget --plan plan.toml --units 2000
    """
    from ddm_fed.privacy import private_events
    from ddm_fed.training.budget import advice, delta_warning, outlook, planned_events
    from sites.privacy.ledger import open_ledger
    from sites.workspace import SiteFolder

    agreed, sha256 = _agreed(plan, site)
    home = None if site is None else SiteFolder.open(site)
    entries = () if home is None else open_ledger(home).entries()
    # what was done under this very plan is in its own cost already
    spent = private_events(entry for entry in entries if entry.plan_sha256 != sha256)
    planned = planned_events(agreed)
    sgd = agreed.privacy.sgd
    seen = None
    if sgd is not None:
        seen = outlook(agreed, agreed.expert.default, units or sgd.units)
    lines = [] if seen is None else advice(agreed, seen)
    count = units or (None if sgd is None else sgd.units)
    warning = None if count is None else delta_warning(agreed, count)
    rows: list[tuple[str, Event]] = [
        (f"router message {index}", event) for index, event in enumerate(planned.router, start=1)
    ]
    if planned.head is not None:
        rows.append(("head", planned.head))
    if planned.central is not None:
        rows.append(("central images", planned.central))
    if planned.expert is not None:
        rows.append(("expert", planned.expert))
    if as_json:
        facts = _budget_facts(rows, agreed, spent, seen, lines)
        console.show_json(facts | {"warning": warning})
        return
    _show_budget(rows, agreed, spent, home)
    if warning is not None:
        console.say(warning)
    if seen is None:
        console.say("The expert is trained without noise: no epsilon bounds what its weights tell.")
        return
    console.say(
        f"With {seen.units} {agreed.privacy.unit}s and {seen.weights:,} trained weights: noise of "
        f"{seen.per_weight:.2g} clip norms on every weight of the mean gradient, {seen.whole:.2g} "
        "on the whole of it, where the gradient itself has at most 1."
    )
    if seen.per_pixel is not None:
        console.say(
            f"Central images: noise of {seen.per_pixel:.2g} on a pixel, which has -1 to 1, where "
            "classes are equally frequent; a part of it is taken out again."
        )
    for line in lines:
        console.say(f"- {line}")


def _agreed(plan: Path, site: Path | None) -> "tuple[Plan, str | None]":
    """Returns the plan, and its digest if it is published."""
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


def _budget_facts(
    rows: "Sequence[tuple[str, Event]]",
    plan: "Plan",
    spent: "Sequence[Event]",
    seen: "Outlook | None",
    lines: list[str],
) -> dict[str, object]:
    from ddm_fed.privacy import epsilon_text

    delta = float(plan.privacy.delta)
    return {
        "delta": format(plan.privacy.delta, "f"),
        "unit": plan.privacy.unit,
        "events": [{"of": name, **event.model_dump(mode="json")} for name, event in rows],
        "plan_epsilon": epsilon_text([event for _, event in rows], delta),
        "spent_epsilon": epsilon_text(spent, delta),
        "total_epsilon": epsilon_text([*spent, *(event for _, event in rows)], delta),
        "max_epsilon": format(plan.privacy.max_epsilon, "f"),
        "outlook": None if seen is None else vars(seen),
        "advice": lines,
    }


def _show_budget(
    rows: "Sequence[tuple[str, Event]]",
    plan: "Plan",
    spent: "Sequence[Event]",
    home: "SiteFolder | None",
) -> None:
    from ddm_fed.privacy import epsilon_text

    delta, events = float(plan.privacy.delta), [event for _, event in rows]
    console.show_table(
        f"What the plan costs, at delta {plan.privacy.delta:f} for one {plan.privacy.unit}",
        ["of", "noise multiplier", "sampling rate", "steps", "epsilon, if alone"],
        [
            [
                name,
                str(getattr(event, "noise_multiplier", "none")),
                str(getattr(event, "sampling_rate", "all")),
                str(getattr(event, "steps", 1)),
                epsilon_text([event], delta),
            ]
            for name, event in rows
        ],
    )
    whole = epsilon_text(events, delta)
    console.say(f"All together: epsilon {whole}; the plan allows {plan.privacy.max_epsilon}.")
    if home is None:
        return
    before, after = epsilon_text(spent, delta), epsilon_text([*spent, *events], delta)
    console.say(
        f"{home.settings.name} has spent {before} on other plans and would stand at {after}; its "
        f"own limit is {home.settings.max_epsilon}."
    )


def ledger(
    site: SiteOption = Path(),
    delta: Annotated[float, typer.Option(help="Delta at which epsilon is stated.")] = 1e-5,
    recover: Annotated[
        bool,
        typer.Option(
            "--recover",
            help="After a cut or a restored backup: bring back all that the copy in keys/, the "
            "outbox and --from remember. Nothing spent is forgotten.",
        ),
    ] = False,
    manifests: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            help="A manifest or bundle that this site signed, from elsewhere; with --recover.",
            exists=True,
        ),
    ] = None,
    lost: Annotated[
        bool,
        typer.Option(
            "--lost",
            help="Count one whole run under --plan as spent, of which nothing is left.",
        ),
    ] = False,
    plan: Annotated[
        Path | None, typer.Option(help="The published folder; with --lost.", exists=True)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show everything this site ever released, and what it adds up to.

    It says if entries are missing that this site signed or the coordinator admitted, and ends
    with 1 then.

    Examples: ddm-site ledger --site hospital-a · ddm-site ledger --site hospital-a --recover
    """
    from ddm_fed.errors import PolicyError
    from ddm_fed.privacy import epsilon_text, private_events
    from sites.outbox.spending import abandoned, entries_that_left
    from sites.privacy.ledger import open_ledger
    from sites.published import known_log
    from sites.workspace import SiteFolder

    if not 0 < delta < 1:
        raise OptionError(f"--delta {delta}: not between 0 and 1", hint="give one such as 1e-5")
    if lost != (plan is not None):
        raise OptionError("--lost and --plan need each other", hint="give both, or neither")
    if manifests and not recover:
        raise OptionError("--from belongs to --recover", hint="give --recover as well")
    home = SiteFolder.open(site)
    if recover:
        _recover_ledger(home, manifests or [])
    if plan is not None:
        _record_lost_run(site, plan)
    book = open_ledger(home, known_log(home))
    entries, cut = book.present(), None
    try:
        book.entries()
    except PolicyError as error:
        cut = error
    total = epsilon_text(private_events(entries), delta)
    left = entries_that_left(home)
    if as_json:
        console.show_json(
            {
                "delta": delta,
                "releases_epsilon": total,
                "cut": None if cut is None else cut.message,
                "not_left": [entry.index for entry in entries if entry.index not in left],
                "entries": [entry.model_dump(mode="json") for entry in entries],
            }
        )
    else:
        _ledger_table(home.settings.name, entries, total, delta, left)
        for line in abandoned(home, entries, None, delta):
            console.say(line)
    if cut is not None:
        raise cut


def _recover_ledger(home: "SiteFolder", manifests: list[Path]) -> None:
    from sites.privacy.recovery import describe, recover
    from sites.published import known_log

    with home.changing():
        console.say(describe(recover(home, known_log(home), manifests)))


def _record_lost_run(site: Path, plan: Path) -> None:
    from sites.privacy.recovery import record_lost_run

    home, published = open_published(site, plan)
    with home.changing():
        entries = record_lost_run(home, published.trust, published.log)
    console.say(f"{len(entries)} entries say now that a run under this plan was spent and lost")


def _ledger_table(
    name: str, entries: "tuple[LedgerEntry, ...]", total: str, delta: float, left: set[int]
) -> None:
    from sites.outbox.review_page import rate_of

    console.show_table(
        f"Ledger of {name}: what carries noise adds up to epsilon {total} at delta {delta:g}",
        ["#", "day (UTC)", "plan", "purpose", "noise multiplier", "rate x steps", "left"],
        [
            [
                str(entry.index),
                f"{entry.recorded_at:%Y-%m-%d}",
                entry.plan_sha256[:8],
                entry.purpose,
                str(getattr(entry.event, "noise_multiplier", "none: no guarantee")),
                rate_of(entry.event),
                _what_left(entry, left),
            ]
            for entry in entries
        ],
    )


def _what_left(entry: "LedgerEntry", left: set[int]) -> str:
    if entry.index in left:
        return "yes"
    return "no" if entry.event.kind == "non_private" else "no, spent all the same"


def audit(
    plan: PlanOption,
    data: DataOption,
    site: SiteOption = Path(),
    controls: Annotated[
        str | None,
        typer.Option(
            help="Images of the same kind that were not trained on, given as --data is: with them "
            "the finished expert is attacked as well."
        ),
    ] = None,
    canaries: Annotated[
        int, typer.Option(help="Canaries; fewer may miss half of the noise missing.", min=2)
    ] = 200_000,
    steps: Annotated[
        int | None,
        typer.Option(help="Most steps the canaries go through; by default the plan's.", min=1),
    ] = None,
    value_range: ValueRangeOption = None,
    max_bad_fraction: MaxBadOption = 0.05,
    seed: Annotated[int, typer.Option(help="Of times, noise and samples.", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Attack the site's own training and releases. Spends nothing; what it finds stays here.

    Exit status 1 if something does not keep its promise.

    Example: ddm-site audit --plan published --data images/ --controls held-out/
    """
    from sites.data import load_images
    from sites.train.audit import AuditOptions, run_audit

    home, published = open_published(site, plan)
    trust = published.trust

    def load(source: str) -> "Private[ImageSet]":
        images, report = load_images(
            source,
            trust.plan.data,
            unit=trust.plan.privacy.unit,
            value_range=value_range,
            max_bad_fraction=max_bad_fraction,
        )
        show_data(home.settings.name, report)
        return images

    with home.changing():
        options = AuditOptions(
            canaries=canaries,
            most_steps=steps,
            controls=None if controls is None else load(controls),
            seed=seed,
        )
        total = min(steps or trust.plan.training.steps, trust.plan.training.steps)
        with console.counting("canaries", total, "steps") as update:
            found = run_audit(home, trust, load(data), options, lambda step: update(step + 1, ""))
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
        console.say("Something does not keep its promise: release nothing before it is explained.")

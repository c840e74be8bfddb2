"""`ddm-site budget`: what a plan would cost, before anything is spent."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddm_fed import console
from ddm_fed.commands.options import JsonOption
from sites.cli.options import agreed_plan

if TYPE_CHECKING:
    from ddm_fed.records import Event, Plan
    from ddm_fed.training.plan_cost import Outlook
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
            help="The site's folder, to count what it has spent. Needed with a published folder.",
            envvar="DDM_SITE",
            file_okay=False,
        ),
    ] = None,
    units: Annotated[
        int | None,
        typer.Option(
            help="How many images (or patients) you have; by default what the plan "
            "assumes. It is written nowhere.",
            min=1,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a plan would cost and how much noise its training gets. Spends and reads nothing.

    Example: ddm-site budget --plan plan.toml --units 2000
    """
    from ddm_fed.mixture import router_events
    from ddm_fed.privacy import private_events
    from ddm_fed.records import MIXTURE
    from ddm_fed.training.plan_cost import advice, delta_warning, outlook, planned_events
    from sites.privacy.ledger import open_ledger
    from sites.workspace import SiteFolder

    agreed, sha256 = agreed_plan(plan, site)
    home = None if site is None else SiteFolder.open(site)
    entries = () if home is None else open_ledger(home).entries()
    # what was done under this very plan is in its own cost already
    spent = private_events(entry for entry in entries if entry.plan_sha256 != sha256)
    planned = planned_events(agreed)
    sgd = agreed.privacy.sgd
    seen = None
    trained = agreed.expert.trained
    if sgd is not None and trained is not None:
        seen = outlook(agreed, trained, units or sgd.units)
    lines = [] if seen is None else advice(agreed, seen)
    count = units or (None if sgd is None else sgd.units)
    warning = None if count is None else delta_warning(agreed, count)
    rows: list[tuple[str, Event]] = [
        (f"router: {name}", event) for name, event in router_events(agreed).items()
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
    if agreed.expert.architecture[0] == MIXTURE:
        console.say(
            "An expert that is the mixture has no weights beside the router's release: it costs "
            "nothing more, and tells nothing beyond that epsilon."
        )
    worth = _worth_of_mixture(agreed, count)
    if worth is not None:
        console.say(worth)
    if seen is None:
        if trained is not None:
            console.say(
                "The expert is trained without noise: no epsilon bounds what its weights tell."
            )
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


def _worth_of_mixture(plan: "Plan", units: int | None) -> str | None:
    """Returns what a release like the plan's was worth in a study; None without components."""
    from ddm_fed.mixture import REAL, measured
    from ddm_fed.records import StatisticsSpec

    if not isinstance(plan.router, StatisticsSpec) or plan.router.components is None:
        return None
    if units is None:
        return "Give --units to see what the mixture of a site of your size was worth in a study."
    found = measured(units, float(plan.router.epsilon))
    if found is None:
        return (
            "No mixture of so few units, or of so little epsilon, was studied: expect means of "
            "classes at most. docs/privacy.md has the table."
        )
    return (
        f"In a study of ten classes, a classifier of samples of one site's mixture, of "
        f"{found.images:,} images at epsilon {found.epsilon}, was right in {found.accuracy} (one "
        f"of real images: {REAL}). docs/privacy.md has the table, and what networks add."
    )


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

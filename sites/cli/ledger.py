"""`ddm-site ledger`: everything that was ever spent."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddm_fed import console
from ddm_fed.commands.options import JsonOption
from ddm_fed.errors import OptionError
from sites.cli.options import (
    SiteOption,
    open_published,
)

if TYPE_CHECKING:
    from ddm_fed.records import LedgerEntry
    from sites.workspace import SiteFolder


def ledger(
    site: SiteOption = Path(),
    delta: Annotated[float, typer.Option(help="The delta at which epsilon is stated.")] = 1e-5,
    recover: Annotated[
        bool,
        typer.Option(
            "--recover",
            help="After a ledger was cut or restored from backup: bring back every entry "
            "that the copy in keys/, the outbox or --from still has.",
        ),
    ] = False,
    manifests: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            help="With --recover: a manifest or bundle that this site signed, from elsewhere.",
            exists=True,
        ),
    ] = None,
    lost: Annotated[
        bool,
        typer.Option(
            "--lost",
            help="Count one whole run under --plan as spent, though nothing of it is left.",
        ),
    ] = False,
    plan: Annotated[
        Path | None, typer.Option(help="With --lost: the published folder.", exists=True)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show everything that this site ever released, and what it adds up to.

    Ends with 1, and says so, if entries are missing that this site signed or the coordinator
    admitted.

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
    kept = open_ledger(home, known_log(home))
    entries, cut = kept.present(), None
    try:
        kept.entries()
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
    from ddm_fed.privacy import rate_of

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

"""`ddm-coord admit`: what arrived in the inbox is verified, and admitted or refused."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from coordinator.cli.options import CoordinatorOption
from ddm_fed import console
from ddm_fed.commands.options import JsonOption
from ddm_fed.storage.files import size_below

if TYPE_CHECKING:
    from coordinator.inbox.admission import Known, Verdict
    from coordinator.workspace import CoordinatorFolder


def admit(coordinator: CoordinatorOption = Path(), as_json: JsonOption = False) -> None:
    """Verify every bundle in the inbox; admit it, or refuse it and set it aside with the reason.

    What is admitted goes into the log for good. Ends with 1 if a bundle was refused.

    Example: ddm-coord admit --coordinator consortium
    """
    from coordinator.ensembles.reference import waits_for_reference
    from coordinator.inbox.admission import take_arrivals
    from coordinator.inbox.ledger_prices import Prices, price_arrivals
    from coordinator.workspace import CoordinatorFolder

    home = CoordinatorFolder.open(coordinator)
    bar = console.moving_bytes("verifying the inbox", size_below(home.incoming))
    waiting = price_arrivals(home, home.trust(), Prices())
    with home.changing(), bar as advance:
        verdicts, known = take_arrivals(home, home.trust(), later=waiting, advance=advance)
        jumps = _jumps(home, known, verdicts)
    refused = [verdict for verdict in verdicts if verdict.error is not None]
    if as_json:
        console.show_json(
            [
                {
                    "arrival": verdict.name,
                    "site": verdict.admitted.submission.site if verdict.admitted else None,
                    "admitted": verdict.admitted is not None,
                    "log_index": verdict.admitted.entry.index if verdict.admitted else None,
                    "code": verdict.error.code if verdict.error else None,
                    "reason": verdict.error.message if verdict.error else None,
                }
                for verdict in verdicts
            ]
        )
    elif verdicts:
        console.show_table(
            "Arrivals",
            ["arrival", "site", "verdict"],
            [
                [
                    verdict.name[:16] + "…",
                    verdict.admitted.submission.site if verdict.admitted else "unknown",
                    "admitted" if verdict.error is None else f"refused: {verdict.error.code}",
                ]
                for verdict in verdicts
            ],
        )
    else:
        console.say(f"nothing new in {home.incoming}")
    for said in jumps:
        console.say(f"WARNING: {said}: `ddm-coord assemble` will ask for a decision")
    for error in [*waiting.values(), *(verdict.error for verdict in refused)]:
        if error is not None:
            console.show_error(error)
    if refused:
        console.say(f"refused bundles are kept in {home.refused}")
        raise typer.Exit(1)
    if waits_for_reference(home, known.trust):
        console.next_step(console.typed("ddm-coord", "reference", "--coordinator", coordinator))
        return
    if not known.log.size:
        return
    words = ("ddm-coord", "assemble", "--coordinator", coordinator, "ENSEMBLE_FOLDER")
    console.next_step(console.typed(*words))


def _jumps(home: "CoordinatorFolder", known: "Known", verdicts: "list[Verdict]") -> list[str]:
    """Returns what a person has to decide about the counts of what was just admitted."""
    from coordinator.ensembles.image_counts import count_members, sentence
    from coordinator.inbox.admission import current_members

    new = {item.admitted.payload_sha256 for item in verdicts if item.admitted is not None}
    if not new:
        return []
    trust, log = known
    found = count_members(home, trust, log, current_members(home, trust, log))
    return [sentence(item) for item in found if item.jumped and item.submission_sha256 in new]

"""What both programs say of an ensemble that newer rosters or a newer log speak against."""

from pathlib import Path
from typing import TYPE_CHECKING

from ddm_fed import console
from ddm_fed.errors import StateError

if TYPE_CHECKING:
    from ddm_fed.ensemble.staleness import Staleness


def refuse_stale(ensemble: Path, found: "Staleness", remedy: str) -> None:
    """Refuses an ensemble that is stale; warns of members whose submission was replaced.

    Args:
        ensemble: Its folder.
        found: What is known against it.
        remedy: The command that brings a newer one.

    Raises:
        StateError: it is stale.
    """
    if found.stale:
        raise StateError(
            f"{ensemble} is stale, and whatever is made from it would be stale too: "
            + "; ".join(found.stale),
            hint=f"use a newer one: {remedy}",
        )
    for reason in found.newer:
        console.say(
            f"WARNING: {reason}. This ensemble holds the earlier one. What the site took back with "
            "the newer one, for instance images whose consent was withdrawn, lives on in it. Use a "
            f"newer ensemble: {remedy}"
        )

"""What both programs say of what newer rosters or a newer log speak against."""

from pathlib import Path
from typing import TYPE_CHECKING

from ddm_fed import console

if TYPE_CHECKING:
    from ddm_fed.ensemble.staleness import Staleness


def refuse_stale(
    ensemble: Path, found: "Staleness", remedy: str, *, kind: str = "ensemble"
) -> None:
    """Refuses what is stale; warns of members whose submission was replaced.

    Args:
        ensemble: The folder.
        found: What is known against it.
        remedy: The command that brings a newer one.
        kind: What it is: an ensemble, or a student.

    Raises:
        StateError: it is stale.
    """
    from ddm_fed.ensemble.staleness import require_not_stale

    require_not_stale(ensemble, found, remedy)
    for reason in found.newer:
        console.say(
            f"WARNING: {reason}. This {kind} holds the earlier one. What the site took back with "
            "the newer one, for instance images whose consent was withdrawn, lives on in it. Use a "
            f"newer {kind}: {remedy}"
        )

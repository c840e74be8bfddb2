"""What was spent, and what came of it: said before more is spent, and shown in the ledger.

Noise is drawn, and epsilon spent, when a release is made: whether its bundle ever leaves does not
change what was computed. So a plan that is given up still counts.
"""

from collections.abc import Sequence

from ddm_fed.bundle.verify import ENVELOPE_FILE
from ddm_fed.errors import RefusedError
from ddm_fed.privacy import epsilon_text, private_events
from ddm_fed.records import (
    IN_TOTO_PAYLOAD,
    MAX_DOCUMENT_BYTES,
    Event,
    LedgerEntry,
    Plan,
    Statement,
    Submission,
)
from ddm_fed.signing import peek_payload
from ddm_fed.storage.files import read_bounded
from sites.outbox.stages import find_bundles
from sites.workspace import SiteFolder


def entries_that_left(site: SiteFolder) -> set[int]:
    """Returns the indices of the ledger entries whose releases are in a released bundle."""
    left: set[int] = set()
    for bundle in find_bundles(site.released):
        try:
            envelope = read_bounded(bundle / ENVELOPE_FILE, MAX_DOCUMENT_BYTES)
            payload = peek_payload(envelope, IN_TOTO_PAYLOAD, what=bundle.name)
            found = Statement[Submission].from_json(payload, what=bundle.name).predicate
        except RefusedError:  # damaged: it says nothing any more
            continue
        left |= {
            entry.index for entry in found.privacy.ledger if entry.plan_sha256 == found.plan_sha256
        }
    return left


def abandoned(
    site: SiteFolder, entries: Sequence[LedgerEntry], present: str | None, delta: float
) -> list[str]:
    """Returns a sentence for every plan that cost something and of which nothing ever left.

    Args:
        site: The site.
        entries: Its ledger.
        present: Digest of the plan that is being worked under, which is not given up; or None.
        delta: At which epsilon is stated.
    """
    left = entries_that_left(site)
    plans = dict.fromkeys(entry.plan_sha256 for entry in entries)
    lines = []
    for plan in plans:
        own = [entry for entry in entries if entry.plan_sha256 == plan]
        spent = private_events(own)
        if plan != present and spent and not left & {entry.index for entry in own}:
            lines.append(
                f"epsilon {epsilon_text(spent, delta)} was spent under the plan {plan[:8]}…, of "
                "which nothing ever left: it counts all the same"
            )
    return lines


def before_spending(
    site: SiteFolder, plan: Plan, plan_sha256: str, entries: Sequence[LedgerEntry], due: list[Event]
) -> list[str]:
    """Returns what a person should know before `due` is spent under the plan."""
    if not due:
        return []
    delta = float(plan.privacy.delta)
    before = private_events(entries)
    return [
        *abandoned(site, entries, plan_sha256, delta),
        f"this run spends epsilon {epsilon_text(due, delta)} at delta {plan.privacy.delta:f}, and "
        f"brings this site from {epsilon_text(before, delta)} to "
        f"{epsilon_text([*before, *due], delta)}; it is spent when the noise is drawn, even if the "
        "bundle never leaves",
    ]

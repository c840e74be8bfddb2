"""The way back after a ledger was cut, exchanged, or lost: what was spent stays spent.

The present file, its copy in `keys/`, every manifest this site signed and every head the log
admitted remember a ledger. One of them becomes the beginning, so that it goes on from all that was
admitted; every entry that another remembers and it lacks is carried to its end, with its own date,
nonce and event. What nothing remembers can only be known by people: a run that was lost with its
disk is written down as spent (`record_lost_run`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddm_fed.errors import MalformedError, PolicyError, StateError
from ddm_fed.privacy import check_chain
from ddm_fed.records import (
    Event,
    LedgerEntry,
    Mechanism,
    NonPrivateEvent,
    extends,
    ledger_head,
    now,
    sha256_hex,
)
from ddm_fed.storage.files import write_atomically
from ddm_fed.training.plan_cost import planned_events
from ddm_fed.trust import Trust
from ddm_fed.trust.log import SUBMISSION_FILE, Log
from sites.privacy.ledger import (
    LEDGER_FILE,
    KnownLedger,
    admitted_ledgers,
    open_ledger,
    signed_ledger,
    signed_ledgers,
)
from sites.workspace import SiteFolder

LOST_PURPOSE = "lost"
# an entry's purpose says that it is lost; what was run is told by its event
LOST_MECHANISMS: dict[str, Mechanism] = {
    "gaussian": "discrete-gaussian",
    "poisson_gaussian": "dp-sgd",
    "non_private": "no-noise",
}


@dataclass(frozen=True)
class Recovered:
    """What became of a ledger.

    Attributes:
        restored: Entries that are back at their old place.
        carried: Entries of another history, now at the end.
        entries: How many there are now.
        kept_as: Where the ledger lies that was there before; None if nothing was changed.
    """

    restored: int
    carried: int
    entries: int
    kept_as: Path | None


def recover(site: SiteFolder, log: Log | None, manifests: Sequence[Path] = ()) -> Recovered:
    """Writes a ledger that holds every entry anything remembers. Needs the site's lock.

    It may be repeated: what is there already is not carried again.

    Args:
        site: The site.
        log: The log, as far as the site knows it.
        manifests: Manifests of this site, or bundles that hold one, from elsewhere: an ensemble,
            the coordinator's people, a backup.

    Raises:
        StateError: the log admitted a ledger that nothing here holds.
        RefusedError: one of `manifests` is not this site's; a line cannot be read.
    """
    path = site.path / LEDGER_FILE
    present, unreadable = _readable(path)
    remembered = [
        KnownLedger("the copy", ledger_head(copy), copy)
        for copy in (_readable(site.keys / LEDGER_FILE)[0],)
        if copy
    ]
    remembered += signed_ledgers(site)
    for manifest in manifests:
        file = manifest / SUBMISSION_FILE if manifest.is_dir() else manifest
        remembered.append(signed_ledger(site, file, str(file)))
    candidates = [present, *(known.entries for known in remembered)]
    base = _beginning(candidates, admitted_ledgers(site, log))
    carried = _carry(base, candidates)
    found = (*base, *carried)
    if unreadable and len(found) < len(present) + unreadable:
        raise PolicyError(
            f"{unreadable} lines of {path} cannot be read, and nothing else holds them",
            hint="give manifests that do with `--from`, or move the file aside and record what was "
            "lost with `ddm-site ledger --lost --plan PUBLISHED`",
        )
    data = b"".join(entry.to_json() + b"\n" for entry in found)
    before = path.read_bytes() if path.exists() else b""
    copy_file = site.keys / LEDGER_FILE
    same_copy = copy_file.exists() and copy_file.read_bytes() == data
    if before == data and same_copy:
        return Recovered(0, 0, len(found), None)
    kept_as = site.path / "private" / f"ledger-before-{sha256_hex(before)[:16]}.jsonl"
    write_atomically(kept_as, before, mode=0o600)
    write_atomically(path, data)
    write_atomically(copy_file, data, mode=0o600)
    agreed = sum(1 for old, new in zip(present, base, strict=False) if old == new)
    return Recovered(len(base) - agreed, len(carried), len(found), kept_as)


def _readable(path: Path) -> tuple[tuple[LedgerEntry, ...], int]:
    """Returns the longest beginning of `path` whose chain holds, and how many lines follow it."""
    found: list[LedgerEntry] = []
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            entry = LedgerEntry.from_json(line, what=f"ledger line {number}")
            check_chain([*found, entry])
        except (MalformedError, PolicyError):
            return tuple(found), len(lines) - len(found)
        found.append(entry)
    return tuple(found), 0


def _beginning(
    candidates: Iterable[tuple[LedgerEntry, ...]], admitted: Sequence[KnownLedger]
) -> tuple[LedgerEntry, ...]:
    """Returns the longest candidate that goes on from everything the log admitted.

    Raises:
        StateError: none does.
    """
    for candidate in sorted(candidates, key=len, reverse=True):  # of equals the present one
        if all(extends(candidate, known.head) for known in admitted):
            return candidate
    newest = admitted[-1]
    raise StateError(
        f"{newest.source} admitted a ledger of {newest.head.entries} entries from this site, which "
        "nothing here holds",
        hint="ask the coordinator's people for that manifest (an ensemble has it in sites/NAME/), "
        "and give it with `--from`. If this site never signed it, its key is stolen: rotate it "
        "with `--compromised-since`",
    )


def _carry(
    base: tuple[LedgerEntry, ...], candidates: Iterable[tuple[LedgerEntry, ...]]
) -> list[LedgerEntry]:
    """Returns what `candidates` hold and `base` lacks, chained to the end of `base`."""
    there, missing = {entry.identity for entry in base}, dict[bytes, LedgerEntry]()
    for candidate in candidates:
        for entry in candidate:
            if entry.identity not in there:
                missing.setdefault(entry.identity, entry)
    chained = list(base)
    for entry in sorted(missing.values(), key=lambda entry: entry.recorded_at):
        place = {
            "index": len(chained),
            "previous_sha256": ledger_head(chained).sha256 if chained else None,
        }
        chained.append(entry.model_copy(update=place))
    return chained[len(base) :]


def record_lost_run(site: SiteFolder, trust: Trust, log: Log) -> list[LedgerEntry]:
    """Writes down one whole run under the plan as spent, of which nothing is left.

    For a run that was lost with its disk and never left. It bounds from above what it had spent.
    Needs the site's lock.

    Raises:
        PolicyError: the ledger was cut; recover it first.
    """
    ledger, plan = open_ledger(site, log), trust.plan
    planned = planned_events(plan)
    events: list[Event] = [*planned.all]
    if planned.expert is None:
        events.append(NonPrivateEvent())
    return [
        ledger.append(
            trust.plan_sha256,
            LOST_PURPOSE,
            LOST_MECHANISMS[event.kind],
            event,
            plan.privacy.unit,
        )
        for event in events
    ]


def describe(found: Recovered) -> str:
    """Returns what was done, in a sentence."""
    if found.kept_as is None:
        return f"nothing is missing: the ledger has {found.entries} entries, and so has its copy"
    return (
        f"{found.restored} entries are back at their place, {found.carried} of another history are "
        f"carried on at the end: {found.entries} in all on {now():%Y-%m-%d}. What was there before "
        f"is kept as {found.kept_as}"
    )

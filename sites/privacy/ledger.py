"""The site's ledger on disk: append-only, chained, and durable before anything is released.

A chain shows what was taken out of its middle, not what was cut off its end. So the ledger is kept
twice, in two folders, and must go on from every ledger that the site signed or the log admitted.
"""

import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ddm_fed.errors import BudgetError, PolicyError, RefusedError
from ddm_fed.privacy import check_chain, epsilon, private_events
from ddm_fed.records import (
    IN_TOTO_PAYLOAD,
    MAX_DOCUMENT_BYTES,
    Event,
    LedgerEntry,
    LedgerHead,
    Mechanism,
    Plan,
    PrivacyUnit,
    Statement,
    Submission,
    extends,
    ledger_head,
    sha256_hex,
    today,
)
from ddm_fed.signing import key_files, open_envelope, public_of
from ddm_fed.storage.files import append_durably, drop_torn_line, read_bounded
from ddm_fed.trust.log import SUBMISSION_FILE, Log
from sites.workspace import SiteFolder

LEDGER_FILE = "ledger.jsonl"


@dataclass(frozen=True)
class KnownLedger:
    """A ledger this site had once, as something else than the ledger file remembers it.

    Attributes:
        source: What remembers it, for messages.
        head: Its head.
        entries: Its entries, where the source holds them.
    """

    source: str
    head: LedgerHead
    entries: tuple[LedgerEntry, ...] = ()


class SiteLedger:
    """All a site ever released, over all plans: they speak of the same images.

    Args:
        path: `ledger.jsonl`.
        max_epsilon: The site's own limit.
        copy: A second file with the same lines, in another folder: who cuts one, or brings it back
            from a backup, is told by the other.
        known: Ledgers that the present one must extend: of what the site signed, of what the log
            admitted.

    Example:
        >>> from decimal import Decimal
        >>> from ddm_fed.privacy import epsilon
        >>> from ddm_fed.records import GaussianEvent
        >>> ledger = SiteLedger(folder / "ledger.jsonl", max_epsilon=3.0)
        >>> noise = GaussianEvent(noise_multiplier=Decimal(4))
        >>> entry = ledger.append("ab" * 32, "router-location", "discrete-gaussian", noise)
        >>> round(epsilon([entry.event for entry in ledger.entries()], 1e-5), 2)
        0.93
        >>> ledger.require_budget([noise] * 20, plan)
        Traceback (most recent call last):
        ddm_fed.errors.BudgetError: error[DDM301]: this would bring the site to epsilon 5.1274; ...
    """

    def __init__(
        self,
        path: Path,
        max_epsilon: float,
        *,
        copy: Path | None = None,
        known: Sequence[KnownLedger] = (),
    ) -> None:
        self._path = path
        self._max_epsilon = max_epsilon
        self._copy = copy
        self._known = tuple(known)

    def entries(self) -> tuple[LedgerEntry, ...]:
        """Returns all entries, oldest first.

        Raises:
            PolicyError: the chain is broken, or the ledger was cut.
            MalformedError: a line cannot be read.
        """
        found = self.present()
        self._require_whole(found)
        return found

    def present(self) -> tuple[LedgerEntry, ...]:
        """Returns the entries in the file, whatever else is remembered.

        Raises:
            PolicyError: the chain is broken.
            MalformedError: a line cannot be read.
        """
        entries = read_entries(self._path)
        check_chain(entries)
        return entries

    def _require_whole(self, entries: tuple[LedgerEntry, ...]) -> None:
        if self._copy is not None and not _lines(self._path)[0].startswith(_lines(self._copy)[0]):
            raise _cut(entries, f"its copy {self._copy}", read_entries(self._copy))
        for known in self._known:
            if not extends(entries, known.head):
                raise _cut(entries, known.source, known.entries, known.head.entries)

    def require_entry(self, sha256: str) -> tuple[LedgerEntry, ...]:
        """Returns the entries up to the one of this digest.

        Raises:
            PolicyError: the ledger was cut or exchanged since the entry was written.
        """
        entries = self.entries()
        for entry in entries:
            if sha256_hex(entry.to_json()) == sha256:
                return entries[: entry.index + 1]
        raise PolicyError(
            "the ledger has no entry for the training that is under way",
            hint="it was cut or exchanged: restore the site's ledger.jsonl from backup",
        )

    def require_budget(self, events: Sequence[Event], plan: Plan) -> None:
        """Refuses `events` if, with all that was spent, they exceed the plan's or the site's limit.

        Raises:
            BudgetError: saying what is spent, what it would become, and which limit holds.
        """
        if not events:
            return
        delta = float(plan.privacy.delta)
        entries = self.entries()
        if plan.privacy.unit == "patient" and any(entry.unit == "image" for entry in entries):
            raise BudgetError(
                "earlier releases of this site protect single images, and bound nothing for a "
                "patient who has several",
                hint='a plan with privacy.unit = "patient" needs images that nothing was released '
                "of at the level of images; `ddm-site ledger` shows what was",
            )
        spent = private_events(entries)
        before = epsilon(spent, delta) if spent else 0.0
        after = epsilon([*spent, *events], delta)
        for limit, owner in (
            (float(plan.privacy.max_epsilon), "the plan (`privacy.max_epsilon`)"),
            (self._max_epsilon, "this site (`max_epsilon` in site.toml)"),
        ):
            if after > limit:
                raise BudgetError(
                    f"this would bring the site to epsilon {after:.4f}; {before:.4f} is spent, "
                    f"and {owner} allows {limit:g}: what would fit is about "
                    f"{max(0.0, limit - before):.2g}",
                    hint="agree on a plan that costs less (`router.epsilon`, `privacy.sgd.epsilon`)"
                    " or on a larger limit; `ddm-site ledger` shows what was spent on what",
                )

    def append(
        self,
        plan_sha256: str,
        purpose: str,
        mechanism: Mechanism,
        event: Event,
        unit: PrivacyUnit = "image",
    ) -> LedgerEntry:
        """Writes and returns a new entry; when it returns, the entry is on disk.

        Raises:
            PolicyError: the ledger was cut, so nothing may be spent on top of it.
        """
        drop_torn_line(self._path)
        entries = self.entries()
        entry = LedgerEntry(
            index=len(entries),
            previous_sha256=sha256_hex(entries[-1].to_json()) if entries else None,
            recorded_at=today(),
            plan_sha256=plan_sha256,
            purpose=purpose,
            mechanism=mechanism,
            event=event,
            unit=unit,
            nonce=secrets.token_hex(8),
        )
        append_durably(self._path, entry.to_json())
        self._bring_copy_up_to_date()
        return entry

    def _bring_copy_up_to_date(self) -> None:
        """Appends to the copy what it lacks: after the ledger, so that a kill makes it lag only."""
        if self._copy is None:
            return
        drop_torn_line(self._copy)
        held = len(_lines(self._copy)[1])
        for line in _lines(self._path)[1][held:]:
            append_durably(self._copy, line)


def _lines(path: Path) -> tuple[bytes, list[bytes]]:
    """Returns the whole lines of `path`, as they stand there and each without its line feed.

    A kill while appending leaves a last line without its line feed: it was never spent, because
    nothing is released before the line is on disk.
    """
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    return whole, whole.split(b"\n")[:-1]


def read_entries(path: Path) -> tuple[LedgerEntry, ...]:
    """Returns the entries in `path`, none if there is no such file; nothing of them is checked.

    Raises:
        MalformedError: a line cannot be read.
    """
    return tuple(
        LedgerEntry.from_json(line, what=f"ledger line {number}")
        for number, line in enumerate(_lines(path)[1], start=1)
    )


def _cut(
    entries: Sequence[LedgerEntry],
    source: str,
    known: Sequence[LedgerEntry],
    count: int | None = None,
) -> PolicyError:
    kept = sum(1 for old, new in zip(known, entries, strict=False) if old == new)
    lost = known[kept:]
    since = f"; the first that is missing is of {lost[0].recorded_at:%Y-%m-%d}" if lost else ""
    return PolicyError(
        f"the ledger has {len(entries)} entries and does not go on from the {count or len(known)} "
        f"that {source} knows: it was cut, exchanged, or restored from a backup{since}",
        hint="what was spent stays spent: put the whole ledger.jsonl back, or run `ddm-site ledger "
        "--recover`, which takes what is missing from what remembers it",
    )


def open_ledger(site: SiteFolder, log: Log | None = None) -> SiteLedger:
    """Returns the site's ledger, which has to extend whatever the site signed or the log admitted.

    Args:
        site: The site.
        log: The log, as far as the site knows it.
    """
    return SiteLedger(
        site.path / LEDGER_FILE,
        float(site.settings.max_epsilon),
        copy=site.keys / LEDGER_FILE,
        known=(*signed_ledgers(site), *admitted_ledgers(site, log)),
    )


def signed_ledgers(site: SiteFolder) -> list[KnownLedger]:
    """Returns the ledgers in what lies in the outbox with a signature of this site."""
    found = []
    for folder in (*find_folders(site.drafts), *find_folders(site.released)):
        envelope = folder / SUBMISSION_FILE
        if envelope.is_file():
            with suppress(RefusedError):  # nobody's, or damaged: it vouches for nothing
                found.append(signed_ledger(site, envelope, f"the signed bundle {folder.name[:16]}"))
    return found


def find_folders(folder: Path) -> list[Path]:
    """Returns the bundle folders in `folder`; unfinished ones are not bundles."""
    return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]


def signed_ledger(site: SiteFolder, envelope: Path, source: str) -> KnownLedger:
    """Returns the ledger in a manifest that this site signed, with any key it ever had.

    Raises:
        RefusedError: it is no manifest, or none of this site's.
    """
    data = read_bounded(envelope, MAX_DOCUMENT_BYTES)
    own = [public_of(file) for file in key_files(site.keys, "site")]
    signed = open_envelope(data, IN_TOTO_PAYLOAD, own, what=str(envelope))
    entries = Statement[Submission].from_json(signed.payload, what=str(envelope))
    ledger = entries.predicate.privacy.ledger
    check_chain(ledger)
    return KnownLedger(source, ledger_head(ledger), ledger)


def admitted_ledgers(site: SiteFolder, log: Log | None) -> list[KnownLedger]:
    """Returns the heads of the site's ledgers that the log admitted."""
    if log is None:
        return []
    return [
        KnownLedger(f"entry {entry.index} of the log", receipt.ledger)
        for entry, receipt in log.counted(site.settings.name)
        if receipt.ledger is not None
    ]

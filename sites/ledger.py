"""The site's ledger on disk: append-only, chained, and durable before anything is released."""

import os
from collections.abc import Sequence
from pathlib import Path

from ddm_fed.errors import BudgetError, PolicyError
from ddm_fed.files import append_durably
from ddm_fed.privacy import check_chain, epsilon, private_events
from ddm_fed.records import Event, LedgerEntry, Mechanism, Plan, PrivacyUnit, sha256_hex, today
from sites.folder import SiteFolder


class SiteLedger:
    """All a site ever released, over all plans: they speak of the same images.

    Args:
        path: `ledger.jsonl`.
        max_epsilon: The site's own limit.
    """

    def __init__(self, path: Path, max_epsilon: float) -> None:
        self._path = path
        self._max_epsilon = max_epsilon

    def entries(self) -> tuple[LedgerEntry, ...]:
        """Returns all entries, oldest first.

        Raises:
            PolicyError: the chain is broken.
            MalformedError: a line cannot be read.
        """
        if not self._path.exists():
            return ()
        lines = self._path.read_bytes().split(b"\n")
        # A kill while appending leaves a last line without its line feed: it was never spent,
        # because nothing is released before the line is on disk.
        entries = tuple(
            LedgerEntry.from_json(line, what=f"ledger line {number}")
            for number, line in enumerate(lines[:-1], start=1)
        )
        check_chain(entries)
        return entries

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
        """Writes and returns a new entry; when it returns, the entry is on disk."""
        self._drop_torn_line()
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
        )
        append_durably(self._path, entry.to_json())
        return entry

    def _drop_torn_line(self) -> None:
        if self._path.exists():
            data = self._path.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole != len(data):
                os.truncate(self._path, whole)


def open_ledger(site: SiteFolder) -> SiteLedger:
    """Returns the site's ledger."""
    return SiteLedger(site.path / "ledger.jsonl", float(site.settings.max_epsilon))

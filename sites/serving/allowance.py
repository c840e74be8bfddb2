"""How much a site has answered and goes on to answer: on disk before an answer is computed.

`private/PLAN/served.jsonl`, appended and never rewritten:

    {"at": …, "evaluations": 8, "question": SHA-256, "total": 1208}     charged, before computing
    {"answer": SHA-256, "question": SHA-256}                            what was answered

A question is charged once, however often it is asked, and is answered once in the same bits or not
at all. A kill between the two lines gives nothing back. The limit is one of amount: it says nothing
of what an answer tells.
"""

import json
from pathlib import Path
from threading import Lock
from typing import Any

from ddm_fed.errors import BudgetError, StateError
from ddm_fed.records import canonical_json, now
from ddm_fed.storage.files import append_durably, drop_torn_line


class Allowance:
    """What is left of a plan's `expert.remote.evaluations`. One process at a time may hold it.

    Args:
        file: The log; made where it is missing.
        most: Evaluations in all.

    Attributes:
        spent: Evaluations so far.

    Raises:
        StateError: the log was edited.
    """

    def __init__(self, file: Path, most: int) -> None:
        self._file, self._most, self._lock = file, most, Lock()
        self.spent = 0
        self._answers: dict[str, str | None] = {}  # of every question that was charged
        drop_torn_line(file)  # of a question that was not answered: what is charged has its line
        for number, line in enumerate(file.read_bytes().splitlines() if file.exists() else (), 1):
            self._take(line, number)

    def _take(self, line: bytes, number: int) -> None:
        try:
            entry: dict[str, Any] = json.loads(line)
            question: str = entry["question"]
            if "answer" in entry:
                self._answers[question] = entry["answer"]
                return
            total: int = self.spent + entry["evaluations"]
            if entry["evaluations"] > 0 and entry["total"] == total:
                self.spent, self._answers[question] = total, None
                return
        except (ValueError, KeyError, TypeError):
            pass
        raise StateError(
            f"line {number} of {self._file} does not follow the ones before it",
            hint="it was edited or cut: restore it from backup; it says what was answered",
        )

    @property
    def left(self) -> int:
        """Evaluations that may still be charged."""
        return self._most - self.spent

    def charge(self, question: str, evaluations: int) -> bool:
        """Pays for a question; on return that is on disk. Returns whether it was paid for before.

        Raises:
            BudgetError: too little is left. Nothing is charged.
        """
        with self._lock:
            if question in self._answers:
                return True
            if evaluations > self.left:
                raise BudgetError(
                    f"the allowance is spent: {self.spent} of {self._most} evaluations were "
                    f"answered under this plan, this question needs {evaluations}",
                    hint="agree on a new plan with a larger `expert.remote.evaluations`; what was "
                    "asked before is answered again at no cost",
                )
            total = self.spent + evaluations
            entry = {
                "at": f"{now():%Y-%m-%dT%H:%M:%SZ}",
                "evaluations": evaluations,
                "question": question,
                "total": total,
            }
            self._append(entry)
            self.spent, self._answers[question] = total, None
            return False

    def answered(self, question: str, answer: str) -> None:
        """Notes the digest of the answer to a question that was paid for.

        Raises:
            StateError: the same question had another answer before.
        """
        with self._lock:
            before = self._answers[question]
            if before is None:
                self._append({"answer": answer, "question": question})
                self._answers[question] = answer
            elif before != answer:
                raise StateError(
                    "this machine would now answer a question otherwise than before, in the last "
                    "bits: it answers no question twice in two ways",
                    hint="serve on the machine, with the number of threads and the versions that "
                    "answered first; or ask with another seed, which is charged",
                )

    def _append(self, entry: dict[str, Any]) -> None:
        drop_torn_line(self._file)  # a full disk may have left one
        append_durably(self._file, canonical_json(entry))
